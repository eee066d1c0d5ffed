"""MovieLens 100K, 1M, 20M, 25M and 32M (and the small and 10M releases of the same forms) in their original files.

Reads a folder; produces ``RawTables``. Which files are there says which layout it is:

    layout   ratings                       movies                              users
    100k     u.data, tabs                  u.item, '|', Latin-1, genre flags   u.user, '|'
    1m       ratings.dat, '::'             movies.dat, '::', Latin-1           users.dat, '::'
    csv      ratings.csv                   movies.csv                          none

Files without a header get the names that the CSV releases use: ``userId, movieId, rating, timestamp, title, genres``. Every
file may be packed with gzip.

Source: README of each release (Harper and Konstan 2015).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, get_args

import polars as pl

from features.reading import OpenedTable, TextFormat, open_text
from features.reading.errors import explain_file_errors
from features.sources.derived import Derived, DerivedTable
from features.sources.formats.json_lines import open_bytes
from features.sources.formats.layout import REMEDY, FormatSource, named, refuse_packed, there
from features.sources.mapped import TableKind
from recsys.contracts.errors import DataError

Layout = Literal["100k", "1m", "csv"]

GENRES_100K: Final = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)
"""In the order of the flags of ``u.item``, as in ``u.genre``."""

_RATING: Final = ("userId", "movieId", "rating", "timestamp")
_FLAG: Final = "flag "


@dataclass(frozen=True)
class _Files:
    """A layout.

    Attributes:
        names: Table -> file.
        separator, quote: Of all its files but ``u.data``.
        headers: Table -> names of the columns, for files without a header.
    """

    names: Mapping[str, str]
    separator: str
    quote: str | None
    headers: Mapping[str, tuple[str, ...]]


_LAYOUTS: Final[dict[str, _Files]] = {
    "100k": _Files(
        {"interactions": "u.data", "items": "u.item", "users": "u.user"},
        "|",
        None,
        {
            "interactions": _RATING,
            "items": (
                *("movieId", "title", "release_date", "video_release_date", "imdb_url"),
                *(f"{_FLAG}{genre}" for genre in GENRES_100K),
            ),
            "users": ("userId", "age", "gender", "occupation", "zip_code"),
        },
    ),
    "1m": _Files(
        {"interactions": "ratings.dat", "items": "movies.dat", "users": "users.dat"},
        "::",
        None,
        {
            "interactions": _RATING,
            "items": ("movieId", "title", "genres"),
            "users": ("userId", "gender", "age", "occupation", "zip_code"),
        },
    ),
    "csv": _Files({"interactions": "ratings.csv", "items": "movies.csv"}, ",", '"', {}),
}


class MovieLensSource(FormatSource):
    """A MovieLens release in its original files.

    Every rating is an event, as in the published next-item results; the signal ``liked`` (4 stars or more) is declared and
    decides nothing until ``positive: [liked]`` is given. Ids are integers, as the READMEs say. The title holds the year;
    it is a column ``year`` of its own as well.

    Attributes:
        layout: ``100k``, ``1m`` or ``csv``; not given: the one whose ratings are in the folder.
        kind: Names this form of source.
        user_id_column: Id column of the table of users.

    Example:
        >>> MovieLensSource(path="ml-1m").item_columns.categories[0].separator
        '|'
    """

    kind: Literal["movielens"] = "movielens"
    layout: Layout | None = None

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that all releases share."""
        genres = {"column": "genres", "separator": "|", "missing": ["(no genres listed)", "unknown"]}
        return {
            "columns": {"user_id": "userId", "item_id": "movieId"},
            "types": {"userId": "integer", "movieId": "integer"},
            "timestamp_unit": "s",
            "signals": [{"name": "liked", "column": "rating", "at_least": 4}],
            "item_columns": {"item_id": "movieId", "title": ["title"], "text": [genres], "categories": [genres]},
            "user_id_column": "userId",
        }

    @property
    def facts(self) -> dict[str, object]:
        """The layout, its files, and the encoding of the titles."""
        layout, _ = self._found()
        items = self._path("items")
        return {
            "layout": f"movielens {layout}",
            "files_read": [path.name for path in self._files()],
            "encoding_of_titles": _encoding(items, layout) if items is not None else None,
        }

    def _files(self) -> Iterator[Path]:
        for table in _LAYOUTS[self._found()[0]].names:
            path = self._path(table)
            if path is not None:
                yield path

    def _found(self) -> tuple[Layout, Path]:
        """Return the layout and the folder of its files: ``path``, or the one folder in it that has them.

        Raises:
            DataError: Nowhere are ratings, or in several layouts or folders.
        """
        if not self.path.is_dir():
            raise DataError(
                f"'{self.path}' is no folder; set source.path to the folder that a MovieLens archive unpacks to"
            )
        for folders in ([self.path], sorted(one for one in self.path.iterdir() if one.is_dir())):
            found = [
                (layout, folder)
                for folder in folders
                for layout in get_args(Layout)
                if self.layout in (None, layout) and _in(folder, _LAYOUTS[layout].names["interactions"])
            ]
            if len(found) > 1:
                shown = ", ".join(f"{layout} in '{folder}'" for layout, folder in found)
                raise DataError(
                    f"'{self.path}' holds several MovieLens layouts: {shown}; set source.layout, or source.path to "
                    "one folder"
                )
            if found:
                return found[0]
        wanted = [self.layout] if self.layout is not None else list(_LAYOUTS)
        files = " or ".join(f"{_LAYOUTS[layout].names['interactions']} ({layout})" for layout in wanted)
        raise DataError(f"'{self.path}' has no MovieLens ratings: expected {files}; {there(self.path)}")

    def _path(self, table: str) -> Path | None:
        layout, folder = self._found()
        name = _LAYOUTS[layout].names.get(table)
        return None if name is None else _in(folder, name)

    def _expected(self, kind: TableKind) -> str:
        layout, folder = self._found()
        name = _LAYOUTS[layout].names.get(kind)
        return f"a table of {kind} (the {layout} layout has none)" if name is None else f"'{name}' in '{folder.name}'"

    def _open(self, kind: TableKind) -> OpenedTable | None:
        path = self._path(kind)
        if path is None:
            return None
        layout, folder = self._found()
        form = _LAYOUTS[layout]
        text = TextFormat(
            separator="\t" if path.name.lower().startswith("u.data") else form.separator,
            quote=form.quote,
            encoding=_encoding(path, layout) if kind == "items" else "utf-8",
            header=form.headers.get(kind, ()),
            remedy=REMEDY,
            encoding_key=False,
        )
        table = open_text([path], folder, text)
        return DerivedTable(table, _derived(layout)) if kind == "items" else table


