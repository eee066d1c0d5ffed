"""User feedback: advantages by hand, the gradient's bound, and a policy that learns what users said of exposures."""

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
    OptimiserConfig,
    SupervisedConfig,
    UserFeedbackConfig,
)
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.request_stream import RequestStream
from recsys.alignment.rounds.learner import Learner, RoundCurve
from recsys.alignment.rounds.loop import RoundWork, SmallerSteps
from recsys.alignment.user_feedback import UserFeedbackLearning
from recsys.contracts.columns import TEST, TRAIN, VALID, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.data.batch import collate_histories
from recsys.decoding.config import DecodeConfig
from tests.toy.alignment import QUIET, RECORDING_GUARD, KillAfter, next_item_ring, ring_policy, weights_of
from tests.toy.dataset import ring_ids

LIKED, HATED = 3, 5


def with_exposures(prepared: Dataset) -> Dataset:
    """Every user takes the history's items, and is shown item 3, watched long, and item 5, hated, before held-out ones."""
    rows = []
    history = prepared.history
    for user in range(prepared.spec.num_users):
        start, end = int(history.offsets[user]), int(history.offsets[user + 1])
        for row in range(start, end):
            split = TRAIN if row < end - 2 else (VALID if row < end - 1 else TEST)
            if row == end - 2:
                rows += [(user, item, TRAIN, False, item == LIKED, item == HATED) for item in (LIKED, HATED, 7)]
            rows.append((user, int(history.item[row]), split, True, False, False))
    schema = {
        Columns.USER_INDEX: pl.Int32,
        Columns.ITEM_INDEX: pl.Int32,
        Columns.SPLIT: pl.Int8,
        Columns.POSITIVE: pl.Boolean,
        "watch_percentile": pl.Boolean,
        "hate": pl.Boolean,
    }
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    places = pl.int_range(pl.len())
    prepared.__dict__["events"] = frame.with_columns(
        places.cast(pl.Int64).alias(Columns.TIMESTAMP), places.cast(pl.Int32).alias(Columns.SESSION_INDEX)
    ).with_columns(pl.lit(None, pl.Int64).alias(Columns.TIMESTAMP))
    return prepared


def method_of(folder: Path, **changes: object) -> UserFeedbackLearning:
    prepared = with_exposures(next_item_ring(folder))
    values = {"exposures_per_step": 16, "optimiser": OptimiserConfig(learning_rate=3e-3), **changes}
    config = UserFeedbackConfig.model_validate(values)
    policy = ring_policy(prepared)
    stream = RequestStream(prepared, 6, config.exposures_per_step, seed=0)
    return UserFeedbackLearning(config, Learner(policy, config.optimiser, 100), stream, seed=4)


def test_exposures_have_the_advantage_of_what_users_did(tmp_path: Path) -> None:
    """60 users: one liked, one hated exposure each; item 7 and what was merely taken have advantage 0."""
    exposures = method_of(tmp_path).exposures
    assert len(exposures) == 120
    assert set(exposures.items[exposures.advantages == 1]) == {LIKED}
    assert set(exposures.items[exposures.advantages == -1]) == {HATED}
    history = exposures.histories
    assert (history.end - history.start > 0).all()


def test_every_exposure_comes_once_per_epoch_and_the_order_is_found_again(tmp_path: Path) -> None:
    method = method_of(tmp_path)
    seen = np.concatenate([method.rows(step) for step in range(7)])
    assert len(np.unique(seen)) == len(seen) == 112
    assert method.rows(3).tolist() == method_of(tmp_path / "again").rows(3).tolist()
    assert method.rows(3).tolist() != method.rows(10).tolist()


def test_the_gradient_is_that_of_both_bounds(tmp_path: Path) -> None:
    """Ratio 1 everywhere: per code, minus the gradient of log pi for a like, and pi / (1 - pi) times it for a dislike."""
    method = method_of(tmp_path, supervised={"weight": 0.0}, weight=1.0, optimiser={"gradient_clip": 0.0})
    policy, rows = method.learner.policy, method.rows(0)
    history = collate_histories(method.exposures.histories.take(rows), 6)
    items = torch.from_numpy(method.exposures.items[rows])[:, None, None]
    codes = candidate_log_probs(policy, history, items).codes.flatten(2)[:, 0]
    pi = codes.detach().exp()
    advantage = torch.from_numpy(method.exposures.advantages[rows])[:, None]
    factor = torch.where(advantage > 0, -torch.ones_like(pi), torch.minimum(pi / (1 - pi), torch.ones_like(pi)))
    (factor * codes).mean(1).mean().backward()
    expected = torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None])
    policy.zero_grad()
    seen: list[torch.Tensor] = []

    def update(loss: torch.Tensor) -> float:
        loss.backward()
        seen.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
        return 0.0

    method.learner.update = update  # type: ignore[method-assign]
    work = RoundWork(1, tmp_path, 0, SmallerSteps(), RoundCurve(), QUIET, lambda steps: None)
    method._update(work, rows, method.stream.rows(0))
    torch.testing.assert_close(seen[0], expected, atol=1e-6, rtol=1e-4)


