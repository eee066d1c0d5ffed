"""Losses on tensors. They know no trainer or logger; the softmax over items is cut to the device that its tensors are on.

Legend: N targets, L levels, I item rows, S sampled items, D width, R rows and C items of a block.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F

from recsys.model.layers.precision import float32_product, product_dtype

CACHE_ENTRIES: Final = 3 << 18
"""Logits of a block on a CPU: 3 MB, which stay in the cache of a core."""

MEMORY_ENTRIES: Final = {"cpu": 1 << 25, "cuda": 1 << 29}
"""Logits of a block of whole rows at most, where no cache holds them: 128 MB on a CPU, 2 GB on a GPU."""

FEWEST_ROWS: Final = 32
"""Below this a block reads the vectors of the items more often than it computes with them."""


@dataclass(frozen=True)
class SoftmaxBlocks:
    """How a product of ``[N, D]`` queries and ``[I, D]`` vectors is cut.

    Attributes:
        rows: R queries at a time.
        items: C items at a time; all of them where R whole rows of logits fit.
    """

    rows: int
    items: int

    @classmethod
    def of(cls, count: int, num_items: int, device: torch.device) -> SoftmaxBlocks:
        """Choose.

        A core works in its cache as long as that holds :data:`FEWEST_ROWS` rows. Otherwise, and on a GPU always, rows are
        as many as memory allows, because every block reads all vectors and adds to all their gradients; and where memory
        does not hold enough whole rows, items are cut, too.

        Example:
            >>> SoftmaxBlocks.of(4096, 12_101, torch.device("cpu"))
            SoftmaxBlocks(rows=64, items=12101)
            >>> SoftmaxBlocks.of(4096, 1_000_000, torch.device("cuda"))
            SoftmaxBlocks(rows=536, items=1000000)
            >>> SoftmaxBlocks.of(4096, 100_000_000, torch.device("cuda"))
            SoftmaxBlocks(rows=4096, items=131072)
        """
        num_items, entries = max(num_items, 1), MEMORY_ENTRIES.get(device.type, MEMORY_ENTRIES["cpu"])
        if device.type == "cpu" and CACHE_ENTRIES // num_items >= FEWEST_ROWS:
            entries = CACHE_ENTRIES
        fitting = entries // num_items
        if fitting >= min(FEWEST_ROWS, count):
            return cls(max(1, min(count, fitting)), num_items)
        rows = max(1, min(count, 4096))
        return cls(rows, max(1, entries // rows))


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
    block = SoftmaxBlocks.of(len(target_N), len(items_IL), query_ND.device).rows
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
    block by block. Plain autograd keeps several ``[N, I]`` matrices alive and passes over them five times; for 12k items
    that was half of a training step. Where a block cannot hold whole rows, their largest logit and their sum are found in a
    pass of its own, and the logits are computed twice.

    The buffer holds ``exp(logit - highest)``; to divide it by its sum, the row's query and gradient are divided instead,
    which are D numbers rather than I.
    """

    @staticmethod
    def forward(
        ctx: Any,
        query_ND: torch.Tensor,
        vectors_ID: torch.Tensor,
        target_N: torch.Tensor,
        blocks: SoftmaxBlocks,
        product_dtype: torch.dtype,
    ) -> torch.Tensor:
        count, num_items = len(query_ND), len(vectors_ID)
        query_grad, vectors_grad = torch.empty_like(query_ND), torch.empty_like(vectors_ID)
        buffer = torch.empty(blocks.rows * blocks.items, dtype=torch.float32, device=query_ND.device)
        vectors = vectors_ID.to(product_dtype)
        total = torch.zeros((), dtype=torch.float64, device=query_ND.device)
        for first in range(0, count, blocks.rows):
            rows = slice(first, first + blocks.rows)
            query, target = query_ND[rows].to(product_dtype), target_N[rows, None]
            highest = normaliser = None
            if blocks.items < num_items:
                highest, normaliser = _highest_and_normaliser(query, vectors, blocks.items, buffer)
            for start in range(0, num_items, blocks.items):
                part = vectors[start : start + blocks.items]
                logits = _product(query, part.T, buffer)
                if blocks.items >= num_items:
                    highest = logits.amax(1, keepdim=True)
                assert highest is not None
                logits -= highest
                place, here = target, None  # where the target stands among these items, and whether it does
                if blocks.items < num_items:
                    place = target - start
                    here = (place >= 0) & (place < len(part))
                    place = place.clamp(0, len(part) - 1)
                picked = logits.gather(1, place)
                total -= (picked if here is None else torch.where(here, picked, 0.0)).sum()
                logits.exp_()
                if blocks.items >= num_items:
                    normaliser = logits.sum(1, keepdim=True)
                assert normaliser is not None
                taken = -normaliser if here is None else torch.where(here, -normaliser, 0.0)
                logits.scatter_add_(1, place, taken)
                minus_one_hot = logits.to(product_dtype)
                _add_product(query_grad[rows], minus_one_hot, part, anew=start == 0)
                scaled = (query_ND[rows] / (normaliser * count)).to(product_dtype)
                _add_product(vectors_grad[start : start + blocks.items], minus_one_hot.T, scaled, anew=first == 0)
            assert normaliser is not None
            query_grad[rows].div_(normaliser * count)
            total += normaliser.log().sum()
        ctx.save_for_backward(query_grad, vectors_grad)
        return (total / count).to(query_ND.dtype)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, loss_grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        query_grad, vectors_grad = ctx.saved_tensors
        return query_grad * loss_grad, vectors_grad * loss_grad, None, None, None


