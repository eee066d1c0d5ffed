"""Which files are a table's, in which order; and what is noticed when one of them changes."""

import os
from pathlib import Path

import polars as pl
import pytest

from features.reading import TextFormat, find_files, fingerprint, open_text
from features.reading.files import hive_keys, place_of
from recsys.contracts.errors import DataError


def make(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("a,b\n1,2\n")


def found(root: Path, pattern: str) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_files(root, pattern, "source.interactions").paths]


@pytest.mark.parametrize(
    ("names", "pattern", "expected"),
    [
        (["part-10.csv", "part-2.csv", "part-1.csv"], "part-*.csv", ["part-1.csv", "part-2.csv", "part-10.csv"]),
        (["d=10/p.csv", "d=9/p.csv"], "*/p.csv", ["d=9/p.csv", "d=10/p.csv"]),
        (["a/b/x.csv", "x.csv"], "**/*.csv", ["a/b/x.csv", "x.csv"]),
        (["log/1.csv", "log/sub/2.csv", "log/README.md"], "log", ["log/1.csv", "log/sub/2.csv"]),
        (["p-1.csv", ".p-1.csv.crc", "_SUCCESS", ".hidden.csv", "p-2.csv.part", "p-3.csv~"], "*", ["p-1.csv"]),
        (["_temporary/0.csv", "_day=1/0.csv", "day=1/0.csv"], "*/*.csv", ["_day=1/0.csv", "day=1/0.csv"]),
        (["day[1].csv"], "day[1].csv", ["day[1].csv"]),
        (["log-2024.csv.gz", "log-2023.csv"], "log-*", ["log-2023.csv", "log-2024.csv.gz"]),
        (["p-0.csv", "p-1.csv/part-0.csv", "p-1.csv/_SUCCESS"], "p-*.csv", ["p-0.csv", "p-1.csv/part-0.csv"]),
        (["day=1/0.csv", "day=2/a/1.csv", "day=2/README.md"], "day=*", ["day=1/0.csv", "day=2/a/1.csv"]),
        (["a/1.csv", "a/b/2.csv"], "**/*", ["a/1.csv", "a/b/2.csv"]),
        (["log/A.CSV", "log/b.Parquet", "log/c.md"], "log", ["log/A.CSV", "log/b.Parquet"]),
        (["log [a]/1.csv", "log a/2.csv"], "log [a]/*.csv", ["log [a]/1.csv"]),
        (["log [a]/x/1.csv", "log a/x/2.csv"], "log [a]/**/*.csv", ["log [a]/x/1.csv"]),
        (["log a/1.csv", "log b/2.csv"], "log [ab]/*.csv", ["log a/1.csv", "log b/2.csv"]),
        (["log/old.csv/1.csv", "log/2.csv"], "log", ["log/2.csv", "log/old.csv/1.csv"]),  # a folder is no file
    ],
)
def test_files_of_a_table(tmp_path: Path, names: list[str], pattern: str, expected: list[str]) -> None:
    make(tmp_path, *names)
    assert found(tmp_path, pattern) == expected


def test_keys_of_folders_are_read_as_they_were_meant() -> None:
    """Spark writes what a path cannot hold as %XX, and null as a word of its own; a file's own name is no key."""
    assert hive_keys("day=__HIVE_DEFAULT_PARTITION__/my%20key=a%2Fb/part=1.parquet") == {"day": None, "my key": "a/b"}


def test_a_place_counts_lines_from_one_and_rows_from_zero() -> None:
    assert place_of("log.csv", 0) == "'log.csv', line 1"
    assert place_of("log.parquet", 0) == "'log.parquet', row 0 (from 0)"


def test_a_missing_file_names_the_folder_that_was_looked_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "data/log.csv", "data/sub/x.csv")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"looked in '{tmp_path}/data'\); files there: log.csv, sub/; set source.path"):
        find_files(Path("data"), "logs.csv", "source.interactions")
    with pytest.raises(DataError, match=rf"no file matches 'data/part-\*' \(looked in '{tmp_path}/data'\)"):
        find_files(Path("data"), "part-*", "source.interactions")
    with pytest.raises(DataError, match="the folder 'nowhere' does not exist"):
        find_files(Path("nowhere"), "logs.csv", "source.interactions")


