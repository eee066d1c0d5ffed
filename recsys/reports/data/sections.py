"""Sections of the data report that draw: rows, activity over time, the long tail, lengths and gaps, drift.

JSON in, HTML out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

from recsys.reports.charts import line_chart, row_chart
from recsys.reports.html import details, grid, paragraph, percent, table

MOST_FILES: Final = 40

WATCH_LABELS: Final = (
    "under 5%", "5–10%", "10–20%", "20–35%", "35–50%", "50–70%", "70–90%", "90–110%", "110–150%", "150–200%", "more",
)  # fmt: skip
"""Buckets, from 1, of :func:`recsys.contracts.event_features.watch_buckets`."""

GAP_GROUPS: Final = (
    ("under 1 s", 1), ("1–7 s", 4), ("8–63 s", 7), ("1–8 min", 10), ("9–34 min", 12), ("34 min–2 h", 14), ("2–9 h", 16),
    ("9–36 h", 18), ("1.5–6 days", 20), ("6–24 days", 22), ("24–97 days", 24), ("longer", 31),
)  # fmt: skip
"""Label and last bucket of :func:`recsys.contracts.event_features.gap_buckets`, which are powers of two of a second."""


def rows_section(report: Mapping[str, Any]) -> str:
    """Where every row went, why rows were refused, and the files they came from."""
    rows = report.get("rows_in", 0)
    refused = report.get("quarantined", {})
    steps = [
        ("read", rows, "rows of all files, blank lines aside"),
        ("in the quarantine", sum(refused.values()), "quarantine.parquet, with file, row and reason"),
        ("merged", report.get("merged", 0), "repeats of an event; merged.parquet"),
        ("removed by the k-core", report.get("k_core_removed", 0), "events of users or items with too few"),
        ("kept", report.get("kept", 0), "events.parquet"),
        ("of them positive", report.get("positive_events", 0), "the histories that models read"),
    ]
    html = table(
        ["step", "rows", "share", "where they are"],
        [[name, f"{count:,}", percent(count / rows, 2) if rows else "–", words] for name, count, words in steps],
        words=(3,),
    )
    if refused:
        reasons = sorted(refused.items(), key=lambda pair: (-pair[1], pair[0]))
        body = [[reason, f"{count:,}", percent(count / max(rows, 1), 2)] for reason, count in reasons]
        html += "<h3>Why rows were refused</h3>" + table(["reason", "rows", "share"], body)
    files = report.get("files") or []
    if files:
        shown = [[f["file"], f"{f['rows_in']:,}", f"{f['quarantined']:,}"] for f in files[:MOST_FILES]]
        more = f"; {len(files) - MOST_FILES:,} more are in data_report.json" if len(files) > MOST_FILES else ""
        number = f"{len(files):,} file{'s' * (len(files) > 1)}{more}"
        html += details(number, table(["file", "rows", "in the quarantine"], shown))
    return html


def time_section(over_time: Mapping[str, Any]) -> str:
    """Events, active users and rates of signals per day or longer step."""
    labels, step = over_time["from"], over_time["step"]
    whole = "The first and the last step may not be whole."
    panels = [
        line_chart(f"Events per {step}", whole, {"events": over_time["events"]}, labels),
        line_chart(f"Active users per {step}", "Users with at least one event.", {"users": over_time["users"]}, labels),
    ]
    if any(value != 1.0 for value in over_time["positive"] if value is not None):
        line = {"positive": over_time["positive"]}
        panels.append(line_chart("Positive events", "Share of all events.", line, labels, percent=True))
    rates = {name: line for name, line in over_time["signals"].items() if any(value is not None for value in line)}
    panels += [
        line_chart(f"Rate of '{name}'", "Share of the events that know it.", {name: line}, labels, percent=True)
        for name, line in rates.items()
    ]
    return grid(panels)


def tail_section(found: Mapping[str, Any]) -> str:
    """Sizes, sparsity and how unevenly events are spread over items and users."""
    size, items, users = found["size"], found["items"], found["users"]
    rows = [
        ["number", f"{size['items']:,}", f"{size['users']:,}"],
        ["mean events", f"{size['events_per_item']:,.1f}", f"{size['events_per_user']:,.1f}"],
        ["median events", *(f"{part['quantiles']['p50']:,}" for part in (items, users))],
        ["90 % have at most", *(f"{part['quantiles']['p90']:,}" for part in (items, users))],
        ["most", *(f"{part['largest']:,}" for part in (items, users))],
        ["with one event", *(f"{part['once']:,}" for part in (items, users))],
        ["without events", *(f"{part['without']:,}" for part in (items, users))],
        ["share of the top 1 %", *(percent(part["top_1_percent"] or 0.0, 1) for part in (items, users))],
        ["share of the top 10 %", *(percent(part["top_10_percent"] or 0.0, 1) for part in (items, users))],
        ["Gini", *(f"{part['gini']:.3f}" for part in (items, users))],
    ]
    filled = percent(size["filled"], 4 if size["filled"] < 0.001 else 2)
    curves = {"items": items["curve"], "users": users["curve"]}
    places = [f"top {5 * place}%" for place in range(len(items["curve"]))]
    words = (
        "Share of all events that the most frequent items, and users, have together. A straight line would be equality."
    )
    return (
        paragraph(
            f"There are {filled} as many events as cells in the table of users and items; the rest is empty. "
            "Gini is 0 where all have as many events, and 1 where one has all."
        )
        + '<div class="two"><div>'
        + table(["", "items", "users"], rows, cards=False)
        + "</div><div>"
        + grid([line_chart("The long tail", words, curves, places, percent=True)])
        + "</div></div>"
    )


def lengths_section(report: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Lengths of histories and sessions, gaps between events, ties, watched shares."""
    ties = report.get("ties") or {}
    html = ""
    if ties.get("events"):
        by_file = ties["by_file_order"]
        how = "all of them" if by_file == ties["events"] else f"{by_file:,} of them"
        html += paragraph(
            f"{ties['events']:,} events ({percent(ties['share'], 1)}) have the same time as the event before them of the "
            f"same user; {how} stand in the order of the file."
        )
    panels = [
        row_chart("Positive events of a user", "Length of the histories: users.", _pairs(found["history_lengths"])),
        row_chart("Events of a session", "Sessions.", _pairs(found["session_lengths"])),
    ]
    gaps, watch = found["gaps"], found["watch"]
    if sum(gaps[1:]):
        words = f"Positive events of the same user; of {gaps[0]:,} it is not known, as of every first one."
        ends = [0, *(last for _, last in GAP_GROUPS)]
        counts = [sum(gaps[before + 1 : last + 1]) for before, last in pairwise(ends)]
        panels.append(
            row_chart("Time since the event before", words, _pairs(zip(_names(GAP_GROUPS), counts, strict=True)))
        )
    if sum(watch[1:]):
        words = f"Positive events; of {watch[0]:,} it is not known."
        panels.append(row_chart("Watched share", words, _pairs(zip(WATCH_LABELS, watch[1:], strict=False))))
    return html + grid(panels)


