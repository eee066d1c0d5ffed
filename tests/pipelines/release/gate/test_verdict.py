"""The verdict: every check with a hand-worked number, and what the gate stops on rows like those of a real evaluation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from pipelines.release.gate.config import PromoteConfig
from pipelines.release.gate.verdict import Evidence, Service, decide
from tests.toy.gate_nights import Pool, many_nights, one_night

USERS = np.arange(400)
HALF = np.full(400, 0.5)


def verdict(**parts: Any) -> dict[str, Any]:
    rule = parts.pop("rule", {})
    found = decide(Evidence(**{"users": USERS, "challenger": HALF, "champion": HALF, **parts}), PromoteConfig(**rule))
    return {"found": found, "refused": [check.name for check in found.checks if not check.passed]}


def test_hand_worked_difference() -> None:
    """Half the users gain .2, half lose .1: mean +.05 of .5, error of the share .15 * sqrt(400 / 399) / sqrt(400) / .5."""
    found = verdict(challenger=HALF + np.where(USERS % 2, 0.2, -0.1))["found"]
    assert found.promoted
    assert found.numbers["difference"] == pytest.approx(0.05)
    assert found.numbers["error"] == pytest.approx(0.15 * math.sqrt(400 / 399) / math.sqrt(400) / 0.5)
    assert "ndcg@10 0.5500 against 0.5000, difference +0.0500" in found.reason


def test_a_loss_has_to_be_ruled_out() -> None:
    """Every user loses the same share, so that nothing is uncertain: 2.9 % passes a margin of 3 %, 3.1 % does not."""
    assert verdict(challenger=HALF * 0.971)["refused"] == []
    assert verdict(challenger=HALF * 0.969)["refused"] == ["champion"]
    assert verdict(challenger=HALF * 0.969, rule={"margin": 0.04})["refused"] == []


def test_too_few_rows_refuse_and_say_how_many_there_should_be() -> None:
    """Ten users differ by noise alone: nothing is proven, and a loss of 3 % is not ruled out either."""
    generator = np.random.default_rng(0)
    few = decide(Evidence(np.arange(10), generator.random(10), generator.random(10)), PromoteConfig())
    assert not few.promoted
    noise = np.where(np.arange(300) % 2, 0.3, -0.3)
    found = decide(Evidence(np.arange(300), np.full(300, 0.5) + noise, np.full(300, 0.5)), PromoteConfig())
    assert not found.promoted
    # error .6 / sqrt(299); wanted .03 / (1.479 + 1.284); so about 300 * (.0347 / .01086)^2 rows
    assert found.numbers["rows_needed"] == pytest.approx(3060, rel=0.03)
    assert "would have to be about 3," in found.reason


def test_better_asks_about_the_interval_and_not_about_the_mean() -> None:
    generator = np.random.default_rng(4)
    gain = generator.normal(0.01, 0.3, 400)
    gain += 0.012 - gain.mean()  # a mean gain that the rows do not prove
    unproven = verdict(challenger=HALF + gain, rule={"rule": "better"})
    assert unproven["found"].numbers["difference"] > 0 > unproven["found"].numbers["low"]
    assert "champion" in unproven["refused"]
    assert verdict(challenger=HALF * 1.001, rule={"rule": "better"})["refused"] == []
    assert verdict(rule={"rule": "better"})["refused"] == ["champion"]


def test_small_losses_cannot_add_up() -> None:
    """2.5 % below the champion is within the margin; against an anchor that is 3 % above the champion it is 5.4 %."""
    assert verdict(challenger=HALF * 0.975)["refused"] == []
    assert verdict(challenger=HALF * 0.975, anchor=HALF / 0.97)["refused"] == ["budget"]
    assert verdict(challenger=HALF * 0.985, anchor=HALF / 0.97)["refused"] == []


def test_the_anchor_moves_only_upwards_and_only_when_it_is_proven() -> None:
    assert verdict(challenger=HALF * 1.01)["found"].anchor_moves
    assert not verdict()["found"].anchor_moves
    assert not verdict(challenger=HALF * 1.01, anchor=HALF * 1.02)["found"].anchor_moves


def test_a_first_version_has_to_beat_popularity() -> None:
    def first(**parts: Any) -> list[str]:
        return list(verdict(champion=None, **parts)["refused"])

    assert first(baselines={"popularity": HALF * 0.9}) == []
    assert first(baselines={"popularity": HALF}) == ["floor"]
    assert first(baselines={"popularity": HALF * 1.1}) == ["floor"]
    assert first(baselines={"markov": HALF * 0.5}) == ["floor"]
    assert first(rule={"floor": "none"}) == []
    assert "add popularity to evaluate.baselines" in verdict(champion=None)["found"].reason


def test_a_challenger_below_the_best_baseline() -> None:
    """It is refused where the champion was above; a champion that is below itself is not kept for that."""
    weak = {"popularity": HALF * 0.2, "ease": HALF * 0.99}
    assert verdict(challenger=HALF * 0.98, baselines=weak)["refused"] == ["floor"]
    assert verdict(challenger=HALF * 0.98, baselines=weak, rule={"floor": "popularity"})["refused"] == []
    assert verdict(challenger=HALF * 1.01, baselines={"ease": HALF * 1.2})["refused"] == []


def test_a_loss_on_a_slice_is_seen_behind_a_gain() -> None:
    """A tenth of the users loses 30 %, the others gain 5 %: the mean rises, the slice refuses."""
    mask = USERS % 10 == 0
    noise = 1 + 0.02 * np.sin(USERS * 7.0)
    challenger = HALF * noise * np.where(mask, 0.7, 1.05)
    parts: dict[str, Any] = {"challenger": challenger, "slices": {"new_users": mask, "others": ~mask}}
    assert verdict(**parts, rule={"min_slice_rows": 30})["refused"] == ["slice new_users"]
    assert verdict(**parts)["refused"] == []  # 40 rows are fewer than are compared
    borne = {**parts, "challenger": HALF * np.where(mask, 0.985, 1.05)}
    assert verdict(**borne, rule={"min_slice_rows": 30})["refused"] == []


def test_guards() -> None:
    def service(**figures: float) -> dict[str, Any]:
        return {
            "service": Service(**figures),
            "champion_service": Service(coverage=0.5, shortfall=0.02, seconds_per_row=1.0),
        }

    assert verdict(**service(coverage=0.36, shortfall=0.03, seconds_per_row=9.0))["refused"] == []
    assert verdict(**service(coverage=0.34))["refused"] == ["coverage"]
    assert verdict(**service(coverage=0.1), rule={"max_coverage_loss": None})["refused"] == []
    assert verdict(**service(shortfall=0.031))["refused"] == ["shortfall"]
    assert verdict(**service(seconds_per_row=1.6), rule={"max_latency_ratio": 1.5})["refused"] == ["latency"]


def test_a_champion_without_a_hit() -> None:
    zero = np.zeros(400)
    assert verdict(champion=zero)["refused"] == []
    assert verdict(champion=zero, challenger=zero, rule={"rule": "better"})["refused"] == ["champion"]


@pytest.fixture(scope="module")
def pool() -> Pool:
    """Rows as an evaluation of one wanted item per user gives them: two lists in five hit by chance the same rows."""
    generator = np.random.default_rng(7)
    gains = 1 / np.log2(np.arange(2, 12))

    def ranked(hit: Any) -> Any:
        return np.where(hit, generator.choice(gains, 20_000), 0.0)

    both, either = generator.random(20_000) < 0.09, generator.random(20_000)
    return Pool(ranked(both | (either < 0.05)), ranked(both | (either > 0.95)))


@pytest.mark.parametrize(
    ("kind", "lose", "low", "high"),
    [
        ("equal", "hits", 0.0, 0.15),
        ("loss 3%", "ranks", 0.85, 1.0),
        ("gain 5%", "hits", 0.0, 0.05),
        ("slice 20%", "ranks", 0.85, 1.0),
    ],
)
def test_share_of_refusals_at_ten_thousand_rows(pool: Pool, kind: str, lose: Any, low: float, high: float) -> None:
    """The small form of the benchmark of the gate: 40 resamplings, wider bounds."""
    refused = [
        not one_night(pool, 10_000, 1.0, np.random.default_rng([5, number]), PromoteConfig(), kind, lose).promoted
        for number in range(40)
    ]
    assert low <= np.mean(refused) <= high


def test_sixty_nights_of_small_losses_end_within_the_budget(pool: Pool) -> None:
    """The gate of 7be21f4 let them through: .35 of the quality was left."""
    left, promoted = many_nights(pool, 10_000, 1.0, np.random.default_rng(1), PromoteConfig())
    assert left >= 0.95
    assert promoted >= 1