def _in(folder: Path, name: str) -> Path | None:
    """Return the file, plain or packed.

    Raises:
        DataError: It is there in both forms.
    """
    paths = named(folder, name)
    if len(paths) > 1:
        raise DataError(f"'{folder}' holds '{paths[0].name}' and '{paths[1].name}'; delete one of them")
    if not paths:
        refuse_packed(folder, lambda bare: bare.lower() == name)
    return paths[0] if paths else None


def _encoding(path: Path, layout: Layout) -> str:
    """100K and 1M are Latin-1, the later releases UTF-8; the 10M release has the form of 1M and is UTF-8."""
    if layout == "csv":
        return "utf-8"
    with explain_file_errors(path), open_bytes(path) as file:
        content = file.read()  # some hundred kilobytes
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return "latin-1"
    return "utf-8"


def _derived(layout: Layout) -> dict[str, Derived]:
    year = Derived(("title",), pl.col("title").str.extract(r"\((\d{4})\)\s*$", 1), pl.String())
    if layout != "100k":
        return {"year": year}
    flags = tuple(f"{_FLAG}{genre}" for genre in GENRES_100K)
    names = [pl.when(pl.col(flag) == "1").then(pl.lit(flag.removeprefix(_FLAG))) for flag in flags]
    return {"year": year, "genres": Derived(flags, pl.concat_str(names, separator="|", ignore_nulls=True), pl.String())}
