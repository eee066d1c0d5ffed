"""The gate at work: its moves, its memory, its record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.release.gate.aliases import AliasMovedError, AliasMover
from pipelines.release.gate.audit import AuditLog
from pipelines.release.gate.config import PromoteConfig
from pipelines.release.gate.evidence import Witness, evaluated_rows
from pipelines.release.gate.keeper import Gate, refuse_lost_alias
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.evaluation.rankings import SERVED
from serving.registry.model_registry import Version

DATA = "d" * 64


class FakeRegistry:
    """Aliases and tags in memory, an interruption and somebody else's hand."""

    def __init__(self) -> None:
        self.known: dict[str, Version] = {}
        self.table: dict[str, str] = {}
        self.moves: list[tuple[str, str]] = []
        self.dies_at: int | None = None
        self.intruder: tuple[int, str] | None = None
        """After so many moves somebody else makes a version champion."""

    def add(self, number: str, evaluation: str) -> Version:
        version = Version("toy", number, {"data_digest": DATA, "evaluation_digest": evaluation})
        self.known[number] = version
        return version

    def by_alias(self, name: str, alias: str) -> Version | None:
        return self.known.get(self.table.get(alias, ""))

    def versions(self, name: str) -> list[Version]:
        return list(self.known.values())

    def aliases(self, name: str) -> dict[str, str]:
        return dict(self.table)

    def point(self, name: str, alias: str, number: str) -> None:
        self.moves.append((alias, number))
        if self.dies_at == len(self.moves):
            raise KeyboardInterrupt
        self.table[alias] = number
        if self.intruder is not None and self.intruder[0] == len(self.moves):
            self.table["champion"] = self.intruder[1]

    def remove_alias(self, name: str, alias: str) -> None:
        del self.table[alias]

    def set_tags(self, version: Version, tags: dict[str, str]) -> None:
        version.tags.update(tags)


def evaluation(root: Path, digest: str, values: list[float]) -> Artifact:
    store = ArtifactStore(root / "artifacts")
    with store.work_folder("evaluation", digest) as work:
        common_rows: dict[str, Any] = {"exclude_seen": True, "user_id": list(range(len(values)))}
        served = pl.DataFrame({"system": SERVED, **common_rows, "ndcg@10": values})
        popular = served.with_columns(pl.lit("popularity").alias("system"), pl.lit(0.01).alias("ndcg@10"))
        pl.concat([served, popular]).write_parquet(work / "per_user.parquet")
        common: dict[str, Any] = {"kind": "evaluation", "code_version": "1", "seed": 1, "parents": {}, "summary": {}}
        return store.publish(work, digest=digest, config={"evaluate": {"split": "test"}}, **common)


@pytest.fixture(autouse=True)
def _without_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    """The prepared data of these tests are an empty folder."""
    monkeypatch.setattr(Witness, "slices", lambda self, num_rows: {})


@pytest.fixture
def prepared(tmp_path: Path) -> Artifact:
    store = ArtifactStore(tmp_path / "artifacts")
    with store.work_folder("prepared", DATA) as work:
        return store.publish(
            work, kind="prepared", digest=DATA, code_version="1", seed=1, parents={}, config={}, summary={}
        )


def gate(root: Path, registry: FakeRegistry, **rule: Any) -> Gate:
    return Gate(registry, ArtifactStore(root / "artifacts"), root, PromoteConfig(probe_rows=0, **rule))  # type: ignore[arg-type]


def test_the_life_of_three_versions(tmp_path: Path, prepared: Artifact) -> None:
    registry = FakeRegistry()
    decide = gate(tmp_path, registry).decide
    good, better, worse = (
        evaluation(tmp_path, letter * 64, [value] * 40) for letter, value in zip("123", (0.3, 0.4, 0.1), strict=True)
    )

    first = decide(registry.add("1", good.digest), good, prepared)
    assert (first.promoted, first.moved) == (True, True)
    assert registry.table == {"champion": "1", "anchor": "1"}
    second = decide(registry.add("2", better.digest), better, prepared)
    assert second.promoted
    assert registry.table == {"champion": "2", "previous": "1", "anchor": "2"}
    third = decide(registry.add("3", worse.digest), worse, prepared)
    assert not third.promoted
    assert registry.table == {"champion": "2", "previous": "1", "anchor": "2"}
    assert registry.known["3"].tags["gate_verdict"] == "refused"

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
    again = decide(registry.known["2"], two, prepared)
    assert (again.promoted, again.moved) == (True, False)
    assert len(list((tmp_path / "promotions").glob("*.json"))) == 2


def test_a_rollback_by_hand_is_respected(tmp_path: Path, prepared: Artifact) -> None:
    registry = FakeRegistry()
    decide = gate(tmp_path, registry).decide
    one, two = evaluation(tmp_path, "1" * 64, [0.3] * 9), evaluation(tmp_path, "2" * 64, [0.4] * 9)
    decide(registry.add("1", one.digest), one, prepared)
    decide(registry.add("2", two.digest), two, prepared)
    registry.table["champion"] = "1"
    decision = decide(registry.known["2"], two, prepared)
    assert not decision.promoted
    assert "compared with version 1 before" in decision.reason
    assert registry.table["champion"] == "1"


