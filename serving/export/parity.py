"""Proves that the exported bundle answers like the trained policy, before anyone can register it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import load_policy
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.ranker import open_recommender
from serving.answers.scorer import Scorer
from serving.answers.second_stage import open_reward_model
from serving.export.export import BundleSources


def check_parity(
    bundle: Path,
    sources: BundleSources,
    prepared: Dataset,
    decode: DecodeConfig,
    num_users: int,
    k: int = 10,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Compare recommendations of bundle and trained policy for users spread over the data set.

    Scores are compared as well: equal items with other scores would be luck. So are the rewards of these items where the
    bundle has a reward model.

    Raises:
        ArtifactError: Any item or score differs; the first such user is named.
    """
    semantic_ids = SemanticIds.load(sources.semantic_ids)
    policy = load_policy(sources.model, semantic_ids.digest, device)
    trained = open_recommender(policy, semantic_ids, decode, sources.ranker)
    everyone = prepared.all_users()
    rows = np.unique(np.linspace(0, len(everyone) - 1, num=min(num_users, len(everyone))).astype(np.int64))
    histories = Histories.from_targets(prepared.history, everyone.take(rows))
    expected = trained.recommend(histories, k, exclude_seen=True)
    exported = Scorer.open(bundle, device)
    found = exported.score_histories(histories, k)
    same = (expected.items == found.items).all(axis=1) & np.isclose(expected.scores, found.scores, rtol=1e-5).all(
        axis=1
    )
    if not same.all():
        row = int(np.flatnonzero(~same)[0])
        user = prepared.users[Columns.USER_ID][int(rows[row])]
        raise ArtifactError(
            f"the bundle '{bundle}' answers user {user!r} with {found.items[row].tolist()}, the trained policy with "
            f"{expected.items[row].tolist()} (item_index); {int((~same).sum())} of {len(rows)} users differ; not published"
        )
    if sources.reward_model is not None:
        items_NC1 = torch.from_numpy(found.items.astype(np.int64))[..., None]
        rewards = open_reward_model(sources.reward_model, policy).reward(histories, items_NC1)
        reward_model = exported.reward_model
        if reward_model is None or not torch.allclose(reward_model.reward(histories, items_NC1), rewards, rtol=1e-5):
            raise ArtifactError(
                f"the reward model in bundle '{bundle}' does not score like the one in '{sources.reward_model}'; not "
                "published, export again"
            )
    return {"parity_users": len(rows)}
