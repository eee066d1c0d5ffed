"""Search wide, update narrow; and groups without their target, repaired.

A wide beam finds the target more often and harder negatives, and most of its candidates teach little: an update on the
strongest positive and the hardest negatives costs a fraction of one on all. A group without the target has no positive at
all; it can be given the target in its last place.

Source: the idea of ReCast (arXiv 2604.22169: repair, then contrast strongest positive and hardest negative; 4.1 % of the
roll-outs for equal quality, update time 1 / 16.6); its formulas are not known to us. That a repaired target must be within
reach, and weighs less, is ours: softmax-DPO on groups that all got their target lost 30 % of NDCG@10 on Beauty
(``docs/results``).

Legend: B users, G candidates, N = 1 + negatives, M items per session, L levels.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from recsys.alignment.rewards.functions import RolloutGroup, target_share
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.contracts.errors import ConfigError
from recsys.model.generative_recommender import GenerativeRecommender


def narrow(group: RolloutGroup, rewards_BG: torch.Tensor, negatives: int) -> tuple[RolloutGroup, torch.Tensor]:
    """Keep the strongest positive of every group and its hardest negatives.

    The positive has the highest reward, and among equals the highest log-probability. Negatives are candidates of lower
    reward, the most probable ones first: those that stand before the positive, or next behind it.

    Args:
        rewards_BG: One per candidate.

    Returns:
        ``(groups of 1 + negatives, their rewards [B, N])``, the positive first; absent where a group has too few.

    Raises:
        ConfigError: Rewards are per code.

    Example:
        >>> chosen(torch.tensor([[0.0, 1.0, 0.0, 0.0]]), torch.tensor([[-3.0, -2.0, -4.0, -1.0]]), 2).tolist()
        [[1, 3, 0]]
    """
    if rewards_BG.ndim != 2:
        raise ConfigError(
            "recall.narrowing compares candidates by one reward each, and these rewards are per code; leave "
            "'first_difference' out"
        )
    rewards_BG = rewards_BG.masked_fill(~group.valid, -torch.inf)
    scores_BG = group.scores.masked_fill(~group.valid, -torch.inf)
    places_BN = chosen(rewards_BG, scores_BG, min(negatives, rewards_BG.shape[1] - 1))
    lower_BN = rewards_BG.gather(1, places_BN) < rewards_BG.gather(1, places_BN[:, :1])
    lower_BN[:, 0] = True
    kept_BN = lower_BN & group.valid.gather(1, places_BN)
    items = _at(group.items, places_BN).masked_fill(~kept_BN[..., None], -1)
    codes = _at(group.codes, places_BN).masked_fill(~kept_BN[..., None, None], -1)
    scores = scores_BG.gather(1, places_BN).masked_fill(~kept_BN, -torch.inf)
    rewards = rewards_BG.gather(1, places_BN).masked_fill(~kept_BN, 0.0)
    return replace(group, items=items, codes=codes, scores=scores), rewards


def chosen(rewards_BG: torch.Tensor, scores_BG: torch.Tensor, negatives: int) -> torch.Tensor:
    """Places of the strongest positive and of the most probable candidates with a lower reward, ``[B, 1 + negatives]``."""
    by_score = scores_BG.argsort(dim=1, descending=True, stable=True)
    best_BG = rewards_BG.gather(1, by_score)
    positive_B1 = by_score.gather(1, best_BG.argmax(1, keepdim=True))
    lower_BG = best_BG < rewards_BG.gather(1, positive_B1)
    order = (~lower_BG).int().argsort(dim=1, stable=True)[:, :negatives]
    return torch.cat([positive_B1, by_score.gather(1, order)], dim=1)


@torch.no_grad()
def repaired(
    policy: GenerativeRecommender, group: RolloutGroup, reach: float | None
) -> tuple[RolloutGroup, torch.Tensor]:
    """Put the target into the last place of every group that lacks it and could have had it.

    Args:
        reach: Nats that the target may be less probable than the least probable candidate; ``None``: any number.

    Returns:
        ``(groups, repaired [B])``.
    """
    assert group.history is not None
    lacking_B = ~(target_share(group) > 0).any(1)
    rows_N = lacking_B.nonzero()[:, 0]
    targets_NM = group.target[rows_N]
    score_N = candidate_log_probs(policy, group.history.take(rows_N), targets_NM[:, None]).sessions[:, 0]
    if reach is not None:
        last_N = group.scores[rows_N].masked_fill(~group.valid[rows_N], torch.inf).amin(1)
        near_N = score_N >= last_N - reach
        rows_N, targets_NM, score_N = rows_N[near_N], targets_NM[near_N], score_N[near_N]
    place_N = torch.where(group.valid[rows_N].all(1), group.items.shape[1] - 1, (~group.valid[rows_N]).int().argmax(1))
    items, codes, scores = group.items.clone(), group.codes.clone(), group.scores.clone()
    items[rows_N, place_N] = targets_NM
    codes[rows_N, place_N] = group.target_codes[rows_N]
    scores[rows_N, place_N] = score_N
    repaired_B = torch.zeros_like(lacking_B).index_fill(0, rows_N, True)
    return replace(group, items=items, codes=codes, scores=scores), repaired_B


def _at(values: torch.Tensor, places_BN: torch.Tensor) -> torch.Tensor:
    """Candidates at the given places, ``[B, G, ...] -> [B, N, ...]``."""
    return values[torch.arange(len(values), device=values.device)[:, None], places_BN]
