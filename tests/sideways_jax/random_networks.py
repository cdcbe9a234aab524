"""Networks out of words, and data for them: what the property tests draw from.

A network is written as the words of its modules, `("dense 3, keys", "unit", "linear 2")`: as short
as a failure should be reported, and the same words always give the same objects, so that what was
compiled for one network serves the next. Widths and batches are tiny for the same reason.

An activation is an array `[B, w]` in float64, or, after the word "fork", the dictionary
`{"main": [B, w], "side": ([B, w] in float32, [B, 1] in bfloat16)}`. In the narrow types nothing is
computed but halves, which are exact: executions can only be compared to 1e-10 where rounding to a
narrow type meets the same numbers.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sideways_jax import Module, Network
from sideways_jax.one_device import blocking
from sideways_jax.rule.fifo import Remembered
from tests.sideways_jax import networks

WIDTH = 3  # of frames
NUM_OUTPUTS = 2

# What is drawn for the body of a module, and what may follow it.
BODIES = ("dense 3", "dense 2", "scale", "gate", "sine", "dense 4", "pass", "side", "dense 1",
          "again", "loop", "custom")  # fmt: skip
SINGULAR = ("unit", "root")  # Not a number at zero, in one direction or both.
PLAIN_EXTRAS = ("keys", "counter", "memory", "dropout")
FEEDBACK = ("fading",)  # The output depends on a state that changes.
MIXING = ("norm",)  # The examples of a batch see each other.


class Problem(NamedTuple):
    """A network with what it takes and gives."""

    modules: tuple[str, ...]
    frame: str = "vectors"  # or "bytes", "pair"
    loss: str = "squares"  # or "labels", "parts"
    batch: int = 2
    shortcuts: tuple[tuple[int, int], ...] = ()  # to modules that begin with the word "merge"

    @property
    def depth(self):
        return len(self.modules)

    def uses(self, words):
        return any(name in words for module in self.modules for name in _names(module))

    @property
    def rng(self):
        """Whether a key is needed."""
        return self.uses(("keys", "dropout"))


# Layers -----------------------------------------------------------------------------------------


def _stateless(init, function):
    """A layer out of `init(x) -> params` and `function(params, x)`."""

    def apply(params, state, x, *, train, rng):
        return function(params, x), state

    return Module(lambda key, x: (init(x), ()), apply)


def _ones(shape, x):
    return jnp.ones(shape, x.dtype)


def _on_main(layer):
    """Runs a layer on the part "main" of what "fork" gives; the other parts pass by."""

    def main_of(x):
        return x["main"] if isinstance(x, dict) else x

    def apply(params, state, x, *, train, rng):
        y, state = layer.apply(params, state, main_of(x), train=train, rng=rng)
        return (x | {"main": y} if isinstance(x, dict) else y), state

    return Module(lambda key, x: layer.init(key, main_of(x)), apply)


def _keys():
    """Keeps or drops, by bits of the key and by the place in the batch: dropout, quickly compiled.

    Examples are treated apart, but not alike.
    """

    def apply(params, state, x, *, train, rng):
        if not train:
            return x, state
        bits = jax.random.key_data(rng)
        row, column = np.indices(x.shape)
        shifts = jnp.asarray((11 * row + 5 * column) % 31, bits.dtype)
        factors = 1 + ((bits[0] ^ bits[1]) >> shifts) % 4
        return x * factors.astype(x.dtype) / 2, state

    return Module(lambda key, x: ((), ()), apply)


def _fork(params, x):
    return {
        "main": jnp.tanh(x),
        "side": (x.astype(jnp.float32), x[:, :1].astype(jnp.bfloat16)),
    }


def _use_side(params, x):
    """Multiplies by what the narrow parts say, and passes halves of them on."""
    if not isinstance(x, dict):
        return jnp.cos(x)
    single, half = x["side"]
    wide = x["main"].dtype
    factor = 1 + 0.5 * jnp.sin(single[:, :1].astype(wide)) * half.astype(wide)
    return {"main": x["main"] * factor, "side": (single * 0.5, half * 0.5)}


def _join(params, x):
    """From what "fork" gives back to an array."""
    if not isinstance(x, dict):
        return x
    wide = [part.astype(x["main"].dtype) for part in x["side"]]
    return jnp.concatenate([x["main"], *wide], axis=-1)


def _both(params, x):
    left, right = x["left"], x["right"]
    return jnp.sin(params["left"] * left) + right.astype(left.dtype) / 255


def _merge(params, x):
    """What the main path brings, turned by what the shortcuts bring, whatever its widths."""
    first, *others = x
    main = first["main"] if isinstance(first, dict) else first
    for other in others:
        # Sums over receivers in narrow types would depend on their order.
        other = other["main"] if isinstance(other, dict) and "main" in other else other
        leaves = [
            leaf.astype(main.dtype) / (255 if leaf.dtype == jnp.uint8 else 1)
            for leaf in jax.tree.leaves(other)
        ]
        main = main + jnp.sin(sum(leaf.sum(-1, keepdims=True) for leaf in leaves) * params + main)
    return first | {"main": main} if isinstance(first, dict) else main


def _loop(params, x):
    return jax.lax.fori_loop(0, 2, lambda _, h: jnp.sin(params * h) + 0.5 * h, x)


@jax.custom_vjp
def _doubled(x):
    """What it is not: its gradient is."""
    return x


_doubled.defvjp(lambda x: (x, None), lambda _, cotangent: (2 * cotangent,))


@functools.cache
def _layer(word):
    name, _, number = word.partition(" ")
    layers = {
        "dense": lambda: _on_main(networks.dense(int(number))),
        "linear": lambda: _on_main(networks.linear(int(number))),
        "scale": lambda: _on_main(_stateless(lambda x: _ones((), x), lambda p, x: jnp.sin(p * x))),
        "gate": lambda: _on_main(
            _stateless(
                lambda x: [_ones((1, x.shape[-1]), x)], lambda p, x: x / (1 + jnp.exp(p[0] * x))
            )
        ),
        "sine": lambda: _on_main(_stateless(lambda x: (), lambda p, x: jnp.sin(2 * x))),
        "again": lambda: _on_main(
            _stateless(lambda x: _ones((), x), jax.checkpoint(lambda p, x: jnp.tanh(p * x)))
        ),
        "loop": lambda: _on_main(_stateless(lambda x: _ones((), x), _loop)),
        "custom": lambda: _on_main(_stateless(lambda x: (), lambda p, x: _doubled(x))),
        "pass": lambda: _stateless(lambda x: {}, lambda p, x: x),
        "unit": lambda: _on_main(networks.unit_length()),
        "root": lambda: _on_main(
            _stateless(
                lambda x: {"w": _ones((1, x.shape[-1]), x)},
                lambda p, x: jnp.sqrt(jnp.abs(x) * jnp.square(p["w"])),
            )
        ),
        "keys": lambda: _on_main(_keys()),
        "dropout": lambda: _on_main(networks.dropout()),
        "counter": networks.counter,
        "fading": lambda: _on_main(networks.fading()),
        "memory": lambda: _on_main(networks.cumulative_mean()),
        "norm": lambda: _on_main(networks.batch_norm()),
        "fork": lambda: _stateless(lambda x: (), _fork),
        "side": lambda: _stateless(lambda x: (), _use_side),
        "join": lambda: _stateless(lambda x: (), _join),
        "floats": networks.to_float,
        "merge": lambda: _stateless(lambda x: jnp.ones((), jnp.float64), _merge),
        "both": lambda: _stateless(
            lambda x: {"left": _ones((1, WIDTH), x["left"])}, _both
        ),
    }  # fmt: skip
    return layers[name]()


@functools.cache
def _module(words):
    layers = [_layer(word) for word in words.split(", ")]
    return layers[0] if len(layers) == 1 else networks.chain(*layers)


def _names(module):
    return [word.split(" ")[0] for word in module.split(", ")]


# Problems ---------------------------------------------------------------------------------------


def network_of(problem):
    """The `Network` of a problem, the same object every time."""
    return _network(problem.modules, problem.shortcuts)


@functools.cache
def _network(modules, shortcuts):
    return Network([_module(words) for words in modules], shortcuts)


def squares(output, target):
    """`|h - y|^2`, the mean over the batch; of all parts, if there are several."""
    return networks.squared_error(_join((), output)[:, :NUM_OUTPUTS], target)


def parts(output, target):
    """Targets in two parts, too."""
    return squares(output, target["first"]) + networks.squared_error(
        _join((), output)[:, -NUM_OUTPUTS:], target["second"]
    )


def cross_entropy(output, label):
    log_p = jax.nn.log_softmax(_join((), output))
    return -jnp.mean(jnp.take_along_axis(log_p, label[:, None], axis=1))


LOSSES = {"squares": squares, "parts": parts, "labels": cross_entropy}


def batch_shapes(problem):
    """A batch of frames and one of targets, as shapes."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), clip(problem, 1, 0)
    )


