"""Shipped recipes: those that extend another differ from it where they say so, and every one reloads to itself."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.config import load_run_config, to_yaml
from recsys.contracts.errors import ConfigError

RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"


def flat(values: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(values, dict) and values:
        return {key: leaf for name, child in values.items() for key, leaf in flat(child, f"{prefix}.{name}").items()}
    return {prefix.lstrip("."): values}


def differences(name: str, base: str) -> dict[str, Any]:
    """Every key of the resolved ``name`` whose value is not that of the resolved ``base``."""
    mine, other = (flat(load_run_config(RECIPES / f"{one}.yaml").model_dump(mode="json")) for one in (name, base))
    return {key: value for key, value in mine.items() if key not in other or other[key] != value}


def test_beauty_rere_is_beauty_and_its_alignment() -> None:
    """So both share data, policy, baselines, folder and registered model."""
    assert differences("beauty_rere", "beauty") == {
        "name": "beauty_rere",
        "export.registered_name": "beauty",
        "align.method": "rere",
        "align.rere.rounds": 3,
        "align.rere.steps_per_round": 100,
        "align.rere.requests_per_step": 128,
        "align.guard.users": 1500,
        "align.guard.ks": [1, 5, 10, 20, 50],
    }


def test_kuairand_ipa_is_kuairand_its_reward_model_and_its_alignment() -> None:
    found = differences("kuairand_ipa", "kuairand")
    assert {key.split(".")[0] for key in found} == {"name", "export", "reward", "align"}
    assert found["export.registered_name"] == "kuairand"
    assert found["align.method"] == "ipa"
    assert found["align.ipa.loss.beta"] == 0.2
    assert [signal["name"] for signal in found["reward.feedback.signals"]] == ["swt", "vtr", "ltr", "wtr", "comment"]


@pytest.mark.parametrize("recipe", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_a_resolved_recipe_reloads_to_itself(recipe: Path, tmp_path: Path) -> None:
    """What lands in the output folder as config.yaml stands alone, wherever it is read."""
    config = load_run_config(recipe, ["seed=3"])
    (tmp_path / "config.yaml").write_text(to_yaml(config))
    assert "extends" not in to_yaml(config)
    assert load_run_config(tmp_path / "config.yaml") == config


def test_an_unknown_key_of_a_base_names_the_base(tmp_path: Path) -> None:
    """The union of sources and the file that was typed do not hide where the key stands."""
    (tmp_path / "base.yaml").write_text("source: {kind: simulated, userss: 3}\ntrain: {max_epochs: 1}\n")
    (tmp_path / "child.yaml").write_text("extends: base.yaml\ntrain: {max_epoch: 2}\n")
    with pytest.raises(ConfigError) as refused:
        load_run_config(tmp_path / "child.yaml")
    said = str(refused.value)
    assert f"userss' (value 3) in '{tmp_path / 'base.yaml'}'; did you mean 'users'?" in said
    assert "unknown key 'train.max_epoch' (value 2); did you mean 'max_epochs'?" in said
