"""The network that `split` makes: a network as any other, that knows the model it is made of."""

from __future__ import annotations

import dataclasses

from sideways_jax.network import Network
from sideways_jax.splitting.parts import Parts
from sideways_jax.tools.trees import PyTree


@dataclasses.dataclass(frozen=True)
class SplitNetwork(Network):
    """A model that was cut into modules.

    Attributes:
      parts: which module has which parameters.
      costs: the operations of every module in a forward pass of the example's batch, estimated.
      crossing: the bytes that cross each of the D-1 cuts, for the example's batch.
    """

    parts: Parts = dataclasses.field(kw_only=True, repr=False, compare=False)
    costs: tuple[float, ...] = dataclasses.field(kw_only=True, compare=False)
    crossing: tuple[int, ...] = dataclasses.field(kw_only=True, compare=False)

    def merge(self, params: tuple, state: tuple) -> PyTree:
        """The variables of the original model, from those of the modules.

        Args:
          params, state: tuples of D pytrees, such as a train state has.

        Returns:
          For a model of Flax Linen its variables, for `model.apply(variables, frame)`; for one of
          NNX an `nnx.State`, for `nnx.update(model, state)`; else the pair `(params, state)`.
        """
        return self.parts.merge(params, state)

    def divide(self, params: PyTree, state: PyTree = ()) -> tuple[tuple, tuple]:
        """Parameters and state by module, from those of the original, such as of a checkpoint.

        Args:
          params: of the structure of the original's; of a Linen model `variables["params"]`.
          state: likewise; of a Linen model its other collections, `{"batch_stats": ...}`.
        """
        return self.parts.divide(params, state)
