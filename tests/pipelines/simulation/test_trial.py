"""A recipe's own simulated A/B test, from raw log to verdict on the learned rewards, small."""

from pathlib import Path

import polars as pl
import pytest

from pipelines.cli.app import main
from pipelines.config import load_run_config
from pipelines.simulation.trial import ALIGNED, UNALIGNED, Trial
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.runtime import PlainProgress

RECIPE = """
name: tiny_sessions
seed: 5
threads: 1
source: {kind: simulated, users: 150, items: 60, topics: 4, events: 8000, session_length: 3, request_length: 3}
features: {task: session, session_length: 3, sessions: {by: given, min_positive: 2}}
embed: {text: {model: null}, collaborative: {dim: 16}, fusion: {dim: 32}}
tokenize: {codebook_size: 16, num_levels: 2}
model: {preset: tiny, width: 32, max_history: 20}
train: {max_epochs: 1, batch_size: 64, validation_users: 50}
decode: {beam_width: 8, rescore: none}
reward: {model: {width: 32, ffn_width: 32}, train: {max_epochs: 1}, feedback: {min_positives: 5}, resamples: 20}
align:
  method: ipa
  ipa:
    rounds: 1
    samples_per_round: 128
    batch_size: 64
    preference_share: 0.5
    rollouts: {strategy: sampling, num_generations: 8, exclude_seen: true}
  guard: {users: 30, num_generations: 4, ks: [1, 10], recall_at: 10, on_violation: record}
"""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    folder = tmp_path_factory.mktemp("trial")
    (folder / "tiny.yaml").write_text(RECIPE)
    return folder / "tiny.yaml", f"output_dir={folder / 'run'}"


@pytest.mark.slow
def test_the_command_compares_the_policies_of_a_recipe(
    recipe: tuple[Path, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, folder = recipe
    with pytest.raises(SystemExit) as end:
        main(["simulate", "--config", str(path), "--users", "40", "--beams", "8", "--out", str(tmp_path), folder])
    said = capsys.readouterr()
    assert end.value.code == 0, said.err
    lines = said.out.splitlines()
    assert lines[0].startswith("simulated A/B, 40 users")
    arms = {line.split("  ")[0] for line in lines}
    assert {UNALIGNED, ALIGNED, "logging policy", "popularity", "random", "truly best of 8 beams"} <= arms
    assert "reward: reward against truth" in said.out
    assert f"{ALIGNED}, by held_out: " in said.out
    per_user = pl.read_parquet(tmp_path / "simulated_ab.parquet")
    assert per_user.group_by("arm").len()["len"].unique().to_list() == [40]

    # again: nothing is trained, and the policies are the same
    config = load_run_config(path, [folder])
    trial = Trial.open(config, [], 40, PlainProgress())
    assert sorted(trial.policies) == [ALIGNED, UNALIGNED]
    with pytest.raises(ArtifactError, match="there is no folder"):
        Trial.open(config, ["mine=nowhere"], 40, PlainProgress())
    with pytest.raises(ConfigError, match="must be NAME=FOLDER with a new name"):
        Trial.open(config, [f"{UNALIGNED}=anywhere"], 40, PlainProgress())


@pytest.mark.parametrize("further", [["features.task=next_item", "features.session_length=1"], ["--users", "0"]])
def test_the_command_refuses_what_cannot_be_compared(recipe: tuple[Path, str], further: list[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["simulate", "--config", str(recipe[0]), recipe[1], *further])
    assert end.value.code == 2


@pytest.mark.parametrize(("further", "code"), [("foo", 2), (f"{UNALIGNED}=anywhere", 2), ("foo=nowhere", 4)])
def test_a_wrong_policy_is_refused_before_any_stage_runs(
    recipe: tuple[Path, str], tmp_path: Path, further: str, code: int
) -> None:
    fresh = f"output_dir={tmp_path / 'fresh'}"
    with pytest.raises(SystemExit) as end:
        main(["simulate", "--config", str(recipe[0]), fresh, "--policy", further])
    assert end.value.code == code
    assert not (tmp_path / "fresh" / "artifacts" / "prepared").exists()


def test_a_log_of_people_is_refused_before_any_stage_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop.yaml").write_text(
        f"output_dir: {tmp_path / 'out'}\nfeatures: {{task: session, session_length: 2}}\n"
        f"source: {{kind: table, path: {tmp_path}, interactions: log.csv, timestamp_unit: s}}\n"
    )
    with pytest.raises(SystemExit) as end:
        main(["simulate", "--config", str(tmp_path / "shop.yaml")])
    assert end.value.code == 2
    assert "source.kind is 'table', and only the users of source.kind 'simulated'" in capsys.readouterr().err


def test_a_recipe_of_single_items_is_refused(recipe: tuple[Path, str]) -> None:
    config = load_run_config(recipe[0], [recipe[1]])
    items = config.features.model_copy(update={"task": "next_item", "session_length": 1})
    with pytest.raises(ConfigError, match="only policies that generate sessions"):
        Trial.open(config.model_copy(update={"features": items}), [], 10, PlainProgress())


def test_the_shipped_recipe_is_valid_and_simulated() -> None:
    shipped = Path(__file__).resolve().parents[3] / "pipelines" / "recipes" / "simulated_sessions.yaml"
    config = load_run_config(shipped)
    assert config.source.kind == "simulated"
    assert config.align.method == "ipa"
