"""What beams remember of their own prefixes, and attention over it.

Every decoder step writes one block of query-key-value rows per layer and never moves it; when beams are re-ordered, only
the small ancestry tables change. A beam then reads one row per earlier step: its ancestor's.

Legend: B users, W beams, W_t rows that step t wrote per user (1 where all beams share them), A heads, C channels per
head, T steps so far.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys import native


@dataclass
class BeamCache:
    """Rows of all steps and layers.

    Attributes:
        blocks: Per layer, per step, ``[B, W_t, 3 * A * C]``: the fused projection's output, kept as it is.
        ancestry: Per finished step, int64 ``[B, W]``: which row of that step's block each beam descends from.
    """

    blocks: list[list[torch.Tensor]]
    ancestry: list[torch.Tensor]

    @classmethod
    def empty(cls, num_layers: int) -> BeamCache:
        """Nothing remembered yet."""
        return cls([[] for _ in range(num_layers)], [])

    @property
    def width(self) -> int:
        """W, the beams that the next step feeds; 1 before the first step."""
        return self.ancestry[0].shape[1] if self.ancestry else 1

    def attend(
        self,
        layer: int,
        qkv_BWR: torch.Tensor,
        num_heads: int,
        scale: float,
        bias_AT: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Remember this step's rows and attend over the prefix that ends with them, ``[B, W, A * C]``."""
        blocks = self.blocks[layer]
        blocks.append(qkv_BWR)
        if len(blocks) == 1 and bias_AT is None:
            return qkv_BWR[..., -(qkv_BWR.shape[-1] // 3) :]  # one position to look at: its value
        if native.available() and qkv_BWR.is_cpu and qkv_BWR.dtype == torch.float32:
            return native.prefix_attention(blocks, self.ancestry, num_heads, scale, bias_AT)
        return attend_to_prefix(blocks, self.ancestry, num_heads, scale, bias_AT)

    def finish_step(self) -> None:
        """Call once per step, after all layers: every beam descends from its own row."""
        newest = self.blocks[0][-1]
        own = torch.arange(newest.shape[1], device=newest.device)
        self.ancestry.append(own.expand(newest.shape[0], -1).contiguous())

    def reorder(self, parent_BW: torch.Tensor) -> None:
        """Let beam ``w`` continue old beam ``parent[w]``."""
        self.ancestry = [columns.gather(1, parent_BW) for columns in self.ancestry]


def attend_to_prefix(
    blocks: list[torch.Tensor],
    ancestry: list[torch.Tensor],
    num_heads: int,
    scale: float,
    bias_AT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pure PyTorch form: gather one whole row per beam and step, then elementwise products.

    Arguments and result as in :func:`recsys.native.prefix_attention`, on any device and for any float type.
    """
    users, beams, row = blocks[-1].shape
    inner = row // 3
    shape = (users, -1, num_heads, inner // num_heads)
    q_BWAC = blocks[-1][..., :inner].reshape(shape) * scale
    first_row = torch.arange(users, device=q_BWAC.device)[:, None]
    scores, values = [], []
    for step, block in enumerate(blocks):
        rows = block[..., inner:]
        if step < len(ancestry) and block.shape[1] > 1:
            flat = (first_row * block.shape[1] + ancestry[step]).flatten()
            rows = block.view(-1, row).index_select(0, flat).view(users, beams, row)[..., inner:]
        scores.append((q_BWAC * rows[..., :inner].unflatten(-1, shape[2:])).sum(-1))
        values.append(rows[..., inner:].unflatten(-1, shape[2:]))
    scores_TBWA = torch.stack(scores)
    if bias_AT is not None:
        scores_TBWA = scores_TBWA + bias_AT.T[:, None, None]
    weights = _softmax_over_steps(scores_TBWA).to(q_BWAC.dtype)
    mixed = weights[0, ..., None] * values[0]
    for weight, value in zip(weights[1:], values[1:], strict=True):
        mixed = torch.addcmul(mixed, weight[..., None], value)
    return mixed.reshape(users, beams, inner)


def _softmax_over_steps(scores_TBWA: torch.Tensor) -> torch.Tensor:
    """Softmax over T in float32, step by step: ``softmax(0)`` rounds a user's row by where in the batch it stands."""
    scores_TBWA = scores_TBWA.float()
    exponentials = (scores_TBWA - scores_TBWA.amax(0)).exp()
    total = exponentials[0]
    for step in exponentials[1:]:
        total = total + step
    return exponentials / total
