"""Recipes of public data sets in their original files: each finds no problem in small files of that layout."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import polars as pl
import pytest

from features.build import foresee, prepare
from pipelines.config import RunConfig, load_run_config
from pipelines.engine.lock import run_lock
from pipelines.workflow import Workflow
from recsys.runtime import SilentProgress

RECIPES = Path(__file__).resolve().parents[2] / "pipelines" / "recipes"
USERS, ITEMS = 12, 6
DAY = 86_400


def amazon(folder: Path, year: int) -> None:
    """Every user takes every item, so the 5-core keeps all."""
    review = {
        2014: ("reviewerID", "asin", "overall", "unixReviewTime", 1, "reviews_Toy_5.json", "meta_Toy.json", "asin"),
        2018: ("reviewerID", "asin", "overall", "unixReviewTime", 1, "Toy_5.json", "meta_Toy.json", "asin"),
        2023: ("user_id", "parent_asin", "rating", "timestamp", 1000, "Toy.jsonl", "meta_Toy.jsonl", "parent_asin"),
    }[year]
    user_key, item_key, stars, at, scale, reviews, metadata, meta_key = review
    lines = [
        {
            user_key: f"A{user:012d}",
            item_key: f"B{item:09d}",
            stars: 4.0,
            at: (1_500_000_000 + DAY * item + user) * scale,
        }
        for user in range(USERS)
        for item in range(ITEMS)
    ]
    (folder / reviews).write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    items = [{meta_key: f"B{item:09d}", "title": f"Toy {item}"} for item in range(ITEMS)]
    (folder / metadata).write_text("".join(f"{json.dumps(line)}\n" for line in items))


def movielens(folder: Path, separator: str, name: str) -> None:
    rows = [(user, item, 4, 900_000_000 + DAY * item + user) for user in range(1, USERS) for item in range(1, ITEMS)]
    header = ["userId,movieId,rating,timestamp"] if name.endswith(".csv") else []
    (folder / name).write_text("\n".join([*header, *(separator.join(map(str, row)) for row in rows)]) + "\n")


def kuairand(folder: Path, version: str) -> None:
    """One exposure a day, from 20 April to 6 May, on both sides of the two cuts."""
    names = (
        "user_id,video_id,time_ms,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,duration_ms"
    )
    lines = [names]
    for user in range(USERS):
        for day in range(17):
            for place in range(2):
                time_ms = 1_650_412_800_000 + 1000 * (DAY * day + 60 * place + user)
                lines.append(f"{user},{(day + place + user) % ITEMS},{time_ms},1,0,0,0,0,1,900,1000")
    (folder / f"log_standard_4_08_to_4_21_{version}.csv").write_text("\n".join(lines) + "\n")


CASES: dict[str, tuple[str, Callable[[Path], None], list[str]]] = {
    "amazon 2014": ("amazon18", lambda folder: amazon(folder, 2014), ["source.version=2014"]),
    "amazon 2018": ("amazon18", lambda folder: amazon(folder, 2018), []),
    "amazon 2023": ("amazon18", lambda folder: amazon(folder, 2023), ["source.version=2023"]),
    "movielens 100k": ("movielens1m", lambda folder: movielens(folder, "\t", "u.data"), []),
    "movielens 1m": ("movielens1m", lambda folder: movielens(folder, "::", "ratings.dat"), []),
    "movielens 32m": ("movielens1m", lambda folder: movielens(folder, ",", "ratings.csv"), []),
    "kuairand pure": ("kuairand1k", lambda folder: kuairand(folder, "pure"), []),
    "kuairand 1k": ("kuairand1k", lambda folder: kuairand(folder, "1k"), []),
}


@pytest.mark.parametrize("case", CASES)
def test_a_recipe_finds_no_problem_in_files_of_its_layout(case: str, tmp_path: Path) -> None:
    recipe, write, overrides = CASES[case]
    write(tmp_path)
    config = load_run_config(RECIPES / f"{recipe}.yaml", [f"source.path={tmp_path}", *overrides])
    report = foresee(config.source, config.features, config.seed).report
    assert report["rows_in"] == report["kept"]
    assert report["layout"] == case.replace("32m", "csv")


def test_every_recipe_of_a_public_layout_is_tried() -> None:
    kinds = ("amazon_reviews", "movielens", "kuairand")
    recipes = {path.stem for path in RECIPES.glob("*.yaml") if load_run_config(path).source.kind in kinds}
    assert recipes == {recipe for recipe, _, _ in CASES.values()}


BROKEN = {
    "amazon 2018": ("Toy_5.json", '{"reviewerID": "A1", "asin"', 73),
    "movielens 1m": ("ratings.dat", "7::1::5", 56),
    "movielens 32m": ("ratings.csv", "7,1,5,900000000,9,9", 57),
    "kuairand pure": ("log_standard_4_08_to_4_21_pure.csv", "1,2,yesterday,1,0,0,0,0,1,900,1000", 410),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_line_lands_in_the_quarantine_with_file_line_and_text(case: str, tmp_path: Path) -> None:
    """The last line of each file, counted from 1 as an editor counts; all other rows are kept."""
    recipe, write, overrides = CASES[case]
    (tmp_path / "raw").mkdir()
    write(tmp_path / "raw")
    name, line, number = BROKEN[case]
    with (tmp_path / "raw" / name).open("a") as file:
        file.write(f"{line}\n")
    paths = [f"source.path={tmp_path / 'raw'}", "features.quarantine.max_share=0.5"]
    config = load_run_config(RECIPES / f"{recipe}.yaml", [*paths, *overrides])
    (tmp_path / "data").mkdir()
    report = prepare(config.source, config.features, tmp_path / "data", config.seed)
    quarantine = pl.read_parquet(tmp_path / "data" / "quarantine.parquet")
    assert quarantine.select("file", "row").rows() == [(name, number - 1)]
    assert line.split(",")[0] in quarantine["raw"][0]
    assert report["rows_in"] == report["kept"] + 1


def amazon_day(folder: Path, day: int) -> None:
    """A category a day, with its metadata and a line that is no JSON."""
    lines = [
        {
            "reviewerID": f"A{user}",
            "asin": f"B{(user * day + step) % 9}",
            "overall": 4.0,
            "unixReviewTime": 1_500_000_000 + at,
        }
        for user in range(6)
        for step in range(3)
        for at in [DAY * (3 * day + step)]
    ]
    (folder / f"Day{day}_5.json").write_text("".join(f"{json.dumps(line)}\n" for line in lines) + "{broken\n")
    (folder / f"meta_Day{day}.json").write_text(json.dumps({"asin": f"B{day}", "title": f"Toy {day}"}) + "\n")


def kuairand_part(folder: Path, part: int) -> None:
    """Every signal is true in some rows: a warning about a whole column would have everything prepared anew."""
    names = (
        "user_id,video_id,time_ms,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,duration_ms"
    )
    rows = []
    for user in range(6):
        feedback = ",".join(str(int((user + place) % 3 == 0)) for place in range(6))
        rows.append(f"{user},{(user + part) % 5},{1_650_000_000_000 + 86_400_000 * part + user},{feedback},9,9")
    rows.append("1,2,yesterday,1,0,0,0,0,1,9,9")
    (folder / f"log_standard_4_08_to_4_21_27k_part{part}.csv").write_text("\n".join([names, *rows, ""]))


GROWING: dict[str, tuple[Callable[[Path, int], None], dict[str, object]]] = {
    "amazon": (amazon_day, {"kind": "amazon_reviews", "version": 2018}),
    "kuairand": (kuairand_part, {"kind": "kuairand"}),
}


@pytest.mark.parametrize("form", GROWING)
def test_files_that_come_later_are_appended_to_the_bytes_of_preparing_all(
    form: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write, source = GROWING[form]
    (tmp_path / "raw").mkdir()

    def prepared(output: str, append: bool) -> dict[str, bytes]:
        config = RunConfig.model_validate(
            {
                "source": {**source, "path": str(tmp_path / "raw")},
                "features": {"split": {"kind": "leave_last_out"}, "quarantine": {"max_share": 0.5}},
                "output_dir": str(tmp_path / output),
            }
        )
        with run_lock(config.output_dir):
            folder = Workflow(config, SilentProgress()).run_verb("prepare", append=append).artifact.path
        return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    for part in (1, 2, 3):
        write(tmp_path / "raw", part)
    prepared("daily", append=True)
    caplog.clear()
    for part in (4, 10):
        write(tmp_path / "raw", part)
        with caplog.at_level(logging.INFO):
            found = prepared("daily", append=True)
    assert [record for record in caplog.records if "nothing to append to" in record.getMessage()] == []
    assert found == prepared("whole", append=False)
