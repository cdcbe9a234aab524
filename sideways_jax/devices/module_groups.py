"""Which modules run on which device: contiguous groups, as even as they can be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp

from sideways_jax.devices.mesh import DEPTH
from sideways_jax.network.network import Network
from sideways_jax.tools.trees import PyTree, shape_of

Groups = tuple[tuple[int, ...], ...]  # for every device, the modules (0-based) that it runs


def balance(costs: Sequence[float], num_devices: int) -> Groups:
    """Cuts D modules into `num_devices` contiguous groups whose largest cost is the least possible.

    The slowest device sets the pace of a pipeline: the ideal speedup is
    `sum(costs) / (cost of the largest group)`.

    Args:
      costs: of every module, in any unit.
      num_devices: N, at least 1 and at most D.

    Raises:
      ValueError: for another N.

    >>> balance([1, 1, 4, 1, 1], 3)
    ((0, 1), (2,), (3, 4))
    """
    depth = len(costs)
    if not 1 <= num_devices <= depth:
        raise ValueError(
            f"{depth} modules cannot be spread over {num_devices} devices: every device needs at "
            f"least one module. Use a depth axis of 1 to {depth}, or cut the network into at least "
            f"{num_devices} modules"
        )
    sums = [0.0]
    for cost in costs:
        sums.append(sums[-1] + float(cost))
    # best[n][i]: for the first i modules on n devices, the least possible cost of the largest
    # group, and the first module of the last group.
    best = [{0: (0.0, 0)}]
    for n in range(1, num_devices + 1):
        best.append(
            {
                i: min(
                    (max(best[n - 1][start][0], sums[i] - sums[start]), start)
                    for start in best[n - 1]
                    if start < i
                )
                for i in range(n, depth - (num_devices - n) + 1)
            }
        )
    groups, end = [], depth
    for n in range(num_devices, 0, -1):
        start = best[n][end][1]
        groups.append(tuple(range(start, end)))
        end = start
    return tuple(reversed(groups))


def from_sizes(sizes: Sequence[int], depth: int, num_devices: int) -> Groups:
    """Groups by hand: how many consecutive modules each device takes.

    Raises:
      ValueError: unless there is one size for every device and they add up to `depth`.

    >>> from_sizes((2, 1), depth=3, num_devices=2)
    ((0, 1), (2,))
    """
    sizes = tuple(sizes)
    if len(sizes) != num_devices or sum(sizes) != depth or any(size < 1 for size in sizes):
        raise ValueError(
            f"groups {sizes} do not place {depth} modules on {num_devices} devices: give "
            f"{num_devices} sizes of at least 1 that add up to {depth}"
        )
    starts = [sum(sizes[:n]) for n in range(num_devices)]
    return tuple(tuple(range(a, a + size)) for a, size in zip(starts, sizes, strict=True))


def of_own_modules(groups: Groups, values: jax.Array) -> jax.Array:
    """Of values for each of the D modules, those of this device; inside `shard_map`.

    In order, and then the last again, to be as many as of the largest group.
    """
    most = max(map(len, groups))
    table = [[*group, *group[-1:] * (most - len(group))] for group in groups]
    return values[jnp.asarray(table)[jax.lax.axis_index(DEPTH)]]


def count_costs(
    network: Network, params: tuple, state: tuple, frame: PyTree, *, train: bool = True
) -> tuple[float, ...]:
    """Counts the floating-point operations of each module's forward and backward pass.

    The compiler counts them for one batch of frames; nothing is run.

    Args:
      network: D modules.
      params, state: tuples of D pytrees, of arrays or their shapes.
      frame: a batch of frames `[B, ...]`, or its shape.
      train: whether there is a backward pass. Without it, as in inference, modules need not be
        differentiable (they may contain a `while_loop`).
    """
    outputs = network.activation_shapes(params, state, frame)
    inputs = network.inputs(shape_of(frame), outputs)
    costs = []
    for i, module in enumerate(network.modules):

        def forward(params, state, x, module=module):
            return module.apply(params, state, x, train=False, rng=None)[0]

        def both(params, state, x, pseudo_gradient, forward=forward):
            output, pull_back = jax.vjp(lambda params, x: forward(params, state, x), params, x)
            return output, pull_back(pseudo_gradient)

        function: Callable[..., PyTree] = forward
        arguments: tuple[PyTree, ...] = (params[i], state[i], inputs[i])
        if train:
            function, arguments = both, (*arguments, outputs[i])
        lowered = jax.jit(function).lower(*jax.tree.map(shape_of, arguments))
        analysis = lowered.cost_analysis() or {}
        costs.append(max(float(analysis.get("flops", 0.0)), 1.0))
    return tuple(costs)


def table(groups: Groups, costs: Sequence[float]) -> str:
    """The modules of every device and their share of the work, as text.

    >>> print(table(((0, 1), (2,)), [1.0, 1.0, 2.0]))
    device  modules  share
         0  0-1        50%
         1  2          50%
    ideal speedup over one device: 2.00 of 2
    """
    total = sum(costs)
    shares = [sum(costs[i] for i in group) / total for group in groups]
    lines = ["device  modules  share"]
    for n, (group, share) in enumerate(zip(groups, shares, strict=True)):
        name = f"{group[0]}-{group[-1]}" if len(group) > 1 else f"{group[0]}"
        lines.append(f"{n:>6}  {name:<7}  {share:>5.0%}")
    lines.append(f"ideal speedup over one device: {1 / max(shares):.2f} of {len(groups)}")
    return "\n".join(lines)
