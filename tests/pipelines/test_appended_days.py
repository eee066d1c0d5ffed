"""A day appended gives the bytes of preparing everything; where it cannot, everything is prepared, and the log says why."""

from __future__ import annotations

import csv
import logging
import random
import shutil
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.config import RunConfig
from pipelines.engine.lock import run_lock
from pipelines.workflow import Workflow
from recsys.contracts.manifest import Artifact
from recsys.runtime import PlainProgress

DAYS = 30
START = date(2026, 10, 1)
NAMES = ["user", "item", "at", "like", "watched", "note"]
Rows = list[list[Any]]


def day_of_rows(number: int) -> Rows:
    """Few users and items of many spellings, new ones every day, repeats of the day before, and rows that are refused."""
    rng = random.Random(number)
    users = [f"u{rng.randrange(12)}", "007", "7", f"z{number}", f"A{number % 7}", "é"]
    items = ["1e5", "true", f"i{rng.randrange(9)}", f"i{number}", "b,c", 'q"q']
    second = 86_400 * (START - date(1970, 1, 1) + timedelta(days=number)).days
    rows: Rows = []
    for _ in range(rng.randrange(14, 24)):
        at = second + 600 * rng.randrange(6)
        rows.append([rng.choice(users), rng.choice(items), at, rng.choice("01"), rng.randrange(90), "x\ny"])
    rows += [[*rows[0][:3], "1", 91, ""], ["u1", "i1", second - 600 * rng.randrange(3), "1", 5, "yesterday"]]
    return [*rows, ["", "i1", second, "0", 1, "nobody"], ["NULL", "i2", 5, "0", 1, "never"]]


