"""`recsys validate` in odd places: names, recipes, folders of nights, terminals and signals."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import pytest

from pipelines.engine.lock import run_lock
from pipelines.nightly.journal import Journal, Night, StageOfNight
from tests.pipelines.cli.test_validate import KINDS, LAST_OUT, Shell, csv, log, recipe, shell, table, tree

ROOT = Path(__file__).resolve().parents[3]
__all__ = ["shell"]


@pytest.mark.parametrize(("name", "code"), [(b"x\xff.csv", 3), (b"x\xff.md", 0)])
def test_names_that_are_no_utf8_are_refused_where_they_are_read_and_listed_else(
    name: bytes, code: int, tmp_path: Path, shell: Shell
) -> None:
    path = recipe(tmp_path, csv(), table(interactions="."), LAST_OUT)
    (tmp_path / "in" / os.fsdecode(name)).write_bytes((tmp_path / "in" / "log.csv").read_bytes())
    for verb in ("validate", "prepare"):
        assert shell(verb, path) == code, shell.err
        if code:
            assert "holds the file 'x\\xff.csv', whose name has bytes that are no UTF-8; rename it" in shell.refusal
    if not code:
        assert shell("validate", path, "--json") == 0
        assert shell.report["ignored_files"] == ["x\\xff.md"]


def test_a_name_in_a_public_data_set_that_is_no_utf8(tmp_path: Path, shell: Shell) -> None:
    """What lies beside is listed; a category of Amazon's, named so, is refused."""
    files, source, features, _ = KINDS["amazon"]
    path = recipe(tmp_path, files, source, features)
    (tmp_path / "in" / os.fsdecode(b"notes\xff.txt")).write_text("")
    assert shell("validate", path, "--json") == 0
    assert shell.report["ignored_files"] == ["notes\\xff.txt"]
    (tmp_path / "in" / os.fsdecode(b"Toy\xff_5.json")).write_bytes((tmp_path / "in" / "Toy_5.json").read_bytes())
    for verb in ("validate", "prepare"):
        assert shell(verb, path) == 3
        assert "'Toy\\xff_5.json'" in shell.refusal


@pytest.mark.parametrize(
    ("added", "override", "words"),
    [
        (
            "",
            "source.interactions=\udcff.csv",
            r"source: interactions is '\udcff.csv', which holds bytes that are no UTF-8",
        ),
        ("source: &s {kind: table, path: *s}\n", "seed=1", "a value holds itself, by an alias (*)"),
        ("source: &s [1, {kind: *s}]\n", "seed=1", "a value holds itself, by an alias (*)"),
        ("seed: 1\nseed: 2\n", "seed=1", "key 'seed' stands twice"),
    ],
)
def test_a_recipe_that_cannot_be_written_down_is_refused_with_2(
    added: str, override: str, words: str, tmp_path: Path, shell: Shell
) -> None:
    path = recipe(tmp_path, csv(), table(), LAST_OUT)
    if added:
        path.write_text(added)
    for verb in ("validate", "prepare"):
        assert shell(verb, path, override) == 2, shell.err
        assert words in shell.refusal
    assert not (tmp_path / "out").exists()


def test_one_mapping_in_several_places_is_no_circle(tmp_path: Path, shell: Shell) -> None:
    path = recipe(tmp_path, csv(), table(), LAST_OUT)
    path.write_text(path.read_text() + "evaluate: {ks: &ks [1, 5, 10]}\nreward: &empty {}\nnights: *empty\n")
    assert shell("validate", path) == 0


def test_in_a_folder_of_nights_it_says_whose_data_prepare_keeps(tmp_path: Path, shell: Shell) -> None:
    path = recipe(tmp_path, csv(), table(), LAST_OUT)
    assert shell("prepare", path, "features.as_of=2022-04-18", "--progress", "off") == 0
    (manifest,) = (tmp_path / "out" / "artifacts" / "prepared").glob("*/manifest.json")
    digest = json.loads(manifest.read_text())["digest"]
    stages = {"prepare": StageOfNight(kind="prepared", digest=digest, seconds=1.0)}
    journal = Journal(tmp_path / "out", "shop")
    journal.write(
        Night(model="shop", day=date(2022, 4, 18), state="registered", kind="full", version="1", stages=stages)
    )
    assert shell("validate", path) == 0, shell.err
    assert "note: `prepare` keeps the data of the night of 2022-04-18" in shell.out
    assert f"kept: {len(log())}" in shell.out.splitlines()
    assert shell("validate", path, "features.as_of=2022-04-19") == 0
    assert "note:" not in shell.out
    assert shell("validate", path, "export.registered_name=other") == shell(
        "prepare", path, "export.registered_name=other"
    )
    assert shell("validate", path, "export.registered_name=other") == 2