def _pairs(histogram: Iterable[Sequence[Any]]) -> list[tuple[str, float]]:
    return [(str(label), float(count)) for label, count in histogram]


def _names(groups: Sequence[tuple[str, int]]) -> list[str]:
    return [name for name, _ in groups]


def drift_section(drift: Mapping[str, Any]) -> str:
    """Two stretches side by side, distances of popularity, and rates with their interval."""
    before, now = drift["before"], drift["now"]
    days = "day" if drift["days"] == 1 else f"{drift['days']:g} days"
    rows = [
        [name, f"{before[name]:,}", f"{now[name]:,}", _change(before[name], now[name])]
        for name in ("events", "users", "items")
    ]
    html = table(["", f"the {days} before", f"the last {days}", "change"], rows)
    html += paragraph(
        f"New are {percent(drift['new_users'], 1)} of the users and {percent(drift['new_items'], 1)} of the items of the "
        f"last {days}; {percent(drift['events_on_new_items'], 1)} of the events are on those items. Popularity moved by a "
        f"PSI of {drift['psi']:.3f} (below 0.1 is little, above 0.25 much) and a Jensen-Shannon divergence of "
        f"{drift['jensen_shannon']:.3f} (0 is the same, 1 nothing in common)."
    )
    body = []
    for name, rates in drift.get("signals", {}).items():
        if rates.get("before") is None or rates.get("now") is None:
            body.append(
                [name, *("–" if rates.get(key) is None else percent(rates[key], 2) for key in ("before", "now")), "–"]
            )
            continue
        gap = f"{100 * rates['difference']:+.2f} [{100 * rates['low']:+.2f}, {100 * rates['high']:+.2f}] points"
        body.append([name, percent(rates["before"], 2), percent(rates["now"], 2), gap])
    if body:
        html += table(["rate of", f"the {days} before", f"the last {days}", "difference, 95 % interval"], body)
    return html


def _change(before: int, now: int) -> str:
    return f"{now / before - 1:+.1%}" if before else "–"
