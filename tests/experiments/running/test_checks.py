"""What is checked for being finite: all that is learned, and all signals but those of bubbles."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.configs import autoencoder
from experiments.jobs.autoencoding import rules
from experiments.jobs.autoencoding.job import frame_shape, make_network, on_chunks
from experiments.running.checks import all_finite, check_saved, signals_finite
from experiments.running.execution import choose, conversions
from experiments.running.optimizer import make_tx
from experiments.running.stopping import NonFiniteError
from experiments.workdir.checkpoints import Checkpoints
from sideways_jax.models.autoencoder import squared_error
from sideways_jax.rule.fifo import Remembered

pytestmark = pytest.mark.usefixtures("quick_compile")


def nan_where(wanted, tree):
    """NaN in place of numbers that are not integers, in the examples that are wanted, bool[B]."""

    def poison(x):
        if not jnp.issubdtype(x.dtype, jnp.inexact):
            return x
        return jnp.where(jnp.reshape(wanted, (-1, *[1] * (x.ndim - 1))), jnp.nan, x)

    return jax.tree.map(poison, tree)


def poisoned(in_flight, *, bubbles):
    """NaN in every signal that is a bubble, or in all the others."""

    def each(signals, frames):
        return tuple(map(nan_where, (frames < 0) == bubbles, signals))

    if hasattr(in_flight, "activations"):
        return in_flight._replace(
            activations=each(in_flight.activations, in_flight.activation_frames),
            pseudo_gradients=each(in_flight.pseudo_gradients, in_flight.pseudo_gradient_frames),
        )
    return in_flight._replace(
        coming=nan_where((in_flight.coming_frames < 0) == bubbles, in_flight.coming),
        shown=nan_where((in_flight.shown_frames < 0) == bubbles, in_flight.shown),
    )


MESH = pytest.param("smoke,execution=depth_sharded,depth=2", marks=pytest.mark.full)


@pytest.fixture(params=["smoke", "smoke,rule=backprop", MESH])
def run(request):
    """The state after a chunk of two frames, of which D = 6 modules leave bubbles; and its parts.

    `(learn, train_state, to_modules, from_modules)`.
    """
    config = autoencoder.get_config(request.param)
    network = make_network(config.model)
    execution, tx, frame = (
        choose(config, network.depth),
        make_tx(config.optimizer, 1000),
        frame_shape(config.data),
    )
    where = {} if config.rule == "backprop" else execution.arguments()
    init, learn = rules.make_learning(config.rule, network, squared_error(), tx, **where)
    learn = jax.jit(learn)
    train_state, _ = on_chunks(learn)(init(jax.random.key(0), frame), BATCH)
    return learn, train_state, *conversions(execution, network, tx, frame)


BATCH = {
    "frames": np.random.default_rng(0).integers(0, 256, (2, 2, 16, 16, 3), "u1"),
    "reset": np.zeros((2, 2), bool),
}


def test_nan_in_a_bubble_does_not_stop_a_run(run):
    learn, train_state, to_modules, from_modules = run

    def leave_nan(*arguments):
        train_state, metrics, outputs = learn(*arguments)
        modules = to_modules(train_state)
        modules = modules._replace(in_flight=poisoned(modules.in_flight, bubbles=True))
        return from_modules(modules), metrics, outputs

    train_state, metrics = on_chunks(leave_nan)(train_state, BATCH)
    in_flight = to_modules(train_state).in_flight
    assert not all(jnp.isfinite(x).all() for x in jax.tree.leaves(in_flight))
    assert metrics["finite"]
    assert signals_finite(in_flight)
    assert not signals_finite(poisoned(in_flight, bubbles=False))


def test_what_is_learned_is_looked_at(run):
    _, train_state, *_ = run
    assert all_finite(train_state)
    for part in ("params", "opt_state"):
        bad = jax.tree.map(lambda x: x * jnp.asarray(jnp.nan, x.dtype)
                           if jnp.issubdtype(x.dtype, jnp.inexact) else x,
                           getattr(train_state, part))  # fmt: skip
        assert not all_finite(train_state._replace(**{part: bad}))


def test_unused_places_of_what_is_kept_are_not_looked_at(run):
    """In pipelined backprop the buffers of past inputs start with anything."""
    in_flight = run[2](run[1]).in_flight
    fifos = ({"kept": jnp.full((3, 2), jnp.nan)},)
    assert signals_finite(Remembered(in_flight, fifos))
    assert not signals_finite(Remembered(poisoned(in_flight, bubbles=False), fifos))


def test_no_signals_are_finite():
    assert signals_finite(())


class _Position:
    def get_state(self):
        return {}


def test_a_signal_that_is_not_finite_is_not_saved(run, tmp_path):
    _, train_state, to_modules, _ = run
    modules = to_modules(train_state)
    bad = modules._replace(in_flight=poisoned(modules.in_flight, bubbles=False))
    with Checkpoints(tmp_path, check=check_saved) as checkpoints:
        with pytest.raises(NonFiniteError, match="not finite after step 1"):
            checkpoints.save(1, bad, _Position(), {})
        assert checkpoints.latest is None
        checkpoints.save(1, modules, _Position(), {})
        assert checkpoints.latest == 1
