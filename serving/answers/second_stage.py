"""The second stage: the reward model looks at what the policy generated, and its order is served.

OneRec's report has most of the online gain from it: the policy proposes, the reward model selects (arXiv 2506.13695). What
it selects from is the whole beam, not the beam's first k.

Legend: N users, C candidates of a user, M items of a session, k answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.errors import ArtifactError
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.recommender import ItemScores
from recsys.decoding.rules.item_rules import Quotas
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.reward.checkpoint import load_reward_model
from recsys.reward.scoring import DIVERSITY, DiverseScorer, ModelScorer, SessionScorer
from serving.answers.sessions import RankedSessions

REWARD_FOLDER: Final = "reward_model"
"""Of a bundle."""


def open_reward_model(folder: Path, policy: GenerativeRecommender) -> SessionScorer:
    """Open a reward model as the held-out reward model of what ``policy`` generates.

    It goes where the policy is. For a steerable policy it scores by the policy's towers, the diversity of a session among
    them if alignment had it.

    Raises:
        ArtifactError: It cannot be read, scores shorter sessions than the policy generates, or belongs to other semantic
            IDs, other data or other towers than the policy.
    """
    model = load_reward_model(folder, policy.spec.semantic_id_digest, policy.codes.weight.device)
    if model.spec.dataset != policy.spec.dataset:
        raise ArtifactError(
            f"reward model in '{folder}' was trained on other data than the policy ({model.spec.dataset} against "
            f"{policy.spec.dataset}); export both from one run"
        )
    if model.spec.max_items < policy.spec.dataset.session_length:
        raise ArtifactError(
            f"reward model in '{folder}' evaluates sessions of at most {model.spec.max_items} items, the policy generates "
            f"{policy.spec.dataset.session_length}; raise reward.feedback.max_items and train it again"
        )
    scorer: SessionScorer = ModelScorer(model)
    objectives = policy.spec.objectives
    if objectives == (*scorer.towers, DIVERSITY):
        scorer = DiverseScorer(scorer, policy.item_tower.category_I[1:].cpu())
    if objectives and scorer.towers != objectives:
        raise ArtifactError(
            f"the policy was aligned with the towers {', '.join(objectives)}, the reward model in '{folder}' has "
            f"{', '.join(scorer.towers)}; export the policy with the reward model that it was aligned with"
        )
    return scorer


def item_rewards(reward: SessionScorer, num_items: int, strength: float) -> ItemScores:
    """Log-scores that guide a search to items of high reward: ``strength`` times the reward, in standard deviations.

    Each item is evaluated as a session of one, under the request's own objective weights. Mean and deviation are of the
    user's whole catalogue, so that one strength serves every way in which towers are combined. A search adds the score of
    every item of a session, where the second stage evaluates sessions as a whole: what belongs together is for that one.
    """
    item_I1 = torch.arange(num_items)[:, None]

    def scores(histories: Histories) -> torch.Tensor:
        reward_BI = reward.reward(histories, item_I1.expand(len(histories), -1, -1)).float()
        spread_B1 = reward_BI.std(1, correction=0, keepdim=True)
        return strength * (reward_BI - reward_BI.mean(1, keepdim=True)) / spread_B1.clamp(min=1e-12)

    return scores


def best_items(
    reward: SessionScorer, histories: Histories, pool: RankedItems, k: int, quotas: Quotas | None
) -> RankedItems:
    """Order candidate items by reward, each as a session of one, and keep ``k``.

    Equal rewards keep the first stage's order.

    Args:
        pool: C candidates per row.
        quotas: Of the final list; an item over its group's limit in the new order makes room for the next.

    Returns:
        Scores are rewards, which compare the candidates of one user.
    """
    items_NC = torch.from_numpy(pool.items.astype(np.int64))
    reward_NC, order_NC = _by_reward(reward, histories, items_NC[..., None])
    items_NC = items_NC.gather(1, order_NC)
    if quotas is not None:
        over_NC = quotas.to(items_NC.device).over(items_NC)
        items_NC = items_NC.masked_fill(over_NC, -1)
        back = over_NC.sort(dim=1, stable=True).indices
        items_NC = items_NC.gather(1, back)
        reward_NC = reward_NC.masked_fill(over_NC, -torch.inf).gather(1, back)
    return RankedItems(items_NC[:, :k].to(torch.int32).numpy(), reward_NC[:, :k].numpy())


def best_sessions(
    reward: SessionScorer, histories: Histories, items: npt.NDArray[np.integer], k: int
) -> RankedSessions:
    """Order candidate sessions ``[N, C, M]`` by reward and keep ``k``; equal rewards keep the first stage's order."""
    reward_NC, order_NC = _by_reward(reward, histories, torch.from_numpy(items.astype(np.int64)))
    kept = np.take_along_axis(items, order_NC[:, :k, None].numpy(), axis=1)
    return RankedSessions(kept, reward_NC[:, :k].numpy())


def _by_reward(
    reward: SessionScorer, histories: Histories, items_NCM: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rewards from highest to lowest, and which candidate each belongs to; what does not exist comes last."""
    reward_NC = reward.reward(histories, items_NCM).float().cpu()
    return reward_NC.masked_fill((items_NCM < 0).all(-1), -torch.inf).sort(dim=1, descending=True, stable=True)
