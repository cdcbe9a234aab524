"""Sideways where every device has the same number of modules, of the same shapes.

Then what the devices do may be the same program up to its arrays, as with the blocks of a
transformer, and no device has to choose its own. What differs at the ends is selected: the lowest
module hears the frame, the highest takes the gradient of the loss.
"""

from __future__ import annotations

import jax

from sideways_jax.devices.layout import Layout
from sideways_jax.devices.mesh import DEPTH
from sideways_jax.devices.packing import Packing
from sideways_jax.network.network import Network
from sideways_jax.pipeline.signals import Signals
from sideways_jax.rule.in_flight import Numbers
from sideways_jax.rule.rule import ModuleStep, Part, run_group, show
from sideways_jax.rule.task import Task
from sideways_jax.tools.trees import PyTree, select


def is_even(task: Task, layout: Layout, frame: PyTree) -> bool:
    """Whether all devices hold, hear and send the same shapes, the lowest and the highest too.

    Args:
      task: what is trained.
      layout: where its modules are.
      frame: the shape of a batch of frames.
    """
    if task.remembers or task.network.shortcuts or layout.num_devices == 1:
        return False
    held = layout.params, layout.state, layout.inner
    signals = [(frame,), *layout.routes[0].packing.trees[:-1], (layout.output,)]
    return (
        len(set(map(len, layout.groups))) == 1
        and all(packing.is_even for packing in held)
        and len(set(Packing.of(signals).signature)) == 1
    )


def run_even_group(
    task: Task,
    layout: Layout,
    n: int,
    params: tuple,
    state: tuple,
    signals: Signals,
    frame: PyTree,
    target: PyTree,
    numbers: Numbers,
    rng: jax.Array | None,
    axis: str | None,
) -> tuple[tuple[ModuleStep, ...], Signals, tuple[PyTree, jax.Array]]:
    """One step of `rule.run_group` on a device that does not know at compile time which it is.

    Args:
      task, layout: as `is_even` found them.
      n: a device, of whose modules the functions are taken.
      params, state: of the modules of this device.
      signals: what has arrived.
      frame, target, numbers, rng, axis: as in `run_group`.

    Returns:
      What the modules give, what they send, and the output and the loss, which mean something on
      the highest device.
    """
    this, last = jax.lax.axis_index(DEPTH), layout.num_devices - 1
    group, (route,) = layout.groups[n], layout.routes
    own_task = task._replace(network=Network([task.network.modules[i] for i in group]))
    own = range(len(group))
    first = this * len(group)
    numbers = jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, first, len(group)), numbers)
    activations, cotangents = layout.inner.unpack(n, signals.inner)
    (below,) = route.packing.unpack(0, signals.from_below[0])
    (above,) = route.packing.unpack(0, signals.from_above[0])
    steps = run_group(
        own_task, tuple(own), params, state, (select(this == 0, frame, below), *activations),
        (*cotangents, above), target, numbers, rng, axis, part=Part(first, this == last),
    )  # fmt: skip
    outputs, back = zip(*((one.output, one.pseudo_gradient) for one in steps), strict=True)
    sent = Signals(
        layout.inner.pack(n, (outputs[:-1], back[1:])),
        (route.packing.pack(0, outputs[-1:]),),
        (route.packing.pack(0, back[:1]),),
    )
    return steps, sent, show(own_task, outputs[-1], target, numbers)
