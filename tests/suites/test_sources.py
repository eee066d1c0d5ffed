"""One suite for every source: what the rest of `prepare` may rely on, whichever kind of raw data is configured.

The same six events of two users, as each kind of file has them; the simulator makes its own.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import polars as pl
import pytest

from features.sources import (
    AmazonReviewsSource,
    HistoryRowsSource,
    KuaiRandSource,
    MovieLensSource,
    RecBoleSource,
    SimulatedSource,
    SourceConfig,
    TableSource,
)
from features.sources.base import PREHISTORY, ROW, RawTables, Source
from features.sources.history_rows import HistoryRowsFile
from recsys.contracts.columns import Columns
from recsys.contracts.errors import DataError

EVENTS = {"u7": ["i3", "i5", "i8"], "u8": ["i5", "i3", "i8"]}
"""In order of time."""


def table(folder: Path) -> TableSource:
    rows = [(user, item, 1_650_000_000 + at) for user, items in EVENTS.items() for at, item in enumerate(items)]
    names = [Columns.USER_ID, Columns.ITEM_ID, Columns.TIMESTAMP]
    pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / "interactions.parquet")
    return TableSource(path=folder, timestamp_unit="s")


def recbole(folder: Path) -> RecBoleSource:
    lines = ["user_id:token\titem_id:token\ttimestamp:float"]
    for user, items in EVENTS.items():
        lines += [f"{user}\t{item}\t{1_650_000_000 + at}" for at, item in enumerate(items)]
    (folder / "toy.inter").write_text("\n".join(lines) + "\n")
    return RecBoleSource(path=folder, name="toy", timestamp_unit="s")


def history_rows(folder: Path) -> HistoryRowsSource:
    """The first event of a user is nobody's target: it is read from the history of the second."""
    for at, name in ((1, "train"), (2, "test")):
        rows = [(user, items[:at], items[at]) for user, items in EVENTS.items()]
        names = [Columns.USER_ID, "history_item_id", Columns.ITEM_ID]
        pl.DataFrame(rows, schema=names, orient="row").write_parquet(folder / f"{name}.parquet")
    files = tuple(
        HistoryRowsFile(file=f"{name}.parquet", split=name, user_id=Columns.USER_ID) for name in ("train", "test")
    )
    return HistoryRowsSource(path=folder, files=files)


def amazon_reviews(folder: Path) -> AmazonReviewsSource:
    records = [
        {"reviewerID": user, "asin": item, "overall": 5.0, "unixReviewTime": 1_650_000_000 + at}
        for user, items in EVENTS.items()
        for at, item in enumerate(items)
    ]
    (folder / "Toy_5.json").write_text("".join(f"{json.dumps(record)}\n" for record in records))
    return AmazonReviewsSource(path=folder, version=2018)


def movielens(folder: Path) -> MovieLensSource:
    """Ids of MovieLens are integers unless the recipe says otherwise."""
    lines = ["userId,movieId,rating,timestamp"]
    for user, items in EVENTS.items():
        lines += [f"{user},{item},5.0,{1_650_000_000 + at}" for at, item in enumerate(items)]
    (folder / "ratings.csv").write_text("\n".join(lines) + "\n")
    return MovieLensSource(path=folder, types={"userId": "text", "movieId": "text"})


