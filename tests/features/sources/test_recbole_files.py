"""RecBole's atomic files: every value as it is written, and no column that is not asked for can stop a run."""

from pathlib import Path

import pytest

from features.sources import RecBoleSource, TableSource
from recsys.contracts.errors import DataError

TIME = 1_650_000_000


def shop(folder: Path, inter: list[str], item: list[str] | None = None, **more: object) -> RecBoleSource:
    (folder / "shop.inter").write_text("\n".join(inter) + "\n")
    if item is not None:
        (folder / "shop.item").write_text("\n".join(item) + "\n")
    return RecBoleSource(path=folder, name="shop", timestamp_unit="s", **more)


HEADER = "user_id:token\titem_id:token\ttimestamp:float"


@pytest.mark.parametrize(
    "value", ["007", "9e12", "true", '"7"', "it's", "a b", "ключ", "12345678901234567890", "a,b", "1.0"]
)
def test_tokens_are_text_as_written(tmp_path: Path, value: str) -> None:
    events = shop(tmp_path, [HEADER, f"{value}\ti1\t{TIME}.0"]).read(0).interactions.collect()
    assert events.select("user_id", "item_id", "timestamp").rows() == [(value, "i1", TIME * 10**6)]


@pytest.mark.parametrize("value", ["—", "n/a", "", "1,5", "2020-01-01", "x" * 500])
@pytest.mark.parametrize("kind", ["float", "float_seq", "token", "number"])
def test_a_column_that_is_not_asked_for_does_not_matter(tmp_path: Path, value: str, kind: str) -> None:
    """Neither its values nor its declared type, in either file."""
    source = shop(
        tmp_path,
        [f"{HEADER}\textra:{kind}", f"u1\ti1\t{TIME}\t{value}"],
        [f"item_id:token\ttitle:token_seq\tprice:{kind}", f"i1\tA  film\t{value}"],
        item_columns={"title": ["title"]},
    )
    raw = source.read(0)
    assert raw.interactions.collect()["refused"].to_list() == [None]
    assert raw.items is not None
    assert raw.items["item_id"].to_list() == ["i1"]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (f"u1\ti1\t{TIME}\t5", "too many fields"),
        ("u1\ti1", "too few fields"),
        ("u1\ti1\tsoon", "timestamp is not a number"),
        (f"\ti1\t{TIME}", "null user_id"),
        (f"NULL\ti1\t{TIME}", "null user_id"),
    ],
)
def test_a_bad_line_is_refused(tmp_path: Path, line: str, reason: str) -> None:
    good = [f"u{place}\ti1\t{TIME + place}" for place in range(3)]
    events = shop(tmp_path, [HEADER, *good, line]).read(0).interactions.collect()
    assert events["refused"].to_list() == [None, None, None, reason]
    assert events["row"].to_list() == [1, 2, 3, 4]


def test_a_declared_column_without_a_type_is_refused(tmp_path: Path) -> None:
    source = shop(tmp_path, ["user_id\titem_id:token\ttimestamp:float", f"u1\ti1\t{TIME}"])
    with pytest.raises(DataError, match="header 'user_id' is not 'name:type' with a type of token, token_seq"):
        source.read(0).interactions.collect()
    with pytest.raises(
        DataError, match=r"'.*other.inter' does not exist .*; .inter files there: shop.inter; set source.path"
    ):
        source.model_copy(update={"name": "other"}).read(0)


@pytest.mark.parametrize("separator", [",", ";", "|"])
def test_a_file_split_otherwise_is_told_what_its_recipe_can_do(tmp_path: Path, separator: str) -> None:
    """A recipe for atomic files has no key for the separator."""
    lines = [line.replace("\t", separator) for line in (HEADER, f"u1\ti1\t{TIME}")]
    with pytest.raises(DataError, match=r"write the file again with tabs.*source\.kind: table") as refusal:
        shop(tmp_path, lines).read(0)
    assert "source.separator" not in str(refusal.value)
    (tmp_path / "shop.csv").write_text("user_id,item_id\nu1\nu2\n")
    with pytest.raises(DataError, match=r"set source\.separator") as other:
        list(
            TableSource(path=tmp_path / "shop.csv", timestamp_unit="none", columns={"position": "item_id"})
            .read(0)
            .interactions.batches()
        )
    assert "tabs" not in str(other.value)