def clip(problem, num_frames, seed):
    """Frames and targets `[K, B, ...]`, without any smoothness."""
    draw = np.random.default_rng((seed, 1))
    shape = num_frames, problem.batch
    floats = draw.normal(size=(*shape, WIDTH))
    octets = draw.integers(0, 256, (*shape, WIDTH), dtype=np.uint8)
    frames = {"vectors": floats, "bytes": octets, "pair": {"left": floats, "right": octets}}
    first, second = draw.normal(size=(2, *shape, NUM_OUTPUTS))
    labels = draw.integers(0, NUM_OUTPUTS, shape, dtype=np.int32)
    targets = {"squares": first, "parts": {"first": first, "second": second}, "labels": labels}
    return frames[problem.frame], targets[problem.loss]


def variables(problem, seed):
    """Parameters and a state, both out of NumPy: JAX would compile generators for them."""
    draw = np.random.default_rng((seed, 2))

    def numbers(leaf):
        values = draw.normal(size=leaf.shape)
        return jnp.asarray(np.sign(values) * (0.2 + 0.5 * np.abs(values)), leaf.dtype)

    def ones(leaf):
        return jnp.full(leaf.shape, 1 + seed % 3, leaf.dtype)

    params, state = _shapes(problem)
    return jax.tree.map(numbers, params), jax.tree.map(ones, state)


