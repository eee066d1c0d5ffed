"""The decoder against the plain reference on models that were trained for real."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from pipelines.config import load_run_config
from pipelines.engine.lock import run_lock
from pipelines.workflow import Workflow
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import MANIFEST_NAME
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.model.checkpoint import load_policy
from recsys.runtime import SilentProgress
from recsys.semantic_ids.versions import SemanticIds
from tests.toy.reference_search import disagreements, reference_beam
from tests.toy.tiny_run import write_recipe

RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"
USERS = 12
NEEDS_DATA = pytest.mark.skipif("RECSYS_DATA" not in os.environ, reason="RECSYS_DATA does not point to the data sets")


def trained(recipe: Path, overrides: list[str]) -> tuple[Dataset, SemanticIds, Path]:
    """Run the stages up to `train`; return what decoding needs."""
    config = load_run_config(recipe, [*overrides, "threads=1"])
    config.output_dir.mkdir(parents=True)
    with run_lock(config.output_dir):
        workflow = Workflow(config, SilentProgress())
        for stage in ("prepare", "embed", "tokenize", "train"):
            workflow.run_verb(stage)
    prepared, ids, policy = (
        next((config.output_dir / "artifacts" / kind).glob(f"[!.]*/{MANIFEST_NAME}")).parent
        for kind in ("prepared", "semantic_ids", "policy")
    )
    return Dataset.open(prepared), SemanticIds.load(ids), policy / "model"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "overrides", "widths"),
    [
        pytest.param(None, [], (10, 50), id="simulator"),
        pytest.param(
            "movielens.yaml", ["source.path={data}/movielens100k", "train.max_epochs=2"], (20,),
            marks=[pytest.mark.data, NEEDS_DATA], id="movielens",
        ),
        pytest.param(
            "beauty.yaml", ["source.path={data}/amazon14_beauty", "train.max_epochs=1"], (50,),
            marks=[pytest.mark.data, NEEDS_DATA], id="beauty",
        ),
    ],
)  # fmt: skip
def test_a_trained_model_is_decoded_as_by_the_reference(
    tmp_path: Path, recipe: str | None, overrides: list[str], widths: tuple[int, ...]
) -> None:
    path = write_recipe(tmp_path) if recipe is None else RECIPES / recipe
    data = os.environ.get("RECSYS_DATA", "")
    given = [text.format(data=data) for text in overrides]
    prepared, ids, model = trained(path, [*given, f"output_dir={tmp_path / 'run'}"])
    policy = load_policy(model, ids.digest).eval()
    everybody = Histories.from_targets(prepared.history, prepared.all_users())
    histories = everybody.take(np.linspace(0, len(everybody) - 1, USERS).astype(np.int64))
    codes = np.asarray(ids.codes)
    for width in widths:
        recommender = Recommender(policy, ids, DecodeConfig(beam_width=width, rescore="none"))
        for filtered in (False, True):
            denied = [set(seen.tolist()) if filtered else set() for seen in histories.seen_items()]
            found = recommender.recommend(histories, width, exclude_seen=filtered)
            for row, expected in enumerate(reference_beam(policy, histories, codes, width, denied)):
                assert disagreements(found.items[row], found.scores[row], expected) == []


def test_what_counts_as_a_disagreement() -> None:
    expected = [(3, -1.0), (5, -2.0), (7, -2.00005), (9, -4.0)]
    scores = np.array([-1.0, -2.0, -2.0, -4.0, -np.inf])
    assert disagreements(np.array([3, 5, 7, 9, -1]), scores, expected) == []
    assert disagreements(np.array([3, 7, 5, 2, -1]), scores, expected) == []  # a tie, and the last rank
    assert disagreements(np.array([4, 5, 7, 9, -1]), scores, expected) == ["rank 0: item 4, expected 3"]
    assert len(disagreements(np.array([3, 5, 7, 9, 1]), scores - 1e-3, expected)) == 5
