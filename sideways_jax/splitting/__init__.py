"""Existing models, cut into modules: by their traced program, whatever they are written in."""

from sideways_jax.splitting.boundary import boundary
from sideways_jax.splitting.split import split
from sideways_jax.splitting.split_network import SplitNetwork

__all__ = ["SplitNetwork", "boundary", "split"]
