"""What prepared data are like: activity over time, the long tail, lengths, gaps, metadata, ids, and drift at the end.

Reads the files of a prepared data set, column by column; produces ``data_facts.json``, which the page of the data report
draws (:mod:`recsys.reports.data.page`). Numbers are counted over all kept events unless they say "positive"; of more than
a million events over an even sample, whose share is ``counted_share``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from features.audit.contract import read_user_ids, rounded
from features.audit.drift import drift_at_the_end
from features.audit.event_columns import MOST_EVENTS, EventColumns
from features.data_report import doubling_labels
from features.passes.events import doubling_counts
from recsys.contracts.columns import SPLIT_NAMES, Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import write_json

FACTS_NAME: Final = "data_facts.json"

DAY: Final = 86_400_000_000
MOST_POINTS: Final = 120
"""More days than these are shown in longer steps."""

STEPS: Final = ((DAY, "day"), (7 * DAY, "week"), (28 * DAY, "4 weeks"), (364 * DAY, "52 weeks"))

LORENZ_POINTS: Final = 21
ID_EXAMPLES: Final = 3

METADATA: Final = (Columns.TITLE, Columns.TEXT, Columns.CATEGORIES, Columns.AUTHOR_ID)

ODD_IDS: Final = {
    "leading zeros": r"^0[0-9]+$",
    "a decimal point": r"^[0-9]+\.[0-9]+$",
    "an exponent": r"^[0-9](\.[0-9]+)?[eE]\+?[0-9]+$",
    "blanks inside": r"[^\s]\s+[^\s]",
    "quotes": r"[\"']",
    "characters that cannot be seen": r"[\x00-\x1f\x7f\x{200b}-\x{200f}\x{feff}]",
}
"""Forms of ids that come from a wrong reading more often than from a person; counted and shown, never refused."""

_USUAL: Final = bytes(code for code in range(0x21, 0x7F) if chr(code) not in "\"'")


def write_facts(folder: Path, report: Mapping[str, Any], user_ids: pl.Series | None = None) -> dict[str, Any]:
    """Describe the prepared data set in ``folder`` and write ``data_facts.json`` into it.

    Args:
        folder: Holds the tables and arrays.
        report: The data report, which counted the sessions.
        user_ids: Of the users; ``None`` reads them.
    """
    dataset = Dataset.open(folder, checked=False)
    found = describe_data(dataset, report, read_user_ids(folder) if user_ids is None else user_ids)
    write_json(folder / FACTS_NAME, found)
    return found


def describe_data(dataset: Dataset, report: Mapping[str, Any], user_ids: pl.Series) -> dict[str, Any]:
    """Return the facts; parts that the data cannot give are absent."""
    spec, folder = dataset.spec, dataset.path
    events = EventColumns.read(folder, spec)
    user_counts = np.bincount(events.user, minlength=spec.num_users)
    if events.share < 1.0:
        user_counts = user_counts[user_counts > 0]
    items = pl.read_parquet(folder / "items.parquet", columns=[Columns.ITEM_ID, *METADATA], glob=False)
    every = max(1, len(dataset.history.gap) // MOST_EVENTS)
    found: dict[str, Any] = {
        "size": {
            "events": events.total,
            "users": spec.num_users,
            "items": spec.num_items,
            "events_per_user": rounded(events.total / max(spec.num_users, 1)),
            "events_per_item": rounded(events.total / max(spec.num_items, 1)),
            "filled": rounded(events.total / max(spec.num_users * spec.num_items, 1)),
        },
        "counted_share": rounded(events.share),
        "items": tail(events.item_counts),
        "users": tail(user_counts),
        "history_lengths": doubling_labels(doubling_counts(np.diff(dataset.history.offsets))),
        "session_lengths": report["sessions"]["lengths"],
        "gaps": (every * np.bincount(dataset.history.gap[::every], minlength=spec.num_gap_buckets)).tolist(),
        "watch": (every * np.bincount(dataset.history.watch[::every], minlength=spec.num_watch_buckets)).tolist(),
        "metadata": _metadata(items, events.item_counts),
        "ids": {"user": odd_ids(user_ids), "item": odd_ids(items[Columns.ITEM_ID])},
        "splits": _splits(events),
    }
    if events.last_time >= 0:
        found["over_time"] = over_time(events)
        found["drift"] = drift_at_the_end(events, spec)
    return found


def tail(counts: npt.NDArray[np.integer]) -> dict[str, Any]:
    """Say how unevenly events are spread.

    Args:
        counts: ``[rows]`` events of every item, or of every user.

    Returns:
        ``gini`` (0 equal, 1 all on one), shares of the most frequent 1 and 10 per cent, ``largest``, ``without`` (rows
        without any), ``once``, ``quantiles``, and ``curve``: share of the events of the most frequent 0, 5, … 100 per cent.

    Example:
        >>> found = tail(np.array([6, 2, 2, 0]))
        >>> found["gini"], found["largest"], found["without"]
        (0.45, 6, 1)
    """
    ordered = np.sort(counts)[::-1].astype(np.float64)
    total, rows = float(ordered.sum()), len(ordered)
    summed = np.concatenate([[0.0], np.cumsum(ordered)]) / max(total, 1.0)
    places = np.rint(np.linspace(0, rows, LORENZ_POINTS)).astype(np.int64)
    gini = float((2 * (np.arange(rows, 0, -1) * ordered).sum() / (rows * total) - (rows + 1) / rows) if total else 0.0)
    percents = (0, 10, 50, 90, 99, 100)
    quantiles = np.percentile(counts, percents, method="lower") if rows else np.zeros(len(percents))
    return {
        "gini": rounded(gini),
        "top_1_percent": rounded(float(summed[max(1, round(rows / 100))])) if rows else None,
        "top_10_percent": rounded(float(summed[max(1, round(rows / 10))])) if rows else None,
        "largest": int(ordered[0]) if rows else 0,
        "without": int((counts == 0).sum()),
        "once": int((counts == 1).sum()),
        "quantiles": {f"p{percent}": int(value) for percent, value in zip(percents, quantiles, strict=True)},
        "curve": [rounded(float(value)) for value in summed[places]],
    }


def over_time(events: EventColumns) -> dict[str, Any]:
    """Count events, active users and signals per day, or per longer step where there are many days.

    Returns:
        ``step``, ``days`` of a step, and per step ``from`` (date), ``events``, ``users``, ``positive`` and one list of rates
        per signal, ``None`` where a step has no event that knows it. Steps without events are there, with 0.
    """
    first, last = events.first_time, events.last_time
    width, name = next(((w, n) for w, n in STEPS if (last - first) // w < MOST_POINTS), STEPS[-1])
    start = first // DAY * DAY
    steps = int((last - start) // width) + 1
    # events without a time go to a step of their own, number 0, which is left out
    step = (np.maximum(events.time - (start - width), 0) // width).astype(np.int32)

    def count(places: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
        return np.bincount(step[places], minlength=steps + 1)[1:]

    total = np.bincount(step, minlength=steps + 1)[1:]
    signals = {}
    for signal, values in events.signals.items():
        known = count(values.is_not_null().to_numpy()) if values.null_count() else total
        signals[signal] = _shares(count(values.fill_null(False).to_numpy()), known)
    return {
        "step": name,
        "days": width // DAY,
        "from": [date_of(start + place * width) for place in range(steps)],
        "events": total.tolist(),
        "users": count(events.new_pairs(step)).tolist(),
        "positive": _shares(count(events.positive), total),
        "signals": signals,
    }


def _shares(part: npt.NDArray[np.int64], whole: npt.NDArray[np.int64]) -> list[float | None]:
    return [rounded(some / of) if of else None for some, of in zip(part.tolist(), whole.tolist(), strict=True)]


def date_of(microseconds: int) -> str:
    """Return the UTC date of an instant."""
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d")


def _metadata(items: pl.DataFrame, item_counts: npt.NDArray[np.integer]) -> dict[str, dict[str, float | None]]:
    """Share of the items, and of the events, with each kind of metadata."""
    total = max(int(item_counts.sum()), 1)
    found = {}
    for name in METADATA:
        known = items[name].is_not_null().to_numpy()
        share = float(known.mean()) if len(known) else None
        found[name] = {"items": rounded(share), "events": rounded(float(item_counts[known].sum() / total))}
    return found


def odd_ids(ids: pl.Series) -> dict[str, Any]:
    """Count ids of odd forms; ids that are integers have none.

    Example:
        >>> odd_ids(pl.Series(["007", "u7", "U7"]))["odd"]["leading zeros"]
        {'count': 1, 'examples': ['007']}
    """
    if ids.dtype != pl.String:
        return {"type": "integer", "odd": {}}
    data = ids.str.join("").item().encode()
    odd: dict[str, Any] = {}
    if _may_be_odd(ids, data):
        # most ids are of no odd form: one pass says so, where each pattern would take one
        suspect = ids.filter(ids.str.contains("|".join(f"(?:{pattern})" for pattern in ODD_IDS.values())))
        for name, pattern in ODD_IDS.items() if len(suspect) else ():
            found = suspect.filter(suspect.str.contains(pattern))
            if len(found):
                odd[name] = {"count": len(found), "examples": found.head(ID_EXAMPLES).to_list()}
    if (twice := _capitals_alone(ids, data)) > 0:
        odd["capitals alone apart from another id"] = {"count": twice, "examples": []}
    return {"type": "text", "odd": odd}


def _may_be_odd(ids: pl.Series, data: bytes) -> bool:
    """Whether some id can match :data:`ODD_IDS`, each of which asks for an unusual byte or a digit at the beginning.

    Args:
        ids: Texts.
        data: Their bytes, one id after the other.
    """
    if data.translate(None, _USUAL):
        return True
    lengths = ids.str.len_bytes().to_numpy().astype(np.int64)
    first = np.frombuffer(data, np.uint8)[(np.cumsum(lengths) - lengths)[lengths > 0]]
    return bool(((first >= ord("0")) & (first <= ord("9"))).any())


def _capitals_alone(ids: pl.Series, data: bytes) -> int:
    """Count ids that are another one when both are written in small letters."""
    if data.isascii() and (data.lower() == data or data.upper() == data):
        return 0
    return len(ids) - ids.str.to_lowercase().n_unique()


def _splits(events: EventColumns) -> dict[str, dict[str, Any]]:
    """Events, users and dates of every split."""
    counts = np.bincount(events.split, minlength=len(SPLIT_NAMES))
    users = np.bincount(events.split[events.new_pairs(events.split)], minlength=len(SPLIT_NAMES))
    found = {}
    for code, name in enumerate(SPLIT_NAMES):
        time = events.time[events.split == code]
        known = time if len(time) and time.min() >= 0 else time[time >= 0]
        found[name] = {
            "events": int(counts[code]),
            "users": int(users[code]),
            "first": _minute(int(known.min())) if len(known) else None,
            "last": _minute(int(known.max())) if len(known) else None,
        }
    return found


def _minute(microseconds: int) -> str:
    return datetime.fromtimestamp(microseconds / 1e6, UTC).strftime("%Y-%m-%d %H:%M")
