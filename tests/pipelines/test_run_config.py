"""Recipes load; bad keys, types and variables are refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from pipelines.config import RunConfig, expand_variables, load_run_config, to_yaml
from pipelines.engine.stage import PlannedStage, plan_stage, select_sections
from pipelines.stages import BY_NAME, STAGES
from recsys.config import validate
from recsys.contracts.errors import ConfigError, DataError
from recsys.reward.config import RewardConfig

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
        ("device=gpu", "key 'device' is 'gpu': expected auto, cpu, cuda or cuda:N"),
        ("device=CPU", "did you mean cpu"),
        ("device=cuda:-1", "expected auto, cpu, cuda or cuda:N"),
        ("device=0", "key 'device' is '0': expected auto"),
        ("embed.device=cpu", "unknown key 'embed.device' .* it is called 'device, at the top of the recipe' now"),
        (
            "train.accelerator=gpu",
            "unknown key 'train.accelerator' .* it is called 'device, at the top of the recipe' now",
        ),
        (
            "recommend.exclude_disliked=hate",
            r"exclude_disliked is 'hate', expected a list of signals, such as \[hate\]",
        ),
        ("recommend.reward_guidance=2e6", "reward_guidance. is .2e6.: Input should be less than or equal to 1000000"),
        ("precision=fp16", "key 'precision' is 'fp16': Input should be 'float32' or 'bf16-mixed'"),
        ("align.precision=fp16", "key 'align.precision' is 'fp16'"),
    ],
)
def test_bad_keys_and_types_are_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        load_run_config(DEMO, [override])
    assert refused.value.exit_code == 2


def test_a_dislike_is_a_declared_signal() -> None:
    """What nobody declares is refused before anything runs; derived signals are declared as well."""
    recipe = DEMO.with_name("kuairand.yaml")
    common = ["source.path=somewhere", "features.derived_signals=[{name: long}]"]
    config = load_run_config(recipe, [*common, "recommend.exclude_disliked=[dislike, long]"])
    assert config.recommend.exclude_disliked == ("dislike", "long")
    with pytest.raises(ConfigError, match=r"'dislikes', which is no signal .*long_view, like.*did you mean 'dislike'"):
        load_run_config(recipe, [*common, "recommend.exclude_disliked=[like, dislikes]"])
    with pytest.raises(ConfigError, match=r"'zzz'.*declare it in source\.signals, or leave it out"):
        load_run_config(recipe, [*common, "recommend.exclude_disliked=[zzz]"])


def test_a_reward_that_a_run_has_nothing_for_is_refused_before_the_training() -> None:
    asked = ["align.method=rere", "align.rere.rewards={rule: 1, collaborative: 0.1}"]
    with pytest.raises(ConfigError, match=r"align\.rere\.rewards names 'collaborative', which needs another"):
        load_run_config(DEMO, asked)
    load_run_config(DEMO, ["align.method=ipa", asked[1]])  # of another method, which is not asked for


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
    assert set(values) - used == {
        "seed",
        "output_dir",
        "trust_file_times",
        "threads",
        "device",
        "precision",
        "changes",
        "promote",
        "nights",
        "tracking",
    }


@pytest.mark.parametrize(
    "override",
    [
        "output_dir=elsewhere",
        "threads=3",
        "tracking.uri=http://x",
        "promote.margin=0.5",
        "device=cpu",
        "device=cuda:3",
    ],
)
def test_where_and_how_fast_enter_no_digest(override: str) -> None:
    before, after = load_run_config(DEMO), load_run_config(DEMO, [override])
    for stage in STAGES:
        parents = dict.fromkeys(stage.parents, "0")
        assert plan_stage(stage, before, 1, parents).digest == plan_stage(stage, after, 1, parents).digest


def test_a_run_in_mixed_precision_sets_the_stages_that_say_nothing() -> None:
    def precisions(*overrides: str) -> tuple[str, ...]:
        config = load_run_config(DEMO, overrides)
        return (config.train.precision, config.reward.precision, config.align.precision, config.decode.precision)

    assert precisions() == ("32-true", "32-true", "32-true", "float32")
    assert precisions("precision=bf16-mixed") == ("bf16-mixed", "bf16-mixed", "bf16-mixed", "bfloat16")
    own = precisions("precision=bf16-mixed", "train.precision=32-true", "decode.precision=int8")
    assert own == ("32-true", "bf16-mixed", "bf16-mixed", "int8")
    mixed = load_run_config(DEMO, ["precision=bf16-mixed", "reward.precision=32-true"])
    assert validate(RunConfig, yaml.safe_load(to_yaml(mixed)), "round trip") == mixed
    built = RunConfig(source=mixed.source, precision="bf16-mixed", reward=RewardConfig(resamples=7))
    assert (built.reward.precision, built.reward.resamples, built.train.precision) == ("bf16-mixed", 7, "bf16-mixed")


def test_precision_is_in_the_digests_that_it_changes_and_unset_in_none() -> None:
    """Without it the sections that a digest hashes are those of the time before there was such a key."""

    def plans(*overrides: str) -> dict[str, PlannedStage]:
        config = load_run_config(DEMO, overrides)
        return {stage.name: plan_stage(stage, config, 1, dict.fromkeys(stage.parents, "0")) for stage in STAGES}

    before, mixed = plans(), plans("precision=bf16-mixed")
    changed = {name for name in before if before[name].digest != mixed[name].digest}
    assert changed == {"train", "reward", "align", "rank", "evaluate", "export"}
    assert "precision" not in before["reward"].config["reward"]
    assert "precision" not in before["align"].config["align"]
    assert mixed["reward"].config["reward"]["precision"] == "bf16-mixed"
    assert before["train"].config["train"]["precision"] == "32-true"
    assert plans("precision=float32", "device=cpu")["align"].digest == before["align"].digest


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
