"""A stream that changes: its frames, weights that know the first part of it, and who learns.

The clock is the paper's: a frame arrives at every step, and a device does one module in a step,
the forward and the backward pass of it. With D modules and D devices there are

* "sideways", "pipelined_backprop": a module on each device, an update at every step;
* "blocking": a frame goes up and down, the others wait; one frame of 2D-1 is learned from;
* "data_parallel": the whole network on each device, D consecutive frames at a time, which takes D
  steps: an update at every D-th step with the exact mean gradient of the last D frames. It does
  as many passes as the pipelines, and uses all frames;
* "skipping": the same, where passes up and down cannot share a step, as in the clock of blocking
  backprop: D frames at a time, of 2D-1.

The updates of the last two count as made when the last of their frames has arrived. In truth that
takes another D, or 2D-1, steps: the comparison is kinder to them than the clock.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cv2
import jax
import numpy as np
import optax

from data import default_config, load_streams
from experiments.evidence.training import real_clips
from experiments.evidence.training.optimizer import settable, with_settings
from experiments.jobs.autoencoding.rules import make_learning
from sideways_jax import Network, models
from sideways_jax.models.autoencoder import squared_error
from sideways_jax.one_device import blocking

LEARNERS = ("sideways", "pipelined_backprop", "blocking", "data_parallel", "skipping")
CHANGES = ("light", "scene", "camera")
PRETRAINED = 1500  # updates of Adam before the stream begins


class Size(NamedTuple):
    """Of the network and of the stream."""

    widths: tuple[int, ...] = (8, 16, 16, 32, 64)  # of the encoder: D is one more
    pixels: int = 32
    before: int = 264  # frames before the first change
    after: int = 528  # from one change to the next
    pretrained: int = PRETRAINED


SMOKE = Size(widths=(4, 4), pixels=16, before=10, after=10, pretrained=2)


@functools.lru_cache(maxsize=2)
def frames(size: Size, folder: str, seed: int) -> np.ndarray:
    """The whole stream, uint8 `[T, H, W, 3]`: one part before any change, and one after each.

    Drawn: a scene of moving solids; the same in a glaring light; moving digits before a bright
    wall, another kind of scene; solids again, upside down and from nearer. Of a folder: one video,
    and another for the scene.
    """
    before, after = size.before, size.after
    if folder:
        files = list(real_clips.at_least_two(folder, size.pixels).values())
        first, second = files[seed % len(files)], files[(seed + 1) % len(files)]
    else:
        first = solids(size.pixels, before + 2 * after, seed=seed)
        second = _digits(size.pixels, after, seed)
    long = _looped(first, before + 2 * after)
    dark = 255.0 - long[before : before + after]
    light = np.rint(255 - dark * np.array([0.35, 0.4, 0.55])).astype(np.uint8)
    camera = np.stack([_nearer(frame[::-1]) for frame in long[before + after :]])
    return np.concatenate([long[:before], light, _looped(second, after), camera])


def _looped(video: np.ndarray, count: int) -> np.ndarray:
    """So many frames: forwards, then backwards, so that there is no cut."""
    there_and_back = np.concatenate([video, video[-2:0:-1]])
    return there_and_back[np.arange(count) % len(there_and_back)]


def _nearer(frame: np.ndarray) -> np.ndarray:
    margin = len(frame) // 6
    inner = frame[margin:-margin, margin:-margin]
    return cv2.resize(inner, frame.shape[1::-1], interpolation=cv2.INTER_LINEAR)


def solids(pixels: int, count: int, *, seed: int, streams: int = 1) -> np.ndarray:
    """Frames of moving solids, of several scenes one after the other: uint8 `[count, H, W, 3]`."""
    config = default_config("moving_solids")
    config.size, config.batch_size = pixels, streams
    config.length = max(count // streams, streams)
    playing = load_streams(config, seed=seed)
    try:
        parts = [next(playing)["frames"] for _ in range(-(-count // streams))]
    finally:
        playing.close()
    return np.stack(parts, axis=1).reshape(-1, pixels, pixels, 3)[:count]


def _digits(pixels: int, count: int, seed: int) -> np.ndarray:
    from experiments.evidence.training import clips

    config = clips.digits(
        size=pixels, digit_size=pixels * 2 // 3, num_frames=count, length=count, batch_size=1
    )
    batch = next(clips.clips(config, seed=seed).train)
    wall = np.array([200, 190, 170])
    dark = batch["frames"][0].astype(float) / 255
    return np.rint(wall * (1 - 0.8 * dark)).astype(np.uint8)


@functools.cache
def network_of(widths: tuple[int, ...]) -> Network:
    """The auto-encoder of section 4.1."""
    return models.autoencoder(widths=widths)


@functools.lru_cache(maxsize=4)
def pretrained(size: Size, folder: str, seed: int) -> tuple:
    """Weights that know the kind of frames before the changes: batched backprop with Adam.

    All learners begin with them. Drawn: 960 frames of 16 other scenes; of a folder: its first
    video before the changes.
    """
    if folder:
        known = frames(size, folder, seed)[: size.before]
    else:
        count = 960 if size.before > 100 else 16
        known = solids(size.pixels, count, seed=seed + 50_000, streams=16)
    init, update = _batched(size.widths)
    params, state, opt_state = init(jax.random.key(seed), known[:16])
    opt_state = with_settings(opt_state, 3e-3, warmup=50)
    rng = np.random.default_rng(seed)
    for _ in range(size.pretrained):
        batch = known[rng.integers(len(known), size=16)]
        params, opt_state = update(params, state, opt_state, batch)
    return params


@functools.cache
def _batched(widths: tuple[int, ...], optimizer: str = "adam") -> tuple[Callable, Callable]:
    """Ordinary backprop: `init`, and an update with the mean gradient of a batch of frames."""
    network, loss, tx = network_of(widths), squared_error(), settable(optimizer)

    @jax.jit
    def init(key, batch):
        params, state = network.init(key, batch)
        return params, state, tx.init(params)

    @jax.jit
    def update(params, state, opt_state, batch):
        def mean_loss(params):
            return loss(network.apply(params, state, batch, train=True)[0], batch)

        changes, opt_state = tx.update(jax.grad(mean_loss)(params), opt_state, params)
        return optax.apply_updates(params, changes), opt_state

    return init, update


def errors(
    learner: str, optimizer: str, rate: float, size: Size, stream: np.ndarray, params: tuple
) -> Iterator[tuple[int, float]]:
    """Learns a stream; yields the number of a frame, and the error of the weights of then.

    The error is that of the frames until the next yield, which the weights have not seen, without
    the delay of any pipeline: what is compared is how well and how soon weights are learned.

    Args:
      learner: of `LEARNERS`.
      optimizer, rate: of `settable`.
      size: of the network.
      stream: uint8 `[T, H, W, 3]`.
      params: to begin with.
    """
    depth = len(size.widths) + 1
    chunk = depth if learner == "data_parallel" else blocking.period(depth, train=True)
    if learner in ("data_parallel", "skipping"):
        one = _data_parallel(optimizer, rate, size, params, depth)
    else:
        one = _streaming(learner, optimizer, rate, size, params)
    look, carry = _looking(size.widths), one.carry
    for start in range(0, len(stream) - chunk + 1, chunk):
        part = stream[start : start + chunk]
        yield start, float(look(*one.weights(carry), part))
        carry = one.advance(carry, part)


class _Learner(NamedTuple):
    carry: Any  # before the first frame
    advance: Callable[[Any, np.ndarray], Any]  # carry and the next frames, to the next carry
    weights: Callable[[Any], tuple]  # parameters and state of a carry


def _data_parallel(optimizer: str, rate: float, size: Size, params: tuple, depth: int) -> _Learner:
    init, update = _batched(size.widths, optimizer)
    _, state, opt_state = init(jax.random.key(0), _blank(size, depth))

    def advance(carry, part):
        params, opt_state = carry
        return update(params, state, opt_state, part[:depth])

    carry = params, with_settings(opt_state, rate)
    return _Learner(carry, advance, lambda carry: (carry[0], state))


def _streaming(learner: str, optimizer: str, rate: float, size: Size, params: tuple) -> _Learner:
    init, advance = _learning(learner, optimizer, size.widths)
    train_state = init(jax.random.key(0), _blank(size, 1))
    opt_state = with_settings(train_state.opt_state, rate)
    carry = train_state._replace(params=params, opt_state=opt_state)
    return _Learner(carry, advance, lambda carry: (carry.params, carry.state))


def _blank(size: Size, count: int) -> np.ndarray:
    return np.zeros((count, size.pixels, size.pixels, 3), np.uint8)


@functools.cache
def _learning(learner: str, optimizer: str, widths: tuple[int, ...]) -> tuple[Callable, Callable]:
    rule = "backprop" if learner == "blocking" else learner
    init, train_step = make_learning(rule, network_of(widths), squared_error(), settable(optimizer))

    @jax.jit
    def advance(train_state, part):
        frames = part[:, None]  # A batch of one stream.
        return train_step(train_state, frames, frames)[0]

    return jax.jit(init), advance


@functools.cache
def _looking(widths: tuple[int, ...]) -> Callable:
    network, loss = network_of(widths), squared_error()

    @jax.jit
    def look(params, state, batch):
        return loss(network.apply(params, state, batch, train=False)[0], batch)

    return look
