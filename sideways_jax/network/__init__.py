"""Modules, networks of modules, and adapters from Flax."""

from sideways_jax.network.linen import from_linen
from sideways_jax.network.network import Module, Network, cut, sequential
from sideways_jax.network.nnx import from_nnx

__all__ = ["Module", "Network", "cut", "from_linen", "from_nnx", "sequential"]
