"""The audit of one prepared data set: every check, quick ones inside `prepare`, all of them in `recsys audit`.

Reads a prepared data set, and the manifests of what was fitted on it; produces ``leakage.json``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import polars as pl

from features.audit.leakage.asked_rows import AUDITED, Arrays, AskedRows, asked_rows
from features.audit.leakage.findings import Finding, by_severity
from features.audit.leakage.histories import future_events, ties, users_on_both_sides
from features.audit.leakage.lineage import PREPARE, DataFinder, fitted_on_later_events, fitted_on_other_data
from features.audit.leakage.statistics import aggregated_columns, counted_from_later
from features.audit.leakage.training import (
    repeated_sessions,
    repeated_targets,
    targets_in_training,
    train_after_target,
    train_rows_too_long,
)
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.manifest import Artifact, write_json

LEAKAGE_NAME: Final = "leakage.json"

CHECKS: Final = {
    "future_events": "events in histories that are not before the target",
    "targets_in_training": "targets whose very event is trained on",
    "train_rows_in_window": "train rows that ask for items of the evaluated window",
    "train_after_target": "train events later than targets",
    "users_on_both_sides": "users of a held-out split with train events",
    "popularity_of_later_events": "items counted over other events than those of training",
    "ties": "targets at the instant of the event before them",
    "aggregated_columns": "item or user columns that may sum up later behaviour",
    "repeated_targets": "targets that the user had before",
    "repeated_sessions": "sessions that equal a train session",
    "fitted_on_later_events": "embeddings, IDs, policy fitted on events later than targets",
    "fitted_on_other_data": "artefacts of other data that reach into the evaluated time",
}
"""What is looked for, by code."""

QUICK: Final = (
    "future_events",
    "targets_in_training",
    "train_rows_in_window",
    "train_after_target",
    "users_on_both_sides",
    "popularity_of_later_events",
    "ties",
    "aggregated_columns",
)
"""What `prepare` looks for itself, without measured prices: a second of CPU time at five million events."""


@dataclass(frozen=True)
class AuditInputs:
    """What the audit knows beside the data set.

    Attributes:
        split_kind: ``features.split.kind``.
        columns: Columns of items and users that are used, and what for (:func:`mapped_columns`).
        artefacts: What was fitted, opened.
        digest: Of the prepared data, empty inside `prepare`, where nothing is fitted yet.
        data_of: Finds other prepared data by digest.
    """

    split_kind: str
    columns: Mapping[str, str] = field(default_factory=dict)
    artefacts: Sequence[Artifact] = ()
    digest: str = ""
    data_of: DataFinder = lambda digest: None


@dataclass(frozen=True)
class InMemory:
    """What of a data set that was just written is still in memory.

    Attributes:
        user_ids: ``[U]``; ``None``: they are read.
        targets: Code of each split -> its rows; ``None``: they are read.
    """

    user_ids: pl.Series | None = None
    targets: Mapping[int, Targets] | None = None


def audit(
    dataset: Dataset, inputs: AuditInputs, *, quick: bool = False, known: InMemory | None = None
) -> dict[str, Any]:
    """Look for leaks.

    Args:
        dataset: The data.
        inputs: What is known beside them.
        quick: Only the checks of :data:`QUICK`, and no recommender is measured.
        known: What need not be read.

    Returns:
        ``findings`` (the worst first), ``checked`` (what was looked for), ``severe`` (how many are), ``rows`` per split.
    """
    known = known or InMemory()
    arrays = Arrays.of(dataset, known.user_ids)
    found: list[Finding] = []
    counts: dict[str, int] = {}
    targets = known.targets
    if targets is None:
        table = dataset.target_rows()
        targets = {split: dataset.targets(split, table) for split in AUDITED}
    for split in AUDITED:
        rows = asked_rows(arrays, split, targets[split])
        counts[rows.split] = len(rows)
        if len(rows):
            found += _checks(dataset, arrays, rows, inputs, quick=quick)
    found = by_severity(_once(found))
    return {
        "findings": [finding.as_json() for finding in found],
        "severe": sum(finding.severity == "severe" for finding in found),
        "checked": {code: words for code, words in CHECKS.items() if code in QUICK or not quick},
        "priced": not quick,
        "rows": counts,
    }


def audit_prepared(folder: Path, split_kind: str, source: Mapping[str, Any], known: InMemory) -> dict[str, Any]:
    """Look for leaks that are quick to find in the data set that was written into ``folder``, and write them beside it.

    Args:
        folder: The data.
        split_kind: ``features.split.kind``.
        source: The ``source`` section of the configuration, as JSON.
        known: What of the data need not be read.
    """
    columns = mapped_columns(source, folder / "users.parquet")
    found = audit(Dataset.open(folder, checked=False), AuditInputs(split_kind, columns), quick=True, known=known)
    write_json(folder / LEAKAGE_NAME, found)
    return found


def _checks(
    dataset: Dataset, arrays: Arrays, rows: AskedRows, inputs: AuditInputs, *, quick: bool
) -> Iterator[Finding]:
    yield from future_events(arrays, rows)
    yield from targets_in_training(arrays, rows)
    yield from train_rows_too_long(dataset, arrays, rows)
    yield from train_after_target(arrays, rows, inputs.split_kind, priced=not quick)
    yield from users_on_both_sides(arrays, rows, inputs.split_kind)
    items = pl.read_parquet(dataset.path / "items.parquet", columns=[Columns.ITEM_ID, Columns.TRAIN_COUNT], glob=False)
    yield from counted_from_later(arrays, rows, items[Columns.TRAIN_COUNT].to_numpy(), items[Columns.ITEM_ID])
    yield from ties(arrays, rows, priced=not quick)
    yield from aggregated_columns(arrays, rows, inputs.columns)
    if quick:
        return
    yield from repeated_targets(arrays, rows)
    if (dataset.path / "sessions.parquet").exists():
        yield from repeated_sessions(dataset, arrays, rows)
    own = [artefact for artefact in inputs.artefacts if artefact.manifest.parents.get(PREPARE) == inputs.digest]
    other = [artefact for artefact in inputs.artefacts if artefact.manifest.parents.get(PREPARE) != inputs.digest]
    yield from fitted_on_later_events(arrays, rows, own)
    yield from fitted_on_other_data(arrays, rows, other, inputs.data_of)


_PER_DATASET: Final = ("popularity_of_later_events", "aggregated_columns")


def _once(found: Sequence[Finding]) -> Iterator[Finding]:
    """Keep one finding, that of the test rows, of what is about the data set and not about its rows."""
    seen = set()
    for finding in found:
        if finding.code in _PER_DATASET and finding.code in seen:
            continue
        seen.add(finding.code)
        yield finding


def mapped_columns(source: Mapping[str, Any], users: Path | None = None) -> dict[str, str]:
    """Return the item columns that a source's map uses and the attributes of users, each with its use.

    Args:
        source: The ``source`` section of a configuration, as JSON.
        users: The prepared ``users.parquet``.
    """
    found: dict[str, str] = {}
    for use, columns in (source.get("item_columns") or {}).items():
        for column in [columns] if isinstance(columns, str | Mapping) else columns or []:
            name = column.get("column") if isinstance(column, Mapping) else column
            if isinstance(name, str):
                found.setdefault(name, f"items.{use}")
    if users is not None:
        for name in pl.scan_parquet(users, glob=False).collect_schema().names():
            if name not in (Columns.USER_ID, Columns.USER_INDEX):
                found.setdefault(name, f"users.{name}")
    return found
