"""What a prepared data set promises to those who read it, in one small file that travels with the model.

Reads a prepared data set and its data report; produces ``data_contract.json``. The serving bundle keeps a copy, so that
tonight's data can be held against what the champion was made from (:mod:`features.audit.changes`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

import polars as pl
from pydantic import BaseModel, ConfigDict, ValidationError

from features.audit.sketch import IdSketch, sketch
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import CONTRACT_NAME, DatasetSpec
from recsys.contracts.errors import ArtifactError
from recsys.contracts.event_times import microseconds
from recsys.contracts.manifest import read_json, write_json

IdType = Literal["integer", "text"]


class Sample(BaseModel):
    """An :class:`~features.audit.sketch.IdSketch` as JSON."""

    model_config = ConfigDict(frozen=True)

    count: int
    hashes: tuple[int, ...]
    shapes: dict[str, float]

    @property
    def sketch(self) -> IdSketch:
        """The sample to compare with."""
        return IdSketch(self.count, self.hashes, dict(self.shapes))


class DataContract(BaseModel):
    """What later nights, and those who ask the model, rely on.

    Attributes:
        user_id_type, item_id_type: Type of the ids as the data set keeps them.
        task, session_length: What is predicted.
        signals: In the order of the behaviour code.
        signal_rates: Share of the events whose signal is known and given; ``None`` where it is nowhere known.
        positive_share: Share of the events that count as liked.
        sessions_by: How sessions are cut (``given``, ``gap``, ``chunk``).
        has_timestamps: Whether events have times.
        first_time, last_time: UTC microseconds of the first and the last timed event.
        watch_time_ms, duration_ms: Medians, ``None`` where not known.
        events: Kept events.
        users, items, categories, authors: Samples of the ids.
    """

    model_config = ConfigDict(frozen=True)

    user_id_type: IdType
    item_id_type: IdType
    task: str
    session_length: int
    signals: tuple[str, ...]
    signal_rates: dict[str, float | None]
    positive_share: float
    sessions_by: str | None
    has_timestamps: bool
    first_time: int | None
    last_time: int | None
    watch_time_ms: float | None
    duration_ms: float | None
    events: int
    users: Sample
    items: Sample
    categories: Sample
    authors: Sample


def write_contract(folder: Path, report: Mapping[str, Any], user_ids: pl.Series | None = None) -> DataContract:
    """Describe the prepared data set in ``folder`` and write ``data_contract.json`` into it.

    Args:
        folder: Holds ``dataset.json`` and the tables.
        report: The data report, which counted the events.
        user_ids: Of the users; ``None`` reads them.
    """
    contract = describe(folder, report, user_ids)
    write_json(folder / CONTRACT_NAME, contract.model_dump(mode="json"))
    return contract


def describe(folder: Path, report: Mapping[str, Any], user_ids: pl.Series | None = None) -> DataContract:
    """Return what the prepared data set in ``folder`` promises; reads ids, and watched times where there are some."""
    spec = DatasetSpec.model_validate(read_json(folder / "dataset.json"))
    users = read_user_ids(folder) if user_ids is None else user_ids
    items = pl.read_parquet(
        folder / "items.parquet", columns=[Columns.ITEM_ID, Columns.CATEGORIES, Columns.AUTHOR_ID], glob=False
    )
    return contract_of(spec, report, users, items, pl.scan_parquet(folder / "events.parquet", glob=False))


def contract_of(
    spec: DatasetSpec, report: Mapping[str, Any], users: pl.Series, items: pl.DataFrame, events: pl.LazyFrame
) -> DataContract:
    """Return what data promise, written or not.

    Args:
        spec: Sizes and task.
        report: The data report, which counted the events.
        users: Their ids.
        items: ``item_id``, ``categories`` and ``author_id`` of each.
        events: Their watched times and durations, where there are some.
    """
    medians = _medians(events)
    categories = items[Columns.CATEGORIES].explode().drop_nulls().unique()
    sessions = report.get("sessions")
    return DataContract(
        user_id_type=id_type(users.dtype),
        item_id_type=id_type(items[Columns.ITEM_ID].dtype),
        task=spec.task,
        session_length=spec.session_length,
        signals=spec.signals,
        signal_rates={name: _rate(report["signals"][name]) for name in spec.signals},
        positive_share=rounded(report["positive_events"] / max(report["kept"], 1)) or 0.0,
        sessions_by=sessions.get("by") if isinstance(sessions, Mapping) else None,
        has_timestamps=spec.has_timestamps,
        first_time=_instant(report["first_event"]),
        last_time=_instant(report["last_event"]),
        watch_time_ms=rounded(medians.get(Columns.WATCH_TIME_MS)),
        duration_ms=rounded(medians.get(Columns.DURATION_MS)),
        events=report["kept"],
        users=_sample(users),
        items=_sample(items[Columns.ITEM_ID]),
        categories=_sample(categories),
        authors=_sample(items[Columns.AUTHOR_ID].unique()),
    )


def read_user_ids(folder: Path) -> pl.Series:
    """Read the ids of the users of the prepared data set in ``folder``."""
    return pl.read_parquet(folder / "users.parquet", columns=[Columns.USER_ID], glob=False)[Columns.USER_ID]


def read_contract(path: Path) -> DataContract | None:
    """Read a contract, ``None`` where there is no such file.

    Raises:
        ArtifactError: The file cannot be read as one.
    """
    if not path.exists():
        return None
    return parse_contract(read_json(path), path)


def parse_contract(values: Any, path: Path) -> DataContract:
    """Check the values of a contract that was read from ``path``.

    Raises:
        ArtifactError: They are not a contract's.
    """
    try:
        return DataContract.model_validate(values)
    except ValidationError as error:
        raise ArtifactError(
            f"'{path}' is no data contract: {error}; delete it and run `recsys prepare` again"
        ) from error


def id_type(dtype: pl.DataType) -> IdType:
    """Name the type of an id column."""
    return "text" if dtype == pl.String else "integer"


def rounded(value: float | None) -> float | None:
    """Return six significant digits, which no rearrangement of a sum changes; ``None`` for what is not known."""
    return None if value is None or not math.isfinite(value) else float(f"{value:.6g}")


def _sample(ids: pl.Series) -> Sample:
    found = sketch(ids)
    return Sample(count=found.count, hashes=found.hashes, shapes=found.shapes)


def _instant(written: str | None) -> int | None:
    return None if written is None else microseconds(datetime.fromisoformat(written))


def _rate(counts: Mapping[str, int]) -> float | None:
    known = counts["true"] + counts["false"]
    return rounded(counts["true"] / known) if known else None


def _medians(events: pl.LazyFrame) -> dict[str, float | None]:
    """Medians of the known watched times and durations, of the columns that the events have."""
    names = [name for name in (Columns.WATCH_TIME_MS, Columns.DURATION_MS) if name in events.collect_schema().names()]
    if not names:
        return {}
    found: dict[str, float | None] = (
        events.select(pl.col(name).filter(pl.col(name) > 0).median() for name in names).collect().row(0, named=True)
    )
    return found
