"""Beams as wide as engines for language models are measured with: 5,000, against every item of a catalogue."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.histories import Histories
from recsys.decoding.beam_search import beam_search
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules
from recsys.decoding.search_index import SearchIndex
from recsys.model.config import ModelConfig
from recsys.training.fit import build_policy
from tests.decoding.test_beam_search import MODEL
from tests.toy.dataset import ring_prepared, toy_ids

ITEMS, WIDTH, SIZES = 6000, 5000, (8, 32, 32)


@pytest.mark.parametrize("filtered", [False, True])
def test_five_thousand_beams_are_the_best_five_thousand_items(tmp_path, filtered: bool) -> None:  # type: ignore[no-untyped-def]
    """6,000 items below at most 256 prefixes, so no level but the last drops anything; scores by teacher forcing."""
    every = np.random.default_rng(0).permutation(int(np.prod(SIZES)))[:ITEMS]
    codes = np.stack(np.unravel_index(every, SIZES), 1)
    prepared = ring_prepared(tmp_path, users=3, items=ITEMS)
    torch.manual_seed(0)
    policy = build_policy(prepared, toy_ids(codes, SIZES), ModelConfig(**MODEL), None).eval()
    histories = Histories.from_targets(prepared.history, prepared.all_users()).take(np.array([1]))
    batch = collate_histories(histories, 6)
    with torch.no_grad():
        target = torch.arange(1, ITEMS + 1).view(1, ITEMS, 1)
        points = batch.lengths_B[:, None].expand(1, ITEMS).contiguous()
        scores = policy.log_prob(TrainingBatch(batch, target, points))[0, :, 0]
    index = PrefixIndex.build(codes, SIZES)
    rules = CompiledRules.compile(index, ItemRules(), exclude_seen=filtered).for_batch(histories)
    if filtered:
        scores[torch.from_numpy(histories.seen_items()[0].astype(np.int64))] = -torch.inf
    beams = beam_search(policy, batch, SearchIndex.from_index(index), WIDTH, rules=rules)
    assert beams.items.shape == (1, WIDTH, 1)
    torch.testing.assert_close(beams.scores[0], scores.sort(descending=True).values[:WIDTH], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(scores[beams.items[0, :, 0]], beams.scores[0], atol=1e-4, rtol=1e-4)
    assert len(set(beams.items[0, :, 0].tolist())) == WIDTH
