"""RecBole's atomic files: titles are sequences of words there, categories sequences of tokens."""

from __future__ import annotations

from pathlib import Path

import pytest

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
