"""The guard: the simplest order stays where nothing is better beyond its interval."""

from __future__ import annotations

import numpy as np

from recsys.ranker.guard import RankDecision, RowCounts, decide

ROWS = RowCounts(used=400, fit=200, held_out=200, fit_without_target=0, held_out_without_target=0)
ALL = np.ones(200, bool)
BASE = np.random.default_rng(0).random(200)


def decided(**gains: float | np.ndarray) -> RankDecision:
    """Every order is the dense one plus a gain."""
    ndcg = {"dense": BASE, **{name: BASE + gain for name, gain in gains.items()}}
    values = {name: {"ndcg@10": value, "hr@10": value} for name, value in ndcg.items()}
    return decide(values, np.arange(200), ALL, ROWS, confidence=0.95, resamples=300, seed=1)


def test_each_step_must_be_better() -> None:
    assert decided(fused=0.1, linear=0.2).served == "linear"
    assert decided(fused=0.1, linear=0.1).served == "fused"  # a difference of exactly 0 is not better
    assert decided(fused=-0.1, linear=0.2).served == "linear"
    assert decided(fused=-0.1, linear=-0.2).served == "dense"
    assert decided(linear=0.0).served == "dense"


def test_the_better_learned_order_is_compared() -> None:
    found = decided(fused=0.1, linear=0.2, lightgbm=0.3)
    assert (found.learned, found.served) == ("lightgbm", "lightgbm")
    assert [(step.name, step.against) for step in found.comparisons] == [
        ("fused", "dense"),
        ("lightgbm", "fused"),
        ("lightgbm", "dense"),
        ("lightgbm", "linear"),
    ]
    assert np.isclose(found.comparisons[1].difference, 0.2)
    assert decided(linear=0.3, lightgbm=0.2).learned == "linear"


def test_a_gain_within_its_noise_is_not_served_and_the_sentence_says_why() -> None:
    noise = np.random.default_rng(2).normal(0.01, 1.0, size=200)
    found = decided(linear=noise)
    assert found.comparisons[0].low < 0 < found.comparisons[0].high
    assert found.served == "dense"
    assert "because the linear ranker is not better beyond its interval" in found.sentence


def test_rows_of_one_user_are_drawn_together() -> None:
    """Fifty users of four equal rows each are fifty observations: the interval is as wide as theirs, not half of it."""
    gain = np.repeat(np.random.default_rng(3).normal(0.0, 1.0, size=50), 4)
    values = {name: {"ndcg@10": value, "hr@10": value} for name, value in (("dense", 0 * gain), ("fused", gain))}
    apart, together = (
        decide(values, users, ALL, ROWS, confidence=0.95, resamples=500, seed=1).comparisons[0]
        for users in (np.arange(200), np.repeat(np.arange(50), 4))
    )
    assert (together.high - together.low) > 1.6 * (apart.high - apart.low)


def test_few_users_decide_nothing() -> None:
    values = {
        name: {"ndcg@10": np.full(200, v), "hr@10": np.full(200, v)} for name, v in (("dense", 0.1), ("linear", 0.9))
    }
    found = decide(values, np.arange(200) % 49, ALL, ROWS, confidence=0.95, resamples=300, seed=1)
    assert (found.served, found.comparisons) == ("dense", ())


def test_the_fused_order_is_compared_where_its_weights_were_not_fitted() -> None:
    """It is better on the rows of its fit and worse on the others."""
    held = np.arange(200) < 80
    values = {
        name: {"ndcg@10": value, "hr@10": value}
        for name, value in (("dense", BASE), ("fused", BASE + 0.5 - 0.6 * held))
    }
    found = decide(values, np.arange(200), held, ROWS, confidence=0.95, resamples=300, seed=1)
    assert found.served == "dense"
    assert np.isclose(found.comparisons[0].difference, -0.1)


def test_a_learned_order_that_beats_the_fused_alone_leaves_the_fused() -> None:
    """Fused is better than dense where its weights were not fitted, and far worse elsewhere; the learned one is always a
    little better than fused, and so on all rows worse than dense."""
    held = np.arange(200) < 80
    fused = BASE + np.where(held, 0.1, -1.0)
    orders = {"dense": BASE, "fused": fused, "linear": fused + 0.05}
    values = {name: {"ndcg@10": value, "hr@10": value} for name, value in orders.items()}
    found = decide(values, np.arange(200), held, ROWS, confidence=0.95, resamples=300, seed=1)
    assert [(step.name, step.against, step.low > 0) for step in found.comparisons] == [
        ("fused", "dense", True),
        ("linear", "fused", True),
        ("linear", "dense", False),
    ]
    assert found.served == "fused"
