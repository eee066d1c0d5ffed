"""Recipes load; bad keys, types and variables are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.config import RunConfig, expand_variables, load_run_config, to_yaml
from pipelines.engine.stage import plan_stage, select_sections
from pipelines.stages import BY_NAME, STAGES
from recsys.config import validate
from recsys.contracts.errors import ConfigError, DataError

RECIPES = sorted((Path(__file__).resolve().parents[2] / "pipelines" / "recipes").glob("*.yaml"))
DEMO = next(path for path in RECIPES if path.stem == "demo")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_loads_and_survives_a_round_trip(path: Path) -> None:
    config = load_run_config(path)
    assert config.name == path.stem
    assert validate(RunConfig, yaml.safe_load(to_yaml(config)), "round trip") == config
    head = path.read_text().split("name:")[0]
    for word in ("hardware", "time", "expected", "command"):
        assert f"# {word}" in head


def test_overrides_reach_nested_keys() -> None:
    config = load_run_config(DEMO, ["train.max_epochs=3", "seed=5", "source.users=70"])
    assert (config.train.max_epochs, config.seed, config.source.users) == (3, 5, 70)  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.max_epoch=3", "unknown key 'train.max_epoch' .* did you mean 'max_epochs'"),
        ("train.max_epochs=many", "key 'train.max_epochs' is 'many'"),
        ("sed=3", "unknown key 'sed' .* did you mean 'seed'"),
        ("train=3", "key 'train' is 3"),
        ("source.kind=cvs", "source"),
        ("name=a b", "key 'name' is 'a b'"),
        ("nonsense", "has no '='"),
    ],
)
def test_bad_keys_and_types_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_run_config(DEMO, [override])
    assert refused.value.exit_code == 2


def test_variables_are_expanded_and_must_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_DATA", "/data")
    assert expand_variables({"a": ["$SOME_DATA/x", "${SOME_DATA}y", 3]}, "r") == {"a": ["/data/x", "/datay", 3]}
    monkeypatch.delenv("SOME_DATA")
    with pytest.raises(
        ConfigError, match=r"r: source: path is '.SOME_DATA/x', but the environment variable 'SOME_DATA'"
    ):
        expand_variables({"source": {"path": "$SOME_DATA/x"}}, "r")


def test_a_missing_recipe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_run_config(tmp_path / "no.yaml")


def test_stage_sections_exist_and_cover_the_whole_configuration() -> None:
    """Every key of the run configuration either enters some digest or is known to change no result."""
    values = load_run_config(DEMO).model_dump(mode="json")
    used = {key.split(".")[0] for stage in STAGES for key in select_sections(values, stage.sections)}
    assert set(values) - used == {"seed", "output_dir", "threads", "changes", "promote", "tracking"}


@pytest.mark.parametrize(
    "override",
    ["output_dir=elsewhere", "threads=3", "tracking.uri=http://x", "promote.tolerance=0.5", "embed.device=cpu"],
)
def test_where_and_how_fast_enter_no_digest(override: str) -> None:
    before, after = load_run_config(DEMO), load_run_config(DEMO, [override])
    for stage in STAGES:
        parents = dict.fromkeys(stage.parents, "0")
        assert plan_stage(stage, before, 1, parents).digest == plan_stage(stage, after, 1, parents).digest


def test_model_keys_rerun_neither_data_nor_baselines() -> None:
    before, after = load_run_config(DEMO), load_run_config(DEMO, ["model.dropout=0.3"])
    changed = set()
    for stage in STAGES:
        parents = dict.fromkeys(stage.parents, "0")
        if plan_stage(stage, before, 1, parents).digest != plan_stage(stage, after, 1, parents).digest:
            changed.add(stage.name)
    assert changed == {"train"}


def test_embed_follows_the_content_of_a_file_of_vectors_and_not_its_place(tmp_path: Path) -> None:
    def digest(path: Path) -> str:
        config = load_run_config(DEMO, [f"embed.precomputed.path={path}"])
        return plan_stage(BY_NAME["embed"], config, 1, {"prepare": "0"}).digest

    (tmp_path / "a.parquet").write_bytes(b"one")
    (tmp_path / "b #1.parquet").write_bytes(b"one")
    assert digest(tmp_path / "a.parquet") == digest(tmp_path / "b #1.parquet")
    before = digest(tmp_path / "a.parquet")
    (tmp_path / "a.parquet").write_bytes(b"two")
    assert digest(tmp_path / "a.parquet") != before
    with pytest.raises(DataError, match="is no file; name the file of item vectors"):
        digest(tmp_path / "gone.parquet")