def test_previous_moves_before_champion(tmp_path: Path, prepared: Artifact) -> None:
    """In the other order a kill in between leaves no alias on the old champion."""
    registry = three_nights(tmp_path, prepared)
    assert registry.moves[-3:] == [("previous", "1"), ("champion", "2"), ("anchor", "2")]


def three_nights(root: Path, prepared: Artifact, dies_at: int | None = None) -> FakeRegistry:
    """Versions 1 and 2 are promoted; version 0 was champion before them."""
    registry = FakeRegistry()
    decide = gate(root, registry).decide
    one, two = evaluation(root, "1" * 64, [0.3] * 40), evaluation(root, "2" * 64, [0.4] * 40)
    decide(registry.add("1", one.digest), one, prepared)
    registry.table["previous"] = "0"
    if dies_at is not None:
        registry.dies_at = len(registry.moves) + dies_at
        with pytest.raises(KeyboardInterrupt):
            decide(registry.add("2", two.digest), two, prepared)
        registry.dies_at = None
    decide(registry.known.get("2") or registry.add("2", two.digest), two, prepared)
    return registry


@pytest.mark.parametrize("dies_at", [1, 2, 3])
def test_an_interruption_at_any_move_loses_nothing(tmp_path: Path, prepared: Artifact, dies_at: int) -> None:
    registry = three_nights(tmp_path, prepared, dies_at)
    assert registry.table["champion"] == "2"
    assert registry.table["previous"] == "1"
    assert registry.known["2"].tags["gate_verdict"] == "pass"
    assert not list((tmp_path / "promotions").glob(".moving*"))


