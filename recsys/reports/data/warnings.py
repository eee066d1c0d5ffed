"""What a reader of the data report must know first: warnings in words, each with what to do.

Reads the JSON files of a prepared data set; produces sentences. Nothing here decides anything, so thresholds are written
where they are used.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from recsys.reports.html import percent

Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Warned:
    """One warning, as plain text.

    Attributes:
        severe: Metrics or models made from these data cannot be trusted.
        said: What is the matter.
        advice: What to do.
    """

    severe: bool
    said: str
    advice: str


def warnings_of(report: Facts, facts: Facts, leakage: Facts) -> list[Warned]:
    """Return the warnings, the severe ones first."""
    found = [*_rows(report), *_times(report), *_signals(report), *_ids(facts), *_shape(facts), *_drift(facts)]
    leaks: dict[str, Facts] = {}
    for leak in leakage.get("findings", []):
        leaks.setdefault(leak["code"], leak)
    found += [
        Warned(leak["severity"] == "severe", f"{leak['title']}: {leak['words']}.", leak["advice"])
        for leak in leaks.values()
        if leak["severity"] != "note"
    ]
    return sorted(found, key=lambda warned: not warned.severe)


def _rows(report: Facts) -> Iterator[Warned]:
    rows, refused = report.get("rows_in", 0), sum(report.get("quarantined", {}).values())
    if rows and refused / rows >= 0.001:
        worst = max(report["quarantined"], key=report["quarantined"].get)
        yield Warned(
            False,
            f"{refused:,} of {rows:,} rows ({percent(refused / rows, 1)}) are in the quarantine, most because of: {worst}.",
            "open quarantine.parquet: it names file, row and reason; mend the source or the column map",
        )
    merged = report.get("merged", 0)
    if rows and merged / rows >= 0.05:
        yield Warned(
            False,
            f"{merged:,} of {rows:,} rows ({percent(merged / rows, 1)}) repeat an event and were merged into it.",
            "look at merged.parquet: an export that ran twice, or one row per signal",
        )
    removed = report.get("k_core_removed", 0)
    if rows and removed / rows >= 0.5:
        yield Warned(
            False,
            f"The k-core removed {removed:,} of {rows:,} rows ({percent(removed / rows)}).",
            "lower features.k_core, or say in results that they are about the rest",
        )
    for name in report.get("absent_item_columns", []):
        yield Warned(False, f"The item column '{name}' was not there.", "check source.item_columns against the file")


def _times(report: Facts) -> Iterator[Warned]:
    if future := report.get("future_events", 0):
        yield Warned(
            False,
            f"{future:,} events are later than the day the data were prepared; the last is of {report.get('last_event')}.",
            "check unit and zone of the times; features.quarantine.not_after refuses rows after a date",
        )


def _signals(report: Facts) -> Iterator[Warned]:
    for name, counts in report.get("signals", {}).items():
        known = counts["true"] + counts["false"]
        if not counts["true"]:
            yield Warned(
                False,
                f"The signal '{name}' is {'false' if known else 'not known'} in every event.",
                "check its column, 'equals' or 'at_least' in source.signals, or leave the signal out",
            )
        elif not counts["false"]:
            yield Warned(
                False, f"The signal '{name}' is true in every event that knows it.", "it tells events apart in no way"
            )


def _ids(facts: Facts) -> Iterator[Warned]:
    for name, ids in facts.get("ids", {}).items():
        for form, odd in ids.get("odd", {}).items():
            examples = ", ".join(f"'{one}'" for one in odd["examples"])
            if form == "leading zeros":
                continue
            yield Warned(
                False,
                f"{odd['count']:,} {name} ids have {form}{f', for example {examples}' if examples else ''}.",
                "if they were read wrongly, declare the column's type (source.types) or mend the export",
            )


_METADATA = {"title": "a title", "text": "a text", "categories": "categories", "author_id": "an author"}


def _shape(facts: Facts) -> Iterator[Warned]:
    users, size = facts.get("users", {}), facts.get("size", {})
    events = size.get("events", 0)
    if events >= 10_000 and users.get("largest", 0) / events >= 0.01:
        yield Warned(
            False,
            f"One user has {users['largest']:,} events, {percent(users['largest'] / events, 1)} of all: a robot, or a gap.",
            "find the user in users.parquet and leave it out at the source",
        )
    for kind, shares in facts.get("metadata", {}).items():
        items = shares.get("items") or 0.0
        if 0.0 < items < 0.5:
            yield Warned(
                False,
                f"Only {percent(items)} of the items have a {kind.removesuffix('_id')}.",
                "check the join of the item file",
            )


def _drift(facts: Facts) -> Iterator[Warned]:
    drift = facts.get("drift") or {}
    if not drift:
        return
    before, now = drift["before"]["events"], drift["now"]["events"]
    if now < 0.5 * before or now > 2 * before:
        yield Warned(
            False,
            f"The last {_days(drift['days'])} hold {now:,} events, the {_days(drift['days'])} before {before:,}.",
            "is the last day whole? An export that stopped early ends like this",
        )
    for name, rates in drift.get("signals", {}).items():
        was, is_now = rates.get("before"), rates.get("now")
        if was and is_now is not None and not was / 2 <= is_now <= was * 2 and not rates["low"] <= 0 <= rates["high"]:
            rates_said = f"from {percent(was, 2)} to {percent(is_now, 2)}"
            yield Warned(
                False,
                f"The rate of '{name}' went {rates_said} in the last {_days(drift['days'])}.",
                "ask whether the product changed, or what is logged",
            )


def _days(days: float) -> str:
    return "day" if days == 1 else f"{days:g} days"
