"""The networks of the paper (section 4.3), each a list of layers that is cut into modules."""

from __future__ import annotations

import inspect
from typing import Any

from sideways_jax.models.autoencoder import autoencoder
from sideways_jax.models.simple_cnn import simple_cnn
from sideways_jax.models.vgg import vgg8
from sideways_jax.network.network import Network
from sideways_jax.tools.names import check_name

__all__ = ["NETWORKS", "autoencoder", "make", "simple_cnn", "vgg8"]

# Classifiers by name; `autoencoder` is for the other task.
NETWORKS = {"simple_cnn": simple_cnn, "vgg8": vgg8}


def make(name: str, num_classes: int, **kwargs: Any) -> Network:
    """Makes a network by its name.

    Args:
      name: one of `NETWORKS`.
      num_classes: how many logits.
      **kwargs: the other arguments of that network.

    Raises:
      ValueError: if there is no such network, or if it has no such argument.

    >>> make("simple_cnn", num_classes=10, cut=(3, 3)).depth
    2
    >>> make("simple_cn", num_classes=10)
    Traceback (most recent call last):
        ...
    ValueError: unknown network 'simple_cn'; did you mean 'simple_cnn'? Valid: 'simple_cnn', 'vgg8'
    """
    check_name("network", name, NETWORKS)
    arguments = [n for n in inspect.signature(NETWORKS[name]).parameters if n != "num_classes"]
    for argument in kwargs:
        check_name(f"argument of {name}", argument, arguments)
    return NETWORKS[name](num_classes, **kwargs)
