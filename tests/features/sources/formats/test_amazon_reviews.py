"""Amazon reviews in the original layouts of 2014, 2018 and 2023; the records are shortened ones of the publisher's pages."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from features.sources.base import FILE, RAW, REFUSED, ROW
from features.sources.formats.amazon_reviews import AmazonReviewsSource
from features.sources.formats.amazon_text import plain
from recsys.contracts.errors import DataError

SECOND = 10**6

REVIEW_2014: dict[str, Any] = {
    "reviewerID": "A2SUAM1J3GNN3B",
    "asin": "0000013714",
    "reviewerName": "J. McDonald",
    "helpful": [2, 3],
    "reviewText": "I bought this for my husband who plays the piano.",
    "overall": 5.0,
    "summary": "Heavenly Highway Hymns",
    "unixReviewTime": 1252800000,
    "reviewTime": "09 13, 2009",
}
META_2014: dict[str, Any] = {
    "asin": "0000013714",
    "title": "Girls Ballet Tutu Zebra Hot Pink",
    "price": 3.17,
    "imUrl": "http://ecx.images-amazon.com/images/I/51fAmVkTbyL._SY300_.jpg",
    "related": {"also_bought": ["B00JHONN1S"], "bought_together": ["B002BZX8Z6"]},
    "salesRank": {"Toys & Games": 211836},
    "brand": "Coxlures",
    "categories": [["Sports & Outdoors", "Other Sports", "Dance"], ["Clothing"]],
}
REVIEW_2018: dict[str, Any] = {
    "image": ["https://images-na.ssl-images-amazon.com/images/I/71eG75FTJJL._SY88.jpg"],
    "overall": 3.0,
    "vote": "2",
    "verified": True,
    "reviewTime": "01 1, 2018",
    "reviewerID": "AUI6WTTT0QZYS",
    "asin": "5120053084",
    "style": {"Size:": "Large", "Color:": "Charcoal"},
    "reviewerName": "Abbey",
    "reviewText": "I now have 4 of the 5 available colors of this shirt... ",
    "summary": "Comfy, flattering, discreet--highly recommended!",
    "unixReviewTime": 1514764800,
}
META_2018: dict[str, Any] = {
    "asin": "5120053084",
    "title": "Girls Ballet Tutu &amp; Zebra <b>Hot Pink</b>",
    "feature": ["Botiquecutie Trademark exclusive Brand", "<br>Hot Pink Layered"],
    "description": ["This tutu is great for <i>dress up</i> play.", ""],
    "price": "$3.17",
    "imageURL": ["http://ecx.images-amazon.com/images/I/51fAmVkTbyL._SY300_.jpg"],
    "also_buy": ["B00JHONN1S"],
    "also_viewed": ["B002BZX8Z6"],
    "rank": "211,836 in Toys &amp; Games (",
    "salesRank": {"Toys & Games": 211836},
    "brand": "\n    by\n    Coxlures",
    "main_cat": '<img src="https://images-na.ssl-images-amazon.com/x.gif" class="nav-categ-image" alt="AMAZON FASHION"/>',
    "category": ["Sports & Outdoors", "Other Sports", "Dance &amp; Ballet"],
    "tech1": '<table id="x"><tr><td>Weight</td></tr></table>',
    "details": {"\n    Product Dimensions: \n    ": "10 x 4 inches"},
}
REVIEW_2023: dict[str, Any] = {
    "rating": 5.0,
    "title": "Such a lovely scent but not overpowering.",
    "text": "This spray is really nice. It smells really good.",
    "images": [{"small_image_url": "https://m.media-amazon.com/images/I/x.jpg"}],
    "asin": "B00YQ6X8EP",
    "parent_asin": "B00YQ6X8EO",
    "user_id": "AGKHLEW2SOWHNMFQIJGBECAF7INQ",
    "timestamp": 1588687728923,
    "helpful_vote": 0,
    "verified_purchase": True,
}
META_2023: dict[str, Any] = {
    "main_category": "All Beauty",
    "title": "Howard LC0008 Leather Conditioner, 8-Ounce (4-Pack)",
    "average_rating": 4.8,
    "rating_number": 10,
    "features": ["Cleans", "Conditions"],
    "description": ["For leather."],
    "price": None,
    "images": {"hi_res": [None], "large": ["https://m.media-amazon.com/images/I/41qfjSfqNyL.jpg"]},
    "videos": {"title": [], "url": [], "user_id": []},
    "store": "Howard Products",
    "categories": ["Beauty", "Hair Care"],
    "details": {"Package Dimensions": "7.1 x 5.5 x 3 inches", "UPC": "617390882781"},
    "parent_asin": "B00YQ6X8EO",
    "bought_together": None,
}
VERSIONS = {
    2014: ("reviews_Beauty_5.json", "meta_Beauty.json", REVIEW_2014, META_2014),
    2018: ("Luxury_Beauty_5.json", "meta_Luxury_Beauty.json", REVIEW_2018, META_2018),
    2023: ("All_Beauty.jsonl", "meta_All_Beauty.jsonl", REVIEW_2023, META_2023),
}
CSV = {
    2014: (
        "ratings_Beauty.csv",
        "A2SUAM1J3GNN3B,0000013714,5.0,1252800000\nA3F73SC1LY51OO,B00002243X,4.0,1313539200\n",
    ),
    2018: ("Luxury_Beauty.csv", "0000013714,A2SUAM1J3GNN3B,5.0,1252800000\nB00002243X,A3F73SC1LY51OO,4.0,1313539200\n"),
    2023: (
        "All_Beauty.csv",
        "user_id,parent_asin,rating,timestamp\nA2SUAM1J3GNN3B,0000013714,5.0,1252800000000\n"
        "A3F73SC1LY51OO,B00002243X,4.0,1313539200000\n",
    ),
}
every_version = pytest.mark.parametrize("version", list(VERSIONS))


def lines(*records: dict[str, Any], loose: bool = False) -> str:
    return "".join((repr(record) if loose else json.dumps(record)) + "\n" for record in records)


def write(
    folder: Path, version: int, *, packed: bool = False, metadata: bool = True, more: str = ""
) -> AmazonReviewsSource:
    """One review and its item as the publisher writes them; metadata of 2014 are Python dictionaries."""
    review_name, meta_name, review, meta = VERSIONS[version]
    texts = {review_name: lines(review) + more}
    if metadata:
        texts[meta_name] = lines(meta, loose=version == 2014)
    for name, text in texts.items():
        path = folder / (f"{name}.gz" if packed else name)
        path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    return AmazonReviewsSource(path=folder, version=version)


def event(source: AmazonReviewsSource) -> tuple[Any, ...]:
    frame = source.read(0).interactions.collect()
    return frame.select("user_id", "item_id", "timestamp", "liked").row(0)


@every_version
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_a_review_is_an_event_with_its_day_or_millisecond(tmp_path: Path, version: int, packed: bool) -> None:
    """2014 and 2018 have seconds, 2023 milliseconds and the parent of a variant as item; 3 stars are not liked."""
    expected = {
        2014: ("A2SUAM1J3GNN3B", "0000013714", 1_252_800_000 * SECOND, True),
        2018: ("AUI6WTTT0QZYS", "5120053084", 1_514_764_800 * SECOND, False),
        2023: ("AGKHLEW2SOWHNMFQIJGBECAF7INQ", "B00YQ6X8EO", 1_588_687_728_923_000, True),
    }
    source = write(tmp_path, version, packed=packed)
    assert event(source) == expected[version]
    raw = source.read(0)
    assert raw.positive == ()
    assert raw.notes["layout"] == f"amazon {version}"
    assert raw.notes["categories_without_metadata"] == []


@every_version
def test_metadata_become_title_text_categories_and_author(tmp_path: Path, version: int) -> None:
    expected = {
        2014: (
            "Girls Ballet Tutu Zebra Hot Pink",
            None,
            ["Sports & Outdoors", "Other Sports", "Dance"],
            "Coxlures",
        ),
        2018: (
            "Girls Ballet Tutu & Zebra Hot Pink",
            "Botiquecutie Trademark exclusive Brand, Hot Pink Layered. This tutu is great for dress up play.",
            ["Sports & Outdoors", "Other Sports", "Dance & Ballet"],
            "Coxlures",
        ),
        2023: (
            "Howard LC0008 Leather Conditioner, 8-Ounce (4-Pack)",
            "Cleans, Conditions. For leather.",
            ["Beauty", "Hair Care"],
            "Howard Products",
        ),
    }
    items = write(tmp_path, version).read(0).items
    assert items is not None
    assert items.select("title", "text", "categories", "author_id").row(0) == expected[version]


@every_version
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_ratings_alone_in_the_order_of_each_version(tmp_path: Path, version: int, packed: bool) -> None:
    """2014 has user, item; 2018 item, user; 2023 a header. The leading zeros of the item stay."""
    name, text = CSV[version]
    path = tmp_path / (f"{name}.gz" if packed else name)
    path.write_bytes(gzip.compress(text.encode()) if packed else text.encode())
    source = AmazonReviewsSource(path=tmp_path, version=version)
    assert event(source) == ("A2SUAM1J3GNN3B", "0000013714", 1_252_800_000 * SECOND, True)
    assert source.read(0).items is None


@pytest.mark.parametrize(("declared", "other"), [(2014, 2018), (2018, 2014)])
def test_ratings_in_the_order_of_the_other_version_are_refused(tmp_path: Path, declared: int, other: int) -> None:
    """Read as declared, users would be items: 9 million "users" with ten letters each, and no error anywhere."""
    name, _ = CSV[declared]
    (tmp_path / name).write_text(CSV[other][1])
    with pytest.raises(DataError, match=rf"users look like items.*set source\.version: {other}"):
        AmazonReviewsSource(path=tmp_path, version=declared).read(0)


@pytest.mark.parametrize(("declared", "written"), [(2014, 2023), (2018, 2023), (2023, 2018), (2023, 2014)])
def test_keys_of_another_version_are_refused_by_name(tmp_path: Path, declared: int, written: int) -> None:
    (tmp_path / VERSIONS[declared][0]).write_text(lines(VERSIONS[written][2]))
    with pytest.raises(DataError, match=r"has no key .*set source\.version: (2014|2018|2023)"):
        AmazonReviewsSource(path=tmp_path, version=declared).read(0)


@every_version
def test_a_malformed_line_is_refused_with_file_and_line(tmp_path: Path, version: int) -> None:
    source = write(tmp_path, version, more='{"reviewerID": "A1", "asin": \n')
    found = source.read(0).interactions.collect()
    assert found[ROW].to_list() == [0, 1]
    assert found[FILE].to_list() == [0, 0]
    assert found[REFUSED].is_null().to_list() == [True, False]
    assert found[RAW].to_list()[1] == '{"reviewerID": "A1", "asin":'


@every_version
def test_unknown_keys_and_missing_ones_stop_nothing(tmp_path: Path, version: int) -> None:
    _, _, review, _ = VERSIONS[version]
    more = {**review, "a_new_key": {"nested": [1, 2]}, "overall": None, "rating": None}
    found = write(tmp_path, version, more=lines(more)).read(0).interactions.collect()
    assert found[REFUSED].null_count() == 2
    assert found["liked"].to_list()[1] is None


@every_version
def test_without_metadata_there_are_no_items_and_the_notes_say_so(tmp_path: Path, version: int) -> None:
    raw = write(tmp_path, version, metadata=False).read(0)
    assert raw.items is None
    assert raw.notes["categories_without_metadata"] == raw.notes["categories_read"]


def test_metadata_that_are_named_must_be_there(tmp_path: Path) -> None:
    write(tmp_path, 2018, metadata=False)
    with pytest.raises(DataError, match=r"no file matches .*meta_Luxury\*.*Luxury_Beauty_5\.json.*source\.metadata"):
        AmazonReviewsSource(path=tmp_path, version=2018, metadata="meta_Luxury*").read(0)


def test_several_categories_are_read_together(tmp_path: Path) -> None:
    write(tmp_path, 2018)
    (tmp_path / "Software_5.json").write_text(lines({**REVIEW_2018, "asin": "B000000001"}))
    (tmp_path / "meta_Software.json").write_text(lines({**META_2018, "asin": "B000000001", "title": "Office"}))
    source = AmazonReviewsSource(path=tmp_path, version=2018)
    raw = source.read(0)
    assert raw.interactions.collect()["item_id"].to_list() == ["5120053084", "B000000001"]
    assert raw.items is not None
    assert raw.items["title"].to_list() == ["Girls Ballet Tutu & Zebra Hot Pink", "Office"]
    assert raw.notes["categories_read"] == ["Luxury_Beauty", "Software"]
    only = AmazonReviewsSource(path=tmp_path, version=2018, reviews="Software_5.json").read(0)
    assert only.interactions.collect()["item_id"].to_list() == ["B000000001"]


@pytest.mark.parametrize("second", ["Luxury_Beauty.json", "Luxury_Beauty_5.json.gz", "Luxury_Beauty.csv"])
def test_the_same_events_in_two_files_are_refused(tmp_path: Path, second: str) -> None:
    """All reviews and the 5-core of them; packed and unpacked; reviews and ratings."""
    write(tmp_path, 2018)
    (tmp_path / second).write_bytes((tmp_path / "Luxury_Beauty_5.json").read_bytes())
    with pytest.raises(DataError, match=r"both of Luxury_Beauty.*source\.reviews"):
        AmazonReviewsSource(path=tmp_path, version=2018).read(0)
    AmazonReviewsSource(path=tmp_path, version=2018, reviews="Luxury_Beauty_5.json").read(0)


@pytest.mark.parametrize(
    "name", [".fetched.json", "Software_5.json.gz.part", "_SUCCESS.json", "Software_5.json.crdownload"]
)
def test_hidden_and_unfinished_files_are_no_categories(tmp_path: Path, name: str) -> None:
    """`recsys fetch` leaves its record in the folder, and a second fetch may be at work."""
    source = write(tmp_path, 2018)
    (tmp_path / name).write_text("{}\n")
    assert source.read(0).notes["categories_read"] == ["Luxury_Beauty"]


@pytest.mark.parametrize("named", ["sub/Software_5.json", "sub/*.json", "absolute"])
def test_reviews_may_be_named_in_another_folder(tmp_path: Path, named: str) -> None:
    write(tmp_path, 2018)
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "Software_5.json").write_text(lines({**REVIEW_2018, "asin": "B000000001"}))
    reviews = str(tmp_path / "sub" / "Software_5.json") if named == "absolute" else named
    source = AmazonReviewsSource(path=tmp_path, version=2018, reviews=reviews)
    assert source.read(0).interactions.collect()["item_id"].to_list() == ["B000000001"]
    assert sorted(source.fingerprint()) == ["meta_Luxury_Beauty.json", "sub/Software_5.json"]


def test_reviews_of_one_category_and_ratings_of_another_have_other_columns(tmp_path: Path) -> None:
    write(tmp_path, 2018)
    (tmp_path / "Software.csv").write_text(CSV[2018][1])
    with pytest.raises(DataError, match="which have other columns"):
        AmazonReviewsSource(path=tmp_path, version=2018).read(0)


@pytest.mark.parametrize("version", [2014, 2023])
def test_a_folder_of_another_version_is_refused_with_what_is_there(tmp_path: Path, version: int) -> None:
    write(tmp_path, 2018)
    with pytest.raises(DataError, match=r"no file is called like.*there are: Luxury_Beauty_5\.json"):
        AmazonReviewsSource(path=tmp_path, version=version).read(0)
    with pytest.raises(DataError, match="is no folder"):
        AmazonReviewsSource(path=tmp_path / "away", version=2018).read(0)


def test_what_the_recipe_gives_is_laid_over_the_defaults(tmp_path: Path) -> None:
    """Only verified purchases are positive; the rest of the column map stays."""
    write(tmp_path, 2018, more=lines({**REVIEW_2018, "verified": False}))
    source = AmazonReviewsSource(
        path=tmp_path, version=2018, signals=[{"name": "bought", "column": "verified"}], positive=["bought"]
    )
    raw = source.read(0)
    assert raw.interactions.collect()["bought"].to_list() == [True, False]
    assert (raw.signals, raw.positive) == (("bought",), ("bought",))
    titled = AmazonReviewsSource(path=tmp_path, version=2018, item_columns={"text": ["main_cat", "details"]})
    items = titled.read(0).items
    assert items is not None
    assert items.select("title", "text").row(0) == (
        "Girls Ballet Tutu & Zebra Hot Pink",
        "AMAZON FASHION. Product Dimensions: 10 x 4 inches",
    )


@pytest.mark.parametrize(("version", "column"), [(2014, "helpful"), (2018, "vote"), (2023, "helpful_vote")])
def test_helpful_votes_are_numbers_in_every_version(tmp_path: Path, version: int, column: str) -> None:
    """Two of three, "2" and 0 votes; then 1,234; then something that is none."""
    _, _, review, _ = VERSIONS[version]
    many = {2014: [1234, 2000], 2018: "1,234", 2023: 1234}[version]
    write(tmp_path, version, more=lines({**review, column: many}, {**review, column: {"yes": 2}}))
    signals = [{"name": "helpful", "column": column, "at_least": 100}]
    found = AmazonReviewsSource(path=tmp_path, version=version, signals=signals).read(0).interactions.collect()
    assert found["helpful"].to_list()[:2] == [False, True]
    assert found[REFUSED].is_null().to_list() == [True, True, False]


def test_the_version_is_declared_never_guessed() -> None:
    with pytest.raises(ValidationError, match="version"):
        AmazonReviewsSource(path="x")  # type: ignore[call-arg]
    with pytest.raises(ValidationError, match="2014, 2018 or 2023"):
        AmazonReviewsSource(path="x", version=2019)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("5 < 6 and I <3 it", "5 < 6 and I <3 it"),
        ("a<br/>b<BR>c", "a b c"),
        ("<style>.x {color: red}</style>Shirt", "Shirt"),
        ("<!-- hidden --> shown", "shown"),
        ("Caf&eacute;&nbsp;&#8211;&#x20;x", "Café – x"),
        ("var aPageStart = (new Date()).getTime();", None),
        ("  \n ", None),
        ("<script>f()</script>", None),
        ("<b>unclosed", "unclosed"),
        ("cut \ud83d emoji", "cut \ufffd emoji"),
        ("whole \U0001f600 emoji", "whole \U0001f600 emoji"),
    ],
)
def test_html_goes_and_signs_that_only_look_like_it_stay(text: str, expected: str | None) -> None:
    assert plain(text) == expected