def write_csv(folder: Path, number: int) -> None:
    path = folder / f"day={START + timedelta(days=number)}" / "part-0.csv"
    path.parent.mkdir(parents=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(NAMES)
        writer.writerows(day_of_rows(number))
        file.write("too,few\n" if number % 3 == 0 else "\n")


def write_parquet(folder: Path, number: int) -> None:
    path = folder / f"day={START + timedelta(days=number)}" / "part-0.parquet"
    path.parent.mkdir(parents=True)
    columns = dict(zip(NAMES, zip(*day_of_rows(number), strict=True), strict=True))
    width = pl.Int32 if number % 2 else pl.Int64
    pl.DataFrame(columns).with_columns(pl.col("like").cast(pl.Int8), pl.col("watched").cast(width)).write_parquet(path)


def write_items(folder: Path, number: int) -> None:
    titles = {f"i{item}": f"title {item} of day {number}" for item in range(number + 3)}
    pl.DataFrame({"item_id": list(titles), "title": list(titles.values())}).write_csv(folder / "items.csv")


FORMS = {"csv": write_csv, "parquet": write_parquet}


def config_of(folder: Path, form: str, output: Path, **features: Any) -> RunConfig:
    source = {
        "kind": "table",
        "path": str(folder),
        "interactions": f"day=*/part-*.{form}",
        "items": "items.csv",
        "timestamp_unit": "s",
        "columns": {"user_id": "user", "item_id": "item", "timestamp": "at", "watch_time": "watched"},
        "signals": [{"name": "like", "column": "like", "equals": 1}],
        "positive": ["like"],
        "item_columns": {"title": [{"column": "title"}]},
    }
    chosen = {"k_core": {"user": 2, "item": 2}, "quarantine": {"max_share": 0.5}, **features}
    return RunConfig.model_validate({"source": source, "features": chosen, "output_dir": str(output)})


def prepare(config: RunConfig, append: bool) -> Artifact:
    with run_lock(config.output_dir):
        return Workflow(config, PlainProgress()).run_verb("prepare", append=append).artifact


def content(artifact: Artifact) -> dict[str, bytes]:
    """Every file of an artefact, its manifest too."""
    return {
        path.relative_to(artifact.path).as_posix(): path.read_bytes()
        for path in sorted(artifact.path.rglob("*"))
        if path.is_file()
    }


def same(left: Artifact, right: Artifact) -> None:
    one, other = content(left), content(right)
    assert left.path.name == right.path.name
    different = [name for name in sorted({*one, *other}) if one.get(name) != other.get(name)]
    texts = [(one.get(name), other.get(name)) for name in different if name.endswith(".json")]
    assert different == [], texts[:1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("duplicates", ["merge", "drop"])
def test_thirty_days_one_by_one_equal_one_preparation(
    tmp_path: Path, form: str, duplicates: str, caplog: pytest.LogCaptureFixture
) -> None:
    """In an order in which late days come before early ones; the item table changes every day."""
    log, order = tmp_path / "log", list(range(DAYS))
    random.Random(3).shuffle(order)
    daily = config_of(log, form, tmp_path / "daily", duplicates=duplicates)
    with caplog.at_level(logging.INFO, "recsys"):
        for place, number in enumerate(order[2:]):
            for first in order[:2] if place == 0 else []:
                FORMS[form](log, first)
            FORMS[form](log, number)
            write_items(log, place)
            artifact = prepare(daily, append=True)
            if place in (0, 1, 9):
                same(
                    artifact,
                    prepare(config_of(log, form, tmp_path / f"whole{place}", duplicates=duplicates), append=False),
                )
    said = [record.getMessage() for record in caplog.records if "append" in record.getMessage()]
    assert ["nothing to append to" in text for text in said] == [True] + [False] * (DAYS - 3)
    whole = prepare(config_of(log, form, tmp_path / "whole", duplicates=duplicates), append=False)
    same(artifact, whole)
    report = whole.manifest.summary
    assert report["merged"] + report["quarantined"].get("duplicate", 0) > 0
    assert report["k_core_removed"] > 0
    assert report["rows_in"] == report["kept"] + report["merged"] + report["k_core_removed"] + sum(
        report["quarantined"].values()
    )


def rewrite(log: Path) -> None:
    path = next(log.glob("day=2026-10-01/*"))
    shutil.copy(next(log.glob("day=2026-10-02/*")), path)


def remove(log: Path) -> None:
    shutil.rmtree(log / "day=2026-10-01")


def rename(log: Path) -> None:
    (log / "day=2026-10-01").rename(log / "day=2026-09-30")


def widen(log: Path) -> None:
    path = next(log.glob("day=2026-10-04/*"))
    pl.read_parquet(path).with_columns(pl.col("watched") + 0.5).write_parquet(path)


@pytest.mark.parametrize(
    ("change", "features", "reason"),
    [
        (rewrite, {}, "'day=2026-10-01/part-0.parquet' has changed"),
        (remove, {}, "'day=2026-10-01/part-0.parquet' is not there any more"),
        (rename, {}, "'day=2026-10-01/part-0.parquet' is not there any more"),
        (widen, {}, "column 'watched' was Int64 in the files read earlier and is Float64 over all files"),
        (lambda log: None, {"k_core": {"user": 1, "item": 1}}, "no earlier result of this code and configuration"),
    ],
)
def test_what_does_not_fit_is_prepared_anew(
    tmp_path: Path,
    change: Callable[[Path], None],
    features: dict[str, Any],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    log = tmp_path / "log"
    write_parquet_days(log, 0, 1, 2)
    prepare(config_of(log, "parquet", tmp_path / "out"), append=False)
    write_parquet_days(log, 3)
    change(log)
    artifact = prepare(config_of(log, "parquet", tmp_path / "out", **features), append=True)
    assert reason in caplog.text
    same(artifact, prepare(config_of(log, "parquet", tmp_path / "whole", **features), append=False))


def write_parquet_days(log: Path, *days: int) -> None:
    for number in days:
        write_parquet(log, number)
    write_items(log, 3)


def test_a_damaged_earlier_log_is_not_used(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = tmp_path / "log"
    write_parquet_days(log, 0, 1)
    earlier = prepare(config_of(log, "parquet", tmp_path / "out"), append=False)
    user = earlier.path / "log" / "user.npy"
    user.write_bytes(user.read_bytes()[:-4] + b"\0\0\0\1")
    write_parquet_days(log, 2)
    artifact = prepare(config_of(log, "parquet", tmp_path / "out"), append=True)
    assert "user.npy' has changed since it was published" in caplog.text
    same(artifact, prepare(config_of(log, "parquet", tmp_path / "whole"), append=False))


def test_a_new_item_table_alone_reads_no_events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from features.reading.parquet import ParquetTable

    log = tmp_path / "log"
    write_parquet_days(log, 0, 1)
    prepare(config_of(log, "parquet", tmp_path / "out"), append=False)
    write_items(log, 9)
    whole = prepare(config_of(log, "parquet", tmp_path / "whole"), append=False)
    monkeypatch.setattr(ParquetTable, "_read", lambda *arguments: pytest.fail("an event file was read"))
    same(prepare(config_of(log, "parquet", tmp_path / "out"), append=True), whole)


def test_a_killed_append_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import features.appended.by_users

    log = tmp_path / "log"
    write_parquet_days(log, 0, 1)
    config = config_of(log, "parquet", tmp_path / "out")
    earlier = prepare(config, append=False)
    write_parquet_days(log, 2)

    def killed(*arguments: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(features.appended.by_users, "event_columns", killed)
        with pytest.raises(KeyboardInterrupt):
            prepare(config, append=True)
    assert [path for path in earlier.path.parent.iterdir() if not path.name.startswith(".")] == [earlier.path]
    same(prepare(config, append=True), prepare(config_of(log, "parquet", tmp_path / "whole"), append=False))


def test_rows_that_are_joined_over_files_are_not_appended(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A history in the second file may overlap one in the first: neither can be read without the other."""
    rows = {"user_id": ["A7"] * 3, "history_item_id": ["[3]", "[3, 5]", "[3, 5, 8]"], "item_id": [5, 8, 9]}
    table = pl.DataFrame(rows)
    files = []
    for place, name in enumerate(("train", "valid", "test")):
        table[place : place + 1].write_csv(tmp_path / f"{name}.csv")
        files.append({"file": f"{name}.csv", "split": name})
    source = {"kind": "history_rows", "path": str(tmp_path), "files": files}
    values = {"source": source, "features": {"split": {"kind": "given"}}, "output_dir": str(tmp_path / "out")}
    config = RunConfig.model_validate(values)
    prepare(config, append=False)
    (tmp_path / "train.csv").write_text((tmp_path / "train.csv").read_text() + "B8,[3],5\n")
    prepare(config, append=True)
    assert "no files that could be read one without the others" in caplog.text
