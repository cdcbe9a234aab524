"""Sideways: depth-parallel training of video models, in JAX."""

from sideways_jax import step
from sideways_jax.devices.mesh import make_mesh
from sideways_jax.models.conv import conv_general_dilated
from sideways_jax.network import Module, Network, cut, from_linen, from_nnx, sequential
from sideways_jax.splitting import boundary, split
from sideways_jax.step import Pipeline, ProgramPerDevice, Scan, TimeParallel
from sideways_jax.version import __version__

__all__ = [
    "Module",
    "Network",
    "Pipeline",
    "ProgramPerDevice",
    "Scan",
    "TimeParallel",
    "__version__",
    "boundary",
    "conv_general_dilated",
    "cut",
    "from_linen",
    "from_nnx",
    "make_mesh",
    "sequential",
    "split",
    "step",
]
