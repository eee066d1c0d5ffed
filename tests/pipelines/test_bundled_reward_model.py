"""When the reward model goes into the bundle, and a whole run that serves steered sessions by its order."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipelines.config import RunConfig, load_run_config
from pipelines.engine.stage import make_plan
from pipelines.stages import stages_of
from recsys.contracts.manifest import Artifact, open_artifact, read_json
from serving.batch.shards import SESSION_COLUMNS
from tests.toy import tiny_run

STEERED_SESSIONS = (
    "source={kind: simulated, users: 300, items: 150, events: 12000, session_length: 3, request_length: 3}",
    "features={task: session, session_length: 3, split: {kind: global_temporal}, sessions: {by: given, min_positive: 1}}",
    "model.num_objectives=6",
    "train.max_epochs=1",
    "decode.beam_width=24",
    "reward={train: {max_epochs: 1}, feedback: {min_positives: 5}}",
    "align.method=ipa",
    "align.ipa={rounds: 1, samples_per_round: 200, batch_size: 32, preference_share: 0.3, objective: {}}",
    "align.ipa.rollouts.num_generations=8",
    "align.guard={users: 50, ks: [1, 5, 10, 50], num_generations: 4, on_violation: record}",
    "evaluate.baselines=[popularity]",
    "recommend={k: 2, users_per_shard: 100, answer: sessions, second_stage: reward, objective: {swt: 2, diversity: 1}}",
)


def config_of(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_run_config(tiny_run.write_recipe(tmp_path), overrides)


def export_parents(config: RunConfig) -> tuple[str, ...]:
    return {stage.name: stage.parents for stage in stages_of(config)}["export"]


@pytest.mark.parametrize(
    ("overrides", "bundled", "trained"),
    [
        ([], False, False),
        (["align.method=rere"], False, False),
        (["align.method=ipa"], True, True),
        (["align.method=ipa", "export.reward_model=false"], False, True),
        (["export.reward_model=true"], True, True),
        (["recommend.second_stage=reward"], True, True),
        (["recommend.second_stage=reward", "recommend.model=models:/other@champion"], False, False),
    ],
)
def test_who_gets_the_reward_model(tmp_path: Path, overrides: list[str], bundled: bool, trained: bool) -> None:
    """Left open, it goes where alignment trained one, or where this run's own champion is to select by it."""
    config = config_of(tmp_path, *overrides)
    assert ("reward" in export_parents(config)) == bundled
    assert ("reward" in {stage.name for stage in stages_of(config)}) == trained


def test_another_reward_model_makes_another_bundle_and_no_other_policy(tmp_path: Path) -> None:
    def digests(*overrides: str) -> dict[str, str]:
        config = config_of(tmp_path, "export.reward_model=true", *overrides)
        return {step.stage.name: step.digest for step in make_plan(stages_of(config), config, 1)}

    before, after = digests(), digests("reward.model.width=32")
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"reward", "export", "recommend"}


def artifact(output: Path, kind: str) -> Artifact:
    (manifest,) = (output / "artifacts" / kind).glob("[!.]*/manifest.json")
    return open_artifact(manifest.parent)


@pytest.mark.slow
def test_a_run_that_serves_steered_sessions(tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = tiny_run.run(tiny_run.write_recipe(tmp_path), output, *STEERED_SESSIONS)
    assert done.returncode == 0, done.stderr
    bundle, reward = artifact(output, "bundle"), artifact(output, "reward_model")
    assert read_json(bundle.path / "bundle.json")["digests"]["reward"] == reward.digest
    towers = ["swt", "vtr", "ltr", "wtr", "share", "diversity"]
    assert bundle.manifest.summary["objectives"] == bundle.manifest.summary["reward_towers"] == towers
    candidates = artifact(output, "candidates")
    rows = pl.concat([pl.read_parquet(path) for path in sorted(candidates.path.glob("part-*"))])
    assert rows.columns == list(SESSION_COLUMNS)
    assert len(rows) == candidates.manifest.summary["rows"] == 300 * 2 * 3
    scores = rows.filter(pl.col("place") == 1).group_by("user_id", maintain_order=True).agg("score")["score"]
    assert all(first >= second for first, second in scores)
