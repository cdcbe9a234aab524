"""Where a run computes: on one device, or its modules spread over a mesh of several."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from sideways_jax import Network, make_mesh
from sideways_jax.devices.mesh import DATA, DEPTH
from sideways_jax.step import ProgramPerDevice, per_module
from sideways_jax.tools.names import check_name
from sideways_jax.training.train_state import TrainState

EXECUTIONS = ("auto", "scan", "time_parallel", "depth_sharded", "program_per_device")
ON_MESHES = ("depth_sharded", "program_per_device")
BY_BATCHES = ("scan", "time_parallel")  # these divide batches of clips


class Execution(NamedTuple):
    """How `config.execution` came out for the devices at hand."""

    name: str  # one of `EXECUTIONS`, but not "auto"
    mesh: Mesh | None
    groups: tuple[int, ...] | None  # modules of each device, by hand
    share: int  # which share of every batch this process feeds ...
    num_shares: int  # ... and of how many

    def arguments(
        self, schedule: str | None = None, recompute: bool | None = None
    ) -> dict[str, Any]:
        """For `step.make_train_step`."""
        if not self.is_jitted:
            options = self.mesh, self.groups, schedule, recompute
            return {"execution": ProgramPerDevice(*options, donate=True)}
        where = {"execution": self.name, "mesh": self.mesh, "groups": self.groups}
        return where | {"schedule": schedule, "recompute": recompute}

    @property
    def is_jitted(self) -> bool:
        """Whether a train step is one program; otherwise it dispatches programs of its own."""
        return self.name != "program_per_device"

    def described(self, schedule: str) -> str:
        """The execution, with what else says where it ran."""
        if self.mesh is None:
            return self.name
        shape = " x ".join(f"{name} {size}" for name, size in self.mesh.shape.items())
        return " ".join(filter(None, (self.name, schedule, f"({shape})")))

    def chosen(self, asked: str) -> str:
        """The name, and that "auto" chose it if that was asked for."""
        return f"auto: {self.name}" if asked == "auto" else self.name

    def put(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Hands a batch to the devices, this process's share of it `[B / num_shares, ...]`.

        Every device gets the examples of its row of the mesh. They are cut out of the share by
        their numbers in the whole batch: a share may have more rows than this process holds.
        """
        if self.mesh is None or not self.is_jitted:
            return jax.device_put(batch)
        data = DATA if self.mesh.shape[DATA] > 1 else None
        sharding = NamedSharding(self.mesh, PartitionSpec(data))

        def spread(values):
            size = len(values) * self.num_shares
            first = len(values) * self.share

            def of_device(index):
                start, stop, _ = index[0].indices(size)
                return values[start - first : stop - first]

            return jax.make_array_from_callback((size, *values.shape[1:]), sharding, of_device)

        return {name: spread(values) for name, values in batch.items()}


def force_cpu_devices(config: ConfigDict) -> None:
    """Gives the CPU as many devices as the mesh wants; before JAX is first asked for one.

    They share its cores, so that this shows how a pipeline works and not how fast. It changes
    nothing where there is an accelerator.
    """
    wanted = max(config.mesh.depth, 1) * max(config.mesh.data, 1)
    if wanted > 1 and config.execution in EXECUTIONS:
        jax.config.update("jax_num_cpu_devices", wanted)


