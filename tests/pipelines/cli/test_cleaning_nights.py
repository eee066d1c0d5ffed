"""A night that cleans after itself: when it does, by what, and that what cannot be deleted stops nobody."""

from __future__ import annotations

import logging
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cli.options import ProgressMode, run_night
from pipelines.config import RunConfig
from pipelines.history import cleaning
from pipelines.nightly import night
from recsys.contracts.errors import ArtifactError
from tests.toy.fake_nights import World


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What is kept at each cleaning."""
    kept: list[int] = []
    planned = SimpleNamespace(to_text=lambda done: "2 folders, 3 MB")
    monkeypatch.setattr(cleaning, "plan_cleaning", lambda config, keep: kept.append(keep) or planned)
    monkeypatch.setattr(cleaning, "sweep", lambda folder, found, registry: None)
    return kept


def run(monkeypatch: pytest.MonkeyPatch, config: RunConfig, ran: tuple[date, ...]) -> Any:
    report = SimpleNamespace(ran=ran)
    monkeypatch.setattr(night, "run_nights", lambda *given: report)
    assert run_night(config, ProgressMode.OFF, date(2026, 11, 2)) is report
    return report


@pytest.mark.parametrize(
    ("clean", "ran", "expected"), [(True, (date(2026, 11, 2),), [3]), (False, (date(2026, 11, 2),), []), (True, (), [])]
)
def test_a_night_that_ran_cleans_where_the_recipe_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    swept: list[int],
    clean: bool,
    ran: tuple[date, ...],
    expected: list[int],
) -> None:
    run(monkeypatch, World(tmp_path).config(clean=clean, keep_nights=3), ran)
    assert swept == expected


def test_what_cannot_be_deleted_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, swept: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    def away(*given: Any) -> None:
        raise ArtifactError("nothing is deleted while it is not known which versions have an alias")

    monkeypatch.setattr(cleaning, "sweep", away)
    with caplog.at_level(logging.WARNING, "recsys.pipelines"):
        run(monkeypatch, World(tmp_path).config(clean=True), (date(2026, 11, 2),))
    assert "nothing more is deleted tonight: nothing is deleted while" in caplog.text
