"""A reward model as scorer: relative inside a group, absolute between rounds."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch

from recsys.alignment.config import RolloutConfig
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.request_stream import RequestStream, seeded
from recsys.alignment.rollouts.sampler import RolloutSampler
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError
from recsys.data.histories import Histories
from recsys.data.item_catalogue import ItemCatalogue
from recsys.reward.config import CombinationConfig, RewardModelConfig, RewardSignal
from recsys.reward.model import RewardSpec, SessionRewardModel
from recsys.reward.scoring import DiverseScorer, ModelScorer
from tests.toy.alignment import ring_policy, session_ring
from tests.toy.dataset import ring_ids

SIGNALS = (
    RewardSignal(name="swt", column="watch_time_ms", kind="watch_time"),
    RewardSignal(name="ltr", column="like", kind="any", weight=0.5),
)


def model_of(prepared: Dataset, mode: str = "zscore") -> SessionRewardModel:
    torch.manual_seed(2)
    spec = RewardSpec(
        model=RewardModelConfig(
            width=8,
            num_heads=2,
            ffn_width=8,
            tower_width=4,
            max_history=3,
            item_embeddings=False,
            fused_tower=True,
            init_std=0.5,
        ),
        dataset=prepared.spec,
        level_sizes=ring_ids().level_sizes,
        semantic_id_digest=ring_ids().digest,
        signals=SIGNALS,
        base_rates=(0.5, 0.1),
        max_items=3,
        embedding_width=0,
        combination=CombinationConfig(mode=mode),
    )
    rates = torch.zeros(prepared.spec.num_items + 1, len(SIGNALS))
    model = SessionRewardModel(spec, ItemCatalogue.from_items(prepared.items, ring_ids().codes), None, rates)
    for down in [*model.tower_down, model.fused_down]:
        torch.nn.init.normal_(down.weight)
    return model.eval().requires_grad_(False)


@pytest.fixture
def prepared(tmp_path: Path) -> Dataset:
    return session_ring(tmp_path)


def test_values_are_probabilities_and_rewards_compare_inside_a_group(prepared: Dataset) -> None:
    """Z-scored rewards have mean 0 in every group, so a level between rounds has to come from the values."""
    histories = RequestStream(prepared, 6, 8, seed=0).requests(np.arange(5)).histories
    items = torch.from_numpy(np.random.default_rng(0).integers(0, 12, (5, 7, 3)))
    items[1, 6] = -1
    scorer = ModelScorer(model_of(prepared))
    values, reward = scorer.values(histories, items), scorer.reward(histories, items)
    assert scorer.towers == ("swt", "ltr")
    assert scorer.weights.tolist() == [1.0, 0.5]
    assert values[1, 6].isnan().all()
    assert reward[1, 6] == -torch.inf
    exists = (items >= 0).any(-1)
    assert ((values[exists] > 0) & (values[exists] < 1)).all()
    assert reward.masked_fill(~exists, 0).sum(1).abs().max() < 1e-4
    assert values[exists].std() > 0.01


def test_a_fused_tower_is_one_tower(prepared: Dataset) -> None:
    histories = RequestStream(prepared, 6, 8, seed=0).requests(np.arange(3)).histories
    items = torch.randint(0, 12, (3, 4, 3), generator=seeded(1))
    scorer = ModelScorer(model_of(prepared, "fused"))
    assert scorer.towers == ("fused",)
    torch.testing.assert_close(scorer.values(histories, items)[..., 0], scorer.reward(histories, items))


def test_the_reward_sees_the_histories_of_its_own_group(prepared: Dataset) -> None:
    """The reward model reads 3 events, the policy 6; each group is evaluated with its own users' histories, uncut."""
    policy = ring_policy(prepared)
    scorer = ModelScorer(model_of(prepared))
    reward_set = RewardSet({"learned": 2.0, "rule": 1.0}, learned=scorer)
    requests = RequestStream(prepared, 6, 8, seed=0).requests(np.arange(8))
    group = RolloutSampler(ring_ids(), RolloutConfig(num_generations=4)).roll_out(policy, requests, seeded(0))
    parts = reward_set.reward.components(group)
    torch.testing.assert_close(parts["learned"], scorer.reward(requests.histories, group.items))
    others = reward_set.without_learned()
    assert others is not None
    assert list(others.reward.parts) == ["rule"]
    assert RewardSet({"learned": 1.0}, learned=scorer).without_learned() is None
    with pytest.raises(ConfigError, match="needs a reward model and got none"):
        RewardSet({"learned": 1.0}).reward  # noqa: B018


def test_a_candidate_without_items_is_no_part_of_what_diversity_is_held_against() -> None:
    """Diversity 1/2 and 1 of two sessions, and an empty one: z-scores -1 and 1, as if it were not there."""

    class Nothing:
        towers, weights = ("nothing",), torch.ones(1)

        def reward(self, histories: Histories, items_BGM: torch.Tensor) -> torch.Tensor:
            return torch.zeros(items_BGM.shape[:2]).masked_fill(~(items_BGM >= 0).any(-1), -torch.inf)

    blank, empty = np.zeros(0, np.uint8), np.zeros(1, np.int64)
    one = Histories(np.zeros(1, np.int32), empty, empty, np.zeros(0, np.int32), blank, blank, blank)
    scorer = DiverseScorer(Nothing(), torch.tensor([1, 1, 2, 2]))  # type: ignore[arg-type]
    items = torch.tensor([[[0, 1], [0, 2], [-1, -1]]])
    assert scorer.reward(one.with_objective(np.array([[0.0, 1.0]])), items).tolist() == [[-1.0, 1.0, -math.inf]]
