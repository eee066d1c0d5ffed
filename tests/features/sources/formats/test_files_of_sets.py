"""Files of public data sets as people have them: other case, other packing, cut off, missing, beside other files."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from pydantic import TypeAdapter

from features.sources.formats.amazon_reviews import AmazonReviewsSource
from features.sources.formats.kuairand import KuaiRandSource
from features.sources.formats.movielens import MovieLensSource
from features.sources.mapped import MappedSource
from features.sources.recbole import RecBoleSource
from recsys.contracts.errors import DataError

LOG = "user_id,video_id,time_ms,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,duration_ms\n"
REVIEW = {"reviewerID": "u7", "asin": "i1", "overall": 5.0, "unixReviewTime": 1_252_800_000, "summary": "x"}
REVIEW_2023 = {"user_id": "u7", "parent_asin": "i1", "rating": 5.0, "timestamp": 1_588_687_728_923, "title": "x"}


def video_log(video: int, time: int) -> str:
    return f"{LOG}7,{video},{time},1,0,0,0,0,1,900,1000\n"


def lines(*records: dict[str, Any]) -> str:
    return "".join(json.dumps(record) + "\n" for record in records)


@dataclass(frozen=True)
class Kind:
    """A data set in two or three files: the first is of events, the second of items."""

    source: Callable[..., MappedSource]
    files: dict[str, str]
    items: int = 1
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def events_file(self) -> str:
        return next(iter(self.files))

    @property
    def items_file(self) -> str:
        return list(self.files)[self.items]

    def write(self, folder: Path, files: dict[str, str | bytes] | None = None) -> MappedSource:
        for name, content in (self.files if files is None else files).items():
            (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
        return self.source(path=folder, **self.settings)


SETS = {
    "movielens 100k": Kind(
        MovieLensSource,
        {
            "u.data": "7\t1\t5\t881250949\n",
            "u.item": "1|Toy Story (1995)|||" + "|0" * 19 + "\n",
            "u.user": "7|49|M|w|1\n",
        },
    ),
    "movielens 1m": Kind(
        MovieLensSource,
        {
            "ratings.dat": "7::1::5::881250949\n",
            "movies.dat": "1::Toy Story (1995)::Drama\n",
            "users.dat": "7::F::1::2::3\n",
        },
    ),
    "movielens csv": Kind(
        MovieLensSource,
        {
            "ratings.csv": "userId,movieId,rating,timestamp\n7,1,4.5,881250949\n",
            "movies.csv": 'movieId,title,genres\n1,"Toy, Story (1995)",Drama\n',
        },
    ),
    "kuairand": Kind(
        KuaiRandSource,
        {
            "log_standard_4_08_to_4_21_pure.csv": video_log(1, 1_650_000_000_000),
            "log_standard_4_22_to_5_08_pure.csv": video_log(2, 1_651_000_000_000),
            "video_features_basic_pure.csv": "video_id,author_id,video_type,upload_type,tag\n1,4,NORMAL,Web,12\n",
            "user_features_pure.csv": "user_id,user_active_degree\n7,UNKNOWN\n",
        },
        items=2,
    ),
    "amazon 2014": Kind(
        AmazonReviewsSource,
        {"reviews_Beauty_5.json": lines(REVIEW), "meta_Beauty.json": "{'asin': 'i1', 'title': \"Bob's\"}\n"},
        settings={"version": 2014},
    ),
    "amazon 2018": Kind(
        AmazonReviewsSource,
        {"Beauty_5.json": lines(REVIEW), "meta_Beauty.json": lines({"asin": "i1", "title": "Bob's"})},
        settings={"version": 2018},
    ),
    "amazon 2023": Kind(
        AmazonReviewsSource,
        {"Beauty.jsonl": lines(REVIEW_2023), "meta_Beauty.jsonl": lines({"parent_asin": "i1", "title": "Bob's"})},
        settings={"version": 2023},
    ),
    "recbole": Kind(
        RecBoleSource,
        {
            "shop.inter": "user_id:token\titem_id:token\ttimestamp:float\n7\t1\t881250949\n",
            "shop.item": "item_id:token\ttitle:token_seq\n1\tToy Story\n",
            "shop.user": "user_id:token\tage:token\n7\t49\n",
        },
        settings={"name": "shop", "timestamp_unit": "s", "item_columns": {"title": ["title"]}},
    ),
}
every_set = pytest.mark.parametrize("kind", SETS.values(), ids=list(SETS))
RATINGS = Kind(
    AmazonReviewsSource,
    {"Beauty.csv": "user_id,parent_asin,rating,timestamp\n7,Toy,5.0,1588687728923\n"},
    items=0,
    settings={"version": 2023},
)
PUBLISHED = {name: kind for name, kind in SETS.items() if name != "recbole"}
every_published_set = pytest.mark.parametrize("kind", PUBLISHED.values(), ids=list(PUBLISHED))


def capitals(name: str) -> str:
    """As Windows or a mirror may write it; of RecBole's files the stem is a name, and the ending is not."""
    return name.replace(".i", ".I").replace(".u", ".U") if name.startswith("shop") else name.upper()


