"""What pages, recipes, help texts and messages name is there: keys, defaults, options, commands, files, columns, links."""

from __future__ import annotations

import ast
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from docs._build import command_line, results
from docs._build.blocks import ROOT, blocks_of, make_targets, pages, problem
from docs._build.model_docs import has_key, nested
from features.sources.simulated.visits import FIRST_USER_ID
from pipelines.cli.app import app
from pipelines.config import RunConfig, load_run_config
from serving.inputs.history_frame import _KNOWN
from serving.inputs.parameters import Parameters

RECIPES = sorted((ROOT / "pipelines" / "recipes").glob("*.yaml"))
PACKAGES = ("recsys", "features", "serving", "pipelines")
SECTIONS = [name for name, field in RunConfig.model_fields.items() if nested(field.annotation)]
_KEY = re.compile(rf"(?<![\w./:~-])(?:{'|'.join(SECTIONS)})(?:\.[a-z][a-z_0-9]*)+(?<!_)(?![\w…(])")
_FILES = {"py", "md", "yaml", "json", "parquet", "csv", "safetensors", "npy"}
NO_KEYS = {
    "source.table.path": "the tag of a union, in what explains it",
    "train.betas": "made up, in an example",
    "tracking.url": "made up, in an example",
}
OPTIONS_OF_OTHERS = {"--backend-store-uri", "--no-deps", "--env-manager", "--seed", "--cpu-smoke"}
"""Of MLflow, pip, our benchmarks."""
GENERATED = ("reference/", "results/", "speed/", "decisions.md", "changelog.md")
"""Pages that are made when the site is built; a strict build follows the links between them."""


def written(path: Path) -> str:
    """What stands in a page or a recipe, or the prose of a notebook."""
    if path.suffix != ".ipynb":
        return path.read_text(encoding="utf-8")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")


def unknown_keys(text: str) -> list[str]:
    """Dotted names that begin with a section of a recipe, and are no key of it, no file and no module."""
    found = []
    for key in _KEY.findall(text):
        parts = key.split(".")
        is_module = any((ROOT / "/".join(parts[:end])).with_suffix(".py").exists() for end in range(2, len(parts) + 1))
        is_package = (ROOT / "/".join(parts)).is_dir()
        if parts[-1] not in _FILES and not is_module and not is_package and not has_key(key, RunConfig):
            found.append(key)
    return found


def inline(text: str) -> Iterator[str]:
    """Yield what stands between single backticks, outside of fenced blocks."""
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose))


def options() -> set[str]:
    """Every option of every verb."""

    def of(command: Any) -> Iterator[str]:
        yield from (name for parameter in command.params for name in parameter.opts)
        for child in getattr(command, "commands", {}).values():
            yield from of(child)

    return {*of(typer.main.get_command(app)), "--help"}


def table_below(text: str, head: str) -> list[list[str]]:
    """Cells of the rows of the table whose first line begins with ``head``."""
    _, found, rest = text.partition(f"\n{head}")
    assert found, head
    rows = rest.split("\n\n", 1)[0].splitlines()[2:]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", row.strip("|"))] for row in rows]


WRITTEN = [*pages(), *RECIPES, *sorted((ROOT / "notebooks").glob("*.ipynb"))]
"""CHANGELOG and DECISIONS are not among them: they tell what was, too."""


@pytest.mark.parametrize("path", WRITTEN, ids=lambda path: path.name)
def test_keys_that_a_page_names_are_keys(path: Path) -> None:
    assert unknown_keys(written(path)) == []


def texts_of(package: str) -> Iterator[tuple[str, str]]:
    """Yield the texts of a package with their places: messages, help, docstrings; ``…`` where a program fills in."""
    for path in sorted((ROOT / package).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            place = f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}"
            if isinstance(node, ast.JoinedStr):
                parts = (str(part.value) if isinstance(part, ast.Constant) else "…" for part in node.values)
                yield place, "".join(parts)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield place, node.value


@pytest.mark.parametrize("package", PACKAGES)
def test_keys_that_the_program_names_are_keys(package: str) -> None:
    found = [(place, key) for place, text in texts_of(package) for key in unknown_keys(text) if key not in NO_KEYS]
    assert found == []