def kuairand(folder: Path) -> KuaiRandSource:
    feedback = ("is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
    lines = [",".join(("user_id", "video_id", "time_ms", *feedback, "play_time_ms", "duration_ms"))]
    for user, items in EVENTS.items():
        lines += [f"{user},{item},{1_650_000_000_000 + at},0,0,0,0,0,1,900,1000" for at, item in enumerate(items)]
    (folder / "log_standard_4_08_to_4_21_pure.csv").write_text("\n".join(lines) + "\n")
    return KuaiRandSource(path=folder, types={"user_id": "text", "video_id": "text"})


def simulated(folder: Path) -> SimulatedSource:
    del folder
    return SimulatedSource(users=30, items=40, events=600, topics=4)


SOURCES = {
    "table": table,
    "recbole": recbole,
    "history_rows": history_rows,
    "amazon_reviews": amazon_reviews,
    "movielens": movielens,
    "kuairand": kuairand,
    "simulated": simulated,
}
FROM_FILES = sorted(set(SOURCES) - {"simulated"})

every_source = pytest.mark.parametrize("kind", SOURCES)


def kinds() -> set[str]:
    union, _ = get_args(SourceConfig)
    return {source.model_fields["kind"].default for source in get_args(union)}


def test_every_kind_of_the_configuration_is_in_the_suite() -> None:
    assert set(SOURCES) == kinds()


def opened(kind: str, folder: Path) -> tuple[Source, RawTables]:
    source = SOURCES[kind](folder)
    assert source.kind == kind
    return source, source.read(seed=3)


@every_source
def test_interactions_have_the_canonical_columns(kind: str, tmp_path: Path) -> None:
    _, raw = opened(kind, tmp_path)
    schema = raw.interactions.schema
    assert schema[ROW].is_integer()
    assert schema[PREHISTORY] == pl.Boolean
    assert {schema[Columns.USER_ID], schema[Columns.ITEM_ID]} <= {pl.Int64, pl.String}
    for name, expected in (
        (Columns.TIMESTAMP, pl.Int64),
        (Columns.POSITION, pl.Int64),
        (Columns.SPLIT, pl.String),
        (Columns.WATCH_TIME_MS, pl.Float32),
        (Columns.DURATION_MS, pl.Float32),
    ):
        assert schema.get(name, expected) == expected, name
    assert all(schema[name] == pl.Boolean for name in raw.signals)
    assert set(raw.positive) <= set(raw.signals)


@every_source
def test_events_have_a_time_or_a_place(kind: str, tmp_path: Path) -> None:
    _, raw = opened(kind, tmp_path)
    timed = raw.interactions.collect().filter(~pl.col(PREHISTORY))
    assert raw.has_timestamps or raw.has_positions
    if raw.has_timestamps:
        assert timed[Columns.TIMESTAMP].null_count() == 0
    if raw.has_positions:
        assert timed[Columns.POSITION].null_count() == 0


@every_source
def test_items_say_who_they_are(kind: str, tmp_path: Path) -> None:
    """Where a source has an item table, ids are of the type of the events' and none stands twice."""
    _, raw = opened(kind, tmp_path)
    if raw.items is None:
        return
    assert raw.items.schema[Columns.ITEM_ID] == raw.interactions.schema[Columns.ITEM_ID]
    assert raw.items[Columns.ITEM_ID].n_unique() == len(raw.items)


@every_source
def test_reading_twice_gives_the_same_and_the_fingerprint_stays(kind: str, tmp_path: Path) -> None:
    source, first = opened(kind, tmp_path)
    before = source.fingerprint()
    second = source.read(seed=3)
    assert first.interactions.collect().equals(second.interactions.collect())
    assert before == source.fingerprint()
    assert all(len(digest) == 64 for digest in before.values())
    again = type(source).model_validate(source.model_dump())
    assert again == source, "what is saved of a recipe opens the same source"


@pytest.mark.parametrize("kind", FROM_FILES)
def test_the_same_events_come_out_of_every_file(kind: str, tmp_path: Path) -> None:
    _, raw = opened(kind, tmp_path)
    order = Columns.TIMESTAMP if raw.has_timestamps else Columns.POSITION
    for user, items in EVENTS.items():
        own = raw.interactions.collect().filter(pl.col(Columns.USER_ID) == user).sort(order)
        assert own[Columns.ITEM_ID].to_list() == items


@pytest.mark.parametrize("kind", FROM_FILES)
def test_another_file_has_another_fingerprint_and_none_is_refused(kind: str, tmp_path: Path) -> None:
    source, _ = opened(kind, tmp_path)
    before = source.fingerprint()
    changed = sorted(tmp_path.iterdir())[0]
    changed.write_bytes(changed.read_bytes() + b"\n")
    assert source.fingerprint() != before
    changed.unlink()
    for ask in (source.fingerprint, lambda: source.read(seed=0)):
        with pytest.raises(DataError, match=str(tmp_path)):
            ask()


def test_another_seed_is_another_simulated_log_and_no_other_file(tmp_path: Path) -> None:
    for kind in SOURCES:
        (tmp_path / kind).mkdir()
        source, raw = opened(kind, tmp_path / kind)
        same = source.read(seed=4).interactions.collect().equals(raw.interactions.collect())
        assert same == (kind in FROM_FILES)
