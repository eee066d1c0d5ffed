"""`recsys validate` against `recsys prepare` of the same recipe: the same answer, the same report, and nothing written."""

from __future__ import annotations

import gzip
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import yaml

from pipelines.cli.app import main

START, DAY = 1_650_000_000, 86_400
LAST_OUT = {"split": {"kind": "leave_last_out"}}
HEADER = "user_id,item_id,timestamp,rating"
REVIEW = '{"reviewerID": "A%012d", "asin": "B%09d", "overall": 4.0, "unixReviewTime": %d}\n'
VIDEO = "user_id,video_id,time_ms,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,duration_ms\n"
ATOMIC = "user_id:token\titem_id:token\ttimestamp:float\n"
HISTORY = "user_id,history_item_id,item_id\n"

Files = dict[str, "str | bytes"]


def log(users: int = 12, each: int = 5) -> list[tuple[int, int, int, int]]:
    """User, item, time, rating."""
    return [(u, (3 * u + k) % 9, START + DAY * k + u, (u + k) % 5 + 1) for u in range(users) for k in range(each)]


def csv(row: Callable[..., tuple[Any, ...]] = lambda *row: row, header: str = HEADER, more: str = "") -> Files:
    lines = [",".join(map(str, row(*one))) for one in log()]
    return {"log.csv": "\n".join([header, *lines, more])}


def lines(form: str) -> str:
    """User, item and time in a form of a line."""
    return "".join(form % one[:3] for one in log())


def table(**source: Any) -> dict[str, Any]:
    return {"kind": "table", "interactions": "log.csv", "timestamp_unit": "s", **source}


LIKED = {"signals": [{"name": "liked", "column": "rating", "at_least": 2}], "positive": ["liked"]}
ITEMS = "item_id,title,kind\n" + "".join(f"{item},T{item},a|b\n" for item in range(9))
USERS = "user_id,age\n" + "".join(f"{user},{20 + user}\n" for user in range(12))
PARTS = [{"file": f"{part}.csv", "split": part} for part in ("train", "valid", "test")]
ROWS = {
    f"{part}.csv": HISTORY + "".join(f'{u},"{list(range(k))}",{k}\n' for u in range(9) for k in places)
    for part, places in {"train": (1, 2, 3), "valid": (4,), "test": (5,)}.items()
}
CUT = gzip.compress(csv()["log.csv"].encode())[:-20]  # type: ignore[union-attr]