def shown(source: MappedSource) -> tuple[Any, ...]:
    raw = source.read(0)
    assert raw.items is not None
    return raw.interactions.collect().select("user_id", "item_id", "timestamp").rows(), raw.items.select(
        pl.coalesce("title", "text")
    ).to_series().to_list()


@every_set
@pytest.mark.parametrize("which", ["all", "events", "items"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "GZ"])
def test_upper_and_lower_case_are_the_same_name(tmp_path: Path, kind: Kind, which: str, packed: bool) -> None:
    for folder in ("as_published", "as_found"):
        (tmp_path / folder).mkdir()
    expected = shown(kind.write(tmp_path / "as_published"))
    assert expected[0]
    assert expected[1][0] is not None
    changed = {"all": set(kind.files), "events": {kind.events_file}, "items": {kind.items_file}}[which]
    files: dict[str, str | bytes] = {}
    for name, content in kind.files.items():
        if name not in changed:
            files[name] = content
        elif packed:
            files[f"{capitals(name)}.GZ"] = gzip.compress(content.encode())
        else:
            files[capitals(name)] = content
    assert shown(kind.write(tmp_path / "as_found", files)) == expected


@every_set
@pytest.mark.parametrize("ending", [".zst", ".bz2", ".zip", ".XZ"])
@pytest.mark.parametrize("which", ["events", "items"])
def test_a_file_that_is_packed_in_another_way_is_named(tmp_path: Path, kind: Kind, ending: str, which: str) -> None:
    """Half of a log, or all titles, would be missing without a word."""
    name = kind.events_file if which == "events" else kind.items_file
    source = kind.write(
        tmp_path, {f"{one}{ending}" if one == name else one: content for one, content in kind.files.items()}
    )
    with pytest.raises(DataError, match=rf"{re.escape(name + ending)}' belongs to the data set and is packed in a way"):
        source.read(0)
    (tmp_path / name).write_text(kind.files[name])
    assert shown(kind.source(path=tmp_path, **kind.settings))[1][0] is not None  # unpacked beside it


@every_set
@pytest.mark.parametrize("damage", ["early", "late", "bytes"])
@pytest.mark.parametrize("which", ["events", "items"])
def test_a_packed_file_that_is_damaged_is_named_wherever_it_ends(
    tmp_path: Path, kind: Kind, damage: str, which: str
) -> None:
    """The layout is looked at before rows are read, and an end there is no end of the terminal."""
    name = kind.events_file if which == "events" else kind.items_file
    content = bytearray(gzip.compress(kind.files[name].encode() * 50))
    if damage == "bytes":
        content[12:20] = bytes(value ^ 0xFF for value in content[12:20])
    cut = {"early": 16, "late": len(content) - 6, "bytes": len(content)}[damage]
    files = {one: text for one, text in kind.files.items() if one != name}
    source = kind.write(tmp_path, {**files, f"{name}.gz": bytes(content[:cut])})
    with pytest.raises(DataError, match=rf"{re.escape(name)}\.gz' cannot be read: .* is cut off or damaged"):
        source.read(0).interactions.collect()


@every_published_set
def test_metadata_that_are_not_there_are_a_warning(tmp_path: Path, kind: Kind) -> None:
    """Their columns are defaults of the source: nobody asked for them by name."""
    whole = kind.write(tmp_path).read(0)
    assert "warnings" not in whole.notes
    (tmp_path / kind.items_file).unlink()
    raw = kind.source(path=tmp_path, **kind.settings).read(0)
    assert raw.items is None
    (warning,) = raw.notes["warnings"]  # type: ignore[misc]
    assert kind.items_file.split(".")[0] in warning or "meta_X for Beauty" in warning
    assert "have no title" in warning


@pytest.mark.parametrize(
    ("name", "gone", "settings", "said"),
    [
        ("recbole", "shop.item", {}, r"source\.item_columns names title, and 'shop\.item' in .* is not there"),
        (
            "recbole",
            "shop.user",
            {"user_columns": ["age"]},
            r"user_columns names age, and 'shop\.user' in .* is not there",
        ),
        ("movielens 1m", "users.dat", {"user_columns": ["age"]}, r"user_columns names age, and 'users\.dat' in"),
        (
            "movielens csv",
            None,
            {"user_columns": ["age"]},
            r"a table of users \(the csv layout has none\) is not there",
        ),
        ("kuairand", "user_features_pure.csv", {"user_columns": ["age"]}, r"and 'user_features_pure\.csv' in"),
        ("amazon 2018", None, {"user_columns": ["age"]}, r"user_columns names age, and a table of users is not there"),
    ],
)
def test_columns_that_are_named_of_a_table_that_is_not_there(
    tmp_path: Path, name: str, gone: str | None, settings: dict[str, Any], said: str
) -> None:
    """A recipe that asks for the age of users must not be answered without."""
    SETS[name].write(tmp_path, {one: text for one, text in SETS[name].files.items() if one != gone})
    source = SETS[name].source(path=tmp_path, **(SETS[name].settings | settings))
    with pytest.raises(DataError, match=said):
        source.read(0)


