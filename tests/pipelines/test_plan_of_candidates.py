"""What a plan says of candidates that a run writes with the champion's version, which no recipe names."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from pipelines.config import RunConfig
from pipelines.engine.stage import PlannedStage, make_plan, plan_stage
from pipelines.stages import RECOMMEND, stages_of
from pipelines.workflow import describe_plan
from recsys.contracts.manifest import ArtifactStore


def config_of(output: Path, **recommend: Any) -> RunConfig:
    values = {"name": "shop", "source": {"kind": "simulated"}, "output_dir": output, "recommend": recommend}
    return RunConfig.model_validate(values)


def publish(output: Path, step: PlannedStage, age: int) -> None:
    """Candidates without files, of a given age in seconds."""
    store = ArtifactStore(output / "artifacts")
    with store.work_folder(step.stage.kind, step.digest) as work:
        published = store.publish(
            work,
            kind=step.stage.kind,
            digest=step.digest,
            code_version=step.code,
            seed=step.seed,
            parents=step.parents,
            config=step.config,
            summary={},
        )
    manifest = published.path / "manifest.json"
    then = manifest.stat().st_mtime - age
    os.utime(manifest, (then, then))


def candidates(config: RunConfig, reference: str, parents: dict[str, str]) -> PlannedStage:
    named = config.recommend.model_copy(update={"model": reference})
    return plan_stage(RECOMMEND, config.model_copy(update={"recommend": named}), config.seed, parents)


def of_recommend(config: RunConfig) -> tuple[str, str]:
    (row,) = [row for row in describe_plan(config) if row["stage"] == RECOMMEND.name]
    return row["action"], row["why"]


def parents_of(config: RunConfig) -> dict[str, str]:
    """Digests of the data and the bundle that candidates of this recipe are made from."""
    steps = make_plan(stages_of(config), config, config.seed)
    return next(step.parents for step in steps if step.stage is RECOMMEND)


@pytest.mark.parametrize("older_first", [True, False])
def test_candidates_of_this_bundle_are_up_to_date_whatever_was_written_after_them(
    tmp_path: Path, older_first: bool
) -> None:
    """Version 1 is this recipe's bundle, version 2 another one's, whose candidates are older or newer."""
    config = config_of(tmp_path)
    ours = parents_of(config)
    publish(tmp_path, candidates(config, "models:/shop/1", ours), age=10 if older_first else 0)
    publish(tmp_path, candidates(config, "models:/shop/2", {**ours, "export": "e" * 64}), age=0 if older_first else 10)
    assert of_recommend(config) == ("skip", "up to date")


def test_what_changed_is_said_and_not_the_version(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    publish(tmp_path, candidates(config, "models:/shop/1", parents_of(config)), age=0)
    assert of_recommend(config_of(tmp_path, k=7)) == ("run", "recommend.k 20 -> 7")


def test_candidates_of_another_model_are_none_of_this_one(tmp_path: Path) -> None:
    config = config_of(tmp_path)
    publish(tmp_path, candidates(config, "models:/other/1", parents_of(config)), age=0)
    assert of_recommend(config) == ("run", "recommend.model 'models:/other/1' -> None")


def test_a_model_that_the_recipe_names_is_planned_as_named(tmp_path: Path) -> None:
    config = config_of(tmp_path, model="models:/shop/2")
    publish(tmp_path, candidates(config, "models:/shop/1", parents_of(config)), age=0)
    assert of_recommend(config) == ("run", "recommend.model 'models:/shop/1' -> 'models:/shop/2'")


def test_a_file_of_rules_that_changed_is_no_raw_file(tmp_path: Path) -> None:
    rules = tmp_path / "deny.csv"
    rules.write_text("item_id\n7\n", encoding="utf-8")
    config = config_of(tmp_path / "run", deny=rules)
    publish(tmp_path / "run", candidates(config, "models:/shop/1", parents_of(config)), age=0)
    assert of_recommend(config) == ("skip", "up to date")
    rules.write_text("item_id\n8\n", encoding="utf-8")
    assert of_recommend(config) == ("run", "the files that it reads beside earlier results changed")
