"""A shop before its first night, for all tests of nights."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import pytest

from pipelines.nightly import night as nightly
from tests.toy.fake_nights import World


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    """A shop before its first night."""
    made = World(tmp_path / "out")
    monkeypatch.setattr(nightly, "Workflow", made.workflow)
    monkeypatch.setattr(nightly, "_today", lambda: date(2026, 12, 1))
    return made