@pytest.mark.parametrize(
    ("gone", "parts", "missing"),
    [
        (["4_08_to_4_21_pure"], {}, ["4_08_to_4_21_pure"]),
        (["4_22_to_5_08_pure"], {}, ["4_22_to_5_08_pure"]),
        (["4_08_to_4_21_pure"], {"4_08_to_4_21_pure": [1, 2, 3]}, []),
        (["4_08_to_4_21_pure"], {"4_08_to_4_21_pure": [2]}, ["4_08_to_4_21_pure_part1"]),
        (["4_22_to_5_08_pure"], {"4_22_to_5_08_pure": [1, 4]}, ["4_22_to_5_08_pure_part2", "4_22_to_5_08_pure_part3"]),
    ],
)
def test_a_log_of_kuairand_that_is_not_whole_is_named(
    tmp_path: Path, gone: list[str], parts: dict[str, list[int]], missing: list[str]
) -> None:
    files: dict[str, str | bytes] = {
        name: text for name, text in SETS["kuairand"].files.items() if not any(one in name for one in gone)
    }
    for stem, numbers in parts.items():
        files |= {f"log_standard_{stem}_part{number}.csv": video_log(9, 1_650_000_000_000) for number in numbers}
    raw = SETS["kuairand"].write(tmp_path, files).read(0)
    named = [warning for warning in raw.notes.get("warnings", []) if "log is not whole" in warning]  # type: ignore[attr-defined]
    listed = ", ".join(f"log_standard_{one}.csv" for one in missing)
    assert named == (
        [f"the log is not whole: {listed} not there; fetch it, if it is not left out on purpose"] * bool(missing)
    )


@every_published_set
def test_what_lies_beside_the_files_of_a_set_is_listed(tmp_path: Path, kind: Kind) -> None:
    kind.write(tmp_path)
    assert "ignored_files" not in kind.source(path=tmp_path, **kind.settings).read(0).notes
    copy = f"{kind.events_file} (1)"
    for name in ("README.txt", copy, ".hidden", "ratings.part"):
        (tmp_path / name).write_text("x")
    notes = kind.source(path=tmp_path, **kind.settings).read(0).notes
    assert notes["ignored_files"] == sorted(["README.txt", copy])


def recoded(text: str) -> bytes:
    return text.replace("Toy", "Café").replace("NORMAL", "Café").encode("latin-1")


@pytest.mark.parametrize("kind", [SETS["movielens csv"], SETS["kuairand"], RATINGS], ids=["films", "videos", "ratings"])
@pytest.mark.parametrize(
    "damage",
    [
        recoded,
        lambda text: text.replace(",", ";").encode(),
        lambda text: text.split("\n", 1)[1].encode(),
        lambda text: text.replace(",", ',"', 1).encode(),
        lambda text: (text.split("\n", 1)[0] + "\n1\n2\n").encode(),
        lambda text: b"# made\n" + text.encode(),
    ],
    ids=["latin-1", "semicolons", "no header", "open quote", "too few fields", "remark"],
)
def test_a_message_names_no_key_that_the_source_does_not_have(
    tmp_path: Path, kind: Kind, damage: Callable[[str], bytes]
) -> None:
    """`source.encoding` and its like belong to `kind: table`; a recipe of another kind is refused with them."""
    source = kind.write(tmp_path, {**kind.files, kind.items_file: damage(kind.files[kind.items_file])})
    with pytest.raises(DataError) as caught:
        source.read(0).interactions.collect()
    for key in re.findall(r"source\.(\w+)(?! \(of kind: table\))\b", str(caught.value)):
        assert key in (*type(source).model_fields, "items"), str(caught.value)


def test_a_log_of_refused_lines_alone_says_why(tmp_path: Path) -> None:
    """A rating written as text: the times are right, and are not to be blamed."""
    kind = SETS["amazon 2018"]
    source = kind.write(tmp_path, {**kind.files, kind.events_file: lines({**REVIEW, "overall": "5.0"})})
    with pytest.raises(
        DataError, match=r"no line is a record\. 'Beauty_5.json', line 1, is refused \('overall' is a text"
    ):
        source.read(0).interactions.collect()


@pytest.mark.parametrize(("title", "same"), [("class", True), ("title", False)])
def test_a_sequence_is_one_text_or_words_and_not_both(tmp_path: Path, title: str, same: bool) -> None:
    kind = SETS["recbole"]
    files: dict[str, str | bytes] = {
        **kind.files,
        "shop.item": "item_id:token\ttitle:token_seq\tclass:token_seq\n1\tToy Story\tDrama War\n",
    }
    settings = {**kind.settings, "item_columns": {"title": [title], "categories": ["class"]}}
    kind.write(tmp_path, files)
    source = TypeAdapter(RecBoleSource).validate_python({"path": str(tmp_path), **settings})
    if same:
        with pytest.raises(DataError, match="'class' is a sequence and both a title"):
            source.read(0)
    else:
        items = source.read(0).items
        assert items is not None
        assert items.select("title", "categories").rows() == [("Toy Story", ["Drama", "War"])]
