"""Amazon reviews of 2014, 2018 and 2023 with their metadata, and the files that hold ratings alone.

Reads the files of the McAuley lab; produces ``RawTables``. Every review is an event; ratings are a signal, not a filter.

    version  reviews                            ratings alone                           metadata
    2014     reviews_X.json, reviews_X_5.json   ratings_X.csv (user, item, …)           meta_X.json, Python dictionaries
    2018     X.json, X_5.json                   X.csv (item, user, …)                   meta_X.json
    2023     X.jsonl                            X.csv (user_id,parent_asin,…; header)   meta_X.jsonl

All of them may be packed with gzip. ``X`` is a category; several in one folder are read together.

Source: McAuley et al. 2015, Ni et al. 2019, Hou et al. 2024, and the pages of the data sets.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, Literal

import polars as pl

from features.reading import OpenedTable, TextFormat, find_files, open_text
from features.reading.errors import explain_file_errors
from features.sources.formats.amazon_text import BRAND, CATEGORIES, DETAILS, TEXTS, TITLE, VOTES
from features.sources.formats.json_lines import (
    BOOLEAN,
    INTEGER,
    NUMBER,
    TEXT,
    JsonField,
    JsonLinesTable,
    open_bytes,
    parse_object,
)
from features.sources.formats.layout import (
    REMEDY,
    FormatSource,
    files_in,
    refuse_packed,
    refuse_two_of_one,
    there,
)
from features.sources.mapped import TableKind
from recsys.contracts.errors import DataError

Version = Literal[2014, 2018, 2023]

_OLD_REVIEW: Final[dict[str, JsonField]] = {
    "reviewerID": TEXT,
    "asin": TEXT,
    "overall": NUMBER,
    "unixReviewTime": INTEGER,
    "reviewTime": TEXT,
    "reviewerName": TEXT,
    "summary": TEXT,
    "reviewText": TEXT,
}
_REVIEW: Final[dict[int, dict[str, JsonField]]] = {
    2014: {**_OLD_REVIEW, "helpful": VOTES},
    2018: {**_OLD_REVIEW, "verified": BOOLEAN, "vote": VOTES},
    2023: {
        "user_id": TEXT,
        "parent_asin": TEXT,
        "asin": TEXT,
        "rating": NUMBER,
        "timestamp": INTEGER,
        "verified_purchase": BOOLEAN,
        "helpful_vote": INTEGER,
        "title": TEXT,
        "text": TEXT,
    },
}
_METADATA: Final[dict[int, dict[str, JsonField]]] = {
    2014: {"asin": TEXT, "title": TITLE, "description": TEXTS, "categories": CATEGORIES, "brand": BRAND},
    2018: {
        "asin": TEXT,
        "title": TITLE,
        "description": TEXTS,
        "feature": TEXTS,
        "category": CATEGORIES,
        "brand": BRAND,
        "main_cat": TITLE,
        "tech1": DETAILS,
        "tech2": DETAILS,
        "details": DETAILS,
    },
    2023: {
        "parent_asin": TEXT,
        "title": TITLE,
        "description": TEXTS,
        "features": TEXTS,
        "categories": CATEGORIES,
        "store": TITLE,
        "main_category": TITLE,
        "details": DETAILS,
    },
}
_CSV_HEADER: Final[dict[int, tuple[str, ...]]] = {
    2014: ("reviewerID", "asin", "overall", "unixReviewTime"),
    2018: ("asin", "reviewerID", "overall", "unixReviewTime"),
    2023: (),  # the first line names the columns
}
_NAMES: Final[dict[int, re.Pattern[str]]] = {
    2014: re.compile(r"(?:reviews|ratings)_(.+?)(?:_5)?\.(?:json|csv)(?:\.gz)?", re.IGNORECASE),
    2018: re.compile(r"(?!meta_)(.+?)(?:_5)?\.(?:json|csv)(?:\.gz)?", re.IGNORECASE),
    2023: re.compile(r"(?!meta_)(.+?)\.(?:jsonl|csv)(?:\.gz)?", re.IGNORECASE),
}
_META_NAME: Final = re.compile(r"meta_(.+?)\.jsonl?(?:\.gz)?", re.IGNORECASE)
_ITEM_LIKE: Final = r"^(?:B[0-9A-Z]{9}|[0-9]{9}[0-9X])$"
_USER_LIKE: Final = r"^A[0-9A-Z]{10,}$"
_NAMED: Final = 5
_LOOKED_AT: Final = 20
"""Lines whose keys, or rows whose ids, tell whether the declared version is right."""


class AmazonReviewsSource(FormatSource):
    """Amazon reviews and metadata, one or several categories.

    Every review is an event. The signal ``liked`` (4 stars or more) is declared and, as ``positive`` is empty, decides
    nothing until ``positive: [liked]`` is given. Times of 2014 and 2018 are days, so many events of a user tie.

    Attributes:
        version: Of the data set; decides keys, units and the order of columns.
        reviews: File or pattern inside ``path``; not given: the files that are called as the publisher calls them.
        metadata: File or pattern inside ``path``; not given: the files ``meta_*``, if there are any.
        kind: Names this form of source.
        user_id_column: The data set has no table of users.

    Example:
        >>> AmazonReviewsSource(path="games", version=2018, columns={"session_id": None}).columns.user_id
        'reviewerID'
    """

    kind: Literal["amazon_reviews"] = "amazon_reviews"
    version: Version
    reviews: str | None = None
    metadata: str | None = None

    @classmethod
    def defaults(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Return the keys that the version decides."""
        if given.get("version") == 2023:
            names, unit, rating = (
                {"user_id": "user_id", "item_id": "parent_asin", "timestamp": "timestamp"},
                "ms",
                "rating",
            )
            items = {"text": ["features", "description"], "categories": ["categories"], "author": ["store"]}
        else:
            names, unit = {"user_id": "reviewerID", "item_id": "asin", "timestamp": "unixReviewTime"}, "s"
            rating = "overall"
            text = ["description"] if given.get("version") == 2014 else ["feature", "description"]
            categories = "categories" if given.get("version") == 2014 else "category"
            items = {"text": text, "categories": [categories], "author": ["brand"]}
        return {
            "columns": names,
            "timestamp_unit": unit,
            "signals": [{"name": "liked", "column": rating, "at_least": 4}],
            "item_columns": {"item_id": names["item_id"], "title": ["title"], **items},
        }

    @property
    def facts(self) -> dict[str, object]:
        """Categories, and those without metadata."""
        categories = sorted({_category(path, _NAMES[self.version]) for path in self._reviews()})
        known = {_category(path, _META_NAME).lower() for path in self._metadata()}
        without = [name for name in categories if name.lower() not in known]
        facts: dict[str, object] = {
            "layout": f"amazon {self.version}",
            "categories_read": categories,
            "categories_without_metadata": without,
        }
        if without:
            listed = (
                f"{', '.join(without[:_NAMED])}{f' and {len(without) - _NAMED} more' if len(without) > _NAMED else ''}"
            )
            facts["warnings"] = [
                f"no file of metadata is called meta_X for {listed}: their items have no title, text, brand"
            ]
        return facts

    def _absent(self, kind: TableKind) -> Mapping[str, object]:
        return {} if kind == "items" else super()._absent(kind)  # the facts name the categories

    def _files(self) -> Iterator[Path]:
        yield from self._reviews()
        yield from self._metadata()

    def _open(self, kind: TableKind) -> OpenedTable | None:
        if kind == "interactions":
            return self._open_reviews()
        metadata = self._metadata() if kind == "items" else []
        if not metadata:
            return None
        loose = self.version == 2014
        where = str(metadata[0] if len(metadata) == 1 else self._root() / (self.metadata or "meta_*"))
        return JsonLinesTable(metadata, self._root(), _METADATA[self.version], where, loose=loose)

    def _open_reviews(self) -> OpenedTable:
        paths = self._reviews()
        where = str(paths[0] if len(paths) == 1 else self._root() / (self.reviews or "*"))
        tables = [path for path in paths if ".csv" in (suffix.lower() for suffix in path.suffixes)]
        if tables and len(tables) < len(paths):
            other = next(path for path in paths if path not in tables)
            raise DataError(
                f"'{self._root()}' holds reviews ('{other.name}') and ratings alone ('{tables[0].name}'), which have other "
                "columns; name one kind: source.reviews: '*.csv'"
            )
        if not tables:
            for path in paths:
                self._check_keys(path)
            return JsonLinesTable(paths, self._root(), _REVIEW[self.version], where, loose=self.version == 2014)
        opened = open_text(
            paths, self._root(), TextFormat(header=_CSV_HEADER[self.version], remedy=REMEDY, encoding_key=False), where
        )
        if self.version != 2023:
            self._check_order(opened)
        return opened

    def _reviews(self) -> list[Path]:
        if self.path.is_file():
            return [self.path]
        names = _NAMES[self.version]
        refuse_packed(self.path, lambda bare: bool(names.fullmatch(bare) or _META_NAME.fullmatch(bare)))
        if self.reviews is not None:
            found = list(find_files(self.path, self.reviews, "source.reviews").paths)
        else:
            found = [path for path in files_in(self.path) if names.fullmatch(path.name)]
        if not found:
            expected = {2014: "reviews_X.json.gz", 2018: "X_5.json.gz", 2023: "X.jsonl.gz"}[self.version]
            raise DataError(
                f"'{self.path}': no file is called like {expected} (version {self.version}); {there(self.path)}. Set "
                "source.path, source.version or source.reviews"
            )
        refuse_two_of_one(
            self.path,
            ((_category(path, names), path) for path in found),
            "name the one to read in source.reviews",
        )
        return found

    def _metadata(self) -> list[Path]:
        if self.metadata is not None:
            found = list(find_files(self._root(), self.metadata, "source.metadata").paths)
        else:
            found = [path for path in files_in(self._root()) if _META_NAME.fullmatch(path.name)]
        refuse_two_of_one(
            self._root(),
            ((_category(path, _META_NAME), path) for path in found),
            "name the one to read in source.metadata",
        )
        return found

    def _check_keys(self, path: Path) -> None:
        """Refuse a file whose first objects have the keys of another version."""
        user = self.columns.user_id
        with explain_file_errors(path), open_bytes(path) as file:
            for _, line in zip(range(_LOOKED_AT), file, strict=False):
                try:
                    keys = set(parse_object(line.strip(), loose=self.version == 2014))
                except ValueError:
                    continue
                if user in keys:
                    return
                shown = ", ".join(sorted(keys)[:8])
                for version, fields in _REVIEW.items():
                    if len(keys & set(fields)) >= 4 and len(keys & set(_REVIEW[self.version])) < 4:
                        raise DataError(
                            f"'{path}' has no key '{user}' but those of version {version} ({shown}); set "
                            f"source.version: {version}"
                        )

    def _check_order(self, table: OpenedTable) -> None:
        """Refuse ratings whose users and items stand the other way round: the order changed between 2014 and 2018."""
        first = next(iter(table.batches(["reviewerID", "asin"])), None)
        if first is None:
            return
        head = first.head(_LOOKED_AT)
        swapped = head.select(
            pl.col("reviewerID").str.contains(_ITEM_LIKE) & pl.col("asin").str.contains(_USER_LIKE)
        ).to_series()
        if len(head) and 2 * int(swapped.sum()) > len(head):
            other = 2018 if self.version == 2014 else 2014
            order, row = ", ".join(_CSV_HEADER[self.version][:2]), f"{head['reviewerID'][0]},{head['asin'][0]}"
            raise DataError(
                f"{table.where}: users look like items and items like users, as in '{row}': version {self.version} has the "
                f"order {order}; set source.version: {other}"
            )


def _category(path: Path, names: re.Pattern[str]) -> str:
    found = names.fullmatch(path.name)
    return found.group(1) if found is not None else path.name
