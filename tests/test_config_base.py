"""Configurations: overrides, and errors that name the key and the way out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, ClassVar, Literal

import pytest
from pydantic import Field

from recsys.config import FrozenConfig, apply_overrides, load_config, merge, read_recipe, validate
from recsys.contracts.errors import ConfigError
from recsys.strict_yaml import load_yaml


class Inner(FrozenConfig):
    max_epochs: int = 3
    learning_rate: float = 1e-3


class Many(FrozenConfig):
    plain: float = 1.0
    bounded: Annotated[int, Field(ge=0)] = 1
    maybe: int | None = None
    either: Literal["auto"] | float = "auto"
    flag: bool = False
    flag_or_number: bool | int = False
    text: str | None = None


class Outer(FrozenConfig):
    name: str
    train: Inner = Inner()


def test_nested_override_reaches_the_key(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ntrain: {max_epochs: 2}\n")
    config = load_config(Outer, recipe, ["train.max_epochs=5", "train.learning_rate=1e-2"])
    assert config == Outer(name="x", train=Inner(max_epochs=5, learning_rate=0.01))


@pytest.mark.parametrize("name", ["plain", "bounded", "maybe", "either"])
@pytest.mark.parametrize("value", [True, False])
def test_a_flag_is_no_number(name: str, value: bool) -> None:
    with pytest.raises(ConfigError, match=f"{name} is {str(value).lower()}, expected a number"):
        validate(Many, {name: value}, "recipe.yaml")


def test_numbers_are_numbers_and_flags_flags() -> None:
    found = validate(
        Many, {"plain": 2, "bounded": 0, "maybe": 1, "either": 0.5, "flag": True, "flag_or_number": True}, ""
    )
    assert (found.plain, found.bounded, found.maybe, found.either) == (2.0, 0, 1, 0.5)
    assert found.flag is found.flag_or_number is True


class Oven(FrozenConfig):
    heat: float = 180.0
    fan: bool = False


class Kitchen(FrozenConfig):
    oven: Oven = Oven()
    shelf: tuple[str, ...] = ()


class House(FrozenConfig):
    kitchen: Kitchen = Kitchen(oven=Oven(heat=160.0), shelf=("salt",))
    spare: Oven | None = None


@pytest.mark.parametrize(
    ("given", "heat", "fan", "shelf"),
    [
        ({}, 160.0, False, ("salt",)),
        ({"kitchen": {}}, 160.0, False, ("salt",)),
        ({"kitchen": {"oven": {"fan": True}}}, 160.0, True, ("salt",)),
        ({"kitchen": {"oven": {"heat": 200}, "shelf": []}}, 200.0, False, ()),
        ({"kitchen": Kitchen()}, 180.0, False, ()),
    ],
)
def test_a_part_of_a_section_keeps_the_defaults_of_its_place(
    given: dict, heat: float, fan: bool, shelf: tuple[str, ...]
) -> None:
    """The oven of this kitchen has 160 degrees, whatever else is said of it; a finished section is taken as it is."""
    kitchen = validate(House, given, "recipe.yaml").kitchen
    assert (kitchen.oven.heat, kitchen.oven.fan, kitchen.shelf) == (heat, fan, shelf)


def test_what_nobody_said_stays_unsaid() -> None:
    """A class's own default is no word of the recipe: presets, and a run's precision, fill in what is not set."""
    kitchen = validate(House, {"kitchen": {"oven": {"heat": 200}}}, "recipe.yaml").kitchen
    assert (kitchen.oven.model_fields_set, kitchen.model_fields_set) == ({"heat"}, {"oven", "shelf"})


def test_a_section_that_may_be_missing_has_the_defaults_of_its_class() -> None:
    assert validate(House, {"spare": {"fan": True}}, "recipe.yaml").spare == Oven(fan=True)


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


def write(folder: Path, **texts: str) -> Path:
    """Write ``name.yaml`` files and return the first one's path."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return folder / f"{next(iter(texts))}.yaml"


def test_a_recipe_extends_a_chain_of_others(tmp_path: Path) -> None:
    """Worked by hand: c gives a 1, b 2 and the list; b changes b to 3 and the list as a whole; a changes x.a to 4."""
    (tmp_path / "sub").mkdir()
    recipe = write(tmp_path, a="extends: sub/b.yaml\nx: {a: 4}\nz: new\n")
    write(tmp_path / "sub", b="extends: ../c.yaml\nx: {b: 3, list: [9]}\n")
    write(tmp_path, c="x: {a: 1, b: 2, list: [1, 2]}\ny: {k: 5}\n")
    found = read_recipe(recipe)
    assert found.values == {"x": {"a": 4, "b": 3, "list": [9]}, "y": {"k": 5}, "z": "new"}
    assert found.file_of(("x", "a")) == recipe
    assert found.file_of(("x", "b")).name == "b.yaml"
    assert found.file_of(("y", "k")).name == "c.yaml"


def test_a_mapping_and_a_value_replace_each_other(tmp_path: Path) -> None:
    recipe = write(tmp_path, a="extends: b.yaml\nx: null\ny: {k: 1}\n", b="x: {a: 1}\ny: 2\n")
    assert read_recipe(recipe).values == {"x": None, "y": {"k": 1}}