KINDS: dict[str, tuple[Files, dict[str, Any], dict[str, Any], int]] = {
    "table": (csv(), table(**LIKED), LAST_OUT, 0),
    "json lines": ({"log.jsonl": "{}\n"}, table(interactions="log.jsonl"), LAST_OUT, 3),
    "cut off gzip": ({"log.csv.gz": CUT}, table(interactions="log.csv.gz"), LAST_OUT, 3),
    "empty file": ({"log.csv": ""}, table(), LAST_OUT, 3),
    "no such file": ({}, table(), LAST_OUT, 3),
    "an odd line": (csv(more="1,2\n"), table(), LAST_OUT, 0),
    "too many odd lines": (csv(more="1,2\n" * 9), table(), LAST_OUT, 3),
    "wrong unit": (csv(lambda u, i, t, r: (u, i, t * 1000, r)), table(), LAST_OUT, 3),
    "no likes": (csv(lambda u, i, t, r: (u, i, t, 1)), table(**LIKED), LAST_OUT, 3),
    "repeats": (csv(more=csv()["log.csv"].split("\n", 1)[1]), table(), LAST_OUT | {"duplicates": "drop"}, 3),  # type: ignore
    "k-core": (csv(), table(), LAST_OUT | {"k_core": {"user": 99}}, 3),
    "as of": (csv(), table(), LAST_OUT | {"as_of": "2022-04-18"}, 0),
    "as of too early": (csv(), table(), LAST_OUT | {"as_of": "2020-01-01"}, 3),
    "as of without times": (
        csv(),
        table(timestamp_unit="none", columns={"position": "timestamp"}),
        LAST_OUT | {"as_of": "2022-04-18"},
        2,
    ),
    "sessions that are not given": (csv(), table(), LAST_OUT | {"sessions": {"by": "given"}}, 2),
    "an empty split": (csv(), table(), {"split": {"valid_from": "2030-01-01", "test_from": "2030-02-01"}}, 3),
    "derived": (
        csv(),
        table(columns={"watch_time": "rating", "duration": "rating"}),
        LAST_OUT | {"derived_signals": [{"name": "w", "min_events": 1}]},
        0,
    ),
    "derived without times": (csv(), table(), LAST_OUT | {"derived_signals": [{"name": "w"}]}, 2),
    "items and users": (
        {**csv(), "i.csv": ITEMS, "u.csv": USERS},
        table(items="i.csv", users="u.csv", user_columns=["age"], item_columns={"title": ["title"]}),
        LAST_OUT,
        0,
    ),
    "items without the column": (
        {**csv(), "i.csv": ITEMS},
        table(items="i.csv", item_columns={"title": ["name"]}),
        LAST_OUT,
        3,
    ),
    "items of another type": (
        {**csv(), "i.csv": ITEMS + "x,T,a\n" * 9},
        table(items="i.csv", types={"item_id": "integer"}),
        LAST_OUT,
        3,
    ),
    "two faults": (csv(header="a,b,c,d"), table(items="i.csv"), LAST_OUT, 3),
    "nine signals": (
        csv(),
        table(signals=[{"name": f"s{k}", "column": "rating", "at_least": k} for k in range(9)]),
        LAST_OUT,
        2,
    ),
    "movielens": ({"u.data": lines("%d\t%d\t4\t%d\n")}, {"kind": "movielens"}, LAST_OUT, 0),
    "movielens items": ({"u.data": lines("%d\t%d\t4\t%d\n"), "u.item": "1|T\n"}, {"kind": "movielens"}, LAST_OUT, 3),
    "no movielens": ({}, {"kind": "movielens"}, LAST_OUT, 3),
    "amazon": ({"Toy_5.json": lines(REVIEW)}, {"kind": "amazon_reviews", "version": 2018}, LAST_OUT, 0),
    "amazon twice": (
        {"Toy_5.json": lines(REVIEW), "Toy.json": lines(REVIEW)},
        {"kind": "amazon_reviews", "version": 2018},
        LAST_OUT,
        3,
    ),
    "amazon of another year": ({"Toy_5.json": lines(REVIEW)}, {"kind": "amazon_reviews", "version": 2023}, LAST_OUT, 3),
    "kuairand": (
        {"log_standard_4_08_to_4_21_pure.csv": VIDEO + lines("%d,%d,%d000,1,0,0,0,0,1,9,9\n")},
        {"kind": "kuairand"},
        LAST_OUT,
        0,
    ),
    "kuairand without rows": ({"log_standard_4_08_to_4_21_pure.csv": VIDEO}, {"kind": "kuairand"}, LAST_OUT, 3),
    "recbole": (
        {"shop.inter": ATOMIC + lines("%d\t%d\t%d\n")},
        {"kind": "recbole", "name": "shop", "timestamp_unit": "s"},
        LAST_OUT,
        0,
    ),
    "recbole items": (
        {"shop.inter": ATOMIC + lines("%d\t%d\t%d\n")},
        {"kind": "recbole", "name": "shop", "timestamp_unit": "s", "item_columns": {"title": ["title"]}},
        LAST_OUT,
        3,
    ),
    "history rows": (ROWS, {"kind": "history_rows", "files": PARTS}, {"split": {"kind": "given"}}, 0),
    "history rows out of order": (
        ROWS,
        {"kind": "history_rows", "files": PARTS[::-1]},
        {"split": {"kind": "given"}},
        3,
    ),
    "simulated": ({}, {"kind": "simulated", "users": 40, "items": 160, "events": 900}, {}, 0),
    "simulated, nobody kept": (
        {},
        {"kind": "simulated", "users": 40, "items": 160, "events": 900},
        {"k_core": {"user": 999}},
        3,
    ),
}


