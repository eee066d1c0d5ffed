"""Scores of a whole catalogue that are matrix products: a query of every history with a vector of every item.

In a large catalogue on a CPU one pass of a compiled kernel makes the sum of all such scores: each item's scores stay in the
cache until the last product is added. Without it, or for few items, they are products of a library.

Legend: B histories, I items, D width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch

from recsys import native
from recsys.model.layers.rows import product

LARGE_CATALOGUE: Final = 1 << 16
"""Items beyond which the scores of one batch do not fit a processor's cache."""

ITEMS_TOGETHER: Final = 1 << 11
"""Items whose scores are made together without the kernel: with 64 users half a megabyte."""

Term = tuple[torch.Tensor, torch.Tensor]
"""``query [B, D]`` and ``vectors [I, D]``, float32."""


def one_pass(scores_BI: torch.Tensor) -> bool:
    """Whether products are added to such scores by the kernel, which knows float32 and no gradients."""
    plain = scores_BI.is_cpu and scores_BI.dtype == torch.float32
    return plain and scores_BI.shape[1] > LARGE_CATALOGUE and native.available()


def catalogue_scores(query_BD: torch.Tensor, vectors_ID: torch.Tensor) -> torch.Tensor:
    """``query @ vectors^T``, ``[B, I]``, row by row the same whatever other rows there are.

    Where a gradient is asked for, it is one product, however many items there are.
    """
    learnt = torch.is_grad_enabled() and (query_BD.requires_grad or vectors_ID.requires_grad)
    if learnt or not query_BD.is_cpu or len(vectors_ID) <= LARGE_CATALOGUE:
        return product(query_BD, vectors_ID.T)
    score_BI = query_BD.new_zeros(len(query_BD), len(vectors_ID))
    if one_pass(score_BI):
        add_in_one_pass([(query_BD, vectors_ID)], score_BI)
        return score_BI
    for start in range(0, len(vectors_ID), ITEMS_TOGETHER):
        items = slice(start, start + ITEMS_TOGETHER)
        product(query_BD, vectors_ID[items].T, out=score_BI[:, items])
    return score_BI


def add_in_one_pass(terms: Sequence[Term], scores_BI: torch.Tensor) -> None:
    """Add the sum of all ``query @ vectors^T`` to ``scores``, in place; asks for :func:`one_pass`."""
    native.add_products([(query.contiguous(), vectors.contiguous()) for query, vectors in terms], scores_BI)
