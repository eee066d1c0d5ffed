"""Paths in recipes and overrides: taken as they are written, or refused with a sentence."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import pytest
from pydantic import BaseModel

from pipelines.config import RunConfig, expand_variables, load_run_config
from recsys.config import FrozenConfig, apply_overrides, load_config, read_recipe
from recsys.contracts.errors import ConfigError
from recsys.paths import ConfigPath, bytes_below, checked_path, read_override

RECIPE = "name: toy\nsource: {kind: table, path: data, timestamp_unit: s}\n"


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "toy.yaml"
    path.write_text(RECIPE)
    return path


@pytest.mark.parametrize(
    "name",
    [
        "runs/50% off",
        "runs/#1",
        "#1",
        "runs/why?",
        "two  blanks ",
        " leading",
        "é 🎬",
        "a=b=c",
        "a: b",
        "a:b",
        "-x",
        "--dry-run",
        "[x]",
        "{x: 1}",
        "*",
        "&x",
        "!x",
        "@x",
        "`x`",
        "%x",
        "2026-11-27",
        "2024",
        "1e5",
        "yes",
        "null",
        "it's",
        "'",
        'one " quote',
        "x" * 255,
        "a,b",
        "> x",
        "| x",
    ],
)
def test_an_override_gives_a_path_as_it_is_typed(recipe: Path, name: str) -> None:
    config = load_run_config(recipe, [f"output_dir={name}", f"source.path={name}", f"source.interactions={name}"])
    assert config.output_dir == Path(name)
    assert (config.source.path, config.source.interactions) == (Path(name), name)  # type: ignore[union-attr]


@pytest.mark.parametrize(("text", "path"), [('"a b"', "a b"), ("'#1'", "#1"), ("runs/x/", "runs/x"), ("$$x", "$x")])
def test_quotes_a_slash_at_the_end_and_a_doubled_dollar(recipe: Path, text: str, path: str) -> None:
    assert load_run_config(recipe, [f"output_dir={text}"]).output_dir == Path(path)


def test_a_name_of_numbers_is_a_name(recipe: Path) -> None:
    assert load_run_config(recipe, ["name=2024"]).name == "2024"
    assert load_run_config(recipe, ["seed=7", "tracking.uri=null", "threads="]).tracking.uri is None


def test_the_home_folder(recipe: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/ann")
    config = load_run_config(recipe, ["output_dir=~/runs", "source.path=~"])
    assert (config.output_dir, config.source.path) == (Path("/home/ann/runs"), Path("/home/ann"))  # type: ignore[union-attr]
    assert checked_path("./~") == Path("~")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "key 'output_dir' is '': expected a path; '.' is the working directory"),
        ("   ", "expected a path"),
        ("x" * 256, "the longest name in it takes 256 bytes"),
        ("é" * 128, "takes 256 bytes"),
        ("a/" * 2100, "the whole 4200; file systems take"),
        ("a\0b", "NUL"),
        ("bad\udcff", "no UTF-8"),
        ("~nobody_of_that_name/x", "no such home folder"),
    ],
)
def test_a_path_that_cannot_be_is_refused_at_once(recipe: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as refused:
        load_run_config(recipe, [f"output_dir={text}"])
    assert refused.value.exit_code == 2
    assert "Value error" not in str(refused.value)


@pytest.mark.parametrize("value", ["2026-11-27", "2024", "[a]", "yes", "{a: b}"])
def test_a_recipe_that_gives_something_else_is_told_to_use_quotes(recipe: Path, value: str) -> None:
    recipe.write_text(f"{RECIPE}output_dir: {value}\n")
    with pytest.raises(ConfigError, match=r"expected a path, and YAML reads this as .*; put quotes around it"):
        load_run_config(recipe)
    recipe.write_text(f'{RECIPE}output_dir: "{value}"\n')
    assert load_run_config(recipe).output_dir == Path(value)


def test_values_that_are_no_text_are_yaml_still() -> None:
    class Kinds(FrozenConfig):
        count: int | None = None
        when: datetime | None = None
        texts: tuple[str, ...] = ()
        either: str | int = 0
        choice: Literal["off", "on"] = "off"

    lines = ["count=3", "when=2026-11-27", "texts=[a, b]", "either=5", "choice=on"]
    found = Kinds.model_validate(apply_overrides({}, lines, Kinds))
    assert found == Kinds(count=3, when=datetime(2026, 11, 27), texts=("a", "b"), either=5, choice="on")
    assert read_override("[1, 2]", []) == [1, 2]
    with pytest.raises(ConfigError, match="put quotes around what is text"):
        apply_overrides({}, ["unknown=*x"], Kinds)


def test_a_dollar_sign_in_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X", "1")
    assert expand_variables("a$$X/$X", "r") == "a$X/1"


def test_every_path_of_a_run_is_checked() -> None:
    """A field typed as a bare ``Path`` would take an empty text as the working directory."""
    bare = sorted(set(_bare_paths(RunConfig)))
    assert bare == []


def _bare_paths(model: type[BaseModel]) -> list[str]:
    found = []
    for name, field in model.model_fields.items():
        checked = any(getattr(mark, "func", None) is checked_path for mark in field.metadata) or "checked_path" in repr(
            field.annotation
        )
        if not checked and "pathlib" in repr(field.annotation) and not _models(field.annotation):
            found.append(f"{model.__name__}.{name}")
        for inner in _models(field.annotation):
            found += _bare_paths(inner)
    return found


def _models(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for part in getattr(annotation, "__args__", ()) for found in _models(part)]


@pytest.mark.parametrize(
    ("base", "words"),
    [
        (".", "that is a folder: name the recipe in it"),
        ("..", "that is a folder"),
        ("nothing.yaml", "there is no such file; the path after `extends` is relative to the recipe that holds it, '/"),
        ('""', "expected the path of one recipe"),
        ("[a.yaml]", "expected the path of one recipe"),
        ("~nobody_of_that_name/a.yaml", "no such home folder"),
    ],
)
def test_extends_that_names_no_recipe(recipe: Path, base: str, words: str) -> None:
    recipe.write_text(f"extends: {base}\n")
    with pytest.raises(ConfigError, match=words):
        read_recipe(recipe)


def test_extends_a_recipe_of_any_name(tmp_path: Path) -> None:
    class Named(FrozenConfig):
        where: ConfigPath | None = None

    base, above = tmp_path / "50%20 #1?.yaml", tmp_path / "a.yaml"
    base.write_text("where: é\n")
    above.write_text('extends: "50%20 #1?.yaml"\n')
    assert load_config(Named, above).where == Path("é")


def test_a_recipe_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes("name: é".encode("utf-16"))
    with pytest.raises(ConfigError, match=r"cannot be read: .*; give an existing YAML file of UTF-8 text"):
        read_recipe(tmp_path / "r.yaml")


def test_the_size_of_a_folder_in_which_somebody_deletes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """3 + 4 bytes; a link counts as a link, and what goes while it is looked at as nothing."""
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name, size in (("a/x", 3), ("a/b/y", 4), ("a/gone", 5)):
        (tmp_path / name).write_bytes(b"0" * size)
    assert bytes_below(tmp_path) == 12
    real = os.lstat

    def looks(path: Path) -> os.stat_result:
        if path.name == "gone":
            path.unlink()
        return real(path)

    monkeypatch.setattr(os, "lstat", looks)
    assert bytes_below(tmp_path) == 7
    assert bytes_below(tmp_path / "nowhere") == 0
