"""The stages `reward` and `align`: when they run, who reads them, and a whole run with alignment on."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipelines.cli.app import main
from pipelines.config import RunConfig, load_run_config
from pipelines.engine.stage import make_plan
from pipelines.stages import STAGES, stages_of
from recsys.contracts.manifest import Artifact, open_artifact, read_json, sha256_of_file
from recsys.evaluation.rankings import BEAM, SERVED, UNALIGNED_BEAM, UNALIGNED_SERVED
from recsys.reports.alignment import PAGE_NAME
from tests.toy import tiny_run

BEFORE = ["prepare", "embed", "tokenize", "train", "rank", "baselines", "evaluate", "export", "recommend"]
RERE = (
    "align.method=rere",
    "align.rere.rounds=2",
    "align.rere.steps_per_round=6",
    "align.rere.requests_per_step=16",
    "align.rere.rollouts.num_generations=8",
    "align.guard.users=100",
    "align.guard.ks=[1,5,10,50]",
    "align.guard.on_violation=record",
)


def config_of(tmp_path: Path, *overrides: str) -> RunConfig:
    return load_run_config(tiny_run.write_recipe(tmp_path), overrides)


def stage_parents(config: RunConfig) -> dict[str, tuple[str, ...]]:
    return {stage.name: stage.parents for stage in stages_of(config)}


def test_without_alignment_and_ranker_the_plain_stages_are_left(tmp_path: Path) -> None:
    assert list(stage_parents(config_of(tmp_path))) == BEFORE
    config = config_of(tmp_path, "rank.method=none")
    assert list(stage_parents(config)) == [name for name in BEFORE if name != "rank"]
    assert all(stage in STAGES for stage in stages_of(config))


def test_rule_rewards_need_no_reward_model(tmp_path: Path) -> None:
    parents = stage_parents(config_of(tmp_path, "align.method=rere"))
    assert "reward" not in parents
    assert parents["align"] == ("prepare", "embed", "tokenize", "train")
    assert parents["rank"][-1] == "align"
    assert parents["evaluate"][-2:] == parents["export"][-2:] == ("align", "rank")


@pytest.mark.parametrize(
    "overrides", [["align.method=ipa"], ["align.method=rere", "align.rere.rewards={learned: 1.0}"]]
)
def test_the_learned_reward_brings_its_stage(tmp_path: Path, overrides: list[str]) -> None:
    parents = stage_parents(config_of(tmp_path, *overrides))
    assert list(parents) == [*BEFORE[:4], "reward", "align", *BEFORE[4:]]
    assert parents["align"][-1] == "reward"


def test_settings_of_the_other_method_change_no_result(tmp_path: Path) -> None:
    def digests(*overrides: str) -> dict[str, str]:
        config = config_of(tmp_path, "align.method=rere", *overrides)
        return {step.stage.name: step.digest for step in make_plan(stages_of(config), config, 1)}

    assert digests("align.ipa.rounds=9", "align.checkpoint_every_steps=7") == digests()
    changed = digests("align.rere.rounds=9")
    assert changed["train"] == digests()["train"]
    assert changed["align"] != digests()["align"]
    assert changed["export"] != digests()["export"]


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


def artifact(output: Path, kind: str) -> Artifact:
    (manifest,) = (output / "artifacts" / kind).glob("[!.]*/manifest.json")
    return open_artifact(manifest.parent)


@pytest.mark.slow
def test_a_run_with_alignment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    output = tmp_path / "out"
    arguments = ["--config", str(tiny_run.write_recipe(tmp_path)), f"output_dir={output}", *RERE]
    for verb in ("prepare", "embed", "tokenize", "train"):
        assert call(verb, *arguments, "--progress", "off") == 0
    assert call("export", *arguments, "--progress", "off") == 4  # reads the aligned policy, which is not there yet
    assert "reads the result of 'align'" in capsys.readouterr().err
    assert call("run", *arguments, "--progress", "off") == 0

    aligned = artifact(output, "aligned_policy")
    assert aligned.manifest.summary["method"] == "rere"
    assert aligned.manifest.summary["kept_round"] == 2
    assert "NDCG" in (aligned.path / PAGE_NAME).read_text()
    assert not list(aligned.path.rglob(".*"))
    rounds = [open_artifact(aligned.path / "rounds" / f"{number:02d}").manifest for number in range(3)]
    assert rounds[0].parents == {
        **aligned.manifest.parents,
        "policy_weights": rounds[1].parents["policy_weights"],
    }
    assert rounds[2].parents["round"] == rounds[1].digest

    evaluation = artifact(output, "evaluation")
    systems = set(pl.read_parquet(evaluation.path / "metrics.parquet")["system"])
    assert {BEAM, SERVED, UNALIGNED_BEAM, UNALIGNED_SERVED} <= systems
    bundle = artifact(output, "bundle")
    assert sha256_of_file(bundle.path / "model" / "model.safetensors") == sha256_of_file(
        aligned.path / "model" / "model.safetensors"
    )
    assert read_json(bundle.path / "bundle.json")["digests"]["align"] == aligned.digest
    capsys.readouterr()
    assert call("run", *arguments, "--progress", "off") == 0
    assert "Nothing to do" in capsys.readouterr().out


@pytest.mark.parametrize("more", [[], ["--dry-run"]])
def test_align_without_a_method_is_refused(tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before the results of earlier stages are asked for, of which the method would be the last to be missed."""
    arguments = ["--config", str(tiny_run.write_recipe(tmp_path)), f"output_dir={tmp_path / 'out'}"]
    assert call("align", *arguments, *more) == 2
    assert (
        "align.method is 'none': there is nothing to align; set it to ipa, rere or feedback" in capsys.readouterr().err
    )
    assert not (tmp_path / "out").exists()
