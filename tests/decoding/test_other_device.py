"""Every way to answer works where the policy is: nothing that meets it is made on the CPU, and the answers are the CPU's."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch

from recsys.alignment.config import RolloutConfig
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.training.fit import build_policy
from tests.decoding.test_beam_search import MODEL, random_policy
from tests.toy.dataset import ring_prepared, toy_ids
from tests.toy.other_device import DEVICE, OtherTensor, WrongDevice, other_device

CODES = np.stack([np.arange(20) // 5, np.arange(20) % 5], 1)
IDS = toy_ids(CODES, (4, 5))


def everyone(prepared: Dataset) -> Histories:
    return Histories.from_targets(prepared.history, prepared.all_users())


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("ring"), users=6, items=20)


@pytest.fixture(scope="module")
def session_data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return ring_prepared(tmp_path_factory.mktemp("sessions"), users=6, items=20, task="session", session_length=3)


def same(items: np.ndarray, found: np.ndarray, scores: np.ndarray, found_scores: np.ndarray) -> None:
    """The same items; attention is written out on the second device, so that scores are rounded differently."""
    np.testing.assert_array_equal(items, found)
    np.testing.assert_allclose(scores, found_scores, rtol=1e-4, atol=1e-5)


def test_the_second_device_refuses_what_a_gpu_refuses() -> None:
    with other_device():
        there, here = torch.arange(3).to(DEVICE), torch.arange(3)
        assert ((there + 1).cpu() == here + 1).all()
        assert torch.zeros(2, device=DEVICE).add_(there[1:]).tolist() == [1.0, 2.0]
        assert float((there * torch.tensor(2)).sum()) == 6.0  # a number that lies on the CPU is one that both take
        with pytest.raises(WrongDevice, match=r"tensors of shape \[\(3,\)\] lie on the CPU"):
            there + here
        with pytest.raises(WrongDevice):
            there[here]
        with pytest.raises((RuntimeError, TypeError)):
            there.numpy()


RULES: dict[str, Callable[[], ItemRules]] = {
    "none": ItemRules,
    "mask": lambda: ItemRules(np.arange(20) % 3 > 0, exclude_seen=True),
    "quotas": lambda: ItemRules(quotas=Quotas.from_groups(np.arange(20) % 2 + 1, 2)),
    "segments": lambda: ItemRules(
        np.stack([np.arange(20) < 12, np.arange(20) >= 6]), segments=np.arange(6) % 2, exclude_seen=True
    ),
}
SETTINGS = {
    "plain": {"rescore": "none"},
    "rescored": {"generative_weight": 0.5},
    "guided": {"guidance": 1.5},
    "narrow": {"beam_width": 4, "rows_per_batch": 8},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
@pytest.mark.parametrize("rules", RULES.values(), ids=RULES)
def test_items_are_those_of_the_cpu(prepared: Dataset, rules: Callable[[], ItemRules], settings: dict) -> None:
    policy = random_policy(prepared, IDS)
    config = DecodeConfig(**{"beam_width": 12} | settings)
    expected = Recommender(policy, IDS, config).recommend(everyone(prepared), 4, rules=rules())
    with other_device() as device:
        moved = copy.deepcopy(policy).to(device)
        assert isinstance(moved.codes.weight, OtherTensor)
        found = Recommender(moved, IDS, config).recommend(everyone(prepared), 4, rules=rules())
    same(expected.items, found.items, expected.scores, found.scores)


@pytest.mark.parametrize(
    ("settings", "quotas"),
    [({}, False), ({"diversity_groups": 4}, False), ({"later_item_width": 2}, False), ({}, True)],
)
def test_sessions_are_those_of_the_cpu(session_data: Dataset, settings: dict, quotas: bool) -> None:
    torch.manual_seed(1)
    policy = build_policy(session_data, IDS, ModelConfig(**MODEL, encoder_attention="bidirectional"), None).eval()
    config, histories = DecodeConfig(beam_width=8, **settings), everyone(session_data)

    def generated(policy: GenerativeRecommender) -> tuple[np.ndarray, np.ndarray]:
        recommender = Recommender(policy, IDS, config)
        rules = ItemRules(quotas=Quotas.from_groups(np.arange(20) % 2 + 1, 2)) if quotas else None
        return recommender.generate(histories, 4, recommender.compile(rules, len(histories)))

    items, scores = generated(policy)
    with other_device() as device:
        found, found_scores = generated(copy.deepcopy(policy).to(device))
    same(items, found, scores, found_scores)


@pytest.mark.parametrize(
    "how", [{"strategy": "beam"}, {"guided": True}, {"strategy": "sampling"}, {"strategy": "dynamic"}], ids=str
)
@pytest.mark.parametrize("add_ground_truth", [False, True])
def test_roll_outs_are_those_of_the_cpu(prepared: Dataset, how: dict, add_ground_truth: bool) -> None:
    policy = random_policy(prepared, IDS)
    settings = RolloutConfig(num_generations=6, exclude_seen=True, add_ground_truth=add_ground_truth, **how)
    requests = Requests(everyone(prepared), torch.arange(6)[:, None])

    def rolled(policy: GenerativeRecommender, device: torch.device | str) -> torch.Tensor:
        sampler = RolloutSampler(IDS, settings, device)
        group = sampler.roll_out(policy, requests, torch.Generator().manual_seed(3))
        return group.items.cpu()

    expected = rolled(policy, "cpu")
    with other_device() as device:
        found = rolled(copy.deepcopy(policy).to(device), device)
    assert torch.equal(expected, found)