def wrong_commands(text: str, verbs: dict[str, Any]) -> list[str]:
    """Calls of the program in a text whose verb, or an option behind it, is not there."""
    found = []
    for call, verb, rest in re.findall(r"`?(recsys ([a-z][a-z-]+)((?: (?:--?[a-z-]+|[\w./=:@…]+))*))", text):
        if verb not in verbs:
            found += [call] if f"`{call}" in text else []
        elif not hasattr(verbs[verb], "commands"):
            known = {"--help", *(name for parameter in verbs[verb].params for name in parameter.opts)}
            found += [call for option in re.findall(r"--[a-z-]+", rest) if option not in known]
    return found


@pytest.mark.parametrize("package", PACKAGES)
def test_commands_that_the_program_names_are_commands(package: str) -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    assert [(place, call) for place, text in texts_of(package) for call in wrong_commands(text, verbs)] == []


def test_a_command_that_is_none_is_noticed() -> None:
    verbs = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    text = "`recsys trian`, `recsys run --appendix`, `recsys clean --keep 3`, recsys does, `recsys histories --out x`"
    assert wrong_commands(text, verbs) == ["recsys trian", "recsys run --appendix"]


def test_a_key_that_is_none_is_noticed() -> None:
    text = (
        "`train.max_epoch`, train.max_epochs=5, `changes.least_known_…`, features.build, model.safetensors, nights.keep"
    )
    assert unknown_keys(text) == ["train.max_epoch", "nights.keep"]


def value_of(key: str) -> Any:
    """The default of a key, as a run without a recipe has it."""
    value: Any = RunConfig.model_validate({"source": {"kind": "simulated"}})
    for part in key.split("."):
        value = getattr(value, part)
    return value


DEFAULTS = [
    (path, key, number)
    for path in pages()
    for key, number in re.findall(rf"`((?:{'|'.join(SECTIONS)})\.[a-z_.]+)` \(([\d.,]+)\)", written(path))
]


def test_defaults_are_told() -> None:
    assert len(DEFAULTS) >= 4


@pytest.mark.parametrize(("path", "key", "number"), DEFAULTS, ids=lambda value: getattr(value, "name", value))
def test_a_number_behind_a_key_is_its_default(path: Path, key: str, number: str) -> None:
    assert float(value_of(key)) == float(number.replace(",", ""))


def test_a_block_of_defaults_holds_the_defaults() -> None:
    """A YAML block that says "the defaults" changes nothing."""
    said = [block for path in pages() for block in blocks_of(path) if "# the defaults" in block.text]
    assert said
    for block in said:
        given = RunConfig.model_validate({"source": {"kind": "simulated"}, **yaml.safe_load(block.text)})
        assert given == RunConfig.model_validate({"source": {"kind": "simulated"}}), block.place


