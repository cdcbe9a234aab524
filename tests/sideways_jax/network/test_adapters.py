"""from_linen and from_nnx: parameters, state, dropout and the two modes."""

import functools

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


@pytest.mark.usefixtures("quick_compile")
def test_executions_agree(module, x):
    network = Network([module, module])
    rng = np.random.default_rng(1)
    frames, targets = (jnp.asarray(rng.standard_normal((5, 6, 4)), jnp.float32) for _ in "ab")
    params, state = network.init(jax.random.key(0), frames[0])

    @functools.partial(jax.jit, static_argnums=0)
    def episode(execution, params, state, rng):
        return step.episode_gradients(
            network, lambda y, target: jnp.mean((y - target) ** 2), params, state, frames, targets,
            execution=execution, rng=rng,
        )  # fmt: skip

    scan, parallel = (
        episode(execution, params, state, jax.random.key(2))
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


# How a module is told whether this is training -----------------------------------------------


def _linen_layers(x, train):
    x = linen.BatchNorm(use_running_average=not train)(linen.Dense(4)(x))
    return linen.Dropout(0.5, deterministic=not train)(x)


class IsTrain(linen.Module):
    @linen.compact
    def __call__(self, x, is_train=False):
        return _linen_layers(x, is_train)


class KeywordTrain(linen.Module):
    @linen.compact
    def __call__(self, x, *, train):
        return _linen_layers(x, train)


class Learning(linen.Module):
    """Its argument has a name that says nothing to the library."""

    @linen.compact
    def __call__(self, x, learning=False):
        return _linen_layers(x, learning)


class Mode(linen.Module):
    @linen.compact
    def __call__(self, x, mode):
        return _linen_layers(x, mode == "fit")


class Passing(linen.Module):
    """Hands on whatever it is told to a module that has to be told, or has a default."""

    inner: type

    @linen.compact
    def __call__(self, x, **options):
        return self.inner()(x, **options)


class Attribute(linen.Module):
    train: bool = False

    @linen.compact
    def __call__(self, x):
        return _linen_layers(x, self.train)


class DropPath(linen.Module):
    deterministic: bool | None = None

    @linen.compact
    def __call__(self, x, deterministic=None):
        if linen.merge_param("deterministic", self.deterministic, deterministic):
            return x
        return jnp.where(jax.random.bernoulli(self.make_rng("dropout"), 0.5, x.shape), x, 0.0)


class Untold(linen.Module):
    """Nothing says in which mode its layers are, here or when they are made."""

    remat: bool = False

    @linen.compact
    def __call__(self, x):
        norm = linen.remat(linen.BatchNorm) if self.remat else linen.BatchNorm
        return DropPath()(linen.Dropout(0.2)(norm()(linen.Dense(4)(x))))


class NnxTold(NnxBlock):
    def _told(self, x, train):
        x = self.norm(self.linear(x), use_running_average=not train)
        return self.dropout(x, deterministic=not train)

    def __call__(self, x, train=False):
        return self._told(x, train)


class NnxRequired(NnxTold):
    def __call__(self, x, *, is_train):
        return self._told(x, is_train)


class NnxLearning(NnxTold):
    def __call__(self, x, learning=False):
        return self._told(x, learning)


class NnxPassing(NnxTold):
    def __call__(self, x, **options):
        return NnxTold.__call__(self, x, **options)


class NnxAttribute(NnxTold):
    training = False

    def __call__(self, x):
        return self._told(x, self.training)


class NnxRemat(nnx.Module):
    def __init__(self, rngs):
        self.block = NnxBlock(rngs)

    @nnx.remat
    def __call__(self, x):
        return self.block(x)


class NnxLayers(nnx.Module):
    """Two layers as one, with random streams and statistics for each."""

    def __init__(self, rngs):
        make = nnx.split_rngs(splits=2)(nnx.vmap(NnxBlock, in_axes=0))
        self.layers = make(rngs)

    def __call__(self, x):
        run = nnx.scan(lambda x, layer: layer(x), in_axes=(nnx.Carry, 0), out_axes=nnx.Carry)
        return run(x, self.layers)


def _evaluated(module):
    module.eval()
    return module


TOLD = {
    "is_train": lambda: from_linen(IsTrain()),
    "keyword": lambda: from_linen(KeywordTrain()),
    "passing": lambda: from_linen(Passing(LinenBlock)),
    "passing, default": lambda: from_linen(Passing(IsTrain), train_argument="is_train"),
    "named": lambda: from_linen(Learning(), train_argument="learning"),
    "function": lambda: from_linen(
        Mode(), train_argument=lambda train: {"mode": "fit" if train else "predict"}
    ),
    "attribute": lambda: from_linen(lambda train: Attribute(train)),
    "partial": lambda: from_linen(functools.partial(Attribute, name="block")),
    "nested": lambda: from_linen(Untold()),
    "nested, remat": lambda: from_linen(Untold(remat=True)),
    "sequential": lambda: from_linen(
        linen.Sequential([linen.Dense(4), linen.BatchNorm(), linen.Dropout(0.5)])
    ),
    "remat": lambda: from_linen(linen.remat(LinenBlock)()),
    "remat, static": lambda: from_linen(linen.remat(LinenBlock, static_argnums=(2,))()),
    "remat, keyword": lambda: from_linen(linen.remat(KeywordTrain)()),
    "remat, passing": lambda: from_linen(linen.remat(Passing)(IsTrain), train_argument="is_train"),
    "remat, named": lambda: from_linen(linen.remat(Learning)(), train_argument="learning"),
    # One traced program for both modes would be the wrong one for one of them.
    "jit": lambda: from_linen(linen.jit(LinenBlock)()),
    "jit, nested": lambda: from_linen(linen.jit(Untold)()),
    "nnx": lambda: from_nnx(lambda rngs: NnxTold(rngs)),
    "nnx, evaluated": lambda: from_nnx(_evaluated(NnxBlock(nnx.Rngs(0)))),
    "nnx, required": lambda: from_nnx(lambda rngs: NnxRequired(rngs)),
    "nnx, named": lambda: from_nnx(lambda rngs: NnxLearning(rngs), train_argument="learning"),
    "nnx, passing": lambda: from_nnx(lambda rngs: NnxPassing(rngs), train_argument="train"),
    "nnx, attribute": lambda: from_nnx(lambda rngs: NnxAttribute(rngs)),
    "nnx, remat": lambda: from_nnx(lambda rngs: NnxRemat(rngs)),
    "nnx, layers": lambda: from_nnx(lambda rngs: NnxLayers(rngs)),
}


@pytest.mark.parametrize("name", TOLD)
def test_both_modes_reach_every_layer(name, x):
    module = TOLD[name]()
    ((params, state),) = zip(*Network([module]).init(jax.random.key(0), x), strict=True)
    tested, same = module.apply(params, state, x, train=False, rng=None)
    y, moved = module.apply(params, state, x, train=True, rng=jax.random.key(1))
    again, _ = module.apply(params, state, x, train=False, rng=None)
    assert (np.asarray(tested) != 0).all(), "dropout in evaluation"
    np.testing.assert_array_equal(again, tested)
    assert 0 < (np.asarray(y) == 0).sum() < y.size, "no dropout in training"
    assert jax.tree.leaves(state), "there are statistics"
    jax.tree.map(np.testing.assert_array_equal, same, state)
    for old, new in zip(jax.tree.leaves(state), jax.tree.leaves(moved), strict=True):
        assert (np.asarray(old) != np.asarray(new)).any(), "statistics that do not move"


class FrozenNorm(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        x = linen.BatchNorm(use_running_average=True)(x)
        return linen.Dropout(0.5, deterministic=not train)(x)


class NnxFrozenNorm(NnxTold):
    def __call__(self, x):
        return self.dropout(self.norm(x, use_running_average=True))


class NnxAlwaysNormalised(NnxTold):
    def __call__(self, x):
        return self.norm(self.linear(x), use_running_average=False)


UNTOLD = {
    "default": (from_linen, lambda: Learning(), "BatchNorm_0"),
    "passing": (from_linen, lambda: Passing(IsTrain), "IsTrain_0"),
    "attribute": (from_linen, lambda: Attribute(), "Attribute"),
    "dropout": (from_linen, lambda: linen.Dropout(0.5, deterministic=True), "Dropout"),
    "always": (from_linen, lambda: linen.BatchNorm(use_running_average=False), "BatchNorm"),
    "norm": (from_linen, lambda: linen.BatchNorm(use_running_average=True), "BatchNorm"),
    "a part": (from_linen, lambda: FrozenNorm(), "BatchNorm_0"),
    "nnx, default": (from_nnx, lambda: lambda rngs: NnxLearning(rngs), "dropout"),
    "nnx, a part": (from_nnx, lambda: lambda rngs: NnxFrozenNorm(rngs), "norm"),
    "nnx, always": (from_nnx, lambda: lambda rngs: NnxAlwaysNormalised(rngs), "norm"),
}


@pytest.mark.parametrize("name", UNTOLD)
def test_a_layer_that_cannot_be_told_is_an_error_unless_it_is_meant(name, x):
    adapter, make, part = UNTOLD[name]
    with pytest.raises(ValueError, match=f"(?s)module 0.*{part}.*mode although this is"):
        Network([adapter(make())]).init(jax.random.key(0), x)
    fixed = adapter(make(), allow_fixed=True)
    params, state = fixed.init(jax.random.key(0), x)
    jax.eval_shape(lambda: fixed.apply(params, state, x, train=True, rng=jax.random.key(0)))


def test_frozen_statistics_stay_and_dropout_does_not(x):
    module = from_linen(FrozenNorm(), allow_fixed=True)
    params, state = module.init(jax.random.key(0), x)
    y, new_state = module.apply(params, state, x, train=True, rng=jax.random.key(1))
    assert 0 < (np.asarray(y) == 0).sum() < y.size
    jax.tree.map(np.testing.assert_array_equal, new_state, state)


def test_dropout_of_nothing_may_be_in_any_mode(x):
    network = Network([from_linen(linen.Dropout(0.0, deterministic=True))])
    np.testing.assert_array_equal(network.apply(*network.init(jax.random.key(0), x), x)[0], x)


class RematInside(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        return linen.remat(LinenBlock)()(x, train)


class NnxNoise(nnx.Module):
    """Noise in both modes, from a stream of its own."""

    def __init__(self, rngs):
        self.rngs = rngs

    def __call__(self, x):
        return x + jax.random.normal(self.rngs.noise(), x.shape)


class Needs(linen.Module):
    @linen.compact
    def __call__(self, x, mask):
        return x


class TwoStreams(linen.Module):
    @linen.compact
    def __call__(self, x, train):
        if train:
            x = x + jax.random.normal(self.make_rng("noise"), x.shape)
        return linen.Dropout(0.5, deterministic=not train)(x)


class Sowing(linen.Module):
    collection: str
    options: tuple = ()

    @linen.compact
    def __call__(self, x):
        x = linen.Dense(4)(x)
        self.sow(self.collection, "size", jnp.sum(x), **dict(self.options))
        return x


class Remembering(linen.Module):
    """Adds to what it remembers; `careless` already while it is made."""

    careless: bool = False

    @linen.compact
    def __call__(self, x):
        memory = self.variable("memory", "sum", jnp.zeros, x.shape)
        total = memory.value + x
        if self.careless or not self.is_initializing():
            memory.value = total
        return total


class Loss(nnx.Variable):
    """A kind of variable to sow."""


class NnxSowing(nnx.Module):
    def __init__(self, rngs, kind=nnx.Intermediate):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.kind = kind

    def __call__(self, x):
        x = self.linear(x)
        self.sow(self.kind, "size", jnp.sum(x))
        return x


class NnxWithArrays(nnx.Module):
    """Arrays that are no variables."""

    def __init__(self, rngs):
        self.linear = nnx.Linear(4, 4, rngs=rngs)
        self.scale = jnp.full((1, 4), 2.0, jnp.float32)
        self.parts = nnx.List([jnp.ones((1, 4), jnp.float32)])

    def __call__(self, x):
        return self.linear(x) * self.scale + self.parts[0]


SUM = (("reduce_fn", jnp.add), ("init_fn", lambda: jnp.zeros((), jnp.float32)))

REFUSED = {
    "a class": (lambda: from_linen(linen.Dense), "class: give an object"),
    "of nnx": (lambda: from_linen(nnx.Linear(4, 4, rngs=nnx.Rngs(0))), "use from_nnx"),
    "wrapped": (lambda: from_linen(from_linen(linen.Dense(4))), "leave out from_linen"),
    "a function": (lambda: from_linen(lambda: linen.Dense(4)), r"module\(train=False\)"),
    "a function of a class": (lambda: from_linen(lambda train: linen.Dense), "Linen module"),
    "bound": (lambda: from_linen(linen.Dense(4).bind({})), "unbind"),
    "arguments": (lambda: from_linen(Needs()), "needs mask beside the activation"),
    "a cell": (lambda: from_linen(linen.GRUCell(4)), "carry of a recurrent cell"),
    "a name": (lambda: from_linen(Learning(), train_argument="lerning"), "no argument 'lerning'"),
    "one stream": (lambda: from_linen(Untold(), rng_streams="dropout"), "sequences of names"),
    "streams": (lambda: from_linen(TwoStreams()), "random stream that is not in"),
    "remat inside": (lambda: from_linen(RematInside()), "static_argnums"),
    "sown": (lambda: from_linen(Sowing("losses")), r"ignore=\('losses',\)"),
    "sown sums": (lambda: from_linen(Sowing("losses", SUM)), r"ignore=\('losses',\)"),
    "memory": (lambda: from_linen(Remembering(careless=True)), "is_initializing"),
    "ToLinen": (lambda: from_linen(nnx.bridge.ToLinen(nnx.Dropout, (0.5,))), "with from_nnx"),
    "nnx, a class": (lambda: from_nnx(nnx.Linear), "class: give a function"),
    "nnx, of linen": (lambda: from_nnx(linen.Dense(4)), "use from_linen"),
    "nnx, wrapped": (lambda: from_nnx(from_linen(linen.Dense(4))), "leave out from_nnx"),
    "nnx, a number": (lambda: from_nnx(3), "give an NNX module"),
    "nnx, of a number": (lambda: from_nnx(lambda rngs: 3), "gives a int"),
    "nnx, a cell": (lambda: from_nnx(lambda rngs: nnx.GRUCell(4, 4, rngs=rngs)), "needs inputs"),
    "nnx, noise": (lambda: from_nnx(lambda rngs: NnxNoise(rngs)), "random numbers in evaluation"),
    "nnx, sown": (lambda: from_nnx(lambda rngs: NnxSowing(rngs, Loss)), "nnx.Intermediate"),
    "ToNNX": (
        lambda: from_nnx(lambda rngs: nnx.bridge.ToNNX(linen.Dense(4), rngs=rngs)),
        "with from_linen",
    ),
}


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_a_module_says_what_to_do(name, x):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        Network([make()]).init(jax.random.key(0), x)


def test_random_streams_are_named(x):
    module = from_linen(TwoStreams(), rng_streams=("dropout", "noise"))
    params, state = module.init(jax.random.key(0), x)
    y, _ = module.apply(params, state, x, train=True, rng=jax.random.key(1))
    kept = np.asarray(y) != 0
    assert 0 < kept.sum() < kept.size
    assert (np.asarray(y)[kept] != 2 * np.asarray(x)[kept]).all(), "no noise"
    with pytest.raises(ValueError, match="needs rng="):
        module.apply(params, state, x, train=True, rng=None)


@pytest.mark.parametrize("options", [(), SUM])
def test_what_is_sown_can_be_ignored(options, x):
    module = from_linen(Sowing("losses", options), ignore=("losses",))
    params, state = module.init(jax.random.key(0), x)
    y, new_state = module.apply(params, state, x, train=True, rng=None)
    assert state == new_state == {}
    plain = linen.Dense(4).apply({"params": params["Dense_0"]}, x)
    np.testing.assert_array_equal(y, plain)


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
def test_intermediates_are_dropped(x):
    existing = NnxSowing(nnx.Rngs(0))
    existing(x)  # Now it holds one.
    for module in (
        from_linen(Sowing("intermediates")),
        from_nnx(lambda rngs: NnxSowing(rngs)),
        from_nnx(existing),
    ):
        params, state = module.init(jax.random.key(0), x)
        _, new_state = module.apply(params, state, x, train=True, rng=None)
        assert not jax.tree.leaves((state, new_state))


def test_a_memory_moves_in_both_modes(x):
    module = from_linen(Remembering())
    params, state = module.init(jax.random.key(0), x)
    np.testing.assert_array_equal(state["memory"]["sum"], np.zeros_like(x))
    for train, times in ((True, 1), (False, 2), (True, 3)):
        y, state = module.apply(params, state, x, train=train, rng=None)
        np.testing.assert_allclose(y, times * x, rtol=1e-6)
        np.testing.assert_array_equal(state["memory"]["sum"], y)


def test_the_state_keeps_its_dtypes(x64):
    class Widening(linen.Module):
        @linen.compact
        def __call__(self, x):
            mean = self.variable("stats", "mean", jnp.zeros, (), jnp.float32)
            if not self.is_initializing():
                mean.value = jnp.mean(x)
            return x

    class NnxWidening(nnx.Module):
        def __init__(self, rngs):
            self.mean = nnx.BatchStat(jnp.zeros((), jnp.float32))

        def __call__(self, x):
            self.mean.set_value(jnp.mean(x))
            return x

    x = jnp.ones((2, 3), jnp.float64)
    for module in (from_linen(Widening()), from_nnx(lambda rngs: NnxWidening(rngs))):
        params, state = module.init(jax.random.key(0), x)
        _, state = module.apply(params, state, x, train=True, rng=None)
        (mean,) = jax.tree.leaves(state)
        assert mean == 1 and mean.dtype == jnp.float32


def test_arrays_of_an_nnx_module_are_state_in_a_trace_too(x):
    module = from_nnx(lambda rngs: NnxWithArrays(rngs))
    params, state = module.init(jax.random.key(0), x)
    traced = jax.eval_shape(module.init, jax.random.key(0), x)
    assert jax.tree.structure(traced) == jax.tree.structure((params, state))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state)) == [(1, 4), (1, 4)]
    y, new_state = module.apply(params, state, x, train=True, rng=None)
    plain = x @ params["linear"]["kernel"] * 2 + 1
    np.testing.assert_allclose(y, plain, rtol=1e-5, atol=1e-6)
    jax.tree.map(np.testing.assert_array_equal, new_state, state)


def test_a_recurrent_nnx_module_may_draw_a_key_that_it_does_not_use(x):
    module = from_nnx(lambda rngs: nnx.RNN(nnx.GRUCell(4, 4, rngs=rngs), rngs=rngs))
    params, state = module.init(jax.random.key(0), x[None])
    y, _ = jax.eval_shape(lambda: module.apply(params, state, x[None], train=False, rng=None))
    assert y.shape == (1, *x.shape)


def test_what_an_existing_module_gives_may_be_donated(x):
    existing = NnxBlock(nnx.Rngs(1))
    expected = jax.tree.map(np.array, nnx.to_pure_dict(nnx.state(existing, nnx.Param)))
    module = from_nnx(existing)
    for init in (module.init, Network([module]).init):
        variables = init(jax.random.key(0), x)
        jax.jit(lambda tree: jax.tree.map(jnp.sin, tree), donate_argnums=0)(variables)
        kept = nnx.to_pure_dict(nnx.state(existing, nnx.Param))
        jax.tree.map(np.testing.assert_array_equal, kept, expected)
    assert np.isfinite(existing.norm.var[...]).all()