def recipe(folder: Path, files: Files, source: dict[str, Any], features: dict[str, Any], **more: Any) -> Path:
    (folder / "in").mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / "in" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    place = {} if source["kind"] == "simulated" else {"path": str(folder / "in")}
    values = {"name": "shop", "output_dir": str(folder / "out"), "source": {**source, **place}, "features": features}
    (folder / "shop.yaml").write_text(yaml.safe_dump(values | more))
    return folder / "shop.yaml"


def tree(folder: Path) -> dict[str, tuple[Any, ...]]:
    """Everything below a folder, with its bytes and when it was written and when its entry was."""
    found = {}
    for path in [folder, *folder.rglob("*")]:
        told = path.lstat()
        content = path.read_bytes() if path.is_file() else b""
        found[os.fsdecode(path)] = (told.st_mode, told.st_mtime_ns, told.st_ctime_ns, content)
    return found


class Shell:
    """Calls commands in this process, and knows what they answered and what they said."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.out = self.err = ""

    def __call__(self, verb: str, path: Path, *overrides: str) -> int:
        self._capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            main([verb, "--config", str(path), *overrides])
        self.out, self.err = self._capsys.readouterr()
        return int(ended.value.code or 0)

    @property
    def refusal(self) -> str:
        """What a command says at its end."""
        return self.err[self.err.index("error: ") :]

    @property
    def warnings(self) -> list[str]:
        """What it warned of."""
        return sorted(set(re.findall(r"WARNING (.*)", self.err)))

    @property
    def report(self) -> Any:
        """What `validate --json` printed, which is nothing but that."""
        return json.loads(self.out)


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


@pytest.mark.parametrize("kind", KINDS)
def test_validate_answers_as_prepare_does_and_writes_nothing(kind: str, tmp_path: Path, shell: Shell) -> None:
    files, source, features, code = KINDS[kind]
    path = recipe(tmp_path, files, source, features)
    before = tree(tmp_path)
    assert shell("validate", path, "--json") == code, shell.err
    assert tree(tmp_path) == before
    validated, refusal, warned = shell.out, shell.refusal if code else "", shell.warnings
    assert shell("prepare", path, "--progress", "off") == code
    if code:
        assert shell.refusal == refusal
        return
    assert shell.warnings == warned
    (written,) = (tmp_path / "out").rglob("data_report.json")
    assert json.loads(validated) == json.loads(written.read_text())
    prepared = tree(tmp_path)
    assert shell("validate", path) == 0
    assert tree(tmp_path) == prepared


def test_for_people_the_report_is_lines_and_ends_with_the_verdict(tmp_path: Path, shell: Shell) -> None:
    """60 rows of which one has two fields; nine items, twelve users."""
    path = recipe(tmp_path, csv(more="1,2\n"), table(), LAST_OUT)
    assert shell("validate", path) == 0
    lines = shell.out.splitlines()
    assert {"rows in: 61", "kept: 60", "users: 12", "items: 9"} <= set(lines)
    assert "events per split: train 36, valid 12, test 12" in lines
    assert "sessions: by gap, chunked prehistory no, count 60, lengths 0 0, 1 60" in lines
    assert "split: kind leave_last_out, leaks across time yes" in lines
    assert lines[lines.index("files:") + 1].startswith("  file log.csv, rows in 61, quarantined 1")
    assert lines[-1].startswith("no problems found")


def test_notes_are_no_part_of_the_json(tmp_path: Path, shell: Shell) -> None:
    """`ease` is left out where the catalogue is too large for it; people read that on the same page, machines in the log."""
    path = recipe(tmp_path, csv(), table(), LAST_OUT)
    small = ("evaluate.baselines=[ease]", "evaluate.baseline_settings.ease.max_items=2")
    assert shell("validate", path, *small) == 0
    (note,) = (line.removeprefix("note: ") for line in shell.out.splitlines() if line.startswith("note: "))
    assert shell("validate", path, *small, "--json") == 0
    assert json.loads(shell.out)["items"] == 9
    assert note in shell.err


def frame() -> pl.DataFrame:
    return pl.DataFrame(log(), schema=HEADER.split(","), orient="row").with_columns(watched=pl.lit(40.0, pl.Float32))


def with_log(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], list[str]]:
    def changed(folder: Path) -> list[str]:
        change(frame()).write_parquet(folder / "in" / "log.parquet")
        return []

    return changed


def small(folder: Path) -> list[str]:
    with_log(lambda log: log.filter(pl.col("user_id") < 2))(folder)
    return ["changes.on_small_volume=stop"]


CHANGES: dict[str, tuple[Callable[[Path], list[str]], str]] = {
    "nothing": (with_log(lambda log: log), ""),
    "a day more": (with_log(lambda log: pl.concat([log, log.with_columns(pl.col("timestamp") + 9 * DAY)])), ""),
    "user ids": (with_log(lambda log: log.with_columns(pl.col("user_id").cast(pl.String))), "user_id_type"),
    "item ids": (with_log(lambda log: log.with_columns(pl.col("item_id").cast(pl.String))), "item_id_type"),
    "another catalogue": (with_log(lambda log: log.with_columns(pl.col("item_id") + 100)), "items"),
    "other users": (with_log(lambda log: log.with_columns(pl.col("user_id") + 100)), "users"),
    "an old export": (with_log(lambda log: log.with_columns(pl.col("timestamp") - 99 * DAY)), "times"),
    "seconds for milliseconds": (with_log(lambda log: log.with_columns(pl.col("watched") * 1000)), "watch_unit"),
    "a signal that is gone": (with_log(lambda log: log.with_columns(rating=pl.lit(1))), "signal_gone"),
    "another name of a signal": (lambda _: ["source.signals=[{name: good, column: rating, at_least: 2}]"], "signals"),
    "another task": (lambda _: ["features.task=session", "features.session_length=2"], "task"),
    "other sessions": (lambda _: ["features.sessions.by=chunk"], "sessions"),
    "few events": (small, "volume"),
    "an accepted change": (lambda _: ["features.sessions.by=chunk", "changes.accept=[sessions]"], ""),
    "a needless acceptance": (lambda _: ["seed=4", "changes.accept=[sessions]"], ""),
    "another model": (lambda _: ["features.sessions.by=chunk", "export.registered_name=other"], ""),
}


@pytest.mark.parametrize("kind", CHANGES)
def test_data_that_changed_since_they_were_accepted_are_refused_by_both(
    kind: str, tmp_path: Path, shell: Shell
) -> None:
    """The folder has data that were accepted: `prepare` holds the new ones against them, and so does `validate`."""
    change, refused = CHANGES[kind]
    source = table(interactions="log.parquet", columns={"watch_time": "watched"}, signals=LIKED["signals"])
    path = recipe(tmp_path, {}, source, LAST_OUT)
    frame().write_parquet(tmp_path / "in" / "log.parquet")
    assert shell("prepare", path, "--progress", "off") == 0
    overrides = change(tmp_path)
    before = tree(tmp_path)
    code = 3 if refused else 0
    assert shell("validate", path, *overrides) == code, shell.err
    assert tree(tmp_path) == before
    said, warned = shell.refusal if code else "", shell.warnings
    assert f"- {refused}: " in said or not refused
    assert shell("prepare", path, *overrides, "--progress", "off") == code
    if code:
        assert shell.refusal == said
    elif kind != "nothing":  # which prepare knows without a look
        assert shell.warnings == warned
