"""from_linen and from_nnx: parameters, state, dropout and the two modes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from sideways_jax import Network, from_linen, from_nnx, step


class LinenBlock(linen.Module):
    """Everything at once, told by an argument whether this is training."""

    @linen.compact
    def __call__(self, x, train):
        x = linen.Dense(4)(x)
        x = linen.BatchNorm(use_running_average=not train, momentum=0.9)(x)
        return linen.Dropout(0.5, deterministic=not train)(x)


class NnxBlock(nnx.Module):
    """The same in NNX."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(self.norm(self.linear(x)))


KINDS = {
    "linen": lambda: from_linen(LinenBlock()),
    "nnx": lambda: from_nnx(lambda rngs: NnxBlock(rngs)),
    "nnx instance": lambda: from_nnx(NnxBlock(nnx.Rngs(1))),
}


@pytest.fixture(params=KINDS)
def module(request):
    return KINDS[request.param]()


@pytest.fixture
def x():
    return jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)


def test_parameters_and_statistics_are_apart(module, x):
    params, state = module.init(jax.random.key(0), jax.ShapeDtypeStruct(x.shape, x.dtype))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(params)) == [(4,), (4,), (4,), (4, 4)]
    assert [leaf.shape for leaf in jax.tree.leaves(state)] == [(4,), (4,)]


def test_training_uses_this_batch_and_moves_the_statistics(module, x):
    params, state = module.init(jax.random.key(0), x)
    y, new_state = module.apply(params, state, x, train=True, rng=jax.random.key(1))
    kept = np.asarray(y) != 0
    assert 0 < kept.sum() < kept.size, "dropout neither dropped all nor nothing"
    mean = np.asarray(jax.tree.leaves(new_state)[0])
    assert np.abs(mean).max() > 0
    again, _ = module.apply(params, state, x, train=True, rng=jax.random.key(1))
    other, _ = module.apply(params, state, x, train=True, rng=jax.random.key(2))
    np.testing.assert_array_equal(y, again)
    assert (np.asarray(other) != np.asarray(y)).any(), "the key makes no difference"


def test_testing_uses_the_running_statistics_and_changes_nothing(module, x):
    params, state = module.init(jax.random.key(0), x)
    y, new_state = module.apply(params, state, x, train=False, rng=None)
    assert (np.asarray(y) != 0).all()
    jax.tree.map(np.testing.assert_array_equal, new_state, state)
    shifted = jax.tree.map(lambda leaf: leaf + 1, state)
    assert (module.apply(params, shifted, x, train=False, rng=None)[0] != y).any()


def test_executions_agree(module, x):
    network = Network([module, module])
    rng = np.random.default_rng(1)
    frames, targets = (jnp.asarray(rng.standard_normal((5, 6, 4)), jnp.float32) for _ in "ab")
    params, state = network.init(jax.random.key(0), frames[0])
    scan, parallel = (
        step.episode_gradients(
            network,
            lambda y, target: jnp.mean((y - target) ** 2),
            params,
            state,
            frames,
            targets,
            execution=execution,
            rng=jax.random.key(2),
        )
        for execution in ("scan", "time_parallel")
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-6), scan, parallel
    )


def test_keys_of_init_differ_except_for_an_instance(x):
    for name, make in KINDS.items():
        module = make()
        one, other = (jax.tree.leaves(module.init(jax.random.key(n), x)[0]) for n in range(2))
        same = all((a == b).all() for a, b in zip(one, other, strict=True))
        assert same == (name == "nnx instance"), name


def test_nnx_dropout_without_a_key_is_an_error(x):
    module = KINDS["nnx"]()
    params, state = module.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="needs rng="):
        module.apply(params, state, x, train=True, rng=None)


@pytest.mark.parametrize(
    ("layer", "stateful"),
    [(linen.Dense(3), False), (linen.BatchNorm(), True), (linen.Dropout(0.5), False)],
)
def test_plain_layers_are_told_about_training_too(layer, stateful, x):
    module = from_linen(layer)
    params, state = module.init(jax.random.key(0), x)
    y, new_state = module.apply(params, state, x, train=True, rng=jax.random.key(0))
    tested, _ = module.apply(params, state, x, train=False, rng=None)
    assert bool(state) == stateful
    assert jax.tree.structure(new_state) == jax.tree.structure(state)
    if not isinstance(layer, linen.Dense):
        assert (y != tested).any()
