"""Prepare a data set from an earlier one and the files that came since: the same files, byte for byte.

Reads the log that an earlier `prepare` kept (:class:`~features.log.encoded_log.EncodedLog`, with the fingerprint of
each file in it) and the new files; produces what :func:`features.build.prepare` writes for all of them. Only reading is
saved: repeats, k-core, split, histories and targets are made of the whole log, because a new day may change each of
them for events of old days.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import polars as pl

from features.build import LOG_FOLDER, FeaturesConfig, need_session_id, prepare_from_log
from features.log.append import difference_of, merge_logs
from features.log.arrays import CodeArray
from features.log.encode import ReadLog, read_log
from features.log.encoded_log import EncodedLog
from features.log.quarantine import DUPLICATE, check_share
from features.log.read_state import WARNINGS, WHOLE_COLUMNS, ReadState
from features.sources.base import FILE, RawTables, Source
from features.sources.columns.ids import ODD_SHARE, canonical_integers
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError, CannotExtend, DataError
from recsys.contracts.manifest import Artifact, verify_files

logger = logging.getLogger("recsys.features")

QUARANTINE: Final = "quarantine.parquet"
_NEARLY: Final = 0.95 * ODD_SHARE  # below the share of the warning itself, which counts refused rows too


def prepare_appended(
    source: Source, config: FeaturesConfig, earlier: Sequence[Artifact], out_dir: Path, seed: int
) -> dict[str, Any]:
    """Write the prepared data set of all files of a source, reading those that ``earlier`` has not.

    Args:
        source: Where the logs are now.
        config: What to make of them; that of ``earlier`` too.
        earlier: Prepared data sets of the same source; the first whose files are all there, unchanged, is taken.
        out_dir: Folder to write into; created when missing.
        seed: As for :func:`features.build.prepare`.

    Returns:
        The data report.

    Raises:
        CannotExtend: None of them fits, or the new files alone cannot be read; everything has to be prepared.
    """
    fingerprints = source.fingerprint()
    raw, read = _read_more(source, config, earlier, fingerprints, seed)
    return prepare_from_log(raw, read.pop(), config, out_dir, fingerprints)


def _read_more(
    source: Source, config: FeaturesConfig, earlier: Sequence[Artifact], fingerprints: Mapping[str, str], seed: int
) -> tuple[RawTables, list[ReadLog]]:
    """Read what is new; the one log stands in a list, so that whoever takes it out holds it alone."""
    try:
        raw = source.read(seed)
        base, state = _fitting(earlier, raw, fingerprints)
        new = [file for file in raw.interactions.files if file not in state.fingerprints]
        added = read_log(raw, config.quarantine, need_session_id=need_session_id(raw, config), only=new)
        read = _joined(base.path, state, added, raw)
        check_share(read.refused, read.rows_in, config.quarantine)
    except (DataError, ArtifactError) as error:
        raise CannotExtend(str(error)) from error
    logger.info("%d new files (%d rows) appended to %d files", len(new), added.rows_in, len(state.fingerprints))
    return raw, [read]


def _fitting(earlier: Sequence[Artifact], raw: RawTables, now: Mapping[str, str]) -> tuple[Artifact, ReadState]:
    """Return the first earlier data set whose files are all there, as they were, and its state."""
    reasons = []
    for artifact in earlier:
        state = ReadState.load(artifact.path / LOG_FOLDER)
        reason = state.why_not(raw.interactions, now)
        if reason is None:
            verify_files(artifact, f"{LOG_FOLDER}/", QUARANTINE)
            return artifact, state
        reasons.append(reason)
    raise CannotExtend(reasons[0])


def _joined(folder: Path, state: ReadState, added: ReadLog, raw: RawTables) -> ReadLog:
    """Put what was read earlier and what was read now together."""
    log = EncodedLog.load(folder / LOG_FOLDER)
    difference = difference_of(log, added.log)
    refused = pl.read_parquet(folder / QUARANTINE, glob=False).filter(pl.col(Columns.REASON) != DUPLICATE)
    if difference is None and refused.schema != added.refused.schema:
        difference = "the columns of the quarantine differ"
    if difference is None and added.facts.get(WARNINGS):
        difference = WHOLE_COLUMNS
    if difference is not None:
        raise CannotExtend(difference)
    files = raw.interactions.files
    places = pl.col(FILE).replace_strict(list(files), list(range(len(files))), return_dtype=pl.Int64)
    refused = pl.concat([refused, added.refused]).sort(places, maintain_order=True)
    merged = merge_logs(log, added.log)
    if any(_nearly_integers(*ids) for ids in ((merged.user, merged.user_ids), (merged.item, merged.item_ids))):
        raise CannotExtend(WHOLE_COLUMNS)
    return ReadLog(merged, refused, sum(merged.file_records), facts_of_all(state.facts, added.facts))


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


def _nearly_integers(codes: CodeArray, ids: pl.Series) -> bool:
    """Whether text ids read as integers but for a few, which the reader of a whole column warns of."""
    if ids.dtype != pl.String or not len(ids):
        return False
    is_integer = canonical_integers(ids, ids.cast(pl.Int64, strict=False)).to_numpy()
    if is_integer.all() or not is_integer.any():
        return False
    rows = np.bincount(codes, minlength=len(ids))
    return max(float(is_integer.mean()), float(rows[is_integer].sum() / rows.sum())) > _NEARLY
