"""The second stage answers where the policy is, as on the CPU."""

from __future__ import annotations

import copy

import numpy as np

from recsys.contracts.ranking import RankedItems
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.decoding.second_stage.recommender import ORDERS, RankedRecommender
from recsys.model.generative_recommender import GenerativeRecommender
from tests.decoding.second_stage.conftest import DECODE, NUM_ITEMS, Ring
from tests.toy.other_device import other_device


def answers(ring: Ring, policy: GenerativeRecommender) -> list[RankedItems]:
    recommender = RankedRecommender(policy, ring.ids, DECODE, ring.stage)
    group = np.arange(NUM_ITEMS) % 3 + 1
    rules = ItemRules(np.arange(NUM_ITEMS) != 4, quotas=Quotas.from_groups(group, 2))
    limited = recommender.recommend(ring.everyone, 5, rules=rules)
    return [*recommender.orders(ring.everyone, 5, ORDERS), limited]


def test_every_order_is_that_of_the_cpu(ring: Ring) -> None:
    expected = answers(ring, ring.policy)
    with other_device() as device:
        found = answers(ring, copy.deepcopy(ring.policy).to(device))
    for here, there in zip(expected, found, strict=True):
        np.testing.assert_array_equal(here.items, there.items)
        np.testing.assert_allclose(here.scores, there.scores, rtol=1e-4, atol=1e-5)
