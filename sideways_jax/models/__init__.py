"""Networks, each a list of layers that is cut into modules: those of the paper (section 4.3),
ResNets, DenseNet-121, GoogLeNet and ViT-S/16.

`merging` has layers for modules that hear shortcuts.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from sideways_jax.models import pretrained, resnet, vit
from sideways_jax.models.autoencoder import autoencoder
from sideways_jax.models.densenet import densenet121
from sideways_jax.models.googlenet import googlenet
from sideways_jax.models.merging import Add, Concatenate, GatedAdd
from sideways_jax.models.resnet import resnet18, resnet50
from sideways_jax.models.simple_cnn import simple_cnn
from sideways_jax.models.vgg import vgg8
from sideways_jax.models.vit import vit_s16
from sideways_jax.network.network import Network
from sideways_jax.tools.names import check_name

__all__ = [
    "NETWORKS",
    "PRETRAINED",
    "Add",
    "Concatenate",
    "GatedAdd",
    "autoencoder",
    "densenet121",
    "googlenet",
    "make",
    "resnet18",
    "resnet50",
    "simple_cnn",
    "vgg8",
    "vit_s16",
    "with_weights",
]

# Classifiers by name; `autoencoder` is for the other task.
NETWORKS: dict[str, Callable[..., Network]] = {
    "simple_cnn": simple_cnn,
    "vgg8": vgg8,
    "resnet18": resnet18,
    "resnet50": resnet50,
    "densenet121": densenet121,
    "googlenet": googlenet,
    "vit_s16": vit_s16,
}
# The layouts of files with pretrained weights, for a number of layers.
PRETRAINED: dict[str, Callable[[int], pretrained.Layout]] = {
    "resnet18": lambda _: resnet.layout("resnet18"),
    "resnet50": lambda _: resnet.layout("resnet50"),
    "vit_s16": vit.layout,
}


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
    ValueError: unknown network 'simple_cn'; did you mean 'simple_cnn'? Valid: 'simple_cnn', \
'vgg8', 'resnet18', 'resnet50', 'densenet121', 'googlenet', 'vit_s16'
    """
    check_name("network", name, NETWORKS)
    arguments = [n for n in inspect.signature(NETWORKS[name]).parameters if n != "num_classes"]
    for argument in kwargs:
        check_name(f"argument of {name}", argument, arguments)
    return NETWORKS[name](num_classes, **kwargs)


def with_weights(
    name: str, tensors: Mapping[str, Any], params: tuple, state: tuple
) -> pretrained.Fitted:
    """Pretrained weights in the layout of Hugging Face's `transformers`, in the place of others.

    Args:
      name: of the network, one of `PRETRAINED`.
      tensors: the arrays of the file, such as `safetensors.flax.load_file(file)`.
      params, state: of the network, cut in any way. Where the file has another number of classes,
        the head stays what it is.

    Raises:
      ValueError: if there is no layout for this network; and for arrays that are missing, not known
        or of another shape, with their names.
    """
    check_name("network with pretrained weights", name, PRETRAINED)
    return pretrained.fit(PRETRAINED[name](pretrained.num_layers(params)), tensors, params, state)
