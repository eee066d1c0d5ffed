"""What README and the pages print can be typed: python runs, recipes load, commands are known to the real parser."""

from __future__ import annotations

import contextlib
import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from docs._build.blocks import Block, blocks_of, commands, make_targets, pages, problem
from pipelines.cli.app import app
from pipelines.config import RunConfig, load_run_config
from recsys.config import apply_overrides, validate

BLOCKS = [block for path in pages() for block in blocks_of(path)]
SHELL = [block for block in BLOCKS if block.language in ("bash", "sh")]
YAML = [block for block in BLOCKS if block.language == "yaml"]
PYTHON_PAGES = sorted({block.path for block in BLOCKS if block.language == "python"})
NEEDS_A_RUN = "# needs:"
KNOWN_LANGUAGES = {"bash", "sh", "yaml", "python", "json", "text", ""}


def recipe_name(block: Block) -> str | None:
    """A complete recipe begins with its file name."""
    match = re.match(r"# (\w+\.yaml)$", block.first_line)
    return match[1] if match else None


def with_defaults(fragment: dict[str, Any]) -> dict[str, Any]:
    """A fragment becomes a recipe by a source, where it has none."""
    return {"source": {"kind": "simulated"}, **fragment}


def printed_recipe(name: str) -> dict[str, Any]:
    """The recipe that a page prints under this name."""
    return next(yaml.safe_load(block.text) for block in YAML if recipe_name(block) == name)


def test_there_are_blocks_of_every_kind() -> None:
    assert {block.language for block in BLOCKS} <= KNOWN_LANGUAGES
    assert len(SHELL) >= 5
    assert len(YAML) >= 5
    assert len(PYTHON_PAGES) >= 4
    assert "README.md" in {block.path.name for block in SHELL}


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "json"], ids=lambda block: block.place
)
def test_json_is_json(block: Block) -> None:
    assert json.loads(block.text)


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_commands_are_known(block: Block) -> None:
    targets = make_targets()
    assert [found for words in commands(block) if (found := problem(words, app, targets))] == []


@pytest.mark.parametrize("block", SHELL, ids=lambda block: block.place)
def test_overrides_fit_their_recipe(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    """``recsys … --config a recipe of the repository key=value …`` gives a valid configuration."""
    monkeypatch.setenv("RECSYS_DATA", "/data")
    for words in commands(block):
        overrides = [word for word in words[1:] if re.match(r"^[a-z_][\w.]*=", word)]
        if words[0] != "recsys" or "--config" not in words:
            continue
        recipe = Path(words[words.index("--config") + 1])
        if recipe.parts[0] == "pipelines":
            load_run_config(pages()[0].parent / recipe, overrides)
        else:
            validate(RunConfig, apply_overrides(printed_recipe(recipe.name), overrides), block.place)


@pytest.mark.parametrize("block", YAML, ids=lambda block: block.place)
def test_recipes_load(block: Block, tmp_path: Path) -> None:
    """A block that begins with its file name is complete; any other is a part of a recipe."""
    values = yaml.safe_load(block.text)
    if (name := recipe_name(block)) is not None:
        (tmp_path / name).write_text(block.text, encoding="utf-8")
        assert load_run_config(tmp_path / name).name == Path(name).stem
    else:
        validate(RunConfig, with_defaults(values), block.place)


@pytest.mark.parametrize("path", PYTHON_PAGES, ids=lambda path: path.stem)
def test_python_runs_as_printed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page run one after the other, in an empty folder; a block of text after one is what it prints.

    Blocks that begin with ``# needs:`` need a finished run: README's are run by ``test_readme_run.py``.
    """
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {"__name__": "__main__"}
    page = blocks_of(path)
    ran = 0
    for place, block in enumerate(page):
        if block.language != "python":
            continue
        code = compile(block.text, block.place, "exec")
        if block.first_line.startswith(NEEDS_A_RUN):
            continue
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, names)
        ran += 1
        after = page[place + 1] if place + 1 < len(page) else None
        if printed.getvalue():
            assert after is not None, block.place
            assert after.language == "text", block.place
            assert printed.getvalue() == after.text
    assert ran or all(b.first_line.startswith(NEEDS_A_RUN) for b in page if b.language == "python")


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("recsys run --config a.yaml --dry-run seed=3", None),
        ("recsys run --config a.yaml --dry", "No such option"),
        ("recsys run", "Missing option"),
        ("recsys trian --config a.yaml", "no command 'trian'"),
        ("recsys recommend --config a.yaml --k many", "valid integer"),
        ("make demo", None),
        ("make cake", "no target cake"),
        ("python -m tests.benchmarks.presets", None),
        ("python -m tests.benchmarks.nothing", "there is no"),
        ("curl http://example.org", "unknown program"),
    ],
)
def test_the_checker_notices(line: str, said: str | None, tmp_path: Path) -> None:
    """Each wrong command is told by what is wrong with it; right ones pass."""
    page = tmp_path / "page.md"
    page.write_text(f"A page.\n\n```bash\n{line}  # a remark\n```\n", encoding="utf-8")
    (block,) = blocks_of(page)
    (words,) = commands(block)
    found = problem(words, app, {"demo"})
    assert (block.line, found is None) == (4, said is None)
    assert said is None or said in str(found)


def test_a_wrong_key_in_a_part_of_a_recipe_is_noticed() -> None:
    with pytest.raises(Exception, match="max_epoch"):
        validate(RunConfig, with_defaults({"train": {"max_epoch": 3}}), "page")
