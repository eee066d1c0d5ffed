"""Transforms of towers: constants and values by hand, no order turned round, no tower that rules by its scale alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from recsys.config import validate
from recsys.contracts.columns import TRAIN
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.reward.checkpoint import load_reward_model, save_reward_model
from recsys.reward.combining.transforms import NUM_QUANTILES, fit_constants, neutral_constants, transformed
from recsys.reward.config import CombinationConfig, FeedbackConfig
from recsys.reward.feedback.dataset import session_feedback
from recsys.reward.scoring import ModelScorer, score_sessions
from recsys.reward.training import fit_combination
from tests.reward.test_reward_model import histories_of, random_model
from tests.toy.reward import colour_prepared

ITEMS = 24
ONE = torch.ones(1)


def logits_of(*probabilities: float) -> torch.Tensor:
    """One tower's answers to N sessions, ``[N, 1]``."""
    return torch.tensor(probabilities, dtype=torch.float64)[:, None].logit()


def values_of(transform: Any, train: torch.Tensor, asked: torch.Tensor, quantile: float = 0.5) -> list[float]:
    constants = fit_constants(transform, train, quantile)
    return transformed(asked.T[..., None].float(), constants, transform, ONE).flatten().tolist()


def test_standard_by_hand() -> None:
    """Train answers .2, .4, .6: mean .4, deviation sqrt(.08 / 3) = .1633. An answer of .6 is .2 / .1633 = 1.2247."""
    found = values_of("standard", logits_of(0.2, 0.4, 0.6), logits_of(0.2, 0.4, 0.6, 0.8))
    assert found == pytest.approx([-1.2247, 0.0, 1.2247, 2.4495], abs=1e-4)


def test_rank_by_hand() -> None:
    """Train answers .1, .3, .5: quantiles rise from .1 at 0 to .3 at 1/2 and .5 at 1, so .2 is 1/4 and .45 is 7/8.

    Nothing lies below .05, and nothing above .9.
    """
    asked = logits_of(0.05, 0.1, 0.2, 0.3, 0.45, 0.5, 0.9)
    found = values_of("rank", logits_of(0.1, 0.3, 0.5), asked)
    assert found == pytest.approx([0.0, 0.0, 0.25, 0.5, 0.875, 1.0, 1.0], abs=1e-5)


def test_rank_puts_a_value_that_many_sessions_have_into_their_middle() -> None:
    """Half of the train answers are .2: they take the places 0 to 1/2 together, whose middle is about 1/4."""
    train = logits_of(*[0.2] * 50, *np.linspace(0.3, 0.9, 50))
    below, tied, above = values_of("rank", train, logits_of(0.19, 0.2, 0.201))
    assert (below, round(tied, 2)) == (0.0, 0.25)
    assert above == pytest.approx(0.5, abs=0.01)


def test_log_sigmoid_by_hand() -> None:
    """The reference is the median logit, 0. log sigmoid(0) = -.6931, (2) = -.1269, (-2) = -2.1269: two above gain .566,
    two below lose 1.434."""
    train = torch.tensor([[-1.0], [0.0], [3.0]])
    found = values_of("log_sigmoid", train, torch.tensor([[0.0], [2.0], [-2.0]]))
    assert found == pytest.approx([-0.6931, -0.1269, -2.1269], abs=1e-4)
    # the quantile .75 lies half-way between 0 and 3
    assert fit_constants("log_sigmoid", train, 0.75).item() == pytest.approx(1.5)


def test_log_sigmoid_of_what_is_bad_is_the_log_probability_that_it_does_not_happen() -> None:
    """Weight -2, logit 1, reference 0: -2 * (-log sigmoid(-1)) = -2 * 1.3133 = -2.6265; the rarer, the closer to 0."""
    constants, weights = torch.zeros(1, 1), torch.tensor([-2.0])
    logits = torch.tensor([[[1.0], [-1.0]]])
    found = (transformed(logits, constants, "log_sigmoid", weights) * weights)[..., 0]
    torch.testing.assert_close(found, torch.tensor([[-2.6265, -0.6265]]), atol=1e-4, rtol=0)
    each = transformed(logits.expand(2, 2, 1), constants, "log_sigmoid", torch.tensor([[-2.0], [1.0]]))
    assert each[0, 0].item() == pytest.approx(1.3133, abs=1e-4)
    assert each[1, 0].item() == pytest.approx(-0.3133, abs=1e-4)


def test_a_tower_with_one_answer_for_all() -> None:
    assert values_of("standard", logits_of(0.3, 0.3), logits_of(0.3, 0.9)) == [0.0, 0.0]
    assert values_of("rank", logits_of(0.3, 0.3), logits_of(0.2, 0.3, 0.4)) == [0.0, 0.5, 1.0]


@given(seed=st.integers(0, 30), transform=st.sampled_from(["standard", "rank", "log_sigmoid"]))
def test_no_transform_turns_an_order_round(seed: int, transform: Any) -> None:
    generator = torch.Generator().manual_seed(seed)
    train = torch.randn(40, 2, generator=generator) * torch.tensor([1.0, 3.0])
    asked = (torch.randn(1, 30, 2, generator=generator) * 4).sort(1).values
    found = transformed(asked, fit_constants(transform, train, 0.5), transform, torch.tensor([1.0, -1.0]))
    assert (found.diff(dim=1) >= 0).all()
    assert torch.isfinite(found).all()


def test_a_rare_signal_counts_as_much_as_a_frequent_one() -> None:
    """Follows of .1 to .3 % beside views of 40 to 80 %: the sum follows the views until both are in units of training."""
    train = torch.stack([torch.linspace(0.4, 0.8, 50), torch.linspace(0.001, 0.003, 50).flip(0)], dim=1).logit()
    for transform in ("standard", "rank"):
        both = transformed(train[None], fit_constants(transform, train, 0.5), transform, torch.ones(2)).sum(-1)
        assert both.std() < 0.02
    assert transformed(train[None], torch.empty(2, 0), "identity", torch.ones(2)).sum(-1).std() > 0.1


