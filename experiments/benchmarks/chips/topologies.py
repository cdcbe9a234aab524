"""Devices to compile for that are not there, and how to compile for them."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
from collections.abc import Mapping
from typing import NamedTuple

import jax
from jax.experimental import topologies


class Chip(NamedTuple):
    """What the estimates of time take from the data sheet of a chip."""

    clock: float  # Hz, of the compiler's cycles
    memory: float  # bytes/s, of the chip's memory: 90% of the data sheet
    on_chip: float  # bytes/s
    link: float  # bytes/s to a neighbour, one way: 90% of the data sheet


# v5e was compared with the rate of a large product of matrices and with machine code; the others
# are computed from their data sheets alone: the clock from the peak rate of the matrix units.
CHIPS = {
    "v4": Chip(clock=1.05e9, memory=1105e9, on_chip=2.6e12, link=45e9),
    "v5e": Chip(clock=1.5e9, memory=737e9, on_chip=2.6e12, link=45e9),
    "v5p": Chip(clock=1.75e9, memory=2488e9, on_chip=5e12, link=90e9),
    "v6e": Chip(clock=1.75e9, memory=1476e9, on_chip=5e12, link=100e9),
}
# What libtpu asks of a machine with TPUs; the answers here keep it from asking.
ENVIRONMENT = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
}
GPU_OPTIONS = {  # Nothing is tried out on a GPU that is not there.
    "xla_gpu_autotune_level": 0,
    "xla_gpu_enable_triton_gemm": False,
    "xla_gpu_enable_latency_hiding_scheduler": True,
}
# An H100 SXM for XLA's GpuTargetConfigProto; numbers of the data sheet and the CUDA guide.
H100 = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 device_memory_size: 84942979072
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  cuda_compute_capability { major: 9 } device_address_bits: 64
  name: "NVIDIA H100 80GB HBM3" device_vendor: "NVIDIA Corporation"
  driver_version: "12.8.0" runtime_version: "12.8.0" compile_time_toolkit_version: "12.8.0"
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


class Topology(NamedTuple):
    """Devices to compile for."""

    devices: list[jax.Device]
    options: Mapping[str, object]  # of the compiler
    chip: Chip | None  # None: no time is estimated

    @property
    def is_one_host(self) -> bool:
        """Whether one process sees all devices, as a program per device needs it."""
        return len({device.process_index for device in self.devices}) == 1


def check(name: str) -> None:
    """Raises ValueError if what compiles for this topology is not installed."""
    package, extra = ("libtpu", "tpu-compile")
    if is_gpu(name):
        package, extra = ("jax_cuda12_plugin", "cuda-compile")
    if importlib.util.find_spec(package) is None:
        raise ValueError(
            f"--topology={name} needs the compiler of {package}, which is not installed: "
            f"pip install -e '.[experiments,{extra}]', in an environment of its own"
        )


def version(name: str) -> str:
    """The compiler of a topology, for a table."""
    package = "jax-cuda12-plugin" if is_gpu(name) else "libtpu"
    return f"{package} {importlib.metadata.version(package)}"


def is_gpu(name: str) -> bool:
    """Whether a name is one of GPUs, "h100:8" say."""
    return name.startswith("h100")


def _on_one_host(name: str) -> dict[str, tuple[int, ...]]:
    """Up to eight v5e or v6e chips are on one host; libtpu would put four on each.

    >>> _on_one_host("v5e:2x4"), _on_one_host("v5e:4x4"), _on_one_host("v4:2x2x1")
    ({'chips_per_host_bounds': (2, 4, 1)}, {}, {})
    """
    kind, _, grid = name.partition(":")
    sides = tuple(int(x) for x in grid.split("x") if x.isdigit())
    if kind not in ("v5e", "v6e") or len(sides) != 2 or math.prod(sides) > 8:
        return {}
    return {"chips_per_host_bounds": (*sides, 1)}


def topology(name: str) -> Topology:
    """The devices of a topology; JAX's default device becomes a CPU.

    Args:
      name: "v5e:2x4" and others that libtpu knows, or "h100:8" for eight GPUs of one host.

    Raises:
      ValueError: for a name that is not known, or without the packages.
    """
    check(name)
    jax.config.update("jax_platforms", "cpu")
    for variable, value in ENVIRONMENT.items():
        os.environ.setdefault(variable, value)
    try:
        if is_gpu(name):
            count = int(name.removeprefix("h100:"))
            found = topologies.get_topology_desc(
                platform="cuda", target_config=H100, topology=f"1x1x{count}"
            )
        else:
            found = topologies.get_topology_desc(
                platform="tpu", topology_name=name, **_on_one_host(name)
            )
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"--topology={name} is unknown ({str(error).splitlines()[0]}); try v5e:2x4, v4:2x2x1, "
            "v5p:2x2x2 or h100:8"
        ) from error
    options = GPU_OPTIONS if is_gpu(name) else {}
    return Topology(list(found.devices), options, CHIPS.get(name.partition(":")[0]))
