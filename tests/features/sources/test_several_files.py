"""Several files of one table, through the source: their order, their columns, and what is noticed when one changes."""

import os
from pathlib import Path

import polars as pl
import pytest

from features.build import FeaturesConfig, prepare
from features.sources import TableSource
from recsys.contracts.errors import DataError

TIME = 1_650_000_000


def write(path: Path, users: list[int], **more: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = {"user_id": users, "item_id": [1] * len(users), "timestamp": [TIME] * len(users), **more}
    table = pl.DataFrame(columns)
    table.write_csv(path) if path.suffix == ".csv" else table.write_parquet(path)


def rewrite(root: Path) -> None:
    """Another user: the same size, and the time of modification set back."""
    path = root / "day=1/part-0.csv"
    before = path.stat()
    write(path, [3])
    assert path.stat().st_size == before.st_size
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        rewrite,
        lambda root: write(root / "day=0/part-0.csv", [3]),
        lambda root: (root / "day=1/part-0.csv").unlink(),
        lambda root: (root / "day=2").rename(root / "day=3"),
        lambda root: write(root / "items/part-0.csv", [3]),
        lambda root: write(root / "users/part-0.csv", [3]),
    ],
)
def test_a_partition_that_changes_is_noticed_though_all_files_have_one_name(tmp_path: Path, change) -> None:
    for folder in ("day=1", "day=2", "items", "users"):
        write(tmp_path / folder / "part-0.csv", [1])
    source = TableSource(
        path=tmp_path,
        interactions="day=*/part-*.csv",
        items="items/part-0.csv",
        users="users/part-0.csv",
        timestamp_unit="s",
    )
    before = source.fingerprint()
    assert sorted(before) == ["day=1/part-0.csv", "day=2/part-0.csv", "items/part-0.csv", "users/part-0.csv"]
    change(tmp_path)
    assert source.fingerprint() != before


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_parts_are_read_in_natural_order(tmp_path: Path, ending: str) -> None:
    """Part 10 after part 9: events of the same instant keep the order of the files."""
    for part in range(12):
        write(tmp_path / f"part-{part}.{ending}", [part])
    source = TableSource(path=tmp_path, interactions=f"part-*.{ending}", timestamp_unit="s")
    events = source.read(0).interactions.collect()
    assert events["user_id"].cast(pl.Int64).to_list() == list(range(12))
    assert events["file"].to_list() == list(range(12))


@pytest.mark.parametrize("ending", ["csv", "parquet"])
@pytest.mark.parametrize("place", [0, 1])
def test_a_part_with_a_column_more_is_read(tmp_path: Path, ending: str, place: int) -> None:
    for part in range(2):
        more = {"note": ["x"], "stars": [5]} if part == place else {}
        write(tmp_path / f"part-{part}.{ending}", [part], **more)
    source = TableSource(
        path=tmp_path,
        interactions=f"part-*.{ending}",
        timestamp_unit="s",
        signals=[{"name": "liked", "column": "stars", "at_least": 4}],
    )
    events = source.read(0).interactions.collect()
    assert events["liked"].to_list() == [True if part == place else None for part in range(2)]
    assert events["refused"].null_count() == 2


def test_a_relative_path_names_the_folder_that_was_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "logs/log.csv", [1])
    with pytest.raises(DataError, match=rf"'logs/interactions.parquet' does not exist .*looked in '{tmp_path}/logs'\)"):
        TableSource(path="logs", timestamp_unit="s").read(0)


