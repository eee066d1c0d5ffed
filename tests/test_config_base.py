"""Configurations: overrides, and errors that name the key and the way out."""

from pathlib import Path

import pytest

from recsys.config import FrozenConfig, apply_overrides, load_config, validate
from recsys.contracts.errors import ConfigError


class Inner(FrozenConfig):
    max_epochs: int = 3
    learning_rate: float = 1e-3


class Outer(FrozenConfig):
    name: str
    train: Inner = Inner()


def test_nested_override_reaches_the_key(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ntrain: {max_epochs: 2}\n")
    config = load_config(Outer, recipe, ["train.max_epochs=5", "train.learning_rate=1e-2"])
    assert config == Outer(name="x", train=Inner(max_epochs=5, learning_rate=0.01))


def test_overrides_leave_their_input_alone() -> None:
    values = {"train": {"max_epochs": 1}}
    apply_overrides(values, ["train.max_epochs=2"])
    assert values == {"train": {"max_epochs": 1}}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"name": "x", "train": {"max_epoch": 1}}, "unknown key 'train.max_epoch' .* did you mean 'max_epochs'"),
        ({"name": "x", "trane": {}}, "did you mean 'train'"),
        ({"name": "x", "train": {"max_epochs": "many"}}, "key 'train.max_epochs' is 'many'"),
        ({}, "key 'name' is missing"),
    ],
)
def test_refusals_name_the_key(values: dict, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(Outer, values, "recipe.yaml")


@pytest.mark.parametrize("override", ["train", "=3", "name.first=3", "train.max_epochs=[1"])
def test_bad_overrides_are_refused(override: str) -> None:
    with pytest.raises(ConfigError, match="override"):
        apply_overrides({"name": "x"}, [override])


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_config(Outer, tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(ConfigError, match="holds a list"):
        load_config(Outer, tmp_path / "list.yaml")
    (tmp_path / "bad.yaml").write_text("a: [")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config(Outer, tmp_path / "bad.yaml")
