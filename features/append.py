"""Prepare a data set from an earlier one and the files that came since: the same files, byte for byte.

Reads the log that an earlier `prepare` kept (:class:`~features.log.encoded_log.EncodedLog`, with the fingerprint of
each file in it) and the new files; produces what :func:`features.build.prepare` writes for all of them. Only reading is
saved: repeats, k-core, split, histories and targets are made of the whole log, because a new day may change each of
them for events of old days.
"""

from __future__ import annotations

import heapq
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from features.appended.dataset import Certain, prepare_by_users, why_all_at_once
from features.appended.kept_rows import only_grows
from features.build import (
    LOG_FOLDER,
    FeaturesConfig,
    need_session_id,
    nothing_left_behind,
    prepare_from_log,
)
from features.log.append import Merge, difference_of, runs_of_users
from features.log.encode import ReadLog, read_log
from features.log.encoded_log import EncodedLog, StoredLog
from features.log.event_log import Core
from features.log.quarantine import DUPLICATE, check_share
from features.log.read_state import WARNINGS, WHOLE_COLUMNS, ReadState
from features.refused import ROWS_IN_MEMORY, RefusedRows
from features.sources.as_of import as_of
from features.sources.base import FILE, RawTables, Source
from features.sources.columns.ids import ODD_SHARE, canonical_integers
from features.tables import Prepared
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError, CannotExtend, DataError
from recsys.contracts.event_times import microseconds
from recsys.contracts.manifest import Artifact, verify_files

logger = logging.getLogger("recsys.features")

QUARANTINE: Final = "quarantine.parquet"
_BEHIND_DIGITS: Final = "9\U0010ffff"
"""A text above this begins with neither a digit nor a sign, so that it is no integer."""

_NEARLY: Final = 0.95 * ODD_SHARE  # below the share of the warning itself, which counts refused rows too


def prepare_appended(
    source: Source, config: FeaturesConfig, earlier: Sequence[Artifact], out_dir: Path, seed: int
) -> Prepared:
    """Write the prepared data set of all files of a source, reading those that ``earlier`` has not.

    Args:
        source: Where the logs are now.
        config: What to make of them; that of ``earlier`` too, the day aside.
        earlier: Prepared data sets of the same source, of an earlier day or the same; the first whose files are all there,
            unchanged, is taken.
        out_dir: Folder to write into; created when missing.
        seed: As for :func:`features.build.build`.

    Returns:
        What was written, with the data report.

    Raises:
        CannotExtend: None of them fits, or the new files alone cannot be read; everything has to be prepared.
    """
    fingerprints = source.fingerprint()
    try:
        raw = as_of(source.read(seed), config.as_of)
        base, state = _fitting(earlier, raw, fingerprints, config.as_of)
        new = [file for file in raw.interactions.files if file not in state.fingerprints]
        added = read_log(raw, config.quarantine, need_session_id=need_session_id(raw, config), only=new)
        log = StoredLog.open(base.path / LOG_FOLDER)
        refused = _refused(base, log, added, raw)
        merge = Merge.of(log, added.log)
        if _nearly_integers(merge):
            raise CannotExtend(WHOLE_COLUMNS)
        rows_in = sum(merge.head.file_records)
        check_share(refused, rows_in, config.quarantine)
    except (DataError, ArtifactError) as error:
        raise CannotExtend(str(error)) from error
    logger.info("%d new files (%d rows) appended to %d files", len(new), added.rows_in, len(state.fingerprints))
    read = ReadLog(merge.head, refused, rows_in, facts_of_all(state.facts, added.facts))
    reason = why_all_at_once(raw, config)
    if reason is not None:
        logger.info("the log is merged, and all events are made anew at once: %s", reason)
        return prepare_from_log(raw, replace(read, log=_whole(merge, out_dir)), config, out_dir, fingerprints)
    with nothing_left_behind(out_dir):
        prepared = prepare_by_users(raw, read, merge, _certain(base, merge, raw, config), config, out_dir)
        ReadState.of(raw.interactions, fingerprints, read.facts).save(out_dir / LOG_FOLDER)
    return prepared


def _whole(merge: Merge, out_dir: Path) -> EncodedLog:
    """Return the merged log in memory."""
    merge.write(out_dir / LOG_FOLDER, runs_of_users(merge.starts), lambda first, run: None)
    return EncodedLog.load(out_dir / LOG_FOLDER)


