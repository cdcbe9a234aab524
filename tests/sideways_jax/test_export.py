"""Exported programs give what the network gives, for any number of frames."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from sideways_jax import Module, Network, export, from_linen, models

pytestmark = pytest.mark.usefixtures("quick_compile")


class Merge(nn.Module):
    @nn.compact
    def __call__(self, x):
        older, newer = x
        both = jnp.concatenate([older, newer], axis=-1)
        return nn.Dense(3)(nn.Conv(4, (3, 3))(both).mean(axis=(1, 2)))


NETWORKS = {
    "simple_cnn": lambda: models.simple_cnn(4, widths=(4, 4, 4, 4, 4), cut=(2, 2, 2)),
    "vgg8": lambda: models.vgg8(
        4, widths=(4, 4, 4, 4, 4), hidden=(8, 8), dropout_rate=0.5, cut=(4, 4)
    ),
    "autoencoder": lambda: models.autoencoder(widths=(4, 4, 4, 4, 4), normalise=True),
    "shortcut": lambda: Network(
        [from_linen(nn.Conv(4, (3, 3))), from_linen(Merge())], shortcuts=[(-1, 1)]
    ),
}


@pytest.mark.parametrize(
    "name",
    [
        "simple_cnn",
        "shortcut",
        pytest.param("vgg8", marks=pytest.mark.full),
        pytest.param("autoencoder", marks=pytest.mark.full),
    ],
)
def test_the_same_as_the_network(name):
    network = NETWORKS[name]()
    kind = np.float32 if name == "shortcut" else np.uint8
    size = 32 if name == "vgg8" else 16
    frames = np.random.default_rng(0).integers(0, 255, (5, size, size, 3)).astype(kind)
    params, state = jax.jit(network.init)(jax.random.key(0), frames)
    exported = export.per_frame(network, params, state, frames[:2])
    assert set(exported.platforms) == set(export.PLATFORMS)
    apply = jax.jit(lambda frames: network.apply(params, state, frames)[0])
    for count in (1, 5):  # Neither is the number that it was made from.
        np.testing.assert_allclose(
            exported.call(frames[:count]), apply(frames[:count]), rtol=1e-5, atol=1e-6
        )

    start, step = export.pipelined(network, params, state, frames[:1])
    signals, found = start.call(), {}
    for number, frame in enumerate(frames):
        reset = np.array([number == 3])  # Two streams, of three and of two frames.
        signals, output, of_frame = step.call(signals, frame[None], reset)
        if of_frame[0] >= 0:
            found[int(of_frame[0])] = output[0]
    assert set(found) == {n for n in range(5) if n + network.depth <= (3 if n < 3 else 5)}
    if name != "shortcut":  # Which brings newer frames in a pipeline.
        for number, output in found.items():
            np.testing.assert_allclose(output, apply(frames)[number], rtol=1e-4, atol=1e-5)


def test_what_does_not_fit_is_an_error_of_the_library():
    network = NETWORKS["simple_cnn"]()
    params, state = network.init(jax.random.key(0), np.zeros((1, 16, 16, 3), np.uint8))
    with pytest.raises(ValueError, match="module 0"):
        export.per_frame(network, params, state, np.zeros((1, 16, 16, 5), np.uint8))

    def count(params, state, x, *, train, rng):
        return x, state + 1

    memory = Network([Module(lambda key, x: ((), jnp.zeros(())), count)])
    with pytest.raises(ValueError, match="changes its state in evaluation"):
        export.pipelined(memory, ((),), (jnp.zeros(()),), np.zeros((1, 2), np.float32))