def _product(left: torch.Tensor, right: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """``left @ right`` in the buffer, float32 whatever the factors are."""
    return float32_product(left, right, buffer[: len(left) * right.shape[1]].view(len(left), right.shape[1]))


def _add_product(total: torch.Tensor, left: torch.Tensor, right: torch.Tensor, *, anew: bool = False) -> None:
    """``total += left @ right``, float32 whatever the factors are; ``anew``: whatever stands in ``total`` is dropped."""
    if anew:
        float32_product(left, right, total)
    elif left.is_cuda and left.dtype != torch.float32:
        total += float32_product(left, right)
    else:
        total.addmm_(left.float(), right.float())


def _highest_and_normaliser(
    query_RD: torch.Tensor, vectors_ID: torch.Tensor, items: int, buffer: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Largest logit of every row and the sum of ``exp(logit - largest)``, ``[R, 1]`` each, some items at a time."""
    highest = torch.full((len(query_RD), 1), -torch.inf, device=query_RD.device)
    normaliser = torch.zeros_like(highest)
    for start in range(0, len(vectors_ID), items):
        logits = _product(query_RD, vectors_ID[start : start + items].T, buffer)
        now_highest = torch.maximum(highest, logits.amax(1, keepdim=True))
        logits -= now_highest
        normaliser = normaliser * (highest - now_highest).exp() + logits.exp_().sum(1, keepdim=True)
        highest = now_highest
    return highest, normaliser


def full_softmax_loss(
    states_ND: torch.Tensor,
    vectors_ID: torch.Tensor,
    target_N: torch.Tensor,
    *,
    blocks: SoftmaxBlocks | None = None,
    factors: torch.dtype | None = None,
) -> torch.Tensor:
    """Mean cross-entropy of ``states @ vectors.T`` over all I rows, without holding ``[N, I]`` logits.

    Logits, softmax and sums are float32; where :func:`product_dtype` says so, the factors of the products are rounded.

    Args:
        target_N: Row of ``vectors_ID`` that each state should point at. None: the loss and all gradients are 0.
        blocks: How the product is cut; ``None``: as :meth:`SoftmaxBlocks.of` says.
        factors: Type of the factors; ``None``: as :func:`product_dtype` says.
    """
    if len(target_N) == 0:
        return states_ND.float().sum() + vectors_ID[:0].float().sum()
    device = states_ND.device
    blocks = blocks or SoftmaxBlocks.of(len(target_N), len(vectors_ID), device)
    factors = factors or product_dtype(device)
    with torch.autocast(device.type, enabled=False):
        loss: torch.Tensor = _FullSoftmaxLoss.apply(states_ND.float(), vectors_ID.float(), target_N, blocks, factors)
    return loss


def dense_loss(query_ND: torch.Tensor, item_vectors_ID: torch.Tensor, target_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of the dense head over the whole catalogue, mean over targets.

    Args:
        item_vectors_ID: Item tower of all rows; row 0 is padding and takes no probability.
        target_N: Target rows.
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
    device = query_ND.device
    # The same rounding for the target and for the others; mixed, a target of float32 would win or lose against its equals.
    # What bfloat16 holds is exact in TF32, so on a GPU these products run on tensor cores.
    rounding = product_dtype(device)
    query_ND, target_vectors_ND, sampled_vectors_SD = (
        factor.to(rounding).float() for factor in (query_ND, target_vectors_ND, sampled_vectors_SD)
    )
    with torch.autocast(device.type, enabled=False):
        positive_N1 = (query_ND * target_vectors_ND).sum(-1, keepdim=True)
        negative_NS = (query_ND @ sampled_vectors_SD.T).masked_fill(collisions_NS, -torch.inf)
        logits = torch.cat([positive_N1, negative_NS], dim=1)
        return F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.int64, device=device))