def aligned(folder: Path, progress=QUIET, data: Path | None = None):
    prepared = with_exposures(next_item_ring(data or folder / "data"))
    policy = ring_policy(prepared)
    settings = UserFeedbackConfig(
        rounds=2,
        steps_per_round=20,
        exposures_per_step=32,
        weight=1.0,
        supervised=SupervisedConfig(weight=0.1, dense_weight=0.0),
        optimiser=OptimiserConfig(learning_rate=3e-3),
    )
    config = AlignConfig(method="feedback", feedback=settings, guard=RECORDING_GUARD, checkpoint_every_steps=5)
    inputs = AlignmentInputs(prepared, ring_ids(), policy, config, DecodeConfig(), 5)
    summary = align_policy(inputs, folder / "run", progress)
    return policy, summary


def test_likes_rise_and_dislikes_fall_and_a_kill_changes_nothing(tmp_path: Path) -> None:
    policy, summary = aligned(tmp_path)
    assert summary["kept_round"] == 2
    curve = pl.read_parquet(tmp_path / "run" / "curves.parquet")

    def mean_of(name: str, last: bool) -> float:
        values = curve.filter(pl.col("name") == f"training/{name}").sort("step")["value"]
        return float((values.tail(5) if last else values.head(5)).mean())

    assert mean_of("liked_log_prob", last=True) > mean_of("liked_log_prob", last=False) + 0.3
    assert mean_of("disliked_log_prob", last=True) < mean_of("disliked_log_prob", last=False)
    with pytest.raises(KeyboardInterrupt):
        aligned(tmp_path / "killed", KillAfter(17))
    again, _ = aligned(tmp_path / "killed", data=tmp_path / "killed" / "data2")
    assert all(torch.equal(a, b) for a, b in zip(weights_of(policy).values(), weights_of(again).values(), strict=True))


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="has no signal 'long'"):
        _ = method_of(tmp_path, positive="long").exposures
    with pytest.raises(ValidationError, match="has no reference"):
        UserFeedbackConfig(loss=PolicyGradientConfig(loss_type="gbpo", beta=0.1))
    with pytest.raises(ValidationError, match="greater than 0"):
        UserFeedbackConfig(weight=0.0)


@pytest.mark.parametrize("nobody", [False, None])
def test_a_negative_signal_that_nobody_gave_is_passed_over(tmp_path: Path, nobody: bool | None) -> None:
    """As one that the data set does not have: a log with a column for hate, in which nobody hated anything."""
    method = method_of(tmp_path)
    prepared = method.stream.prepared
    prepared.__dict__["events"] = prepared.events.with_columns(hate=pl.lit(nobody, pl.Boolean))
    assert set(method.exposures.items) == {LIKED}
    assert (method.exposures.advantages == 1).all()


def test_a_positive_signal_that_tells_nothing_apart_is_refused(tmp_path: Path) -> None:
    for number, value in enumerate((False, True, None)):
        method = method_of(tmp_path / str(number))
        prepared = method.stream.prepared
        prepared.__dict__["events"] = prepared.events.with_columns(watch_percentile=pl.lit(value, pl.Boolean))
        train = int((prepared.events["split"] == TRAIN).sum())
        found = {False: f"0 of the {train}", True: f"{train} of the {train}", None: "0 of the 0"}[value]
        with pytest.raises(DataError, match=rf"'watch_percentile' is true of {found} train .*align.feedback.positive"):
            _ = method.exposures


def test_a_signal_says_one_thing() -> None:
    for values in ({"positive": "hate"}, {"negative": ("dislike", "dislike")}):
        with pytest.raises(ValidationError, match="name a signal twice"):
            UserFeedbackConfig.model_validate(values)


def test_a_back_off_lowers_the_weight_of_the_feedback(tmp_path: Path) -> None:
    """Half the weight and no next-token loss: half the loss, from the same policy and exposures."""
    method, losses = method_of(tmp_path, supervised={"weight": 0.0}), []
    method.learner.update = lambda loss: losses.append(loss.item()) or 0.0  # type: ignore[method-assign]
    for weight in (1.0, 0.5):
        work = RoundWork(1, tmp_path, 0, SmallerSteps(weight=weight), RoundCurve(), QUIET, lambda steps: None)
        method._update(work, method.rows(0), method.stream.rows(0))
    assert losses[0] != 0
    assert losses[1] == pytest.approx(0.5 * losses[0])