def test_an_interrupted_move_is_undone_before_anything_else(tmp_path: Path) -> None:
    """Killed between the two moves, and the next night's version is another: ``previous`` is what it was."""
    registry = FakeRegistry()
    registry.table = {"champion": "1", "previous": "0"}
    registry.dies_at = 2
    mover = AliasMover(registry, "toy", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        mover.move("2", "1")
    assert registry.table == {"champion": "1", "previous": "1"}
    registry.dies_at = None
    repaired = mover.repair()
    assert repaired is not None
    assert ("undone" in repaired.words, repaired.finished) == (True, None)
    assert AuditLog(tmp_path).events()[-1]["event"] == "repaired"
    assert registry.table == {"champion": "1", "previous": "0"}
    assert mover.repair() is None


@pytest.mark.parametrize("after", [1, 2])
def test_somebody_elses_champion_stands(tmp_path: Path, prepared: Artifact, after: int) -> None:
    """Version 9 becomes champion while ours is compared (after the first move) or just after ours."""
    registry = FakeRegistry()
    decide = gate(tmp_path, registry).decide
    one, two = evaluation(tmp_path, "1" * 64, [0.3] * 40), evaluation(tmp_path, "2" * 64, [0.4] * 40)
    decide(registry.add("1", one.digest), one, prepared)
    registry.add("9", one.digest)
    registry.intruder = (len(registry.moves) + after, "9")
    decision = decide(registry.add("2", two.digest), two, prepared)
    assert (decision.promoted, decision.moved) == (False, False)
    assert "is version 9, and the comparison was made with version" in decision.reason
    assert registry.table["champion"] == "9"
    assert "gate_against" not in registry.known["2"].tags  # the next run compares with version 9
    assert AuditLog(tmp_path).events()[-1]["event"] == "overtaken"


def test_a_champion_moved_before_the_first_move_is_noticed(tmp_path: Path) -> None:
    registry = FakeRegistry()
    registry.table = {"champion": "3", "previous": "0"}
    with pytest.raises(AliasMovedError, match="is version 3, and the comparison was made with version 1"):
        AliasMover(registry, "toy", tmp_path).move("2", "1")
    assert registry.moves == []


def test_a_deleted_alias_is_noticed(tmp_path: Path, prepared: Artifact) -> None:
    """Otherwise the next version would pass as the first."""
    registry = three_nights(tmp_path, prepared)
    del registry.table["champion"]
    worse = evaluation(tmp_path, "3" * 64, [0.1] * 40)
    with pytest.raises(ArtifactError, match=r"version 2 was made champion before.*recsys rollback --to 2"):
        gate(tmp_path, registry).decide(registry.add("3", worse.digest), worse, prepared)
    assert "champion" not in registry.table


@pytest.mark.parametrize("verdict", ["refused", "rolled back"])
def test_a_deleted_alias_of_a_version_that_never_passed_is_noticed(
    tmp_path: Path, prepared: Artifact, verdict: str
) -> None:
    """Somebody made a refused version champion: no version carries "pass", and the record knows all the same."""
    registry = FakeRegistry()
    for number in "12":
        registry.add(number, number * 64).tags["gate_verdict"] = "rolled back" if number == "1" else verdict
    AuditLog(tmp_path).append("rolled back", "toy", "by hand", challenger="2", champion="1")
    made = evaluation(tmp_path, "3" * 64, [0.1] * 40)
    with pytest.raises(ArtifactError, match=r"version 2 was made champion before.*recsys rollback --to 2"):
        gate(tmp_path, registry).decide(registry.add("3", made.digest), made, prepared)


def test_a_registry_that_was_made_anew_accuses_no_version_of_it(
    tmp_path: Path, prepared: Artifact, caplog: pytest.LogCaptureFixture
) -> None:
    """The database was lost after two nights, and the next counts from 1: one is refused, one passes."""
    three_nights(tmp_path, prepared)
    anew = FakeRegistry()
    decide = gate(tmp_path, anew).decide
    poor, good = evaluation(tmp_path, "4" * 64, [0.005] * 40), evaluation(tmp_path, "5" * 64, [0.4] * 40)
    refused = decide(anew.add("1", poor.digest), poor, prepared)
    assert (refused.promoted, refused.champion) == (False, None)
    assert "says that version 2 was: the registry was made anew" in caplog.text
    refuse_lost_alias(anew, "toy", tmp_path)  # type: ignore[arg-type]  # before the next night is trained
    assert decide(anew.add("2", good.digest), good, prepared).promoted
    del anew.table["champion"]
    with pytest.raises(ArtifactError, match=r"version 2 was made champion before.*recsys rollback --to 2"):
        refuse_lost_alias(anew, "toy", tmp_path)  # type: ignore[arg-type]


def test_the_anchor_stays_with_the_best(tmp_path: Path, prepared: Artifact) -> None:
    """Version 2 loses 2 % and passes, version 3 loses 2 % more and passes, version 4 would have lost 6 % in all."""
    registry = FakeRegistry()
    decide = gate(tmp_path, registry).decide
    for number, value in enumerate((0.5, 0.49, 0.48, 0.47), start=1):
        made = evaluation(tmp_path, str(number) * 64, [value] * 40)
        last = decide(registry.add(str(number), made.digest), made, prepared)
    assert registry.table == {"champion": "3", "previous": "2", "anchor": "1"}
    assert [check.name for check in last.checks if not check.passed] == ["budget"]
    assert "all nights together may lose 5.0%" in last.reason


def test_a_deleted_anchor_is_told(tmp_path: Path, prepared: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    """What was lost so far is forgotten with it: somebody has to know. The champion is the anchor from now on."""
    registry = FakeRegistry()
    decide = gate(tmp_path, registry).decide
    for number, value in enumerate((0.5, 0.49, 0.48), start=1):
        if number == 3:
            assert "was deleted" not in caplog.text
            del registry.table["anchor"]
        made = evaluation(tmp_path, str(number) * 64, [value] * 40)
        decide(registry.add(str(number), made.digest), made, prepared)
    assert "no version of 'toy' carries the alias 'anchor': it, or its version, was deleted" in caplog.text
    assert "counts from the champion, version 2, from now on" in caplog.text
    assert registry.table == {"champion": "3", "previous": "2", "anchor": "2"}


def test_a_first_version_below_popularity_is_refused(tmp_path: Path, prepared: Artifact) -> None:
    registry = FakeRegistry()
    poor = evaluation(tmp_path, "1" * 64, [0.005] * 40)
    decision = gate(tmp_path, registry).decide(registry.add("1", poor.digest), poor, prepared)
    assert not decision.promoted
    assert registry.table == {}
    assert decision.champion is None


def test_the_log_shows_a_changed_line(tmp_path: Path, prepared: Artifact) -> None:
    three_nights(tmp_path, prepared)
    log = AuditLog(tmp_path)
    events = log.events("toy")
    assert [(event["event"], event["challenger"]) for event in events] == [("promoted", "1"), ("promoted", "2")]
    assert log.events("other") == []
    text = log.path.read_text()
    log.path.write_text(text + '{"torn')  # a kill within the last line
    log.append("refused", "toy", "worse", challenger="3")
    assert len(log.events()) == 3
    log.path.write_text(log.path.read_text().replace('"challenger":"1"', '"challenger":"7"'))
    with pytest.raises(ArtifactError, match="line 2 does not follow the line before it"):
        log.events()


def test_the_log_shows_a_changed_decision(tmp_path: Path, prepared: Artifact) -> None:
    three_nights(tmp_path, prepared)
    record = sorted((tmp_path / "promotions").glob("0*.json"))[0]
    record.write_text(record.read_text().replace("true", "false", 1))
    with pytest.raises(ArtifactError, match=f"{record.name}' has changed"):
        AuditLog(tmp_path).events()


def test_a_metric_that_was_not_evaluated_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"evaluated without 'hr@3'; set promote.metric or evaluate.ks"):
        evaluated_rows(evaluation(tmp_path, "1" * 64, [0.3]).path, "hr@3")
