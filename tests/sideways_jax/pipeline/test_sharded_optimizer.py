"""Optimizers where the parameters are: every one gives the updates of one device, or is refused."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec
from optax import contrib

from sideways_jax import make_mesh
from sideways_jax.devices.exchange import on_mesh
from sideways_jax.devices.layout import Layout, pack, unpack
from sideways_jax.devices.mesh import DEPTH
from sideways_jax.devices.packing import Packing
from sideways_jax.pipeline.plan import Plan
from sideways_jax.pipeline.update import init_optimizer, update_on_device
from sideways_jax.tools.trees import select, squared_norm
from sideways_jax.training.division import check_local, divide
from sideways_jax.training.hold_back import hold_back
from tests.sideways_jax.sharding import assert_close

SHAPES = (
    {"kernel": (6, 4), "bias": (1, 4)},
    {"kernel": (2, 2, 1, 3)},
    {},
    {"kernel": (5, 3), "scale": ()},
)
GROUPS = {1: ((0, 1, 2, 3),), 2: ((0, 1), (2, 3)), 3: ((0,), (1, 2), (3,))}
UPDATES = 3
PER_PROGRAM = 10  # optimizers in one program, which saves time


def _tree(seed, *leading):
    draw = np.random.default_rng(seed)
    return tuple(
        {name: jnp.asarray(draw.normal(size=(*leading, *shape))) for name, shape in one.items()}
        for one in SHAPES
    )


@pytest.fixture(autouse=True)
def _optax_promotes():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


# Optimizers ---------------------------------------------------------------------------------------


def _stateless(update):
    return optax.stateless(lambda updates, params: update(updates, params))


def _size(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def _scaled(updates, factor):
    return jax.tree.map(lambda g: g * factor, updates)


def _all(function, tree):
    return jnp.stack([function(leaf) for leaf in jax.tree.leaves(tree)])


def _scale_per_leaf():
    """A scalar of state for every leaf."""

    def init(params):
        return jax.tree.map(lambda p: jnp.ones((), p.dtype), params)

    def update(updates, state, params=None):
        state = jax.tree.map(lambda g, s: 0.9 * s + 0.1 * jnp.mean(g**2), updates, state)
        return jax.tree.map(lambda g, s: g / jnp.sqrt(s), updates, state), state

    return optax.GradientTransformation(init, update)


def _delayed(measure):
    """Scales by what was measured at the last update."""

    def update(updates, state, params=None):
        return _scaled(updates, state), measure(updates)

    return optax.GradientTransformation(lambda params: jnp.ones(()), update)


def _at_first(measure):
    """Scales by what was measured of the first parameters."""

    def update(updates, state, params=None):
        return _scaled(updates, state), state

    return optax.GradientTransformation(measure, update)


def _of(module, name, measure=jnp.sum):
    return lambda tree: measure(tree[module][name])


def _drawn_to(start):
    return _stateless(lambda u, p: jax.tree.map(lambda g, a, b: g + 0.1 * (a - b), u, p, start))


def _is_matrix(params):
    return jax.tree.map(lambda p: p.ndim > 1, params)


def _halved_until_small(updates, _):
    """A loop that ends by the global norm."""
    norm = optax.tree.norm(updates)
    factor = jax.lax.while_loop(lambda f: f * norm > 0.1, lambda f: f / 2, jnp.ones_like(norm))
    return _scaled(updates, factor)


def _in_a_conditional(updates, _):
    def clipped(updates):
        return optax.clip_by_global_norm(0.1).update(updates, optax.EmptyState())[0]

    return jax.lax.cond(updates[3]["scale"] > 0, clipped, lambda u: _scaled(u, -0.1), updates)


def _key():
    return jax.random.key(7)


ALIASES = (
    "adabelief adadelta adafactor adagrad adam adamax adamaxw adamw adan amsgrad fromage lamb lars "
    "lion nadam nadamw novograd optimistic_adam_v2 optimistic_gradient_descent radam rmsprop rprop "
    "sgd sign_sgd signum yogi"
)
CONTRIB = (
    "acprop ademamix adopt cocob dowg madgrad muon schedule_free_adamw "
    "schedule_free_sgd simplified_ademamix galore"
)

# What is interesting: every way in which modules can meet.
AGREE = {
    "clip, adam": lambda: optax.chain(optax.clip_by_global_norm(0.01), optax.adamw(0.1)),
    "masked": lambda: optax.chain(
        optax.masked(optax.add_decayed_weights(0.1), _is_matrix), optax.sgd(0.1)
    ),
    "labels": lambda: optax.multi_transform(
        {True: optax.adam(0.1), False: optax.sgd(0.2)}, _is_matrix
    ),
    "names": lambda: optax.multi_transform(
        {"kernel": optax.lion(0.1), "bias": optax.sgd(0.1), "scale": optax.set_to_zero()},
        lambda params: tuple({name: name for name in module} for module in params),
    ),
    "adafactor, 3": lambda: optax.adafactor(0.1, min_dim_size_to_factor=3),
    "mean square of a leaf": lambda: optax.chain(optax.clip_by_block_rms(0.1), optax.sgd(0.1)),
    "adaptive clip": lambda: optax.chain(optax.adaptive_grad_clip(0.1), optax.sgd(0.1)),
    "scalars": lambda: optax.chain(_scale_per_leaf(), optax.sgd(0.1)),
    "injected": lambda: optax.inject_hyperparams(optax.adam)(learning_rate=0.1),
    "last norm": lambda: optax.chain(_delayed(optax.tree.norm), optax.sgd(0.1)),
    "momentum, clip": lambda: optax.chain(
        optax.sgd(0.1, momentum=0.9), optax.clip_by_global_norm(0.01)
    ),
    "apply_if_finite": lambda: optax.apply_if_finite(optax.sgd(0.1), 3),
    "largest": lambda: _stateless(lambda u, _: _scaled(u, 1 / jnp.max(_all(jnp.max, u)))),
    "norm of parameters": lambda: _stateless(lambda u, p: _scaled(u, optax.tree.norm(p))),
    "another module": lambda: _stateless(lambda u, _: _scaled(u, jnp.sum(u[0]["kernel"]))),
    "number of parameters": lambda: _stateless(lambda u, _: _scaled(u, 1 / _size(u))),
    "global root mean square": lambda: _stateless(
        lambda u, _: _scaled(u, optax.tree.norm(u) / _size(u) ** 0.5)
    ),
    "mean square of module 0": lambda: _stateless(
        lambda u, _: _scaled(u, jnp.mean(jnp.square(u[0]["kernel"])))
    ),
    "delayed mean of module 0": lambda: _delayed(_of(0, "kernel", jnp.mean)),
    "swapped": lambda: _stateless(
        lambda u, _: (*u[:3], {**u[3], "scale": jnp.sum(u[1]["kernel"])})
    ),
    "labels by size": lambda: optax.multi_transform(
        {True: optax.adam(0.1), False: optax.sgd(0.2)},
        lambda params: jax.tree.map(lambda p: p.size > 12, params),
    ),
    "norm at first": lambda: _at_first(optax.tree.norm),
    "sum of module 3 at first": lambda: _at_first(_of(3, "kernel")),
    "number of parameters at first": lambda: _at_first(lambda p: jnp.asarray(1 / _size(p))),
    "at most 56": lambda: _stateless(lambda u, p: _scaled(u, 0.1 if _size(p) <= 56 else 3.0)),
    "at most 55": lambda: _stateless(lambda u, p: _scaled(u, 0.1 if _size(p) <= 55 else 3.0)),
    "norm of integers": lambda: _stateless(
        lambda u, _: _scaled(
            u, optax.tree.norm(jax.tree.map(lambda g: jnp.asarray(g, jnp.int32) * 0.1, u))
        )
    ),
    "comparison of modules": lambda: _stateless(
        lambda u, _: jax.tree.map(
            lambda g: jnp.where(jnp.sum(u[0]["kernel"]) > jnp.sum(u[3]["kernel"]), g, -g), u
        )
    ),
    "argmax, sort, cumulative sum": lambda: _stateless(
        lambda u, _: _scaled(
            u,
            jnp.argmax(_all(jnp.sum, u)) + jnp.sort(jnp.cumsum(_all(jnp.min, u)))[1],
        )
    ),
    "one after the other": lambda: _stateless(
        lambda u, p: functools.reduce(
            lambda u, _: _scaled(u, 1 / (1 + jnp.max(_all(jnp.max, u)))), range(3), u
        )
    ),
    "closes over parameters": lambda: _drawn_to(_tree(8)),
    "loop until small": lambda: _stateless(_halved_until_small),
    "clip in a conditional": lambda: _stateless(_in_a_conditional),
    "conditionally": lambda: optax.conditionally_transform(
        optax.chain(optax.trace(0.9), optax.clip_by_global_norm(0.1)), lambda step: step > 0
    ),
    "MultiSteps, clip": lambda: optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)), 2
    ),
    "by module": lambda: optax.multi_transform(
        {
            True: optax.adam(0.1),
            False: optax.chain(optax.clip_by_global_norm(0.1), optax.sgd(0.1, momentum=0.9)),
        },
        lambda p: tuple(jax.tree.map(lambda _, i=i: i < 2, one) for i, one in enumerate(p)),
    ),
    "scheduled clip": lambda: optax.inject_hyperparams(optax.clip_by_global_norm)(
        max_norm=optax.cosine_decay_schedule(0.1, 10)
    ),
    "adam": lambda: optax.adam(0.1),
    "schedule-free": lambda: contrib.schedule_free_sgd(0.1),
    "sm3": lambda: optax.masked(optax.sm3(0.1), _is_matrix),
}

# The rest of optax.
MORE = {name: functools.partial(getattr(optax, name), 0.1) for name in ALIASES.split()}
MORE |= {name: functools.partial(getattr(contrib, name), 0.1) for name in CONTRIB.split()}
MORE |= {
    "MultiSteps": lambda: optax.MultiSteps(optax.adam(0.1), 2),
    "noisy_sgd": lambda: optax.noisy_sgd(0.1, key=_key()),
    "dog": lambda: contrib.dog(init_step=("distance", 0.1)),
    "prodigy": lambda: contrib.prodigy(0.1, estim_lr0=0.1),
    "mechanize": lambda: contrib.mechanize(optax.adam(0.1), s_init=0.1),
    "add_noise": lambda: optax.add_noise(0.1, 0.5, key=_key()),
    "apply_every": lambda: optax.apply_every(2),
    "centralize": optax.centralize,
    "clip": lambda: optax.clip(0.1),
    "conditionally_mask": lambda: optax.conditionally_mask(optax.adam(0.1), lambda step: step > 0),
    "ema": lambda: optax.ema(0.9),
    "freeze": lambda: optax.freeze(_is_matrix(_tree(0))),
    "keep_params_nonnegative": optax.keep_params_nonnegative,
    "named_chain": lambda: optax.named_chain(
        ("clip", optax.clip_by_global_norm(0.1)), ("sgd", optax.sgd(0.1))
    ),
    "normalize": contrib.normalize,
    "normalize_by_update_norm": optax.normalize_by_update_norm,
    "sam": lambda: contrib.sam(optax.sgd(0.1), optax.sgd(0.01), sync_period=2),
    "scale_by_param_block_norm": optax.scale_by_param_block_norm,
    "scale_by_param_block_rms": optax.scale_by_param_block_rms,
    "scale_by_rss": optax.scale_by_rss,
    "scale_by_stddev": optax.scale_by_stddev,
    "scale_by_trust_ratio": optax.scale_by_trust_ratio,
    "schedule_free": lambda: contrib.schedule_free(optax.adam(0.1, b1=0.0), 0.1),
    "set_to_zero": optax.set_to_zero,
    "skip_large_updates": lambda: optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)),
        2,
        should_skip_update_fn=lambda *a: optax.skip_large_updates(*a, max_squared_norm=45.0),
    ),
    "dadapt_adamw": lambda: contrib.dadapt_adamw(estim_lr0=0.1),
    "snapshot": lambda: optax.snapshot("now", optax.tree.norm),
    "split_real_and_imaginary": lambda: contrib.split_real_and_imaginary(optax.adam(0.1)),
    "zero_nans": optax.zero_nans,
}

# The gradients of the second update are not finite.
NOT_FINITE = {
    "apply_if_finite": lambda: optax.apply_if_finite(optax.adam(0.1), 3),
    "zero_nans": lambda: optax.chain(optax.zero_nans(), optax.clip_by_global_norm(0.1)),
    "skip_not_finite": lambda: optax.MultiSteps(
        optax.chain(optax.clip_by_global_norm(0.1), optax.adam(0.1)),
        2,
        should_skip_update_fn=optax.skip_not_finite,
    ),
}

HELD_BACK = ["momentum, clip", "MultiSteps, clip", "scalars", "schedule-free", "by module"]

REFUSED = {
    "flatten": lambda: optax.flatten(optax.adam(0.1)),
    "lbfgs": lambda: optax.lbfgs(0.1, linesearch=None),
    "another array": lambda: _stateless(
        lambda u, _: (*u[:3], {**u[3], "kernel": u[3]["kernel"] + u[0]["kernel"][:5, :3]})
    ),
    "moved": lambda: _stateless(lambda u, _: (*u[:3], {**u[3], "kernel": u[0]["kernel"][:5, :3]})),
    "an array of another module at first": lambda: optax.GradientTransformation(
        lambda p: p[0]["kernel"][:5, :3],
        lambda u, state, params=None: ((*u[:3], {**u[3], "kernel": state}), state),
    ),
    # As a selection it would go on for ever where the norm is not finite.
    "a loop in a conditional": lambda: _stateless(
        lambda u, _: jax.lax.cond(
            jnp.isfinite(optax.tree.norm(u)),
            lambda u: _halved_until_small(u, None),
            lambda u: jax.tree.map(jnp.zeros_like, u),
            u,
        )
    ),
    "debug": lambda: _stateless(lambda u, _: (jax.debug.print("{}", u[0]["bias"]), u)[1]),
    "a state that changes": lambda: optax.chain(
        optax.monitor({"norm": lambda updates: optax.tree.norm(updates)}), optax.sgd(0.1)
    ),
    "looks at values": lambda: _stateless(lambda u, _: u if u[0]["bias"].sum() > 0 else ()),
}


# On a mesh ----------------------------------------------------------------------------------------


def _on_mesh(optimizers, num_devices, params, grads, num_grads, hold):
    """`[(params, state, norms)]` after updates with these gradients `[T, ...]`, in one program.

    The gradients are sums, to be divided by `num_grads`, `[T, D]`.
    """
    groups = GROUPS[num_devices]
    shapes = jax.eval_shape(lambda: params)
    packing = Packing.of([tuple(shapes[i] for i in group) for group in groups])
    layout = Layout(groups, packing, None, packing, (), None, None, None)
    plans = []
    for tx in optimizers:
        one = divide(tx, shapes, groups)
        held = Packing.of([one.state(n) for n in range(num_devices)])
        plans.append(Plan(layout, shapes, (), one.owner, held, one))

    def on_device(params, sums, num_grads):
        params, sums = jax.tree.map(lambda x: x[0], (params, sums))
        results = []
        for tx, plan in zip(optimizers, plans, strict=True):
            state = init_optimizer(plan, params)

            def update(carry, inputs, tx=tx, plan=plan):
                *carry, norm = update_on_device(plan, *carry, *inputs, hold=hold)
                return tuple(carry), norm

            results.append(jax.lax.scan(update, (params, state), (sums, num_grads)))
        return jax.tree.map(lambda x: x[None], results)

    one, by_device = PartitionSpec(), PartitionSpec(DEPTH)
    run = on_mesh(make_mesh(num_devices), on_device, (by_device, by_device, one), by_device)

    @jax.jit  # One program: a mesh compiles every operation outside of jit alone.
    def packed(params, grads, num_grads):
        rows = jax.vmap(lambda one: pack(packing, groups, one), out_axes=1)(grads)
        return run(pack(packing, groups, params), rows, num_grads)

    results = jax.device_get(packed(params, grads, num_grads))
    device_of = {i: n for n, group in enumerate(groups) for i in group}
    found = []
    for ((params, states), norms), plan in zip(results, plans, strict=True):
        views = [
            plan.opt_packing.unpack(n, {name: v[n] for name, v in states.items()})
            for n in range(num_devices)
        ]
        state = jax.tree.map(
            lambda i, *leaves: leaves[0 if i is None else device_of[i]],
            plan.owner, *views, is_leaf=lambda i: i is None,
        )  # fmt: skip
        # What belongs to no module is the same everywhere.
        for i, *leaves in zip(
            jax.tree.leaves(plan.owner, is_leaf=lambda i: i is None),
            *map(jax.tree.leaves, views), strict=True,
        ):  # fmt: skip
            if i is None:
                for leaf in leaves[1:]:
                    assert_close(leaf, leaves[0], 1e-14)
        found.append((unpack(packing, groups, params), state, norms[0]))
    return found


def _on_one_device(tx, params, grads, num_grads, hold):
    def update(carry, inputs):
        params, old = carry
        sums, num_grads = inputs
        grads = tuple(
            jax.tree.map(lambda g, i=i: g / jnp.maximum(num_grads[i], 1), one)
            for i, one in enumerate(sums)
        )
        updates, state = tx.update(grads, old, params)
        if hold:
            updates = tuple(select(num_grads[i] > 0, one) for i, one in enumerate(updates))
            state = hold_back(tx, num_grads > 0, state, old, params)
        state = jax.tree.map(lambda new, like: new.astype(like.dtype), state, old)
        return (optax.apply_updates(params, updates), state), optax.tree.norm(grads)

    state = jax.tree.map(jnp.asarray, tx.init(params))
    (params, state), norms = jax.lax.scan(update, (params, state), (grads, num_grads))
    return params, state, norms


def _assert_agree(optimizers, num_devices, hold=False, finite=True):
    params, grads = _tree(0), _tree(1, UPDATES)
    num_grads = np.asarray([[1, 2, 3, 4], [2, 1, 0, 1], [5, 1, 1, 1]])
    grads = jax.tree.map(np.array, grads)
    if hold:
        num_grads[0, 0] = 0
        num_grads[2, 1:] = 0
        grads = tuple(
            jax.tree.map(lambda g, i=i: np.where(_row(num_grads[:, i], g) > 0, g, 0.0), one)
            for i, one in enumerate(grads)
        )
    if not finite:
        grads[3]["kernel"][1, 0, 0] = np.nan
    arguments = params, *jax.tree.map(jnp.asarray, (grads, num_grads)), hold
    one_device = jax.jit(lambda: [_on_one_device(tx, *arguments) for tx in optimizers.values()])
    expected = jax.device_get(one_device())
    actual = _on_mesh(optimizers.values(), num_devices, *arguments)
    for name, one, other in zip(optimizers, actual, expected, strict=True):
        print(name)  # Of the one that fails.
        if not finite:
            one, other = jax.tree.map(lambda x: np.nan_to_num(x, nan=123.0), (one, other))
        assert_close(one, other, 1e-10)
        assert any(
            np.abs(a - b).max(initial=0) > 1e-6
            for a, b in zip(jax.tree.leaves(other[0]), jax.tree.leaves(params), strict=True)
        ) or name in ("set_to_zero", "freeze")


def _row(x, like):
    return x.reshape(-1, *(1,) * (like.ndim - 1))


def _programs(names):
    names = list(names)
    parts = [names[k : k + PER_PROGRAM] for k in range(0, len(names), PER_PROGRAM)]
    return [pytest.param(part, id=f"{part[0]} ... {part[-1]}") for part in parts]


def _chosen(optimizers, names):
    return {name: optimizers[name]() for name in names}


@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("names", _programs(AGREE))
def test_three_devices_give_the_updates_of_one(names):
    _assert_agree(_chosen(AGREE, names), 3)


@pytest.mark.full
@pytest.mark.usefixtures("x64", "quick_compile")
@pytest.mark.parametrize("num_devices", [1, 2, 3])
@pytest.mark.parametrize("names", _programs(AGREE | MORE))
def test_all_of_optax_gives_the_updates_of_one_device(names, num_devices):
    _assert_agree(_chosen(AGREE | MORE, names), num_devices)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_gradients_that_are_not_finite():
    _assert_agree(_chosen(NOT_FINITE, NOT_FINITE), 2, finite=False)


@pytest.mark.usefixtures("x64", "quick_compile")
def test_modules_without_gradients_are_held_back():
    _assert_agree(_chosen(AGREE, HELD_BACK), 2, hold=True)


# What is refused ----------------------------------------------------------------------------------


def _shapes():
    return jax.eval_shape(lambda: _tree(0))


@pytest.mark.parametrize("name", REFUSED)
def test_what_needs_arrays_of_other_modules_is_refused(name):
    with pytest.raises(ValueError, match=r"may give other updates .* or execution='scan'"):
        check_local(REFUSED[name](), _shapes(), GROUPS[3])


@pytest.mark.parametrize("name", [name for name in REFUSED if name != "looks at values"])
def test_on_one_device_anything_goes(name):
    check_local(REFUSED[name](), _shapes(), GROUPS[1])


def test_numbers_are_told_in_as_few_rounds_as_they_depend_on_one_another():
    def rounds(name):
        found = divide(AGREE[name](), _shapes(), GROUPS[3])
        return len(found.init_rounds), len(found.update_rounds)

    assert rounds("adam") == (0, 0)
    assert rounds("clip, adam") == (0, 1)
    assert rounds("momentum, clip") == (0, 1)
    assert rounds("norm at first")[0] == 1
    assert rounds("one after the other") == (0, 3)


def test_a_device_holds_its_own_part_of_the_state():
    found = divide(optax.adam(0.1), _shapes(), GROUPS[3])
    (count, mean, _), _ = found.owner
    assert (count, mean) == (
        None, ({"kernel": 0, "bias": 0}, {"kernel": 1}, {}, {"kernel": 3, "scale": 3})
    )  # fmt: skip
    (count, mean, _), _ = found.state(1)
    assert count.shape == ()
    assert jax.tree.map(lambda x: x.size, mean) == (
        {"kernel": 0, "bias": 0}, {"kernel": 12}, {}, {"kernel": 0, "scale": 0}
    )  # fmt: skip


def test_the_squared_norm():
    @jax.jit
    def squared(tree):
        return squared_norm(tree, like=tree)

    tree = _tree(1)
    assert squared(tree) == pytest.approx(float(jax.jit(optax.tree.norm)(tree)) ** 2)
    half = jax.tree.map(lambda x: np.full(x.shape, 300, np.float16), tree)
    assert squared(half) == 300**2 * _size(tree)  # More than float16 can hold.
    assert squared_norm((), like=half).dtype == jnp.float32
