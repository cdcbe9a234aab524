"""More than one process, by `jax.distributed` and nothing of our own."""

from __future__ import annotations

import os
import socket
import sys
from typing import NamedTuple

import jax
from absl import flags

_COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "HOST:PORT of process 0; with --num_processes and --process_id."
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "How many processes there are in all.")
_PROCESS_ID = flags.DEFINE_integer("process_id", None, "The number of this one, from 0.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "Find the other processes through Slurm, Open MPI, Kubernetes, Cloud TPU."
)
HEARTBEAT_SECONDS = 20  # A process that says nothing for so long is taken for dead.


class Cluster(NamedTuple):
    """Where the other processes are. All None: the environment says so, as Slurm's does."""

    coordinator_address: str | None
    num_processes: int | None
    process_id: int | None


def given() -> Cluster | None:
    """What the flags say, for `main`; None if they name no other process.

    Raises:
      ValueError: if only some of the three flags are given.
    """
    cluster = Cluster(_COORDINATOR.value, _NUM_PROCESSES.value, _PROCESS_ID.value)
    given = [value is not None for value in cluster]
    if any(given) and not all(given):
        raise ValueError(
            "--coordinator_address, --num_processes and --process_id belong together: give all "
            "three, or --distributed alone where Slurm, Open MPI, Kubernetes or Cloud TPU tell them"
        )
    return cluster if any(given) or _DISTRIBUTED.value else None


def initialize(cluster: Cluster) -> None:
    """Connects to the other processes. Has to be called before JAX is first asked for a device.

    Raises:
      ValueError: if the environment should name the others and does not, or if the address is no
        HOST:PORT, or its port is in use.
    """
    if cluster.coordinator_address is not None:
        _check_port(cluster.coordinator_address, bind=cluster.process_id == 0)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    # It would put a handler for SIGTERM in the place of ours.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            *cluster,
            # What is given needs no search, which would hide all GPUs but one under Slurm, and warn
            # under Kubernetes.
            cluster_detection_method="deactivate" if cluster.coordinator_address else None,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=120,
        )
    except ValueError as error:
        raise ValueError(
            f"--distributed found no cluster environment ({error}): start the program with srun, "
            "mpirun or the like, or give --coordinator_address, --num_processes and --process_id"
        ) from error


def _check_port(address: str, *, bind: bool) -> None:
    """Raises ValueError for an address without a port, or, where it is bound, with one in use."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise ValueError(f"--coordinator_address={address} must be HOST:PORT, such as node0:1234")
    if not bind:
        return
    family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    try:
        socket.create_server(("", int(port)), family=family,
                             dualstack_ipv6=family == socket.AF_INET6).close()  # fmt: skip
    except OSError as error:
        raise ValueError(
            f"port {port} of --coordinator_address={address} cannot be had on this machine "
            f"({error.strerror}): give another one"
        ) from error


def explain(error: Exception) -> str:
    """The error for the user; when another process is gone, that is what matters."""
    # Orbax passes the same failure on as another type of error.
    lost = isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error)
    if jax.process_count() == 1 or not lost:
        return str(error)
    return (
        f"process {jax.process_index()} of {jax.process_count()} lost the others: one of them has "
        f"ended, or did not answer in time ({str(error).splitlines()[0][:200]}). What was saved is "
        "there; run the same command again to go on from the last checkpoint"
    )


def leave(code: int) -> int:
    """Ends this process at once if there are others: the orderly way would wait for them."""
    if jax.process_count() > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code
