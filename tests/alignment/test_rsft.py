"""RSFT: which sessions are dropped by which measure, ties, what alignment then reads, and a kill in between."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rsft import kept_samples, not_below, session_of_samples, session_sums
from recsys.alignment.sample_config import RsftConfig
from recsys.config import validate
from recsys.contracts.columns import TRAIN, VALID, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.data.samples import TargetRows
from recsys.decoding.config import DecodeConfig
from tests.toy.alignment import (
    QUIET,
    RECORDING_GUARD,
    EvenTaste,
    KillAfter,
    next_item_ring,
    ring_policy,
    session_ring,
    weights_of,
)
from tests.toy.dataset import ring_ids


def with_sessions(prepared: Dataset, watch: Any = None) -> Dataset:
    """Sessions of two taken items and one more exposure, that was watched and not taken.

    Args:
        watch: Session number -> watch time of each taken item; ``None``: the session's number, so the latest are best. The
            exposure between is watched ten times as long.
    """
    history, rows, session = prepared.history, [], -1
    for user in range(prepared.spec.num_users):
        start, end = int(history.offsets[user]), int(history.offsets[user + 1])
        for row in range(start, end):
            split = TRAIN if row < end - 2 else VALID
            if (row - start) % 2 == 0 or row == end - 2:
                session += 1
                value = float(session) if watch is None else watch(session)
                rows.append((user, 0, split, False, session, 10 * value, False))
            rows.append((user, int(history.item[row]), split, True, session, value, session % 3 == 0))
    schema = {
        Columns.USER_INDEX: pl.Int32,
        Columns.ITEM_INDEX: pl.Int32,
        Columns.SPLIT: pl.Int8,
        Columns.POSITIVE: pl.Boolean,
        Columns.SESSION_INDEX: pl.Int32,
        Columns.WATCH_TIME_MS: pl.Float32,
        "like": pl.Boolean,
    }
    prepared.__dict__["events"] = pl.DataFrame(rows, schema=schema, orient="row")
    return prepared


def test_what_is_below_the_quantile_by_hand() -> None:
    """Quantile .25 of 1, 2, 3, 4, 5 is 2, which stays; of 1, 1, 1, 9 it is 1, and nothing is below it."""
    assert not_below(np.array([5.0, 1.0, 2.0, 4.0, 3.0]), 0.25).tolist() == [True, False, True, True, True]
    assert not_below(np.array([1.0, 1.0, 9.0, 1.0]), 0.25).all()
    assert not_below(np.array([np.nan, 7.0]), 0.5).tolist() == [False, True]


def test_a_session_is_worth_all_its_train_exposures(tmp_path: Path) -> None:
    """Session 1: two items of 1 ms and an exposure of 10 ms, whether taken or not."""
    prepared = with_sessions(session_ring(tmp_path))
    sums = session_sums(prepared, Columns.WATCH_TIME_MS)
    assert sums[1] == 12.0
    events = prepared.events.filter(pl.col("split") == TRAIN)
    for (session,), part in events.group_by(["session_index"]):
        assert sums[session] == part["watch_time_ms"].sum()
    assert np.isnan(sums[events["session_index"].max() + 1])  # its events are held out
    assert session_sums(prepared, "like")[:2].tolist() == [2.0, 0.0]


def test_half_of_the_sessions_is_dropped_and_it_is_the_shorter_watched_one(tmp_path: Path) -> None:
    prepared = with_sessions(session_ring(tmp_path))
    samples = TargetRows.from_dataset(prepared, 6)
    session_N = session_of_samples(prepared, samples)
    used = np.unique(session_N)
    for share in (0.25, 0.5, 0.8):
        kept = kept_samples(prepared, RsftConfig(drop_share=share), None)
        dropped = np.setdiff1d(np.arange(len(samples)), kept)
        assert session_N[dropped].max() < session_N[kept].min()
        assert len(np.unique(session_N[dropped])) == pytest.approx(share * len(used), abs=1)


@pytest.mark.parametrize("ring", [session_ring, next_item_ring])
def test_a_sample_belongs_to_the_session_of_its_first_target(tmp_path: Path, ring: Callable[[Path], Dataset]) -> None:
    """And not to that of the event before it, which is another one for some samples."""
    prepared = with_sessions(ring(tmp_path))
    samples = TargetRows.from_dataset(prepared, 6)
    positive = prepared.events.filter(pl.col("positive"))
    first = positive[samples.targets.history_end]
    assert (first["item_index"].to_numpy() == samples.targets.items[samples.targets.item_offsets[:-1]]).all()
    assert (first["user_index"].to_numpy() == samples.targets.user_index).all()
    session_N = session_of_samples(prepared, samples)
    assert (first["session_index"].to_numpy() == session_N).all()
    before = positive[samples.targets.history_end - 1]["session_index"].to_numpy()
    assert (before != session_N).any(), "the data must tell them apart"


def test_the_half_is_of_the_sessions_that_targets_come_from(tmp_path: Path) -> None:
    """Sessions without a target, however long they were watched, move no median."""
    plain = with_sessions(session_ring(tmp_path / "plain"))
    used = set(session_of_samples(plain, TargetRows.from_dataset(plain, 6)).tolist())
    assert set(plain.events.filter(pl.col("split") == TRAIN)["session_index"]) - used
    other = with_sessions(session_ring(tmp_path / "other"), lambda session: session if session in used else 1e6)
    assert kept_samples(other, RsftConfig(), None).tolist() == kept_samples(plain, RsftConfig(), None).tolist()


def test_equals_stay_together(tmp_path: Path) -> None:
    """All sessions but every fourth are watched alike: the median is theirs, and only what is below it goes."""
    prepared = with_sessions(session_ring(tmp_path), watch=lambda session: 1.0 if session % 4 == 0 else 8.0)
    session_N = session_of_samples(prepared, TargetRows.from_dataset(prepared, 6))
    kept = kept_samples(prepared, RsftConfig(), None)
    assert set(session_N[kept]) == {one for one in session_N if one % 4}


def test_next_items_are_chosen_by_their_sessions_too(tmp_path: Path) -> None:
    prepared = with_sessions(next_item_ring(tmp_path))
    kept = kept_samples(prepared, RsftConfig(by="like", drop_share=0.7), None)
    session_N = session_of_samples(prepared, TargetRows.from_dataset(prepared, 6))
    assert (session_N[kept] % 3 == 0).all()
    assert 0 < len(kept) < len(session_N)


def test_by_reward_the_better_targets_stay(tmp_path: Path) -> None:
    """The reward is the share of even items, 1/3 or 2/3 of three consecutive ones: those with two even items stay."""
    prepared = session_ring(tmp_path)
    kept = kept_samples(prepared, RsftConfig(by="reward", drop_share=0.6), EvenTaste())
    targets = (
        RequestStream(prepared, 6, 8, seed=0).requests(np.arange(len(TargetRows.from_dataset(prepared, 6)))).targets_NM
    )
    share = (targets % 2 == 0).float().mean(1)
    bound = np.quantile(share.double().numpy(), 0.6)
    assert kept.tolist() == torch.nonzero(share.double() >= bound - 1e-7).flatten().tolist()
    with pytest.raises(ConfigError, match=r"align.rsft.by is 'reward', and no reward model is given"):
        kept_samples(prepared, RsftConfig(by="reward"), None)


def test_the_stream_reads_what_stays_and_nothing_else(tmp_path: Path) -> None:
    prepared = with_sessions(session_ring(tmp_path))
    kept = kept_samples(prepared, RsftConfig(), None)
    stream, whole = (RequestStream(prepared, 6, 8, 0, some) for some in (kept, None))
    assert len(stream) == len(kept) < len(whole)
    rows = np.concatenate([stream.rows(step) for step in range(stream.steps_for(None))])
    assert np.sort(rows).tolist() == list(range(len(kept)))
    assert torch.equal(stream.requests(np.arange(len(kept))).targets_NM, whole.requests(kept).targets_NM)


def aligned(folder: Path, progress: Any = QUIET, **rsft: Any) -> Any:
    prepared = with_sessions(session_ring(folder / f"data{len(list(folder.glob('*'))) if folder.exists() else 0}"))
    policy = ring_policy(prepared)
    ipa = {"rounds": 2, "samples_per_round": 64, "batch_size": 16, "preference": "none", "rewards": {"rule": 1.0}}
    values = {"method": "ipa", "ipa": ipa, "guard": RECORDING_GUARD.model_dump(), "checkpoint_every_steps": 1}
    config = validate(AlignConfig, {**values, "rsft": rsft or None}, "test")
    inputs = AlignmentInputs(prepared, ring_ids(), policy, config, DecodeConfig(), 5)
    return weights_of(policy), align_policy(inputs, folder / "run", progress), policy


def test_other_sessions_make_another_policy_and_a_kill_changes_nothing(tmp_path: Path) -> None:
    start, _, plain = aligned(tmp_path / "plain")
    _, _, better = aligned(tmp_path / "better", drop_share=0.5)
    name = "codes.weight"
    assert not torch.equal(weights_of(plain)[name], weights_of(better)[name])
    assert not torch.equal(start[name], weights_of(better)[name])
    with pytest.raises(KeyboardInterrupt):
        aligned(tmp_path / "killed", KillAfter(6), drop_share=0.5)
    _, _, again = aligned(tmp_path / "killed", drop_share=0.5)
    for one, other in zip(weights_of(better).values(), weights_of(again).values(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(ArtifactError):  # rounds of other sessions are not gone on with
        aligned(tmp_path / "killed", drop_share=0.25)


def test_refusals(tmp_path: Path) -> None:
    prepared = with_sessions(session_ring(tmp_path))
    with pytest.raises(DataError, match=r"align.rsft.by is 'likes'.* it has watch_time_ms; 'reward' asks the reward"):
        kept_samples(prepared, RsftConfig(by="likes"), None)
    prepared.__dict__["events"] = prepared.events.with_columns(watch_time_ms=pl.lit(None, pl.Float32))
    with pytest.raises(DataError, match="column 'watch_time_ms' is empty in every train event"):
        kept_samples(prepared, RsftConfig(), None)
    elsewhere = with_sessions(session_ring(tmp_path / "elsewhere"))  # known, but of no session that a target comes from
    used = session_of_samples(elsewhere, TargetRows.from_dataset(elsewhere, 6)).tolist()
    known = ~pl.col("session_index").is_in(used)
    elsewhere.__dict__["events"] = elsewhere.events.with_columns(watch_time_ms=pl.when(known).then("watch_time_ms"))
    with pytest.raises(
        DataError, match=r"'watch_time_ms' is not known of any of the \d+ sessions that training targets"
    ):
        kept_samples(elsewhere, RsftConfig(), None)
    for share in (0.0, 1.0):
        with pytest.raises(ConfigError, match="drop_share"):
            validate(RsftConfig, {"drop_share": share}, "test")
    assert not validate(AlignConfig, {"method": "rere", "rsft": {}}, "test").needs_reward_model
    assert validate(AlignConfig, {"method": "rere", "rsft": {"by": "reward"}}, "test").needs_reward_model