LACKING = {
    "user_id in another case": {"User_ID": [8], "item_id": [2], "timestamp": [1_700_000_001], "rating": [5]},
    "no item_id": {"user_id": [8], "timestamp": [1_700_000_001], "rating": [5]},
    "no timestamp": {"user_id": [8], "item_id": [2], "rating": [5]},
    "no signal": {"user_id": [8], "item_id": [2], "timestamp": [1_700_000_001]},
}


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("kind", LACKING)
def test_a_file_that_lacks_a_column_is_named(tmp_path: Path, form: str, kind: str) -> None:
    whole = {"user_id": [7, 7], "item_id": [1, 2], "timestamp": [1_700_000_000] * 2, "rating": [4, 5]}
    missing = next(name for name in whole if name not in LACKING[kind])
    for name, columns in (
        ("part-0", whole),
        ("part-1", LACKING[kind]),
        ("part-2", {name: [] for name in LACKING[kind]}),
    ):
        table = pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.Int64))
        (table.write_csv if form == "csv" else table.write_parquet)(tmp_path / f"{name}.{form}")
    source = TableSource(
        path=tmp_path,
        interactions=f"part-*.{form}",
        timestamp_unit="s",
        signals=[{"name": "liked", "column": "rating", "at_least": 4}],
    )
    events = source.read(0).interactions
    assert len(events.collect()) == 3
    assert events.facts["rows_without_column"] == {missing: {f"part-1.{form}": 1}}


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_a_column_of_a_folders_name_is_lacking_nowhere(tmp_path: Path, form: str) -> None:
    table = pl.DataFrame({"user_id": [7], "timestamp": [1_700_000_000]})
    (tmp_path / "item_id=3").mkdir()
    (table.write_csv if form == "csv" else table.write_parquet)(tmp_path / f"item_id=3/0.{form}")
    events = TableSource(path=tmp_path, interactions=f"*/*.{form}", timestamp_unit="s").read(0).interactions
    assert events.collect()["item_id"].to_list() == ["3"]
    assert "rows_without_column" not in events.facts


def day_files(folder: Path, spoiled: list[int]) -> TableSource:
    """Ten files of four users' events; in the spoiled ones three of four rows have no user."""
    for day in range(10):
        users = ["NULL" if day in spoiled and user else f"u{user}" for user in range(4)]
        lines = [f"{user},i{place % 3},{1_700_000_000 + 86_400 * day + place}" for place, user in enumerate(users)]
        (folder / f"day-{day}.csv").write_text("user_id,item_id,timestamp\n" + "\n".join(lines) + "\n")
    return TableSource(path=folder, interactions="day-*.csv", timestamp_unit="s")


@pytest.mark.parametrize(
    ("spoiled", "said"),
    [
        ([], []),
        ([9], ["3 of 4 rows of 'day-9.csv' are refused: most of a file; quarantine.parquet says why"]),
        (
            [1, 3, 5, 7, 9],
            [
                "3 of 4 rows of 'day-1.csv', 3 of 4 rows of 'day-3.csv', 3 of 4 rows of 'day-5.csv', and of 2 more files "
                "are refused: most of a file; quarantine.parquet says why"
            ],
        ),
    ],
)
def test_a_file_that_is_mostly_refused_is_named(tmp_path: Path, spoiled: list[int], said: list[str]) -> None:
    """Three rows of forty are within the allowed share, and a lost day all the same."""
    config = FeaturesConfig(split={"kind": "leave_last_out"}, quarantine={"max_share": 0.5})
    report = prepare(day_files(tmp_path, spoiled), config, tmp_path / "out", seed=0)
    assert [warning for warning in report["warnings"] if "refused" in warning] == said


def test_a_single_file_is_not_named(tmp_path: Path) -> None:
    """What it lacks the allowed share says."""
    day_files(tmp_path, [0])
    source = TableSource(path=tmp_path, interactions="all.csv", timestamp_unit="s")
    bad = (tmp_path / "day-0.csv").read_text()
    good = [(tmp_path / f"day-{day}.csv").read_text().split("\n")[1] for day in range(1, 3)]
    (tmp_path / "all.csv").write_text(bad + "\n".join([*good, f"NULL,i1,{TIME}"]) + "\n")
    config = FeaturesConfig(split={"kind": "leave_last_out"}, quarantine={"max_share": 0.9})
    report = prepare(source, config, tmp_path / "out", seed=0)
    assert report["quarantined"] == {"null user_id": 4}  # of 7
    assert not [warning for warning in report["warnings"] if "most of a file" in warning]


def test_a_file_without_rows_is_noted_though_no_file_is_read(tmp_path: Path) -> None:
    """As in an append whose only new file has no bytes: the report lists what preparing everything lists."""
    source = day_files(tmp_path, [])
    (tmp_path / "day-10.csv").touch()
    events = source.read(0).interactions
    assert list(events.batches([])) == []
    assert events.facts["empty_files"] == ["day-10.csv"]
