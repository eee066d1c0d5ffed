"""The bundle that generates sessions, takes wishes and selects by reward, opened, with its users."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.contracts.prepared import PreparedData
from recsys.data.histories import Histories
from serving.export import BundleSources
from serving.scorer import Scorer
from serving.user_histories import PreparedUsers


@pytest.fixture(scope="module")
def scorer(steered_bundle: Path) -> Scorer:
    return Scorer.open(steered_bundle)


@pytest.fixture
def users(steered_sources: BundleSources) -> PreparedUsers:
    return PreparedUsers(steered_sources.prepared, "d" * 64)


@pytest.fixture(scope="module")
def histories(steered_sources: BundleSources) -> Histories:
    prepared = PreparedData.open(steered_sources.prepared)
    return Histories.of_targets(prepared.history, prepared.all_users())