def test_the_questions_of_the_gate_have_the_defaults_of_the_gate() -> None:
    """The table says per cent: margin, budget, slice margin, coverage, shortfalls, and the risk below it."""
    guide = written(ROOT / "docs/guides/nightly.md")
    for words, key in (
        ("a loss of {} cannot be ruled out (`rule: better`", "margin"),
        ("a loss of {} cannot be ruled out, so that small losses", "budget"),
        ("a loss beyond {} is more than", "slice_margin"),
        ("the lists show {} less of the catalogue", "max_coverage_loss"),
        ("less of the catalogue, {} more lists are short", "max_shortfall_rise"),
        ("at the default risk of {}.)", "margin_risk"),
    ):
        assert words.format(f"{100 * value_of(f'promote.{key}'):g} %") in guide, key


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_options_and_verbs_in_the_text_are_there(path: Path) -> None:
    known = options() | OPTIONS_OF_OTHERS
    verbs = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    for code in inline(written(path)):
        assert [option for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", code) if option not in known] == [], code
        if re.match(r"recsys [a-z]", code):
            assert code.split()[1] in verbs, code


def header(path: Path) -> str:
    """The remarks at the head of a recipe."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return "\n".join(lines[: next(place for place, line in enumerate(lines) if not line.startswith("#"))])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_it_takes_and_how_it_is_called(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command parses, its overrides fit, and one of them runs this very recipe."""
    monkeypatch.setenv("RECSYS_DATA", "/data")
    monkeypatch.chdir(ROOT)
    text = header(path)
    assert re.findall(r"^# (hardware|time|expected|command) ", text, re.MULTILINE) == [
        "hardware",
        "time",
        "expected",
        "command",
    ]
    commands = [shlex.split(line) for line in re.findall(r"recsys (?:[a-z]+)(?: (?![ (])[^\s()]+)*", text)]
    assert [problem(words, app, make_targets()) for words in commands] == [None] * len(commands)
    runs = [words for words in commands if "--config" in words or words == ["recsys", "demo"]]
    assert runs
    for words in (words for words in runs if "--config" in words):
        assert words[3] == f"pipelines/recipes/{path.name}"
        assert load_run_config(Path(words[3]), words[4:]).name == path.stem


EXAMPLES = [
    (" ".join(words), shlex.split(example))
    for words in command_line.verbs(typer.main.get_command(app))
    for example in re.findall(
        r"(?:Examples?:|;|sessions:|run:|users:) (recsys [^;`]+?)(?= Example:| Any model|;|\n\n|\n```)",
        re.sub(r"\n {2,}", " ", "\n".join(command_line.printed(words))).replace("\n\n ", "\n\n"),
    )
]


def test_most_verbs_have_an_example() -> None:
    assert len({verb for verb, _ in EXAMPLES}) >= 25


@pytest.mark.parametrize(("verb", "words"), EXAMPLES, ids=lambda value: value if isinstance(value, str) else "")
def test_examples_of_the_help_can_be_typed(verb: str, words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The parser takes them, and recipes of the repository load with their overrides, and do what the verb does."""
    monkeypatch.setenv("RECSYS_DATA", "/data")
    assert words[1 : 1 + len(verb.split())] == verb.split()
    assert problem(words, app, make_targets()) is None
    if "--config" not in words or not words[words.index("--config") + 1].startswith("pipelines"):
        return
    recipe = ROOT / words[words.index("--config") + 1]
    config = load_run_config(recipe, [word for word in words if re.match(r"^[a-z_][\w.]*=", word)])
    if verb == "explain":  # ids of the simulator
        assert FIRST_USER_ID <= int(words[words.index("--user") + 1]) < FIRST_USER_ID + config.source.users
    if verb == "align":
        assert config.align.method != "none"
    if verb == "reward":
        assert config.align.needs_reward_model


def test_the_columns_of_a_request_are_those_that_are_read() -> None:
    rows = table_below(written(ROOT / "docs/guides/serving_inputs.md"), "| column | holds")
    assert sorted(cells[0].strip("`") for cells in rows) == sorted(_KNOWN)


def test_the_parameters_of_a_call_are_those_that_are_read() -> None:
    rows = table_below(written(ROOT / "docs/guides/serving_inputs.md"), "| parameter | default")
    told = {name: cells[1].strip("`") for cells in rows for name in re.findall(r"`(\w+)`", cells[0])}
    read = {name: getattr(Parameters(), name) for name in Parameters.__dataclass_fields__}
    assert told.keys() == read.keys()
    for name, value in read.items():
        assert (
            told[name] == "empty"
            if value == ""
            else yaml.safe_load(told[name]) in (value, list(value) if value == () else value)
        )


def test_what_the_presets_cost_is_what_was_measured() -> None:
    """An excerpt: the same row of the whole table, by preset and longest history."""
    whole = table_below(results.text_of("presets"), "| preset | codes | events |")
    names = ("preset", "codes", "events", "parameters", "", "active", "training", "encoder", "", "decoder", "")
    kept = [place for place, name in enumerate(names) if name]
    measured = [[cells[place] for place in kept] for cells in whole]
    told = table_below(written(ROOT / "docs/concepts/papers.md"), "| preset | codes | events |")
    assert len(told) >= 5
    assert [cells for cells in told if cells not in measured] == []


SECTIONS_OF_RECIPES = {
    "movielens": "MovieLens-100K",
    "industrial": "Amazon Industrial 2018, MiniOneRec's rows",
    "scientific": "Amazon Scientific 2018",
    "kuairand": "KuaiRand-Pure, sessions",
    "movielens1m_order": "MovieLens-1M",
}
"""Of the page of all systems; other recipes have pages of their own, or give each seed by itself."""
SYSTEMS = {
    "served": "generative (served)",
    "guided": "generative (guided)",
    "guided search alone": "generative (guided)",
    "beam": "generative (beam)",
    "Markov": "markov",
    "SASRec": "sasrec",
}
_EXPECTED = re.compile(rf"({'|'.join(sorted(SYSTEMS, key=len, reverse=True))}) (\.\d{{3}}) / (\.\d{{3}})")


def measured(section: str) -> dict[str, list[float]]:
    """HR@10 and NDCG@10 of every system of a section, seen items filtered, then kept."""
    _, found, text = results.text_of("offline_evaluation").partition(f"\n## {section}\n")
    assert found, section
    return {
        cells[0]: [float(cell.split()[0]) for cell in cells[1:5]] for cells in table_below(text, "| system | hr@10")
    }


@pytest.mark.parametrize(("recipe", "section"), SECTIONS_OF_RECIPES.items())
def test_what_a_recipe_expects_was_measured(recipe: str, section: str) -> None:
    """Its head rounds, and is not renewed with every run, so that .003 are allowed; what is older differs by more."""
    text = re.sub(r"\n# +", " ", header(ROOT / "pipelines" / "recipes" / f"{recipe}.yaml").partition("published")[0])
    first = 2 if "seen items kept" in text else 0
    told, found = _EXPECTED.findall(text), measured(section)
    assert {name for name, *_ in told} >= {"served", "beam"} or recipe == "scientific"
    assert len(told) >= 2
    for name, *figures in told:
        assert [float(figure) for figure in figures] == pytest.approx(
            found[SYSTEMS[name]][first : first + 2], abs=0.003
        )


def test_what_the_dense_head_is_worth_was_measured() -> None:
    page, found = written(ROOT / "docs/concepts/second_stage.md"), measured("Amazon Beauty 2014")
    (told,) = re.findall(r"On Beauty NDCG@10 is (\.\d+) in the beam's own order and (\.\d+) where it orders", page)
    assert [float(figure) for figure in told] == pytest.approx(
        [found["generative (beam)"][1], found["dense head"][1]], abs=0.003
    )


@pytest.mark.parametrize("path", pages(), ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    """Also those of README, which is no page of the site; pages that are made have their makers."""
    docs = ROOT / "docs"
    for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", written(path)):
        if re.match(r"https?:", target):
            continue
        place = (path.parent / target).resolve()
        inside = place.relative_to(docs).as_posix() if place.is_relative_to(docs) else ""
        made = inside.startswith(GENERATED)
        assert place.exists() or made, target
        if inside.startswith(("results/", "speed/")) and place.stem != "index":
            assert place.stem in (results.QUALITY if inside.startswith("results/") else results.SPEED), target


@pytest.mark.parametrize("folder", ["guides", "concepts"])
def test_an_index_lists_every_page_of_its_folder(folder: str) -> None:
    listed = re.findall(r"^\| \[[^]]+\]\((\w+\.md)\)", written(ROOT / "docs" / folder / "index.md"), re.MULTILINE)
    there = {path.name for path in (ROOT / "docs" / folder).glob("*.md")} - {"index.md"}
    assert len(listed) == len(set(listed))
    assert set(listed) == there


def test_a_block_without_a_language_holds_no_command() -> None:
    """Those that name theirs are typed by ``test_code_blocks.py``; a name that is forgotten hides a command from it."""
    bare = [block for path in pages() for block in blocks_of(path) if block.language in ("", "text")]
    hidden = [
        block.place for block in bare if re.match(r"(?:\w+=\S+ )*(recsys|make|pip|mlflow|python) ", block.first_line)
    ]
    assert hidden == []
