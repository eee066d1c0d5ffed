"""Losses on tensors. They know no trainer, device or logger.

Legend: N targets, L levels, I item rows, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F

CROSS_ENTROPY_BLOCK_ENTRIES: Final = 3 << 18
"""Logits held at a time by :func:`full_softmax_loss`: 3 MB, which stays in the cache of a core."""


def next_token_loss(code_losses_NL: torch.Tensor, reduction: Literal["sum", "mean"]) -> torch.Tensor:
    """Negative log-likelihood of the target codes, mean over targets.

    Args:
        code_losses_NL: Cross-entropy of each code of N target items.
        reduction: ``sum`` over an item's codes (OneRec v1, eq. 4) or their ``mean`` (OneRec-V2).

    Example:
        >>> losses = -torch.log(torch.tensor([[0.5, 0.25], [1.0, 0.5]]))
        >>> round(next_token_loss(losses, "sum").item(), 4)  # (ln 2 + ln 4 + ln 1 + ln 2) / 2
        1.3863
    """
    per_item = code_losses_NL.sum(-1) if reduction == "sum" else code_losses_NL.mean(-1)
    return per_item.mean()


def prefix_loss(code_losses_NL: torch.Tensor, adaptivity: float) -> torch.Tensor:
    """Loss of the prefixes of the targets, which a beam must keep one after the other.

    Prefix ``l`` is the first ``l`` codes and its loss the mean of theirs, so the first code counts in all L prefixes and the
    last in one. Prefixes are weighted by ``loss · exp(adaptivity · loss)``, scaled to sum to one and not differentiated: the
    worse a prefix is learned, the more it counts.

    Args:
        code_losses_NL: Cross-entropy of each code of N target items, N at least 1.

    Example:
        >>> losses = torch.tensor([[3.0, 1.0]])  # prefixes: 3 and (3 + 1) / 2 = 2; weights 3/5 and 2/5
        >>> round(prefix_loss(losses, adaptivity=0.0).item(), 4)  # 3 · 3/5 + 2 · 2/5
        2.6

    Source: APAO (arXiv 2603.02730), the pointwise form. Departure: smoothed cross-entropy counts where the model's is.
    """
    lengths_L = torch.arange(1, code_losses_NL.shape[1] + 1, device=code_losses_NL.device)
    prefixes_L = (code_losses_NL.cumsum(1) / lengths_L).mean(0)
    fixed_L = prefixes_L.detach()
    weights_L = fixed_L * (adaptivity * (fixed_L - fixed_L.max())).exp()
    return (weights_L * prefixes_L).sum() / weights_L.sum().clamp(min=1e-12)


@torch.no_grad()
def teacher_code_probs(
    query_ND: torch.Tensor,
    item_vectors_ID: torch.Tensor,
    codes_IL: torch.Tensor,
    target_N: torch.Tensor,
    level_sizes: Sequence[int],
) -> list[torch.Tensor]:
    """What the dense head says of the next code, level by level along the target's path.

    At level ``l`` the teacher's distribution is the dense head's probability of the items that share the target's first
    ``l`` codes, summed by their next code and scaled to one: exactly what a decoder that agreed with the dense head would
    predict there. The dense head sees all items at once and ranks better than the decoder; this hands its knowledge of
    items near the target on.

    Args:
        query_ND: Queries of the dense head.
        item_vectors_ID, codes_IL: Item tower and codes of all rows; row 0 is padding and takes no probability.
        target_N: Target rows, at least 1.

    Returns:
        Per level, float32 ``[N, K]``; each row sums to 1.

    Source: our own; UniGRec and its kin distil a SASRec teacher instead, which the dense head is in all but name: a
    causal encoder with full softmax over tied items, trained in the same run.
    """
    items_IL, vectors_ID = codes_IL[1:], item_vectors_ID[1:].float()
    wanted_NL = codes_IL[target_N]
    parts: list[list[torch.Tensor]] = [[] for _ in level_sizes]
    block = max(1, CROSS_ENTROPY_BLOCK_ENTRIES // len(items_IL))
    for start in range(0, len(target_N), block):
        wanted_nL = wanted_NL[start : start + block]
        mass_In = (vectors_ID @ query_ND[start : start + block].float().T).softmax(0)
        # an item of probability 0 in float32 would leave no distribution below its prefix
        mass_In += torch.finfo(torch.float32).tiny ** 0.5
        for level, size in enumerate(level_sizes):
            code_I = items_IL[:, level]
            by_code_Kn = mass_In.new_zeros(size, mass_In.shape[1]).index_add_(0, code_I, mass_In)
            parts[level].append((by_code_Kn / by_code_Kn.sum(0)).T)
            if level + 1 < len(level_sizes):
                mass_In *= code_I[:, None] == wanted_nL[:, level]
    return [torch.cat(part) for part in parts]


def distillation_loss(logits: Sequence[torch.Tensor], teacher: Sequence[torch.Tensor]) -> torch.Tensor:
    """Cross-entropy of the decoder's codes against a teacher's, summed over levels, mean over targets.

    Args:
        logits, teacher: Per level ``[N, K]``.

    Example:
        >>> even, sure = torch.zeros(1, 2), torch.tensor([[1.0, 0.0]])
        >>> round(distillation_loss([even, even], [sure, sure]).item(), 4)  # 2 · ln 2
        1.3863
    """
    losses = [F.cross_entropy(ours, theirs) for ours, theirs in zip(logits, teacher, strict=True)]
    return torch.stack(losses).sum()


class _FullSoftmaxLoss(torch.autograd.Function):
    """Cross-entropy of ``query @ vectors.T`` without ever holding all logits.

    The gradient with respect to the logits is softmax minus one-hot, so it is formed in the buffer that held the logits,
    block by block, while they are still in the cache. Plain autograd keeps several ``[N, I]`` matrices alive and passes
    over them five times; for 12k items that was half of a training step.
    """

    @staticmethod
    def forward(ctx: Any, query_ND: torch.Tensor, vectors_ID: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
        count, num_items = len(query_ND), len(vectors_ID)
        block = max(1, min(count, CROSS_ENTROPY_BLOCK_ENTRIES // num_items))
        buffer = torch.empty(block, num_items, dtype=torch.float32, device=query_ND.device)
        query_grad, vectors_grad = torch.empty_like(query_ND), torch.zeros_like(vectors_ID)
        total = torch.zeros((), dtype=torch.float64, device=query_ND.device)
        for start in range(0, count, block):
            query, target = query_ND[start : start + block], target_N[start : start + block, None]
            logits = buffer[: len(query)]
            torch.mm(query, vectors_ID.T, out=logits)
            logits -= logits.max(1, keepdim=True).values
            picked = logits.gather(1, target)
            normaliser = logits.exp_().sum(1, keepdim=True)
            total += (normaliser.log() - picked).sum()
            logits /= normaliser
            logits.scatter_add_(1, target, torch.full_like(picked, -1.0))
            torch.mm(logits, vectors_ID, out=query_grad[start : start + block])
            vectors_grad.addmm_(logits.T, query)
        ctx.save_for_backward(query_grad / count, vectors_grad / count)
        return (total / count).to(query_ND.dtype)

    @staticmethod
    def backward(ctx: Any, loss_grad: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None]:
        query_grad, vectors_grad = ctx.saved_tensors
        return query_grad * loss_grad, vectors_grad * loss_grad, None


def full_softmax_loss(states_ND: torch.Tensor, vectors_ID: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of ``states @ vectors.T`` over all I rows, in float32 and without holding ``[N, I]`` logits.

    Args:
        target_N: Row of ``vectors_ID`` that each state should point at.
    """
    loss: torch.Tensor = _FullSoftmaxLoss.apply(states_ND.float(), vectors_ID.float(), target_N)
    return loss


def dense_loss(query_ND: torch.Tensor, item_vectors_ID: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the dense head over the whole catalogue, mean over targets.

    Args:
        item_vectors_ID: Item tower of all rows; row 0 is padding and takes no probability.
        target_N: Target rows, at least 1.
    """
    return full_softmax_loss(query_ND, item_vectors_ID[1:], target_N - 1)


def sampled_dense_loss(
    query_ND: torch.Tensor,
    target_vectors_ND: torch.Tensor,
    sampled_vectors_SD: torch.Tensor,
    collisions_NS: torch.Tensor,
) -> torch.Tensor:
    """Sampled softmax with uniformly drawn negatives.

    Uniform sampling needs no correction of the logits beyond a constant, which the softmax ignores.

    Args:
        collisions_NS: True where a sampled item is the row's own target; it takes no probability there.
    """
    positive_N1 = (query_ND * target_vectors_ND).sum(-1, keepdim=True)
    negative_NS = (query_ND @ sampled_vectors_SD.T).masked_fill(collisions_NS, -torch.inf)
    logits = torch.cat([positive_N1, negative_NS], dim=1).float()
    return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=logits.device))
