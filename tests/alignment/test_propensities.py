"""Logged propensities in user feedback: ratios by hand, their bounds, what is not known, a kill, and what is refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from pydantic import ValidationError

from pipelines.config import load_run_config
from recsys.alignment.align import align_policy
from recsys.alignment.config import AlignConfig, UserFeedbackConfig
from recsys.alignment.inputs import AlignmentInputs
from recsys.alignment.losses.config import PolicyGradientConfig
from recsys.alignment.losses.policy_gradient import policy_gradient_loss
from recsys.alignment.user_feedback import acting_log_probs, log_propensities
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.decoding.config import DecodeConfig
from tests.alignment.test_user_feedback import method_of, with_exposures
from tests.toy import tiny_run
from tests.toy.alignment import QUIET, RECORDING_GUARD, KillAfter, next_item_ring, ring_policy, weights_of
from tests.toy.dataset import ring_ids

ROWS = PolicyGradientConfig(loss_type="gbpo", beta=0.0, ratio_level="sequence")
LOGGED = {"loss": ROWS, "logged_propensities": True}


def with_propensities(prepared: Dataset, propensity: pl.Expr) -> Dataset:
    prepared.__dict__["events"] = prepared.events.with_columns(propensity=propensity)
    return prepared


def gradient_factor(pi: float, logged: float, advantage: float) -> float:
    """d loss / d log pi of one row of two codes, the acting probability logged."""
    codes = torch.full((1, 1, 2), math.log(pi) / 2, dtype=torch.float64, requires_grad=True)
    mask = torch.ones(1, 1, 2, dtype=torch.bool)
    acted = acting_log_probs(codes, mask, torch.tensor([math.log(logged)]))
    loss = policy_gradient_loss(ROWS, codes, torch.tensor([[advantage]]), mask, old_log_probs_BGC=acted).loss
    loss.backward()
    return float(codes.grad[0, 0, 0])


def test_ratios_by_hand() -> None:
    """A like that was shown at .5 and has .1 now counts .2; one that was shown at .01 counts 1, not 10.

    A dislike at .1 counts .1 / max(logged, .9): 1/9 for a logged .5, .1 for a logged 1.
    """
    assert gradient_factor(0.1, 0.5, 1.0) == pytest.approx(-0.2, rel=1e-5)
    assert gradient_factor(0.1, 0.01, 1.0) == pytest.approx(-1.0, rel=1e-5)
    assert gradient_factor(0.1, 0.5, -1.0) == pytest.approx(1 / 9, rel=1e-5)
    assert gradient_factor(0.1, 1.0, -1.0) == pytest.approx(0.1, rel=1e-5)


def test_no_ratio_exceeds_its_bound() -> None:
    """Likes: 1. Dislikes: pi / (1 - pi), and pi over the logged one."""
    for pi in (1e-5, 0.3, 0.7, 0.999):
        for logged in (1e-4, 0.2, 1.0):
            assert -1.0 - 1e-6 <= gradient_factor(pi, logged, 1.0) < 0
            bound = min(pi / (1 - pi), pi / logged)
            assert gradient_factor(pi, logged, -1.0) == pytest.approx(bound, rel=1e-3)


def test_what_was_not_logged_has_ratio_one() -> None:
    codes = torch.tensor([[[-1.0, -2.0, 0.0]], [[-1.0, -2.0, 0.0]]], requires_grad=True)
    mask = torch.tensor([[[True, True, False]]] * 2)
    acted = acting_log_probs(codes, mask, torch.tensor([torch.nan, -5.0]))
    assert torch.equal(acted[0], codes.detach()[0])
    assert acted[1][mask[1]].sum().item() == pytest.approx(-5.0)
    assert not acted.requires_grad


def test_each_exposure_keeps_its_own_propensity(tmp_path: Path) -> None:
    """Propensity .1 for item 3, .4 for item 5, not known for the rest; the floor of .2 lifts the first."""
    item = pl.col("item_index")
    expression = pl.when(item == 3).then(0.1).when((item == 5) & ~pl.col("positive")).then(0.4)
    method = method_of(tmp_path, **LOGGED, propensity_floor=0.2)
    with_propensities(method.stream.prepared, expression)
    exposures = method.exposures
    np.testing.assert_allclose(np.exp(exposures.log_propensities[exposures.items == 3]), 0.2, rtol=1e-5)
    np.testing.assert_allclose(np.exp(exposures.log_propensities[exposures.items == 5]), 0.4, rtol=1e-5)


def aligned(folder: Path, propensity: pl.Expr | None, progress: Any = QUIET) -> Any:
    prepared = with_exposures(next_item_ring(folder / f"data{len(list(folder.glob('*'))) if folder.exists() else 0}"))
    changes: dict[str, Any] = {"loss": ROWS}
    if propensity is not None:
        prepared, changes = with_propensities(prepared, propensity), LOGGED
    settings = UserFeedbackConfig(
        rounds=2, steps_per_round=5, exposures_per_step=32, weight=1.0, supervised={"weight": 0.1}, **changes
    )
    config = AlignConfig(method="feedback", feedback=settings, guard=RECORDING_GUARD, checkpoint_every_steps=2)
    policy = ring_policy(prepared)
    align_policy(AlignmentInputs(prepared, ring_ids(), policy, config, DecodeConfig(), 5), folder / "run", progress)
    return weights_of(policy)


def same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first.values(), second.values(), strict=True))


def test_propensities_change_the_policy_and_a_kill_does_not(tmp_path: Path) -> None:
    """Items that were certain to be shown count for less than without propensities, so another policy comes of them."""
    certain = aligned(tmp_path / "certain", pl.lit(1.0))
    assert not same(certain, aligned(tmp_path / "plain", None))
    with pytest.raises(KeyboardInterrupt):
        aligned(tmp_path / "killed", pl.lit(1.0), KillAfter(7))
    assert same(certain, aligned(tmp_path / "killed", pl.lit(1.0)))
    curve = pl.read_parquet(tmp_path / "certain" / "run" / "curves.parquet")
    assert {"training/ratio", "training/ratio_max"} <= set(curve["name"])


def test_refusals(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"logged_propensities are probabilities of items.*ratio_level: sequence"):
        UserFeedbackConfig(logged_propensities=True)
    with pytest.raises(DataError, match=r"which events.parquet does not have; map source.columns.propensity"):
        _ = method_of(tmp_path, **LOGGED).exposures
    events = pl.DataFrame({"split": pl.Series([0, 0, 2], dtype=pl.Int8), "propensity": [0.5, 1.5, 7.0]})
    with pytest.raises(DataError, match=r"1 train events have a 'propensity' outside \(0, 1\], the first 1.5"):
        log_propensities(events, 1e-4)
    with pytest.raises(DataError, match="is empty in every train event"):
        log_propensities(events.with_columns(propensity=pl.lit(None, pl.Float32)), 1e-4)
    with pytest.raises(ConfigError, match=r"and the source maps none; set source.columns.propensity"):
        load_run_config(
            tiny_run.write_recipe(tmp_path),
            [
                "align.method=feedback",
                "align.feedback={logged_propensities: true, loss: {loss_type: gbpo, beta: 0.0, ratio_level: sequence}}",
            ],
        )