def test_it_asks_no_lock_and_refuses_damage_as_prepare_does(tmp_path: Path, shell: Shell) -> None:
    path = recipe(tmp_path, csv(), table(), LAST_OUT)
    assert shell("prepare", path, "--progress", "off") == 0
    with run_lock(tmp_path / "out"):
        assert shell("validate", path) == 0
        assert shell("prepare", path) == 75
    (tmp_path / "out" / "data_contracts" / "shop.json").write_text('{"contract": 5}')
    assert shell("validate", path) == 4
    said = shell.refusal
    assert "shop.json' is no data contract" in said
    assert (shell("prepare", path), shell.refusal) == (4, said)


_SAY_WHEN_AT_WORK = """
import features.build as build
real = build.foresee
build.foresee = lambda *asked: (print("at work", flush=True), real(*asked))[1]
"""


def started(path: Path, first: str = "", **environment: str) -> subprocess.Popen[str]:
    code = f"{first}\nimport sys\nfrom pipelines.cli.app import main\nmain(sys.argv[1:])"
    return subprocess.Popen(
        [sys.executable, "-c", code, "validate", "--config", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env={**os.environ, **environment},
    )


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_it_and_nothing_is_there(number: signal.Signals, code: int, tmp_path: Path) -> None:
    """While a world is simulated that takes longer than this."""
    source = {"kind": "simulated", "users": 4000, "items": 2000, "events": 2_000_000}
    path = recipe(tmp_path, {}, source, {})
    before = tree(tmp_path)
    process = started(path, first=_SAY_WHEN_AT_WORK)
    assert process.stdout is not None
    assert process.stdout.readline() == "at work\n"
    time.sleep(0.3)
    process.send_signal(number)
    _, told = process.communicate(timeout=60)
    assert (process.returncode, told.splitlines()[-1]) == (
        code,
        f"stopped by {number.name}; finished stages are kept: run the same command again to go on",
    )
    assert tree(tmp_path) == before


def test_a_terminal_that_lacks_a_character_gets_an_escape(tmp_path: Path) -> None:
    path = recipe(tmp_path, {"é.csv": csv()["log.csv"]}, table(interactions="é.csv"), LAST_OUT)
    out, told = started(path, PYTHONIOENCODING="ascii", PYTHONUTF8="0").communicate(timeout=60)
    assert "  file \\xe9.csv, rows in 60" in out, told
    assert out.endswith("no problems found\n")


def test_errors_are_objects_where_they_are_asked_to_be(tmp_path: Path, shell: Shell) -> None:
    path = recipe(tmp_path, {}, table(), LAST_OUT)
    assert shell("validate", path, "--log-format", "json") == 3
    (line,) = shell.err.splitlines()
    assert "'log.csv' does not exist" in json.loads(line)["message"].replace(f"{tmp_path}/in/", "")


@pytest.mark.parametrize("buffered", [True, False])
@pytest.mark.parametrize(("place", "code"), [("closed pipe", 141), ("/dev/full", 4), ("nowhere", 0)])
def test_an_answer_that_cannot_be_delivered_is_no_fault_of_ours(
    place: str, code: int, buffered: bool, tmp_path: Path
) -> None:
    """A pipe into `head`, a full disk, and a command without a standard output."""
    path = recipe(tmp_path, csv(), table(), LAST_OUT)
    wanted = {"closed pipe": "| true; exit ${PIPESTATUS[0]}", "/dev/full": "> /dev/full", "nowhere": ">&-"}[place]
    command = f"{sys.executable} -c 'from pipelines.cli.app import main; main()' validate --config {path} {wanted}"
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["bash", "-c", command], env=environment, capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == code, done.stderr
    told = [line for line in done.stderr.splitlines() if "WARNING" not in line]
    expected = [
        "error: no space left ([Errno 28] No space left on device); free space and run again: finished stages are kept"
    ]
    assert told == (expected if code == 4 else [])
