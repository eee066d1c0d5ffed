"""How towers become one reward, from the command line: what reaches the artefact, what is refused before a stage runs."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
import yaml

from pipelines.cli.app import main
from recsys.contracts.manifest import open_artifact, read_json
from recsys.reward.checkpoint import load_reward_model
from tests.pipelines.test_bundled_reward_model import STEERED_SESSIONS
from tests.toy import tiny_run
from tests.toy.reward import colour_prepared

PLAIN = tuple(one for one in STEERED_SESSIONS if not one.startswith(("model.", "recommend", "align")))


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main([*arguments, "--progress", "off"])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_transform_without_effect_is_refused_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--config", str(tiny_run.write_recipe(tmp_path)), f"output_dir={tmp_path / 'out'}"]
    assert call("run", *arguments, "reward.combination.transform=standard") == 2
    assert "has no effect with mode 'zscore'" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_the_combination_of_a_recipe_is_that_of_the_reward_model(tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["--config", str(tiny_run.write_recipe(tmp_path)), f"output_dir={output}", *PLAIN]
    arguments += [
        "align.method=ipa",
        "reward.combination={mode: raw, transform: log_sigmoid, reference_quantile: 0.8, personal: {}}",
    ]
    for verb in ("prepare", "embed", "tokenize", "reward"):
        assert call(verb, *arguments) == 0
    (manifest,) = (output / "artifacts" / "reward_model").glob("[!.]*/manifest.json")
    folder = open_artifact(manifest.parent).path
    for name in ("reward", "held_out"):
        model = load_reward_model(folder / name, None)
        assert model.spec.combination.transform == "log_sigmoid"
        assert (model.transform_TC != 0).all()
        assert (model.average_reactions_T > 0).any()


RSFT_RUN = (
    "source={kind: simulated, users: 200, items: 150, events: 8000, session_length: 3, request_length: 3}",
    *PLAIN[1:],
    "train.max_epochs=1",
    "align.method=ipa",
    "align.ipa={rounds: 1, samples_per_round: 64, batch_size: 32, preference: none, rewards: {rule: 1.0}}",
    "align.guard={users: 40, ks: [1, 5, 10, 50], num_generations: 4, on_violation: record}",
)


def test_sessions_without_the_measure_are_refused_before_a_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the option is one of the align stage's result: another share is another policy's digest."""
    arguments = ["--config", str(tiny_run.write_recipe(tmp_path)), f"output_dir={tmp_path / 'out'}", *RSFT_RUN]
    assert call("run", *arguments, "align.rsft={by: watch_time_ms, drop_share: 1.5}") == 2
    assert "drop_share" in capsys.readouterr().err


@pytest.mark.slow
def test_an_aligned_policy_of_the_better_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out"
    arguments = ["--config", str(tiny_run.write_recipe(tmp_path)), f"output_dir={output}", *RSFT_RUN]
    for verb in ("prepare", "embed", "tokenize", "train"):
        assert call(verb, *arguments) == 0
    assert call("align", *arguments, "align.rsft={by: plays}") == 3
    assert "align.rsft.by is 'plays'" in capsys.readouterr().err
    digests = set()
    for share in (0.5, 0.8):
        assert call("align", *arguments, f"align.rsft={{drop_share: {share}}}") == 0
        assert "train samples stay, by watch_time_ms" in capsys.readouterr().err
    for manifest in (output / "artifacts" / "aligned_policy").glob("[!.]*/manifest.json"):
        digests.add(open_artifact(manifest.parent).digest)
    assert len(digests) == 2


def test_propensities_of_a_file_reach_the_events(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of 24 rows one has a propensity of 0 and is quarantined; the others keep theirs, beside what `align` asks for."""
    recipe = tiny_run.write_small_log(tmp_path)
    log = pl.read_csv(tmp_path / "events.csv")
    shown = [0.0, *(0.5 / (row + 1) for row in range(1, len(log)))]
    log.with_columns(shown_with=pl.Series(shown)).write_csv(tmp_path / "events.csv")
    feedback = "align.feedback={logged_propensities: true, loss: {loss_type: gbpo, beta: 0.0, ratio_level: sequence}}"
    assert call("prepare", "--config", str(recipe), "align.method=feedback", feedback) == 2
    assert "the source maps none; set source.columns.propensity" in capsys.readouterr().err
    mapped = ["source.columns.propensity=shown_with", "features.quarantine.max_share=0.1"]
    assert call("prepare", "--config", str(recipe), "align.method=feedback", feedback, *mapped) == 0
    (manifest,) = (tmp_path / "out" / "artifacts" / "prepared").glob("[!.]*/manifest.json")
    events = pl.read_parquet(manifest.parent / "events.parquet")
    assert sorted(events["propensity"]) == pytest.approx(sorted(shown[1:]))
    refused = pl.read_parquet(manifest.parent / "quarantine.parquet")
    assert refused["reason"].to_list() == ["propensity outside (0, 1]"]


@pytest.mark.slow
def test_groups_of_a_table_of_users_weigh_the_reward_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The toy of colours as files: events, and users of two kinds."""
    events = colour_prepared(tmp_path / "toy").events
    events.select(
        "long_view",
        "like",
        watch="watch_time_ms",
        user_id="user_index",
        item_id="item_index",
        session_id="session_index",
        timestamp=pl.col("timestamp") + 1_600_000_000_000_000,
    ).write_parquet(tmp_path / "events.parquet")
    pl.DataFrame({"user_id": range(120), "kind": ["ab"[user % 2] for user in range(120)]}).write_parquet(
        tmp_path / "users.parquet"
    )
    source = {
        "kind": "table",
        "path": str(tmp_path),
        "interactions": "events.parquet",
        "users": "users.parquet",
        "user_columns": ["kind"],
        "timestamp_unit": "us",
        "columns": {"session_id": "session_id", "watch_time": "watch"},
        "signals": [{"name": "long_view", "column": "long_view"}, {"name": "like", "column": "like"}],
        "positive": ["long_view", "like"],
    }
    values = {
        "source": source,
        "features": {"task": "session", "session_length": 2, "sessions": {"by": "given", "min_positive": 1}},
        "embed": {"text": {"model": None}, "collaborative": {"dim": 8}, "fusion": {"dim": 16}},
        "tokenize": {"codebook_size": 8, "num_levels": 2},
        "reward": {"train": {"max_epochs": 1, "worst_group": {"column": "kind"}}, "feedback": {"min_positives": 5}},
        "align": {"method": "ipa"},
        "output_dir": str(tmp_path / "out"),
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(values))
    arguments = ["--config", str(tmp_path / "recipe.yaml")]
    assert call("prepare", *arguments, "reward.train.worst_group.column=country") == 2
    assert "source.user_columns does not carry (kind)" in capsys.readouterr().err
    for verb in ("prepare", "embed", "tokenize", "reward"):
        assert call(verb, *arguments) == 0
    (manifest,) = (tmp_path / "out" / "artifacts" / "reward_model").glob("[!.]*/manifest.json")
    facts = read_json(manifest.parent / "reward" / "training.json")
    assert set(facts["group_weights"]) == {"a", "b"}
