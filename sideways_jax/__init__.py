"""Sideways: depth-parallel training of video models, in JAX."""

from sideways_jax import step
from sideways_jax.conv import conv_general_dilated
from sideways_jax.linen import from_linen
from sideways_jax.mesh import make_mesh
from sideways_jax.network import Module, Network, cut, sequential
from sideways_jax.nnx import from_nnx
from sideways_jax.version import __version__

__all__ = [
    "Module",
    "Network",
    "__version__",
    "conv_general_dilated",
    "cut",
    "from_linen",
    "from_nnx",
    "make_mesh",
    "sequential",
    "step",
]
