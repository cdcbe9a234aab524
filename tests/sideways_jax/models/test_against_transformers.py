"""Random weights of the networks of Hugging Face's `transformers`: the same logits here.

python -m pip install -e '.[weights-test]' && pytest -m weights
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sideways_jax import models
from sideways_jax.models import safetensors

pytestmark = [pytest.mark.weights, pytest.mark.filterwarnings("default")]


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def resnet(transformers, layer_type, depths, hidden_sizes):
    config = transformers.ResNetConfig(
        layer_type=layer_type, depths=depths, hidden_sizes=hidden_sizes, num_labels=1000
    )
    return transformers.ResNetForImageClassification(config)


def vit(transformers):
    config = transformers.ViTConfig(
        hidden_size=384, num_attention_heads=6, intermediate_size=1536, num_labels=1000
    )
    return transformers.ViTForImageClassification(config)


NETWORKS = {
    "resnet18": lambda t: resnet(t, "basic", [2, 2, 2, 2], [64, 128, 256, 512]),
    "resnet50": lambda t: resnet(t, "bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    "vit_s16": vit,
}


@pytest.mark.parametrize("name", NETWORKS)
def test_logits(name, torch, transformers, tmp_path):
    """At 224x224 pixels, with running statistics of a few batches, from the file that it saves."""
    torch.manual_seed(0)
    network = NETWORKS[name](transformers)
    numbers = np.random.default_rng(0)
    pixels = numbers.integers(256, size=(2, 224, 224, 3), dtype=np.uint8)
    colours = models.vit.CENTRED if name == "vit_s16" else models.resnet.IMAGENET
    floats = (pixels / 255 - np.array(colours.mean)) / np.array(colours.std)
    given = torch.tensor(floats.transpose(0, 3, 1, 2), dtype=torch.float32)
    with torch.no_grad():
        for parameter in network.parameters():  # Biases and scales begin with zeros and ones.
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
        network.train()
        for _ in range(3):
            network(given)
        network.eval()
        expected = network(given).logits.numpy()
    network.save_pretrained(tmp_path)

    ours = models.make(name, 1000)
    variables = jax.eval_shape(
        ours.init, jax.random.key(0), jax.ShapeDtypeStruct(pixels.shape, jnp.uint8)
    )
    tensors = safetensors.read(tmp_path / "model.safetensors")
    fitted = models.with_weights(name, tensors, *variables)
    assert not fitted.new_head
    logits, _ = jax.jit(ours.apply)(fitted.params, fitted.state, jnp.asarray(pixels))
    difference = np.abs(np.asarray(logits) - expected).max()
    print(
        f"{name}: largest difference {difference:.2g}, largest logit {np.abs(expected).max():.2g}"
    )
    assert difference < 1e-4
    assert (np.asarray(logits).argmax(-1) == expected.argmax(-1)).all()