def test_answers_that_are_missing_stay_missing() -> None:
    asked = torch.tensor([[[0.0], [torch.nan]]])
    for transform in ("identity", "standard", "rank", "log_sigmoid"):
        found = transformed(asked, fit_constants(transform, torch.zeros(2, 1), 0.5), transform, ONE)  # type: ignore[arg-type]
        assert found.isnan().flatten().tolist() == [False, True]


def test_constants_that_are_not_fitted_change_nothing() -> None:
    asked = torch.randn(1, 5, 2, generator=torch.Generator().manual_seed(0))
    for transform in ("standard", "rank"):
        found = transformed(asked, neutral_constants(transform, 2), transform, torch.ones(2))  # type: ignore[arg-type]
        torch.testing.assert_close(found, asked.sigmoid())
    assert neutral_constants("rank", 3).shape == (3, NUM_QUANTILES)
    assert neutral_constants("identity", 3).shape == (3, 0)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return colour_prepared(tmp_path_factory.mktemp("colours"), users=40, items=ITEMS)


def test_the_constants_are_those_of_train_sessions_and_travel_with_the_weights(
    prepared: Dataset, tmp_path: Path
) -> None:
    """Mean and deviation of the model's own answers to the train sessions, by NumPy; the file brings them back."""
    model = random_model(prepared, combination={"mode": "raw", "transform": "standard"})
    train = session_feedback(prepared, FeedbackConfig(max_items=4)).of(TRAIN)
    fit_combination(model, train)
    p = score_sessions(model, train.histories, train.padded_items(4)[:, None]).probabilities[:, 0]
    np.testing.assert_allclose(model.transform_TC[:, 0], p.mean(0), rtol=1e-4)
    np.testing.assert_allclose(model.transform_TC[:, 1], 1 / p.std(0), rtol=1e-3)
    save_reward_model(tmp_path / "m", model)
    loaded = load_reward_model(tmp_path / "m", None)
    assert torch.equal(loaded.transform_TC, model.transform_TC)
    assert loaded.spec.combination.transform == "standard"
    histories, items = histories_of(prepared), torch.randint(0, ITEMS, (8, 5, 3))
    reward = ModelScorer(loaded).reward(histories, items)
    p = ModelScorer(loaded).values(histories, items)  # levels stay probabilities
    expected = ((p - model.transform_TC[:, 0]) * model.transform_TC[:, 1] * model.default_weights()).sum(-1)
    torch.testing.assert_close(reward, expected, atol=1e-4, rtol=1e-4)


def test_without_a_transform_files_are_as_they_were(prepared: Dataset, tmp_path: Path) -> None:
    """No constants are written, and weights with constants do not fit a specification without."""
    plain, fitted = random_model(prepared), random_model(prepared, combination={"transform": "log_sigmoid"})
    assert "transform_TC" not in plain.state_dict()
    assert "transform_TC" in fitted.state_dict()
    save_reward_model(tmp_path / "plain", plain)
    save_reward_model(tmp_path / "fitted", fitted)
    (tmp_path / "fitted" / "model.safetensors").replace(tmp_path / "plain" / "model.safetensors")
    with pytest.raises(ArtifactError, match="transform_TC"):
        load_reward_model(tmp_path / "plain", None)


def test_the_reward_by_hand() -> None:
    """Two towers with weights 1 and -.5, references 0 and 1, logits (1, 1) and (-1, 3).

    log sigmoid(1) = -.3133, (-1) = -1.3133; the second is bad, so its term is .5 log sigmoid(1 - logit): 0 gives
    -.3466, -2 gives -1.0635. Sums: -.6598 and -2.3767.
    """
    logits = torch.tensor([[[1.0, 1.0], [-1.0, 3.0]]])
    weights = torch.tensor([1.0, -0.5])
    constants = torch.tensor([[0.0], [1.0]])
    found = (transformed(logits, constants, "log_sigmoid", weights) * weights).sum(-1)
    torch.testing.assert_close(found, torch.tensor([[-0.6598, -2.3767]]), atol=1e-4, rtol=0)


def test_refusals() -> None:
    for transform, mode, way_out in (
        ("log_sigmoid", "fused", "reads no tower's answer; set mode to raw or zscore"),
        ("rank", "rank", "sees the order alone, which no transform changes; set mode to raw or zscore"),
        ("standard", "zscore", "standardises again, inside the group; set mode to raw, or"),
    ):
        with pytest.raises(ConfigError, match=f"'{transform}' has no effect with mode '{mode}', which {way_out}"):
            validate(CombinationConfig, {"transform": transform, "mode": mode}, "test")
    with pytest.raises(ConfigError, match=r"reference_quantile 0.8 is read by transform 'log_sigmoid' alone"):
        validate(CombinationConfig, {"reference_quantile": 0.8}, "test")
    for logits in (torch.empty(0, 2), torch.tensor([[torch.nan]])):
        with pytest.raises(ValueError, match="must be finite, of one session or more"):
            fit_constants("rank", logits, 0.5)


def test_more_sessions_than_torch_takes_a_quantile_of() -> None:
    """torch.quantile ends at 2^24 rows: a log of 34 million sessions trained its reward model and then lost it here."""
    logits = torch.zeros(2**24 + 2, 1)
    logits[: 2**23] = 3.0
    assert fit_constants("log_sigmoid", logits, 0.25).item() == 0.0
    assert fit_constants("log_sigmoid", logits, 0.75).item() == 3.0
