"""RecBole's atomic files: titles are sequences of words there, categories sequences of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from features.sources import RecBoleSource
from recsys.contracts.errors import DataError

INTER = "user_id:token\titem_id:token\ttimestamp:float\nu7\ti1\t1650000000\n"


def items(folder: Path, header: str, row: str, **columns: list[str]) -> dict[str, object]:
    (folder / "toy.inter").write_text(INTER)
    (folder / "toy.item").write_text(f"{header}\n{row}\n")
    source = RecBoleSource(path=folder, name="toy", timestamp_unit="s", item_columns=columns)
    found = source.read(0).items
    assert found is not None
    return found.to_dicts()[0]


@pytest.mark.parametrize("kind", ["token", "token_seq"])
def test_a_title_keeps_all_its_words(tmp_path: Path, kind: str) -> None:
    """ML-100K of RecBole has movie_title:token_seq; read as a list, the title was its first word."""
    found = items(tmp_path, f"item_id:token\tmovie_title:{kind}", "i1\tGet Shorty, Part 2", title=["movie_title"])
    assert found["title"] == "Get Shorty, Part 2"


def test_a_sequence_is_words_in_a_text_and_a_list_among_categories(tmp_path: Path) -> None:
    header = "item_id:token\ttitle:token_seq\tclass:token_seq\tabout:token_seq\tbrand:token_seq"
    row = "i1\tA film\tDrama War\tlong and slow\tBig Studio"
    columns = {"title": ["title"], "text": ["about", "class"], "categories": ["class"], "author": ["brand"]}
    assert items(tmp_path, header, row, **columns) == {
        "item_id": "i1",
        "title": "A film",
        "text": "long and slow. Drama, War",
        "categories": ["Drama", "War"],
        "author_id": "Big",
    }


def test_headers_without_types_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="is not 'name:type'"):
        items(tmp_path, "item_id\ttitle", "i1\tA film", title=["title"])


def split_files(folder: Path, *parts: str) -> None:
    """User u7 takes i1 to i6, two in each file; the order of the alphabet is not that of the split."""
    for place, part in enumerate(parts):
        rows = [f"u7\ti{2 * place + one}\t{1650000000 + 2 * place + one}" for one in (1, 2)]
        header = "user_id:token\titem_id:token\ttimestamp:float"
        (folder / f"toy.{part}.inter").write_text("\n".join([header, *rows, ""]))


@pytest.mark.parametrize(
    ("parts", "splits"),
    [
        (["train", "valid", "test"], ["train", "valid", "test"]),
        (["part1", "part2", "part3"], ["train", "valid", "test"]),
        (["train", "test"], ["train", "test"]),
    ],
)
def test_a_benchmark_split_is_a_column(tmp_path: Path, parts: list[str], splits: list[str]) -> None:
    split_files(tmp_path, *parts)
    source = RecBoleSource(
        path=tmp_path, name="toy", benchmark_filename=parts, timestamp_unit="s", columns={"split": "split"}
    )
    found = source.read(0).interactions.collect()
    assert found["item_id"].to_list() == [f"i{number}" for number in range(1, 2 * len(parts) + 1)]
    assert found["split"].to_list() == [split for split in splits for _ in range(2)]
    assert sorted(source.fingerprint()) == sorted(f"toy.{part}.inter" for part in parts)


def test_a_benchmark_file_that_is_missing_is_named(tmp_path: Path) -> None:
    split_files(tmp_path, "train", "test")
    source = RecBoleSource(path=tmp_path, name="toy", benchmark_filename=["train", "valid", "test"], timestamp_unit="s")
    for ask in (lambda: source.read(0), source.fingerprint):
        with pytest.raises(DataError, match=r"toy\.valid\.inter' does not exist \(for source\.benchmark_filename"):
            ask()


@pytest.mark.parametrize("parts", [["train"], ["train", "train"], ["a", "b", "c", "d"]])
def test_a_benchmark_split_has_two_or_three_files(parts: list[str]) -> None:
    with pytest.raises(ValidationError, match=r"two or three|at most 3"):
        RecBoleSource(path="x", benchmark_filename=parts, timestamp_unit="s")


@pytest.mark.parametrize("written", ["1650000000", "1650000000.0", "1.65e9", "1.65E+09", " 1650000000 "])
def test_times_as_floats_in_every_dress(tmp_path: Path, written: str) -> None:
    (tmp_path / "toy.inter").write_text(f"user_id:token\titem_id:token\ttimestamp:float\nu7\ti1\t{written}\n")
    source = RecBoleSource(path=tmp_path, name="toy", timestamp_unit="s")
    assert source.read(0).interactions.collect()["timestamp"].to_list() == [1_650_000_000_000_000]
