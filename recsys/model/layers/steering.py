"""Where a request's objective weights enter the policy: on every memory position, after the encoder.

Adding one vector to all memory positions moves the keys of a cross-attention alike, which leaves its attention unchanged,
and the values alike, so that every decoder position receives the vector in every layer, however long the history is. (The
lazy decoder normalises its context position by position, so there both moves differ a little between positions.) Weights
on the user's position alone would compete with the events for attention, and such an input learned nothing but noise in
alignment. The encoder does not see the weights: one history asked for under several objective weights has the same memory
but for this vector.

Legend: B users, O objectives, S memory positions, D width.
"""

from __future__ import annotations

import torch
from torch import nn

from recsys.contracts.errors import ConfigError
from recsys.data.batch import HistoryBatch
from recsys.model.layers.rows import Linear


class ObjectiveInput(nn.Module):
    """Steer memory by objective weights.

    Weights are centred and multiplied by O before they are projected: equal weights are 0, to the policy the same as no
    weights (a reward model in a second stage still weighs by them), all weight on one objective is O - 1 there and -1
    elsewhere. Without the centring, what all weights have in common would be learned here instead of in the policy. The
    projection starts at zero, so that a policy that was never aligned for it does not listen.
    """

    def __init__(self, num_objectives: int, width: int) -> None:
        super().__init__()
        self.projection = Linear(num_objectives, width, bias=False)
        self.reset()

    def reset(self) -> None:
        """Condition on nothing yet: the map starts at zero."""
        nn.init.zeros_(self.projection.weight)

    def forward(self, memory_BSD: torch.Tensor, weights_BO: torch.Tensor) -> torch.Tensor:
        """Return the memory that answers under these weights, ``[B, S, D]``.

        Example:
            >>> steer = ObjectiveInput(num_objectives=2, width=1)
            >>> steer.projection.weight.data = torch.tensor([[1.0, 0.0]])
            >>> steer(torch.zeros(3, 1, 1), torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.25, 0.75]])).flatten().tolist()
            [0.0, 1.0, -0.5]
        """
        centred_BO = (weights_BO - weights_BO.mean(-1, keepdim=True)) * weights_BO.shape[-1]
        return memory_BSD + self.projection(centred_BO.to(memory_BSD.dtype))[:, None]


def steer(memory_BSD: torch.Tensor, history: HistoryBatch, objective: ObjectiveInput | None) -> torch.Tensor:
    """Memory under the objective weights that the requests carry, or as it is where they carry none.

    Raises:
        ConfigError: The batch carries objective weights that the model has no input for, or another number of them.
    """
    if history.objective_BO is None:
        return memory_BSD
    taken = 0 if objective is None else objective.projection.in_features
    if objective is None or history.objective_BO.shape[1] != taken:
        raise ConfigError(
            f"requests carry {history.objective_BO.shape[1]} objective weights, the model takes {taken}; "
            "train with model.num_objectives, or leave the weights out"
        )
    return objective(memory_BSD, history.objective_BO)
