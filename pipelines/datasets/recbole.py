"""A prepared data set as RecBole's atomic files, so that its models can be trained on the same events.

Reads a :class:`~recsys.contracts.dataset.Dataset`; writes a folder that RecBole finds by its name:

    NAME.inter    user_id, item_id, position, timestamp, signals …; one row per kept event, in order
    NAME.item     item_id, title, text, categories, author_id
    NAME.user     user_id and attributes
    NAME.yaml     what RecBole has to be told

With a benchmark split, ``NAME.train.inter``, ``NAME.valid.inter`` and ``NAME.test.inter`` take the place of ``NAME.inter``.

RecBole keeps numbers as float32, where seconds since 1970 are 128 apart. ``timestamp`` is written to the microsecond all
the same, for readers that can hold it, and ``position``, the event's place in its user's order, is what RecBole is told to
sort by.

Source: RecBole documentation, "Atomic files", "Data settings" (``benchmark_filename``, ``alias_of_item_id``).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import SPLIT_NAMES, TRAIN, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import explain_write_errors

Benchmark = Literal["none", "events", "histories"]

_LINE_BREAKS: Final = r"[\t\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]+"
_READ_AS_MISSING: Final = (
    *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA"),
    *("NULL", "NaN", "None", "n/a", "nan", "null"),
)
"""Texts that pandas, with which RecBole reads, takes for "missing" unless it is told not to."""
_ITEM_LIST: Final = "item_id_list"
_US: Final = 1_000_000


@dataclass(frozen=True)
class ExportedFiles:
    """What was written.

    Attributes:
        folder: Where.
        rows: Rows of every file.
        texts_changed: Titles and other texts in which tabs, line breaks or double quotes were replaced.
        names_made_one: Token of a list -> the names that were written so, where they are several: ``Sci_Fi`` of ``Sci Fi``
            and ``Sci_Fi``.
        ids_read_as_missing: Ids such as ``NA``, which RecBole takes for missing.
        without_time: Events that have an order but no time.
        without_history: Rows of a ``histories`` benchmark left out because nothing comes before them.
    """

    folder: Path
    rows: Mapping[str, int]
    texts_changed: int
    names_made_one: Mapping[str, tuple[str, ...]]
    ids_read_as_missing: tuple[str, ...]
    without_time: int
    without_history: int


def export_recbole(
    data: Dataset, folder: Path, *, benchmark: Benchmark = "none", max_history: int = 50, leave_last_out: bool = True
) -> ExportedFiles:
    """Write the atomic files.

    Args:
        data: A prepared data set.
        folder: Its last part is the name of the data set, as RecBole looks for ``FOLDER/NAME/NAME.inter``.
        benchmark: ``events`` splits the positive events as they were split when the data set was prepared, for general
            models.
            ``histories`` writes one row per item to predict with the items before it, for sequential models.
        max_history: Items before a target that a row of ``histories`` holds.
        leave_last_out: Whether the data set's own split is each user's last events, which RecBole can make by itself.

    Raises:
        DataError: An id cannot stand in an atomic file.
        ArtifactError: The folder cannot be written.
    """
    name = folder.resolve().name
    users, items = _tokens(data.users, Columns.USER_ID), _tokens(data.items, Columns.ITEM_ID)
    without_history = 0
    tables: dict[str, pl.DataFrame] = {}
    if benchmark == "histories":
        for split, split_name in enumerate(SPLIT_NAMES):
            tables[f"{name}.{split_name}.inter"], left_out = _samples(data, split, users, items, max_history)
            without_history += left_out
    else:
        events = _events(data, users, items)
        if benchmark == "none":
            tables[f"{name}.inter"] = events.drop(Columns.SPLIT)
        else:
            if Columns.POSITIVE in events.columns:  # RecBole applies val_interval to no benchmark
                events = events.filter(pl.col(Columns.POSITIVE) == 1).drop(Columns.POSITIVE)
            for split, split_name in enumerate(SPLIT_NAMES):
                tables[f"{name}.{split_name}.inter"] = events.filter(pl.col(Columns.SPLIT) == split).drop(Columns.SPLIT)
    item_table, changed_items, one_of_items = _attributes(
        data.items.select(items, Columns.TITLE, Columns.TEXT, Columns.CATEGORIES, Columns.AUTHOR_ID)
    )
    user_table, changed_users, one_of_users = _attributes(data.users.drop(Columns.USER_INDEX).with_columns(users))
    tables |= {f"{name}.item": item_table, f"{name}.user": user_table}
    interactions = next(iter(tables.values()))
    settings = _settings(name, folder, interactions.columns, benchmark, leave_last_out, data)
    with explain_write_errors(folder, "--out"):
        folder.mkdir(parents=True, exist_ok=True)
        for file, table in tables.items():
            _write(folder / file, table)
        _publish(folder / f"{name}.yaml", settings.encode())
    return ExportedFiles(
        folder=folder,
        rows={file: len(table) for file, table in tables.items()},
        texts_changed=changed_items + changed_users,
        names_made_one=one_of_items | one_of_users,
        ids_read_as_missing=tuple(
            ids for series in (users, items) for ids in series.filter(series.is_in(list(_READ_AS_MISSING))).to_list()
        ),
        without_time=int(data.events[Columns.TIMESTAMP].null_count()) if data.spec.has_timestamps else len(data.events),
        without_history=without_history,
    )


def _tokens(table: pl.DataFrame, column: str) -> pl.Series:
    """Return the ids as text, row number = index.

    Raises:
        DataError: An id holds a tab or a line break, or begins with a quote, which RecBole's reader would take off.
    """
    ids = table[column].cast(pl.String)
    bad = ids.filter(ids.str.contains(_LINE_BREAKS) | ids.str.starts_with('"'))
    if len(bad):
        raise DataError(
            f"{column} {bad[0]!r} cannot stand in an atomic file ({len(bad)} such ids): tabs and line breaks end a "
            "field, and a quote in front is taken off; rename these ids in the source"
        )
    return ids


def _events(data: Dataset, users: pl.Series, items: pl.Series) -> pl.DataFrame:
    """Every kept event, in order."""
    events = data.events
    user = events[Columns.USER_INDEX].to_numpy()
    first = np.searchsorted(user, user, side="left")  # events are sorted by user
    columns = [
        users.gather(user).alias(Columns.USER_ID),
        items.gather(events[Columns.ITEM_INDEX].to_numpy()).alias(Columns.ITEM_ID),
        pl.Series(Columns.POSITION, np.arange(len(user)) - first).cast(pl.Float64),
    ]
    if data.spec.has_timestamps:
        columns.append(events.select(_seconds().alias(Columns.TIMESTAMP)).to_series())
    numbers = [name for name in (Columns.WATCH_TIME_MS, Columns.DURATION_MS) if name in events.columns]
    columns += [events[name] for name in numbers]
    columns += [events[name].cast(pl.Float32) for name in data.spec.signals]
    if not events[Columns.POSITIVE].all():
        columns.append(events[Columns.POSITIVE].cast(pl.Float32))
    return pl.DataFrame([*columns, events[Columns.SPLIT]])


def _seconds() -> pl.Expr:
    """Microseconds as a text of seconds, made of whole numbers, so that no rounding is printed."""
    stamp = pl.col(Columns.TIMESTAMP).cast(pl.Int64)
    whole, part = (stamp // _US).cast(pl.String), stamp % _US
    fraction = part.cast(pl.String).str.zfill(6).str.strip_chars_end("0")
    return pl.when(part == 0).then(whole).otherwise(whole + "." + fraction)


@dataclass(frozen=True)
class _Rows:
    """Items to predict, each with the stretch of ``data.history.item`` that comes before it: ``[rows]`` each."""

    user: npt.NDArray[np.int64]
    target: npt.NDArray[np.int64]
    start: npt.NDArray[np.int64]
    end: npt.NDArray[np.int64]


def _train_rows(data: Dataset) -> _Rows:
    """Every positive train event: `prepare` writes no rows for them, because one pass over a history predicts them all."""
    history = data.history
    lengths = history.train_end - history.offsets[:-1]
    user = np.repeat(np.arange(len(lengths)), lengths)
    start = np.repeat(history.offsets[:-1], lengths)
    place = np.arange(len(user)) - np.repeat(np.cumsum(lengths) - lengths, lengths) + start
    return _Rows(user, history.item[place].astype(np.int64), start, place)


def _held_out_rows(data: Dataset, split: int) -> _Rows:
    targets = data.targets(split)
    row = np.repeat(np.arange(len(targets.user_index)), np.diff(targets.item_offsets))
    user, items = targets.user_index[row].astype(np.int64), targets.items.astype(np.int64)
    return _Rows(user, items, targets.history_start[row], targets.history_end[row])


def _samples(
    data: Dataset, split: int, users: pl.Series, items: pl.Series, max_history: int
) -> tuple[pl.DataFrame, int]:
    """One row per item to predict, with the items before it; and how many rows have nothing before them."""
    rows = _train_rows(data) if split == TRAIN else _held_out_rows(data, split)
    start = np.maximum(rows.start, rows.end - max_history)
    kept = np.flatnonzero(rows.end > start)
    blank = items.filter(items.str.contains(r"\s"))
    if len(blank):
        raise DataError(
            f"item_id {blank[0]!r} holds a blank ({len(blank)} such ids), which separates the items of a history; rename "
            "these ids in the source, or export without --benchmark histories"
        )
    names = items.to_numpy()
    lists = [" ".join(names[data.history.item[start[row] : rows.end[row]]]) for row in kept]
    table = pl.DataFrame(
        {
            Columns.USER_ID: users.gather(rows.user[kept]),
            Columns.ITEM_ID: items.gather(rows.target[kept]),
            _ITEM_LIST: pl.Series(lists, dtype=pl.String),
        }
    )
    return table, len(rows.user) - len(kept)


def _attributes(table: pl.DataFrame) -> tuple[pl.DataFrame, int, dict[str, tuple[str, ...]]]:
    """Make every text safe; lists become tokens between blanks.

    Ids have been looked at by :func:`_tokens`, and stay as the interactions have them.

    Returns:
        The table, how many texts were changed, and the tokens that stand for several names each.
    """
    changed, columns = 0, []
    several: dict[str, tuple[str, ...]] = {}
    for series in table:
        if isinstance(series.dtype, pl.List | pl.Array):
            columns.append(
                series.to_frame().select(pl.all().list.eval(_token(pl.element())).list.join(" ")).to_series()
            )
            several |= _several_names(series)
        elif series.dtype.is_float() or series.name in (Columns.USER_ID, Columns.ITEM_ID):
            columns.append(series)
        else:
            before = series.cast(pl.String)
            after = before.str.replace_all(_LINE_BREAKS, " ").str.replace_all('"', "'", literal=True).str.strip_chars()
            changed += int((before != after).sum())
            columns.append(after)
    return pl.DataFrame(columns), changed, several


def _token(name: pl.Expr) -> pl.Expr:
    """An entry of a list as one token: blanks would cut it in two."""
    return name.cast(pl.String).str.replace_all(r"\s+", "_").str.replace_all('"', "'", literal=True)


def _several_names(lists: pl.Series) -> dict[str, tuple[str, ...]]:
    """Return the tokens that stand for several different entries of the lists, each with those.

    Example:
        >>> _several_names(pl.Series("categories", [["Sci Fi", "Drama"], ["Sci_Fi"]]))
        {'Sci_Fi': ('Sci Fi', 'Sci_Fi')}
    """
    names = lists.explode().drop_nulls().cast(pl.String).unique().sort().to_frame("name")
    tokens = names.group_by(_token(pl.col("name")).alias("token")).agg("name").filter(pl.col("name").list.len() > 1)
    return {token: tuple(found) for token, found in tokens.sort("token").iter_rows()}


def _write(path: Path, table: pl.DataFrame) -> None:
    """Write one table with ``name:type`` headers."""
    for name in table.columns:
        if ":" in name or not name.strip() or "\t" in name:
            raise DataError(
                f"column '{name}' cannot be named in '{path}': headers are 'name:type'; rename it in the source"
            )
    sequences = {Columns.TITLE, Columns.TEXT, Columns.CATEGORIES, _ITEM_LIST}  # RecBole writes a title as its words
    header = {}
    for name, dtype in table.schema.items():
        number = dtype.is_float() or (name == Columns.TIMESTAMP and path.suffix == ".inter")
        header[name] = f"{name}:{'float' if number else 'token_seq' if name in sequences else 'token'}"
    content = table.rename(header).write_csv(separator="\t", quote_style="never")
    _publish(path, content.encode())


def _publish(path: Path, content: bytes) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_bytes(content)
    part.replace(path)


def _settings(
    name: str, folder: Path, columns: list[str], benchmark: Benchmark, leave_last_out: bool, data: Dataset
) -> str:
    import yaml

    settings: dict[str, Any] = {
        "data_path": str(folder.parent),
        "dataset": name,
        "field_separator": "\t",
        "seq_separator": " ",
        "USER_ID_FIELD": Columns.USER_ID,
        "ITEM_ID_FIELD": Columns.ITEM_ID,
    }
    load = [Columns.USER_ID, Columns.ITEM_ID]
    evaluation: dict[str, Any] = {
        "mode": "full",
        "group_by": "user",
        "order": "TO",
    }  # sequential models refuse any other
    if benchmark == "histories":
        settings |= {"benchmark_filename": list(SPLIT_NAMES), f"alias_of_{Columns.ITEM_ID}": [_ITEM_LIST]}
        load.append(_ITEM_LIST)
    else:
        settings["TIME_FIELD"] = Columns.POSITION
        load.append(Columns.POSITION)
        if Columns.POSITIVE in columns:
            settings["val_interval"] = {Columns.POSITIVE: "[1,1]"}
            load.append(Columns.POSITIVE)
        if benchmark == "events":
            settings["benchmark_filename"] = list(SPLIT_NAMES)
        elif leave_last_out:
            evaluation["split"] = {"LS": "valid_and_test"}
        else:
            evaluation["split"] = {"RS": [0.8, 0.1, 0.1]}
    settings |= {"load_col": {"inter": load}, "eval_args": evaluation}
    head = "\n".join(f"# {line}" for line in _head(benchmark, leave_last_out, data))
    return f"{head}\n{yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)}"


def _head(benchmark: Benchmark, leave_last_out: bool, data: Dataset) -> Iterator[str]:
    yield f"{data.spec.num_users} users, {data.spec.num_items} items, {len(data.events)} events."
    yield "run_recbole(model='SASRec', config_file_list=['this file'])"
    if benchmark != "histories":
        yield "RecBole holds numbers as float32, where seconds since 1970 are 128 apart: it sorts by position."
    if benchmark == "none" and not leave_last_out:
        yield "The split below is RecBole's own, 80/10/10 per user; the one of the data set: export with --benchmark."
    if benchmark == "histories":
        yield "One row per item to predict, with the items before it; train_neg_sample_args depends on the model."