def _certain(base: Artifact, merge: Merge, raw: RawTables, config: FeaturesConfig) -> Certain:
    """Say what the earlier data set tells of this one."""
    core = merge.marks(Core.load(base.path / LOG_FOLDER))
    if not only_grows(merge.head, config.duplicates, raw.merge_rules):
        core = Core(np.zeros_like(core.user), np.zeros_like(core.item))
    split = base.manifest.summary["split"]
    cuts = [datetime.fromisoformat(split[name]) for name in ("valid_from", "test_from") if name in split]
    if len(cuts) < 2:
        return Certain(core, None)
    return Certain(core, microseconds(cuts[0] - (cuts[1] - cuts[0]) / 8))


def _fitting(
    earlier: Sequence[Artifact], raw: RawTables, now: Mapping[str, str], day: date | None
) -> tuple[Artifact, ReadState]:
    """Return the first earlier data set whose files are all there, as they were, and its state."""
    reasons = []
    for artifact in earlier:
        state = ReadState.load(artifact.path / LOG_FOLDER)
        reason = _of_later_days(artifact, day) or state.why_not(raw.interactions, now)
        if reason is None:
            verify_files(artifact, f"{LOG_FOLDER}/", QUARANTINE)
            return artifact, state
        reasons.append(reason)
    raise CannotExtend(reasons[0])


def _of_later_days(artifact: Artifact, day: date | None) -> str | None:
    """Say that an earlier data set has seen more than ``day``; ``None`` where it has not."""
    seen = artifact.manifest.config["features"].get("as_of")
    if day is None or (seen is not None and date.fromisoformat(seen) <= day):
        return None
    return f"the earlier result has seen {'all events' if seen is None else f'the events up to {seen}'}"


def _refused(base: Artifact, log: StoredLog, added: ReadLog, raw: RawTables) -> RefusedRows:
    """Return the refused rows of all files, if what was read now goes together with what was read earlier."""
    difference = difference_of(log.head, added.log)
    earlier = pl.scan_parquet(base.path / QUARANTINE, glob=False)
    if difference is None and earlier.collect_schema() != added.refused.schema:
        difference = "the columns of the quarantine differ"
    if difference is None and added.facts.get(WARNINGS):
        difference = WHOLE_COLUMNS
    if difference is not None:
        raise CannotExtend(difference)
    places = {file: place for place, file in enumerate(raw.interactions.files)}
    refused = RefusedRows(added.refused.schema)
    pieces = (_by_file(_slices(earlier)), _by_file(added.refused.tables()))
    for rows in heapq.merge(*pieces, key=lambda rows: places[rows.item(0, FILE)]):
        refused.append(rows)
    return refused


def _slices(earlier: pl.LazyFrame) -> Iterator[pl.DataFrame]:
    """Yield the rows that an earlier run refused as it read them, in pieces; repeats are found anew."""
    for start in range(0, int(earlier.select(pl.len()).collect().item()), ROWS_IN_MEMORY):
        yield earlier.slice(start, ROWS_IN_MEMORY).collect().filter(pl.col(Columns.REASON) != DUPLICATE)


def _by_file(tables: Iterable[pl.DataFrame]) -> Iterator[pl.DataFrame]:
    """Yield the same rows, those of one file at a time."""
    for table in tables:
        yield from table.partition_by(FILE, maintain_order=True) if len(table) else ()


def facts_of_all(earlier: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Put the facts of files read earlier and of files read now together.

    Numbers are counts of rows and add up. Lists tell of the files as such, their names and headers, which are looked at
    every time, so those of now are complete.

    Example:
        >>> facts_of_all({"blank_lines": 2, "empty_files": ["a"]}, {"blank_lines": 1, "empty_files": ["a", "b"]})
        {'blank_lines': 3, 'empty_files': ['a', 'b']}
    """
    found = dict(now)
    for name, value in earlier.items():
        if isinstance(value, Mapping):
            found[name] = facts_of_all(value, now.get(name, {}))
        elif isinstance(value, int | float):
            found[name] = value + now.get(name, 0)
    return found


def _nearly_integers(merge: Merge) -> bool:
    """Whether text ids read as integers but for a few, which the reader of a whole column warns of."""
    for name, ids in (("user", merge.head.user_ids), ("item", merge.head.item_ids)):
        if ids.dtype != pl.String or not len(ids) or ids[0] > _BEHIND_DIGITS:  # they ascend
            continue
        is_integer = canonical_integers(ids, ids.cast(pl.Int64, strict=False)).to_numpy()
        if is_integer.all() or not is_integer.any():
            continue
        rows = merge.rows_per_id(name)
        if max(float(is_integer.mean()), float(rows[is_integer].sum() / rows.sum())) > _NEARLY:
            return True
    return False