@pytest.mark.parametrize("pattern", ["part-*.csv", "part-1.csv", ".", "**/*.csv"])
def test_a_link_to_nothing_stops_the_run(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "part-0.csv")
    (tmp_path / "part-1.csv").symlink_to(tmp_path / "gone.csv")
    with pytest.raises(DataError, match=r"part-1\.csv' .* is a link to '.*gone\.csv', which does not exist"):
        find_files(tmp_path, pattern, "source.interactions")


@pytest.mark.parametrize("pattern", ["log", "**/*.csv", "log/**", "lo*", "l*/**/day=*/*", "log/**/?.csv"])
def test_a_folder_that_is_a_link_is_entered_once(tmp_path: Path, pattern: str) -> None:
    """``log/day=2`` lies elsewhere; ``day=1/up`` leads back to ``log``."""
    make(tmp_path / "root", "log/day=1/1.csv")
    make(tmp_path / "far", "2.csv", "sub/3.csv")
    (tmp_path / "root/log/day=2").symlink_to(tmp_path / "far")
    (tmp_path / "root/log/day=1/up").symlink_to(tmp_path / "root/log")
    expected = ["log/day=1/1.csv", "log/day=2/2.csv", "log/day=2/sub/3.csv"]
    assert found(tmp_path / "root", pattern) == expected


@pytest.mark.parametrize(
    ("name", "what"),
    [
        ("2.csv.zst", "packed in a way that is not read; unpack it"),
        ("2.TSV.BZ2", "packed in a way that is not read"),
        ("sub/2.parquet.gz", "packed in a way that is not read"),
        ("2.jsonl", "JSON lines; convert it"),
        ("2.ndjson.gz", "JSON lines"),
        ("2.orc", "neither text nor Parquet"),
        ("2.feather", "neither text nor Parquet"),
        ("2.psv", "without an ending"),
        ("000000_0", "without an ending"),
        ("part-r-00002", "without an ending"),
        ("part-00002-8d2f1a3c-11aa-4b.c000", "without an ending"),
    ],
)
@pytest.mark.parametrize("pattern", ["log", "l*", "**/log"])
def test_data_among_the_files_of_a_folder_that_would_not_be_read_stop_the_run(
    tmp_path: Path, name: str, what: str, pattern: str
) -> None:
    make(tmp_path, "log/1.csv", f"log/{name}")
    with pytest.raises(DataError, match=f"{name}' lies among the data of source.interactions .*: it is {what}"):
        find_files(tmp_path, pattern, "source.interactions")
    assert found(tmp_path, "log/1.csv") == ["log/1.csv"], "a pattern says what is meant"
    assert found(tmp_path, "log/*.csv") == ["log/1.csv"]


@pytest.mark.parametrize("pattern", ["_*.csv", "log/*"])
def test_a_pattern_of_hidden_files_alone_says_so(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "_a.csv", "log/.a.csv")
    with pytest.raises(
        DataError, match=r"matches hidden and unfinished files only, such as '.*a\.csv', which a pattern"
    ):
        find_files(tmp_path, pattern, "source.interactions")
    assert found(tmp_path, "_a.csv") == ["_a.csv"], "by name it is read"


def test_other_files_of_a_folder_are_listed(tmp_path: Path) -> None:
    """An archive beside what was unpacked from it, and what describes the data."""
    make(
        tmp_path, "log/1.csv", "log/1.csv.zip", "log/README.md", "log/schema.json", "log/_logs/part-0", "log/x.csv.tmp"
    )
    files = find_files(tmp_path, "log", "source.interactions")
    assert [one.name for one in files.paths] == ["1.csv"]
    assert set(files.ignored) == {
        "log/1.csv.zip",
        "log/README.md",
        "log/schema.json",
        "log/_logs/part-0",
        "log/x.csv.tmp",
    }


@pytest.mark.parametrize("pattern", ["log", "log/*", "**/*.gz", "log/1.*"])
def test_a_file_beside_its_packed_form_would_be_read_twice(tmp_path: Path, pattern: str) -> None:
    make(tmp_path, "log/1.csv", "log/1.csv.gz", "log/2.csv.gz")
    if pattern.endswith(".gz"):
        assert found(tmp_path, pattern) == ["log/1.csv.gz", "log/2.csv.gz"]
        return
    with pytest.raises(DataError, match=r"log/1\.csv\.gz' stands beside '1\.csv', and its rows would be read twice"):
        find_files(tmp_path, pattern, "source.interactions")


