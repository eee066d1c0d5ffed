"""The rankings of a policy without a second stage: what they are called, and which search each comes from."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest

from recsys.contracts.columns import TEST
from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.rank import BEFORE_ALIGNMENT, rank_with_policy
from recsys.evaluation.rankings import (
    BEAM,
    GUIDED,
    OWN_SYSTEMS,
    SERVED,
    UNALIGNED_BEAM,
    UNALIGNED_GUIDED,
    UNALIGNED_SERVED,
)
from recsys.runtime import SilentProgress
from tests.toy.alignment import next_item_ring, ring_policy
from tests.toy.dataset import ring_ids

CONFIG = EvaluateConfig(ks=(1, 5), filter_seen="both")
PLAIN = DecodeConfig(beam_width=6)
GUIDED_SEARCH = DecodeConfig(beam_width=6, guidance=3.0)


@pytest.fixture(scope="module")
def ring(tmp_path_factory: pytest.TempPathFactory) -> tuple[Dataset, partial[Recommender]]:
    prepared = next_item_ring(tmp_path_factory.mktemp("ring"))
    return prepared, partial(Recommender, ring_policy(prepared), ring_ids())


def never() -> Recommender:
    raise AssertionError("asked for a second search")


@pytest.mark.parametrize("rescore", ["dense", "none"])
def test_a_guided_search_is_called_so_and_the_beam_stays_beside_it(
    ring: tuple[Dataset, partial[Recommender]], tmp_path: Path, rescore: str
) -> None:
    prepared, recommender = ring
    configs = [decode.model_copy(update={"rescore": rescore}) for decode in (PLAIN, GUIDED_SEARCH)]
    plain, guided = (recommender(config) for config in configs)
    found = rank_with_policy(prepared, guided, lambda: plain, CONFIG, tmp_path, SilentProgress())
    assert set(found) == {BEAM, GUIDED, SERVED}
    histories = Histories.from_targets(prepared.history, prepared.targets(TEST))
    for exclude in (True, False):
        searched, dense = guided.both_orders(histories, 5, exclude_seen=exclude)
        alone, _ = plain.both_orders(histories, 5, exclude_seen=exclude)
        assert (searched.items != alone.items).any()  # or the test could not tell them apart
        assert (searched.items != dense.items).any()
        np.testing.assert_array_equal(found[GUIDED][exclude].items, searched.items)
        np.testing.assert_array_equal(found[BEAM][exclude].items, alone.items)
        served = dense if rescore == "dense" else searched
        np.testing.assert_array_equal(found[SERVED][exclude].items, served.items)


def test_without_guidance_one_search_gives_both(ring: tuple[Dataset, partial[Recommender]], tmp_path: Path) -> None:
    prepared, recommender = ring
    found = rank_with_policy(prepared, recommender(PLAIN), never, CONFIG, tmp_path, SilentProgress())
    assert set(found) == {BEAM, SERVED}
    again = rank_with_policy(prepared, recommender(PLAIN), never, CONFIG, tmp_path, SilentProgress())
    for exclude in (True, False):  # read from the disk
        np.testing.assert_array_equal(found[SERVED][exclude].items, again[SERVED][exclude].items)


def test_names_before_alignment(ring: tuple[Dataset, partial[Recommender]], tmp_path: Path) -> None:
    prepared, recommender = ring
    asked = (CONFIG, tmp_path, SilentProgress(), BEFORE_ALIGNMENT)
    found = rank_with_policy(prepared, recommender(GUIDED_SEARCH), lambda: recommender(PLAIN), *asked)
    assert set(found) == {UNALIGNED_BEAM, UNALIGNED_GUIDED, UNALIGNED_SERVED}
    assert set(found) < set(OWN_SYSTEMS)  # no baselines, for the report and for the gate
