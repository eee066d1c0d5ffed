"""Beam search as it would be written on a blackboard: no cache, no index, every prefix scored by teacher forcing."""

from __future__ import annotations

import numpy as np
import torch

from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.model.generative_recommender import GenerativeRecommender


@torch.no_grad()
def reference_beam(
    policy: GenerativeRecommender, histories: Histories, codes: np.ndarray, width: int, denied: list[set[int]]
) -> list[list[tuple[int, float]]]:
    """Items and scores per user, best first.

    Args:
        codes: ``[I, L]``, no two rows alike.
        denied: Items that must not come out, per user.
    """
    item_of = {tuple(row): item for item, row in enumerate(codes.tolist())}
    results = []
    for row in range(len(histories)):
        history = collate_histories(histories.take(np.array([row])), policy.spec.model.max_history)
        allowed = [i for i in range(len(codes)) if i not in denied[row]]
        beams: list[tuple[int, ...]] = [()]
        scores: dict[tuple[int, ...], float] = {}
        for level in range(codes.shape[1]):
            live = set(beams)
            example: dict[tuple[int, ...], int] = {}  # some item below each extended prefix
            for item in allowed:
                prefix = tuple(codes[item, : level + 1].tolist())
                if prefix[:-1] in live:
                    example.setdefault(prefix, item)
            target = torch.tensor([list(example.values())])[..., None] + 1
            position = history.lengths_B[:, None].expand(1, target.shape[1]).contiguous()
            hidden, _ = policy(TrainingBatch(history, target, position))
            log_probs = policy.code_log_probs(hidden, target)[0, :, 0, : level + 1].sum(-1)
            scores = dict(zip(example, log_probs.tolist(), strict=True))
            beams = sorted(scores, key=lambda prefix: -scores[prefix])[:width]
        results.append([(item_of[prefix], scores[prefix]) for prefix in beams])
    return results


def disagreements(found_items: np.ndarray, found_scores: np.ndarray, expected: list[tuple[int, float]]) -> list[str]:
    """Ranks where a search differs from the reference by more than rounding explains.

    Scores must agree within 1e-4 at every rank. Items must be equal wherever no neighbour's score is within 1e-4; the last
    rank counts as tied, because what stands behind it is not known.

    Args:
        found_items, found_scores: ``[W]``, -1 where there is nothing.
    """
    said = []
    scores = np.array([score for _, score in expected])
    gaps = np.append(np.abs(np.diff(scores)), 0.0)
    for rank, (item, score) in enumerate(expected):
        if abs(found_scores[rank] - score) > 1e-4:
            said.append(f"rank {rank}: score {found_scores[rank]}, expected {score}")
        tied = min(gaps[rank], gaps[rank - 1] if rank else np.inf) <= 1e-4
        if found_items[rank] != item and not tied:
            said.append(f"rank {rank}: item {found_items[rank]}, expected {item}")
    if (found_items[len(expected) :] != -1).any():
        said.append(f"items beyond the {len(expected)} possible ones")
    return said