def test_a_folder_that_cannot_be_listed_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(tmp_path, "log/1.csv", "log/locked/2.csv")
    listed = os.listdir

    def listdir(folder: Path) -> list[str]:
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return listed(folder)

    monkeypatch.setattr(os, "listdir", listdir)
    with pytest.raises(DataError, match=r"log/locked' cannot be listed \(Permission denied\); allow reading"):
        find_files(tmp_path, "log", "source.interactions")


def rewrite(root: Path) -> None:
    """Same size, same time of modification."""
    path = root / "day=1/part-0.csv"
    before = path.stat()
    path.write_text("a,b\n1,3\n")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize(
    "change",
    [
        rewrite,
        lambda root: make(root, "day=0/part-0.csv"),
        lambda root: make(root, "day=9/part-0.csv"),
        lambda root: (root / "day=1/part-0.csv").unlink(),
        lambda root: (root / "day=1").rename(root / "day=7"),
        lambda root: (root / "items/part-0.csv").write_text("a,b\n1,4\n"),
        lambda root: [make(root, "day=1/part-0.csv"), (root / "day=2/part-0.csv").write_text("a,b\n")],
    ],
)
def test_every_change_of_a_file_is_noticed(tmp_path: Path, change) -> None:
    """Two partitions and an items table, all with files of the same name."""
    make(tmp_path, "day=1/part-0.csv", "day=2/part-0.csv", "items/part-0.csv")

    def current() -> dict[str, str]:
        tables = [find_files(tmp_path, pattern, "k") for pattern in ("day=*/part-*.csv", "items/part-0.csv")]
        return fingerprint([path for table in tables for path in table.paths], tmp_path)

    before = current()
    assert list(before) == ["day=1/part-0.csv", "day=2/part-0.csv", "items/part-0.csv"]
    assert current() == before
    change(tmp_path)
    assert current() != before


def test_parts_are_read_by_name(tmp_path: Path) -> None:
    """Another order, one column more, one column less, blanks and quotes in the header, and a part without bytes."""
    contents = {
        "part-1.csv": "user,item,note\nu1,i1,x\n",
        "part-2.csv": "item,user\ni2,u2\n",
        "part-3.csv": ' item , "user" ,more\r\ni3,u3,y\r\n',
        "part-4.csv": "",
        "part-10.csv": "user,item,note\nu10,i10,z\n",
    }
    for name, content in contents.items():
        (tmp_path / name).write_text(content)
    table = open_text(find_files(tmp_path, "part-*.csv", "k").paths, tmp_path)
    assert table.collect(["user", "item", "note"]).select("user", "item", "note").rows() == [
        ("u1", "i1", "x"),
        ("u2", "i2", None),
        ("u3", "i3", None),
        ("u10", "i10", "z"),
    ]
    assert table.files == ("part-1.csv", "part-2.csv", "part-3.csv", "part-10.csv")
    assert table.notes == {
        "empty_files": ["part-4.csv"],
        "header_names_with_blanks": ["item"],
        "rows_without_column": {"note": {"part-2.csv": 1, "part-3.csv": 1}},
    }


def test_a_part_without_a_header_is_no_part(tmp_path: Path) -> None:
    """As `split` leaves them: its first row would be taken for names, and the rest for rows without ids."""
    (tmp_path / "x1.csv").write_text("user,item\nu1,i1\n")
    (tmp_path / "x2.csv").write_text("u2,i2\nu3,i3\n")
    paths = [tmp_path / "x1.csv", tmp_path / "x2.csv"]
    with pytest.raises(
        DataError, match=r"x2.csv' shares no column with '.*x1.csv': its first line is u2, i2.*source.header"
    ):
        open_text(paths, tmp_path)
    paths[0].write_text("u1,i1\n")
    table = open_text(paths, tmp_path, TextFormat(header=("user", "item")))
    assert table.collect(["user"])["user"].to_list() == ["u1", "u2", "u3"]


def test_folder_keys_are_columns_of_text_files_too(tmp_path: Path) -> None:
    make(tmp_path, "day=2024-01-01/x.csv")
    table = open_text([tmp_path / "day=2024-01-01/x.csv"], tmp_path)
    assert table.collect(["a", "day"]).select("a", "day").rows() == [("1", "2024-01-01")]
    assert table.schema == {"a": pl.String, "b": pl.String, "day": pl.String}