def test_a_circle_of_recipes_is_printed(tmp_path: Path) -> None:
    recipe = write(tmp_path, a="extends: b.yaml\n", b="extends: c.yaml\n", c="extends: a.yaml\n")
    with pytest.raises(
        ConfigError, match=r"extends itself: \S*a\.yaml -> \S*b\.yaml -> \S*c\.yaml -> \S*a\.yaml; remove"
    ):
        read_recipe(recipe)


def test_a_missing_base_names_both_files(tmp_path: Path) -> None:
    recipe = write(tmp_path, a="extends: none.yaml\n")
    with pytest.raises(
        ConfigError, match=r"a\.yaml' extends '\S*none\.yaml', and there is no such file; .* relative to"
    ):
        read_recipe(recipe)


@pytest.mark.parametrize("base", ["[b.yaml]", "3", "null"])
def test_extends_takes_one_path(tmp_path: Path, base: str) -> None:
    with pytest.raises(ConfigError, match="expected the path of one recipe"):
        read_recipe(write(tmp_path, a=f"extends: {base}\n"))


def test_an_error_names_the_file_its_key_stands_in(tmp_path: Path) -> None:
    """Both the wrong value and the unknown key stand in the base; an override stands in no file."""
    recipe = write(tmp_path, a="extends: b.yaml\nname: x\n", b="train: {max_epochs: many, rate: 1}\n")
    with pytest.raises(ConfigError) as refused:
        load_config(Outer, recipe, ["train.speed=1"])
    said = str(refused.value)
    base = recipe.with_name("b.yaml")
    assert f"config {recipe}: " in said
    assert f"key 'train.max_epochs' is 'many' in '{base}': " in said
    assert f"unknown key 'train.rate' (value 1) in '{base}'; " in said
    assert "unknown key 'train.speed' (value 1); " in said


class Table(FrozenConfig):
    renamed_keys: ClassVar[Mapping[str, str]] = {"rows": "sample_size", "paths": "file"}

    kind: Literal["table"]
    path: str
    sample_size: int = 1
    file: str = ""


class Simulated(FrozenConfig):
    kind: Literal["simulated"]
    users: int = 1


class World(FrozenConfig):
    source: Annotated[Table | Simulated, Field(discriminator="kind")]
    several: tuple[Inner, ...] = ()


def refusal_of(values: dict) -> str:
    with pytest.raises(ConfigError) as refused:
        validate(World, {"source": {"kind": "simulated"}} | values, "recipe.yaml")
    return str(refused.value)


@pytest.mark.parametrize(("old", "new"), [("rows", "sample_size"), ("paths", "file")])
def test_an_old_key_is_refused_with_its_new_name(old: str, new: str) -> None:
    """Also where the old name is close to another key: ``paths`` was ``file``, and ``path`` exists as well."""
    said = refusal_of({"source": {"kind": "table", "path": "x", old: 3}})
    assert said == f"config recipe.yaml: unknown key 'source.{old}' (value 3); it is called '{new}' now"


def test_a_key_is_named_as_the_file_has_it() -> None:
    """The tag of a union is no key, the place in a list is one."""
    assert "key 'source.users' is 'many': " in refusal_of({"source": {"kind": "simulated", "users": "many"}})
    assert "key 'several.1.max_epochs' is 'many': " in refusal_of({"several": [{}, {"max_epochs": "many"}]})


def test_merging_leaves_both_sides_alone() -> None:
    base, change = {"a": {"x": 1}, "b": {"y": 2}}, {"a": {"z": 3}, "c": {"w": 4}}
    merged = merge(base, change)
    for part in merged.values():
        part["new"] = 0
    assert (base, change) == ({"a": {"x": 1}, "b": {"y": 2}}, {"a": {"z": 3}, "c": {"w": 4}})


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("name: a\ntrain: {max_epochs: 2}\nname: b\n", "key 'name' stands twice in one mapping, in lines 1 and 3"),
        ("name: a\ntrain:\n  max_epochs: 2\n  max_epochs: 3\n", "'max_epochs' .* in lines 3 and 4"),
        ("name: a\ntrain: {max_epochs: 2, max_epochs: 3}\n", "'max_epochs' .* in line 2"),
        ('name: a\n"name": b\n', "'name' .* in lines 1 and 2"),
    ],
)
def test_a_key_that_stands_twice_is_refused(tmp_path: Path, text: str, said: str) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=said):
        load_config(Outer, recipe)


def test_a_key_may_stand_in_two_mappings_and_in_a_merged_one(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("name: x\ntrain: {<<: {max_epochs: 2, learning_rate: 0.1}, max_epochs: 5}\n")
    assert load_config(Outer, recipe).train == Inner(max_epochs=5, learning_rate=0.1)
    with pytest.raises(ConfigError, match="'max_epochs' stands twice"):
        load_config(Outer, recipe, ["train={max_epochs: 2, max_epochs: 3}"])


@pytest.mark.parametrize("text", ["2030-13-01", "2030-02-30", "2030-01-01T25:00:00", "0b_", "0x_"])
def test_what_only_looks_like_a_date_or_a_number_is_text(text: str) -> None:
    """PyYAML raises a ValueError, which names neither the file nor the key."""
    assert load_yaml(f"a: [{text}]") == {"a": [text]}
