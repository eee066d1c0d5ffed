"""MovieLens in its original files: tabs, '|' with genre flags, '::', CSV with quoted titles; which layout a folder is."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from features.sources.base import REFUSED, ROW
from features.sources.formats.movielens import GENRES_100K, MovieLensSource
from recsys.contracts.errors import DataError

SECOND = 10**6

TOY_STORY = (
    "1|Toy Story (1995)|01-Jan-1995||http://us.imdb.com/M/title-exact?Toy%20Story%20(1995)|0|0|0|1|1|1" + "|0" * 13
)
AMELIE = '2|Été "meurtrier", L\' (1983)|01-Jan-1983||' + "|0" * 8 + "|1" + "|0" * 10
UNKNOWN = "3|unknown||||1" + "|0" * 18
LAYOUTS: dict[str, dict[str, bytes]] = {
    "100k": {
        "u.data": b"196\t2\t3\t881250949\n186\t1\t5\t891717742\n",
        "u.item": "\n".join([TOY_STORY, AMELIE, UNKNOWN, ""]).encode("latin-1"),
        "u.user": b"196|49|M|writer|55105\n186|39|F|executive|00000\n",
    },
    "1m": {
        "ratings.dat": b"196::2::3::881250949\n186::1::5::891717742\n",
        "movies.dat": (
            "1::Toy Story (1995)::Animation|Children's|Comedy\n2::Été \"meurtrier\", L' (1983)::Drama\n3::unknown::unknown\n"
        ).encode("latin-1"),
        "users.dat": b"196::M::45::20::55105\n186::F::35::7::00000\n",
    },
    "csv": {
        "ratings.csv": b"userId,movieId,rating,timestamp\n196,2,3.0,881250949\n186,1,4.5,891717742\n",
        "movies.csv": (
            "movieId,title,genres\n1,Toy Story (1995),Animation|Children's|Comedy\n"
            '2,"Été ""meurtrier"", L\' (1983)",Drama\n'
            "3,unknown,(no genres listed)\n"
        ).encode(),
        "tags.csv": b"userId,movieId,tag,timestamp\n",
        "links.csv": b"movieId,imdbId,tmdbId\n",
    },
}
every_layout = pytest.mark.parametrize("layout", list(LAYOUTS))


def write(folder: Path, layout: str, *, packed: bool = False, leave_out: str | None = None) -> MovieLensSource:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in LAYOUTS[layout].items():
        if name != leave_out:
            (folder / (f"{name}.gz" if packed else name)).write_bytes(gzip.compress(content) if packed else content)
    return MovieLensSource(path=folder)


@every_layout
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_ratings_are_events_and_four_stars_are_liked(tmp_path: Path, layout: str, packed: bool) -> None:
    raw = write(tmp_path, layout, packed=packed).read(0)
    found = raw.interactions.collect()
    assert found.select("user_id", "item_id", "timestamp", "liked").rows() == [
        (196, 2, 881_250_949 * SECOND, False),
        (186, 1, 891_717_742 * SECOND, True),
    ]
    assert found[REFUSED].null_count() == 2
    assert raw.positive == ()
    assert raw.notes["layout"] == f"movielens {layout}"


@every_layout
def test_titles_keep_commas_quotes_accents_and_year(tmp_path: Path, layout: str) -> None:
    """100K and 1M are Latin-1 with bare quotes; the CSV doubles them inside quotes and is UTF-8. Some have no genre."""
    raw = write(tmp_path, layout).read(0)
    assert raw.items is not None
    assert raw.items.select("item_id", "title", "categories").rows() == [
        (1, "Toy Story (1995)", ["Animation", "Children's", "Comedy"]),
        (2, 'Été "meurtrier", L\' (1983)', ["Drama"]),
        (3, "unknown", None),
    ]
    assert raw.items["text"].to_list() == ["Animation, Children's, Comedy", "Drama", None]
    assert raw.notes["encoding_of_titles"] == ("utf-8" if layout == "csv" else "latin-1")


@every_layout
def test_the_year_is_a_column_of_its_own(tmp_path: Path, layout: str) -> None:
    write(tmp_path, layout)
    items = MovieLensSource(path=tmp_path, item_columns={"text": ["year"]}).read(0).items
    assert items is not None
    assert items["text"].to_list() == ["1995", "1983", None]


@pytest.mark.parametrize("layout", ["100k", "1m"])
def test_users_have_attributes_and_zip_codes_keep_their_zeros(tmp_path: Path, layout: str) -> None:
    write(tmp_path, layout)
    users = MovieLensSource(path=tmp_path, user_columns=["gender", "zip_code"]).read(0).users
    assert users is not None
    assert users.rows() == [(196, "M", "55105"), (186, "F", "00000")]


def test_the_csv_releases_have_no_users(tmp_path: Path) -> None:
    assert write(tmp_path, "csv").read(0).users is None


@every_layout
def test_films_and_users_may_be_missing(tmp_path: Path, layout: str) -> None:
    films = list(LAYOUTS[layout])[1]
    raw = write(tmp_path, layout, leave_out=films).read(0)
    assert raw.items is None
    assert films not in raw.notes["files_read"]  # type: ignore[operator]


@every_layout
def test_a_malformed_line_is_refused_with_its_line(tmp_path: Path, layout: str) -> None:
    """A field too few, then a timestamp that is none."""
    write(tmp_path, layout)
    name = next(iter(LAYOUTS[layout]))
    between = {"100k": "\t", "1m": "::", "csv": ","}[layout]
    with (tmp_path / name).open("a") as file:
        file.write(between.join(["7", "1", "5"]) + "\n" + between.join(["7", "1", "5", "yesterday"]) + "\n")
    found = MovieLensSource(path=tmp_path).read(0).interactions.collect()
    header = 1 if layout == "csv" else 0
    assert found[ROW].to_list() == [header, header + 1, header + 2, header + 3]
    assert found[REFUSED].is_null().to_list() == [True, True, False, False]


def test_a_column_more_in_a_csv_stops_nothing(tmp_path: Path) -> None:
    write(tmp_path, "csv")
    (tmp_path / "ratings.csv").write_text("userId,movieId,rating,timestamp,device\n196,2,3.0,881250949,phone\n")
    assert MovieLensSource(path=tmp_path).read(0).interactions.collect()["item_id"].to_list() == [2]


@pytest.mark.parametrize(("one", "other"), [("100k", "1m"), ("1m", "csv"), ("100k", "csv")])
def test_two_layouts_in_a_folder_are_refused_and_one_may_be_named(tmp_path: Path, one: str, other: str) -> None:
    write(tmp_path, one)
    write(tmp_path, other)
    with pytest.raises(DataError, match=rf"several MovieLens layouts: {one} in .*, {other} in .*set source\.layout"):
        MovieLensSource(path=tmp_path).read(0)
    raw = MovieLensSource(path=tmp_path, layout=other).read(0)  # type: ignore[arg-type]
    assert raw.notes["layout"] == f"movielens {other}"


def test_the_folder_that_an_archive_unpacks_to_is_found(tmp_path: Path) -> None:
    write(tmp_path / "ml-1m", "1m")
    assert len(MovieLensSource(path=tmp_path).read(0).interactions.collect()) == 2
    write(tmp_path / "ml-100k", "100k")
    with pytest.raises(DataError, match="several MovieLens layouts"):
        MovieLensSource(path=tmp_path).read(0)


def test_packed_and_unpacked_beside_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "1m")
    write(tmp_path, "1m", packed=True)
    with pytest.raises(DataError, match=r"holds 'ratings\.dat' and 'ratings\.dat\.gz'"):
        MovieLensSource(path=tmp_path).read(0)


def test_a_folder_without_ratings_says_what_is_expected_and_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "movies.csv").write_text("movieId,title,genres\n")
    with pytest.raises(DataError, match=r"expected u\.data \(100k\) or ratings\.dat.*there are: movies\.csv"):
        MovieLensSource(path=tmp_path).read(0)
    with pytest.raises(DataError, match=r"expected ratings\.dat \(1m\); there are"):
        MovieLensSource(path=tmp_path, layout="1m").read(0)
    with pytest.raises(DataError, match="is no folder"):
        MovieLensSource(path=tmp_path / "away").read(0)


def test_the_10m_release_has_the_form_of_1m_and_is_utf8(tmp_path: Path) -> None:
    (tmp_path / "ratings.dat").write_text("1::122::3.5::838985046\n")
    (tmp_path / "movies.dat").write_text("122::Été (1992)::Comedy\n", encoding="utf-8")
    raw = MovieLensSource(path=tmp_path).read(0)
    assert raw.items is not None
    assert raw.items["title"].to_list() == ["Été (1992)"]
    assert raw.notes["encoding_of_titles"] == "utf-8"


def test_ids_may_be_declared_as_text(tmp_path: Path) -> None:
    write(tmp_path, "csv")
    source = MovieLensSource(path=tmp_path, types={"userId": "text", "movieId": "text"})
    assert source.read(0).interactions.collect()["item_id"].to_list() == ["2", "1"]


def test_nineteen_genres() -> None:
    assert len(GENRES_100K) == 19
