"""The gate: its arithmetic, its moves, its memory."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from pipelines.release.gate import Gate, PromoteConfig, decide, served_rows
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.evaluation.rankings import SERVED
from serving.registry.model_registry import Version

DATA = "d" * 64


class FakeRegistry:
    """Aliases and tags in memory."""

    def __init__(self) -> None:
        self.versions: dict[str, Version] = {}
        self.aliases: dict[str, str] = {}

    def add(self, number: str, evaluation: str) -> Version:
        version = Version("toy", number, {"data_digest": DATA, "evaluation_digest": evaluation})
        self.versions[number] = version
        return version

    def by_alias(self, name: str, alias: str) -> Version | None:
        return self.versions.get(self.aliases.get(alias, ""))

    def set_alias(self, version: Version, alias: str) -> None:
        self.aliases[alias] = version.number

    def set_tags(self, version: Version, tags: dict[str, str]) -> None:
        version.tags.update(tags)


def evaluation(root: Path, digest: str, values: list[float]) -> Artifact:
    store = ArtifactStore(root / "artifacts")
    with store.work_folder("evaluation", digest) as work:
        rows = {"system": SERVED, "exclude_seen": True, "user_id": list(range(len(values))), "ndcg@10": values}
        pl.DataFrame(rows).write_parquet(work / "per_user.parquet")
        common: dict[str, Any] = {"kind": "evaluation", "code_version": "1", "seed": 1, "parents": {}, "summary": {}}
        return store.publish(work, digest=digest, config={"evaluate": {"split": "test"}}, **common)


@pytest.fixture
def prepared(tmp_path: Path) -> Artifact:
    store = ArtifactStore(tmp_path / "artifacts")
    with store.work_folder("prepared", DATA) as work:
        return store.publish(
            work, kind="prepared", digest=DATA, code_version="1", seed=1, parents={}, config={}, summary={}
        )


def gate(root: Path, registry: FakeRegistry, **rule: Any) -> Gate:
    return Gate(registry, ArtifactStore(root / "artifacts"), root, PromoteConfig(**rule), seed=1)  # type: ignore[arg-type]


def test_hand_worked_differences() -> None:
    """Every user loses 0.01 of 0.50: proven (interval [-0.01, -0.01]), so refused although within 5 %.

    Gains of 0.2 for half and losses of 0.1 for the other half mean +0.05: passes ``not_worse``.
    """
    users, champion = np.arange(200), np.full(200, 0.5)
    lost = decide(champion - 0.01, champion, users, PromoteConfig(), seed=1)
    assert not lost.promoted
    assert lost.numbers["difference"] == pytest.approx(-0.01)
    assert lost.numbers["low"] == pytest.approx(lost.numbers["high"]) == pytest.approx(-0.01)
    mixed = champion + np.where(users % 2, 0.2, -0.1)
    assert decide(mixed, champion, users, PromoteConfig(), seed=1).promoted
    assert decide(champion, champion, users, PromoteConfig(), seed=1).promoted
    assert not decide(champion, champion, users, PromoteConfig(rule="better"), seed=1).promoted


def test_an_unproven_but_large_loss_is_refused() -> None:
    """Ten users, one of whom loses everything: mean -0.05 of 0.5 is 10 %, beyond the tolerated 5 %."""
    champion = np.full(10, 0.5)
    challenger = champion.copy()
    challenger[0] = 0.0
    decision = decide(challenger, champion, np.arange(10), PromoteConfig(tolerance=0.05), seed=1)
    assert decision.numbers["high"] >= 0
    assert not decision.promoted


def test_the_life_of_three_versions(tmp_path: Path, prepared: Artifact) -> None:
    registry = FakeRegistry()
    decide = gate(tmp_path, registry).decide
    good, better, worse = (
        evaluation(tmp_path, letter * 64, [value] * 40) for letter, value in zip("123", (0.3, 0.4, 0.1), strict=True)
    )

    first = decide(registry.add("1", good.digest), good, prepared)
    assert (first.promoted, first.moved, registry.aliases) == (True, True, {"champion": "1"})
    second = decide(registry.add("2", better.digest), better, prepared)
    assert second.promoted
    assert registry.aliases == {"champion": "2", "previous": "1"}
    third = decide(registry.add("3", worse.digest), worse, prepared)
    assert not third.promoted
    assert registry.aliases == {"champion": "2", "previous": "1"}
    assert registry.versions["3"].tags["gate_verdict"] == "refused"

    records = [json.loads(path.read_text()) for path in sorted((tmp_path / "promotions").glob("*.json"))]
    assert [(record["challenger"], record["champion"], record["promoted"]) for record in records] == [
        ("1", None, True),
        ("2", "1", True),
        ("3", "2", False),
    ]
    assert records[1]["numbers"]["difference"] == pytest.approx(0.1, abs=1e-6)


def test_deciding_again_moves_nothing(tmp_path: Path, prepared: Artifact) -> None:
    registry = FakeRegistry()
    decide = gate(tmp_path, registry).decide
    one, two = evaluation(tmp_path, "1" * 64, [0.3] * 9), evaluation(tmp_path, "2" * 64, [0.4] * 9)
    decide(registry.add("1", one.digest), one, prepared)
    decide(registry.add("2", two.digest), two, prepared)
    again = decide(registry.versions["2"], two, prepared)
    assert (again.promoted, again.moved) == (True, False)
    assert len(list((tmp_path / "promotions").glob("*.json"))) == 2


def test_a_rollback_by_hand_is_respected(tmp_path: Path, prepared: Artifact) -> None:
    registry = FakeRegistry()
    decide = gate(tmp_path, registry).decide
    one, two = evaluation(tmp_path, "1" * 64, [0.3] * 9), evaluation(tmp_path, "2" * 64, [0.4] * 9)
    decide(registry.add("1", one.digest), one, prepared)
    decide(registry.add("2", two.digest), two, prepared)
    registry.aliases["champion"] = "1"
    decision = decide(registry.versions["2"], two, prepared)
    assert not decision.promoted
    assert "compared with version 1 before" in decision.reason
    assert registry.aliases["champion"] == "1"


def test_a_metric_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"evaluated without 'hr@3'; set promote.metric or evaluate.ks"):
        served_rows(evaluation(tmp_path, "1" * 64, [0.3]).path, "hr@3")