@functools.cache
def _shapes(problem):
    network, (frame, _) = network_of(problem), batch_shapes(problem)
    return jax.eval_shape(lambda: network.init(jax.random.key(0), frame))


def full_of_nan(tree):
    """NaN in every leaf that can hold it."""

    def one(leaf):
        inexact = jnp.issubdtype(leaf.dtype, jnp.inexact)
        return jnp.full(leaf.shape, jnp.nan, leaf.dtype) if inexact else leaf

    return jax.tree.map(one, tree)


def poisoned(in_flight):
    """What is in flight, with NaN in every example of a signal that its number calls a bubble.

    Args:
      in_flight: a `step.InFlight`, a `Remembered`, or a `blocking.Held`, in host memory.
    """
    if isinstance(in_flight, Remembered):
        return in_flight._replace(in_flight=poisoned(in_flight.in_flight))
    if isinstance(in_flight, blocking.Held):
        return in_flight._replace(
            coming=_poisoned(in_flight.coming, in_flight.coming_frames),
            shown=_poisoned(in_flight.shown, in_flight.shown_frames),
        )
    up, down = in_flight.activation_frames, in_flight.pseudo_gradient_frames
    return in_flight._replace(
        activations=tuple(map(_poisoned, in_flight.activations, up)),
        pseudo_gradients=tuple(map(_poisoned, in_flight.pseudo_gradients, down)),
        targets=tuple(map(_poisoned, in_flight.targets, up)),
    )


def _poisoned(tree, frames):
    def one(leaf):
        if not jnp.issubdtype(leaf.dtype, jnp.inexact):
            return leaf
        leaf = np.array(leaf)
        leaf[frames < 0] = np.nan
        return leaf

    return jax.tree.map(one, tree)


def empty(in_flight):
    """The same for the start of a stream: all is a bubble.

    Args:
      in_flight: shapes, as `poisoned` takes them.
    """

    def numbers(field, tree):
        fill = -1 if field.endswith("_frames") else 0
        return jax.tree.map(lambda leaf: np.full(leaf.shape, fill, leaf.dtype), tree)

    if isinstance(in_flight, Remembered):  # Unused places hold anything.
        fifos = full_of_nan(numbers("", in_flight.fifos))
        return Remembered(empty(in_flight.in_flight), fifos)
    return poisoned(type(in_flight)(*map(numbers, in_flight._fields, in_flight)))
