"""The steered bundle opened as a scorer, its users and their histories: what tests of answers share."""

from __future__ import annotations

from pathlib import Path

import pytest

from recsys.contracts.dataset import Dataset
from recsys.data.histories import Histories
from serving.answers.scorer import Scorer
from serving.export.export import BundleSources
from serving.inputs.user_histories import PreparedUsers


@pytest.fixture(scope="module")
def scorer(steered_bundle: Path) -> Scorer:
    return Scorer.open(steered_bundle)


@pytest.fixture
def users(steered_sources: BundleSources) -> PreparedUsers:
    return PreparedUsers(steered_sources.prepared, "d" * 64)


@pytest.fixture(scope="module")
def histories(steered_sources: BundleSources) -> Histories:
    prepared = Dataset.open(steered_sources.prepared)
    return Histories.from_targets(prepared.history, prepared.all_users())
