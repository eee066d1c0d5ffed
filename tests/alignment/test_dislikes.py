"""Explicit dislikes: which items they are, the pairs made of them, and a set of likes and hates tried on the result."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from recsys.alignment.align import align_policy
from recsys.alignment.config import (
    AlignConfig,
    IpaConfig,
    OptimiserConfig,
    RolloutConfig,
    SupervisedConfig,
)
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rollouts.disliked_items import DislikedItems
from recsys.alignment.rounds.report import REPORT_NAME
from recsys.alignment.rounds.store import load_tensors
from recsys.alignment.sample_config import DislikesConfig
from recsys.contracts.columns import TEST, TRAIN, VALID, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import read_json
from recsys.decoding.config import DecodeConfig
from tests.toy.alignment import QUIET, RECORDING_GUARD, EvenTaste, next_item_ring, ring_policy, session_ring
from tests.toy.dataset import ring_ids

HATED = 5
"""Item that every user of the toy log dislikes, in train and in validation."""


def with_events(prepared: Dataset, rows: list[tuple[int, int, int, bool, bool]]) -> Dataset:
    """Give a data set raw feedback: user, item, split, positive, hate."""
    schema = {
        Columns.USER_INDEX: pl.Int32,
        Columns.ITEM_INDEX: pl.Int32,
        Columns.SPLIT: pl.Int8,
        Columns.POSITIVE: pl.Boolean,
        "hate": pl.Boolean,
    }
    prepared.__dict__["events"] = pl.DataFrame(rows, schema=schema, orient="row")
    return prepared


def all_hate(prepared: Dataset) -> Dataset:
    users = range(prepared.spec.num_users)
    return with_events(prepared, [(user, HATED, split, False, True) for user in users for split in (TRAIN, VALID)])


def test_an_item_that_was_taken_too_is_not_disliked(tmp_path: Path) -> None:
    """User 0 hates 3 and 4 and takes 4 as well; user 1 hates 6 in validation alone; user 2 hates nothing."""
    rows = [
        (0, 3, TRAIN, False, True),
        (0, 3, TRAIN, False, True),
        (0, 4, TRAIN, False, True),
        (0, 4, TRAIN, True, False),
        (1, 6, VALID, False, True),
        (2, 7, TRAIN, False, False),
    ]
    prepared = with_events(next_item_ring(tmp_path), rows)
    disliked = DislikedItems.from_events(prepared, ("dislike", "hate"), TRAIN)
    assert disliked.items.tolist() == [3]
    assert disliked.offsets[:4].tolist() == [0, 1, 1, 1]
    drawn = disliked.draw(np.array([0, 1, 2, 0]), np.random.default_rng(0))
    assert drawn.tolist() == [3, -1, -1, 3]


def test_what_is_taken_later_does_not_say_which_dislikes_are_wanted(tmp_path: Path) -> None:
    """User 0 hates 3 in train and takes it in validation, hates 4 in both and takes it in test: training knows neither."""
    rows = [
        (0, 3, TRAIN, False, True),
        (0, 4, TRAIN, False, True),
        (0, 3, VALID, True, False),
        (0, 3, VALID, False, True),
        (0, 4, VALID, False, True),
        (0, 4, TEST, True, False),
    ]
    prepared = with_events(next_item_ring(tmp_path), rows)
    assert DislikedItems.from_events(prepared, ("hate",), TRAIN).items.tolist() == [3, 4]
    assert DislikedItems.from_events(prepared, ("hate",), VALID).items.tolist() == [4]


@pytest.mark.parametrize("make", [next_item_ring, session_ring])
def test_likes_and_hates_are_told_apart_afterwards(tmp_path: Path, make) -> None:
    """The reward knows nothing of the hated item; the pairs alone teach it."""
    prepared = all_hate(make(tmp_path / "data"))
    before, after, report = aligned(prepared, tmp_path / "with", DislikesConfig())
    assert before["likes_over_dislikes"] < 0.95
    assert after["likes_over_dislikes"] > before["likes_over_dislikes"] + 0.03
    facts = report["rounds"][1]
    assert facts["dislike_pairs"] > 0
    assert facts["skipped_indistinguishable"] == facts["requests"] - (facts["pairs"] - facts["dislike_pairs"])


def test_the_rejected_session_differs_in_its_last_item_alone_and_is_scored_by_the_snapshot(tmp_path: Path) -> None:
    prepared = all_hate(session_ring(tmp_path / "data"))
    aligned(prepared, tmp_path / "run", DislikesConfig())
    pairs = load_tensors(tmp_path / "run" / "rounds" / "01" / "pairs.safetensors")
    assert pairs is not None
    mine = pairs["disliked_Q"]
    assert mine.any()
    assert not mine.all()
    chosen, rejected = pairs["chosen_QM"][mine], pairs["rejected_QNM"][mine]
    assert (rejected[:, 0, -1] == HATED).all()
    assert torch.equal(rejected[:, 0, :-1], chosen[:, :-1])
    assert (rejected[:, 1:] == -1).all()
    assert (pairs["ref_rejected_QN"][mine][:, 1:] == 0).all()
    assert (pairs["ref_chosen_Q"][mine] < 0).all()


def aligned(prepared: Dataset, folder: Path, dislikes: DislikesConfig | None):
    policy = ring_policy(prepared)
    settings = IpaConfig(
        rounds=1,
        samples_per_round=320,
        batch_size=32,
        preference_share=0.5,
        num_negatives=2,
        dislikes=dislikes,
        rollouts=RolloutConfig(num_generations=6),
        supervised=SupervisedConfig(weight=0.1, dense_weight=0.0),
        optimiser=OptimiserConfig(learning_rate=3e-3),
    )
    config = AlignConfig(method="ipa", ipa=settings, guard=RECORDING_GUARD)
    inputs = AlignmentInputs(prepared, ring_ids(), policy, config, DecodeConfig(), 5, EvenTaste(), EvenTaste())
    align_policy(inputs, folder, QUIET)
    report = read_json(folder / REPORT_NAME)
    return report["rounds"][0]["measured"], report["rounds"][-1]["measured"], report


def test_without_the_option_nothing_is_measured_or_made(tmp_path: Path) -> None:
    before, _, report = aligned(next_item_ring(tmp_path / "data"), tmp_path / "run", None)
    assert "likes_over_dislikes" not in before
    assert report["rounds"][1]["dislike_pairs"] == 0


def test_refusals(tmp_path: Path) -> None:
    prepared = with_events(next_item_ring(tmp_path), [(0, 3, TRAIN, False, True)])
    with pytest.raises(DataError, match="has none of the signals dislike"):
        DislikedItems.from_events(prepared, ("dislike",), TRAIN)
    with pytest.raises(DataError, match="no valid event has hate"):
        DislikedItems.from_events(prepared, ("hate",), VALID)
    with pytest.raises(DataError, match="is Int32, expected Boolean"):
        DislikedItems.from_events(prepared, (Columns.ITEM_INDEX,), TRAIN)
    with pytest.raises(ValidationError, match="leave dislikes out"):
        IpaConfig(preference="none", dislikes=DislikesConfig())
    with pytest.raises(ValidationError, match="at least 1"):
        DislikesConfig(signals=())