def choose(config: ConfigDict, depth: int, *, streams: bool = False) -> Execution:
    """Chooses for a network of `depth` modules.

    `execution="auto"` takes "time_parallel" for clips: on all devices if they divide the batch. For
    streams, and where `mesh.depth` asks for it, it spreads the modules over the devices, with a
    program for each if one process sees all of them. `mesh.depth=0` stands for as many as there
    are.

    Args:
      config: of the run.
      depth: D.
      streams: whether there are streams to learn from, not clips.

    Raises:
      ValueError: for an unknown name, and for a mesh that is not used, or that needs more devices
        than there are.
    """
    name, mesh = config.execution, config.mesh
    check_name("execution", name, EXECUTIONS)
    replicas = max(mesh.data, 1)
    if name == "auto":
        name, replicas = _best(config, streams=streams)
    divides = name in BY_BATCHES and not streams
    if divides and replicas > 1 and mesh.depth <= 1 and not mesh.groups:
        return _on_mesh(name, make_mesh(1, replicas), None)
    if name not in ON_MESHES:
        if max(mesh.depth, 1) * replicas > 1 or mesh.groups:
            raise ValueError(
                f"execution={name!r} runs on one device, but mesh.depth={mesh.depth}, "
                f"mesh.data={mesh.data}, mesh.groups={mesh.groups}: set execution='depth_sharded', "
                "or leave the mesh alone"
            )
        if jax.process_count() > 1:
            raise ValueError(
                f"execution={name!r} runs on one device, but there are {jax.process_count()} "
                "processes: set execution='depth_sharded'"
            )
        return Execution(name, None, None, 0, 1)
    if name == "program_per_device" and jax.process_count() > 1:
        raise ValueError(
            "execution='program_per_device' is for one process that sees all devices, but there "
            f"are {jax.process_count()} processes: set execution='depth_sharded'"
        )
    made = make_mesh(mesh.depth or min(depth, max(jax.device_count() // replicas, 1)), replicas)
    return _on_mesh(name, made, tuple(mesh.groups) or None)


def _best(config: ConfigDict, *, streams: bool) -> tuple[str, int]:
    """What "auto" stands for, and into how many parts batches are divided."""
    mesh, devices = config.mesh, jax.device_count()
    if not streams and mesh.depth <= 1 and not mesh.groups:
        shares = (n for n in range(devices, 0, -1) if config.data.batch_size % n == 0)
        replicas = mesh.data if mesh.data > 1 else next(shares)
        # Several processes take part all or none.
        if devices == 1 or replicas == devices or (replicas > 1 and jax.process_count() == 1):
            return "time_parallel", replicas
    if max(mesh.depth, 1) * max(mesh.data, 1) == devices == 1:
        return ("scan" if streams else "time_parallel"), 1
    several = "program_per_device" if jax.process_count() == 1 else "depth_sharded"
    return several, max(mesh.data, 1)


def _on_mesh(name: str, made: Mesh, groups: tuple[int, ...] | None) -> Execution:
    replicas = made.shape[DATA]
    used = {device.process_index for device in made.devices.flat}
    if len(used) < jax.process_count():
        raise ValueError(
            f"a mesh of data={replicas} x depth={made.shape[DEPTH]} uses the devices of "
            f"{len(used)} processes, there are {jax.process_count()}: start fewer, or set "
            "mesh.depth and mesh.data to use all of their devices"
        )
    holders = [{device.process_index for device in row} for row in made.devices]
    held = [n for n, processes in enumerate(holders) if jax.process_index() in processes]
    return Execution(name, made, groups, *share_of(held, replicas))


def share_of(held: Sequence[int], num_rows: int) -> tuple[int, int]:
    """The smallest share of a batch with all that a process has to feed: `(share, num_shares)`.

    A batch is cut into equal shares, one of which every process loads. It has to contain the
    examples of all rows of the mesh that the process holds devices of, whole or in part. Where rows
    straddle processes unevenly, that may be the whole batch: `(0, 1)`.

    Args:
      held: the rows, in ascending order.
      num_rows: how many the mesh has, the size of its axis `data`.

    >>> share_of([2, 3], num_rows=4)
    (1, 2)
    >>> share_of([1, 2], num_rows=4)  # 3 processes of 4 devices: 3 devices are a row.
    (0, 1)
    """
    num_shares = next(
        count
        for count in range(num_rows, 0, -1)
        if num_rows % count == 0
        and held[0] // (num_rows // count) == held[-1] // (num_rows // count)
    )
    return held[0] // (num_rows // num_shares), num_shares


def conversions(
    execution: Execution, network: Network, tx, frame: jax.ShapeDtypeStruct
) -> tuple[Callable[[TrainState], TrainState], Callable[[TrainState], TrainState]]:
    """To and from the `TrainState` with a pytree for every module, which is what is saved.

    Args:
      execution, network, tx: of the run.
      frame: the shape of a whole batch of frames.
    """
    if not execution.is_jitted:  # A train step puts what is elsewhere in its place.
        return on_host, lambda train_state: train_state
    if execution.mesh is None:
        return lambda train_state: train_state, lambda train_state: train_state
    if execution.name in BY_BATCHES:
        everywhere = NamedSharding(execution.mesh, PartitionSpec())
        return on_host, lambda train_state: jax.device_put(train_state, everywhere)
    return per_module(network, tx, execution.mesh, frame, execution.groups)


def on_host(train_state: TrainState) -> TrainState:
    """In host memory, but for keys, which NumPy has not, and what other processes have as well."""

    def one(x):
        is_key = jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
        return x if is_key or jax.process_count() > 1 else np.asarray(x)

    return jax.tree.map(one, train_state)


def on_this_process(tree):
    """Arrays that every device has, or that are in host memory, on one device of this process."""

    def local(x):
        if isinstance(x, jax.Array):
            return x if x.is_fully_addressable else x.addressable_data(0)
        return jax.device_put(x, jax.local_devices()[0])

    return jax.tree.map(local, tree)
