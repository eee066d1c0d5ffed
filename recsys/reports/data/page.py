"""The page of the data report: where every row went, what the data are like, what leaks, and what to do about it.

Reads the JSON files of a prepared data set (``data_report.json``, ``data_facts.json``, ``leakage.json``); produces one HTML
file that names no folder and no hour, so that equal data have equal pages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, Final

from recsys.contracts.manifest import read_json
from recsys.reports.data.sections import drift_section, lengths_section, rows_section, tail_section, time_section
from recsys.reports.data.warnings import Warned, warnings_of
from recsys.reports.html import Conclusion, details, facts, page, paragraph, percent, table

PAGE_NAME: Final = "data_report.html"

_SEVERITY: Final = {"severe": "worse", "warning": "unknown", "note": "equal"}


def write_data_page(
    folder: Path, out_file: Path, *, leakage: Mapping[str, Any] | None = None, changes: Mapping[str, Any] | None = None
) -> Path:
    """Write the page of the prepared data in ``folder``.

    Args:
        folder: Holds the JSON files; one that is not there leaves its sections out.
        out_file: The page.
        leakage: The result of a whole audit instead of the quick one in ``folder``.
        changes: The comparison with the data before, for the section "Since last time".

    Returns:
        ``out_file``.
    """
    report, found, quick = (_read(folder / name) for name in ("data_report.json", "data_facts.json", "leakage.json"))
    out_file.write_text(data_page(report, found, leakage or quick, changes), encoding="utf-8")
    return out_file


def data_page(
    report: Mapping[str, Any],
    found: Mapping[str, Any],
    leakage: Mapping[str, Any],
    changes: Mapping[str, Any] | None = None,
) -> str:
    """Return the page as text; see :func:`write_data_page`."""
    warned = warnings_of(report, found, leakage)
    sections = [("warnings", "What to look at", _warnings(warned))] if warned else []
    sections.append(("rows", "Where every row went", rows_section(report)))
    if changes and changes.get("before"):
        sections.append(("changes", "Since last time", _changes(changes)))
    if "over_time" in found:
        sections.append(("time", "Over time", time_section(found["over_time"])))
    if found:
        sections.append(("tail", "Users, items, long tail", tail_section(found)))
        sections.append(("lengths", "Histories, sessions, gaps", lengths_section(report, found)))
        sections.append(("splits", "Splits", _splits(report, found)))
    if leakage:
        sections.append(("leaks", "Leaks", _leaks(leakage)))
    if found.get("drift"):
        sections.append(("drift", "The last stretch against the one before", drift_section(found["drift"])))
    if found:
        sections.append(("metadata", "Metadata and ids", _metadata(found)))
    sections.append(("numbers", "All numbers", details("data_report.json, as it is", facts(report))))
    return page("Data report", _conclusion(report, found, warned), "", sections)


def _read(path: Path) -> dict[str, Any]:
    return dict(read_json(path)) if path.exists() else {}


def _conclusion(report: Mapping[str, Any], found: Mapping[str, Any], warned: Sequence[Warned]) -> Conclusion:
    size = found.get("size", {})
    events, users, items = report.get("kept", 0), report.get("users", 0), size.get("items", report.get("items", 0))
    severe = sum(one.severe for one in warned)
    sentence = f"{events:,} events of {users:,} users and {items:,} items are ready"
    if severe:
        which = "warning" if severe == 1 else f"{severe} warnings"
        said, standing = f", but results from them cannot be trusted: see the first {which} below.", "worse"
    elif warned:
        said, standing = f"; {len(warned)} thing{'s' * (len(warned) > 1)} should be looked at.", "equal"
    else:
        said, standing = "; nothing stands out.", "better"
    dates = ""
    if report.get("first_event"):
        dates = (
            f"From {report['first_event'][:16].replace('T', ' ')} to {report['last_event'][:16].replace('T', ' ')} UTC."
        )
    notes = (dates, _identity(report), _no_records(report), _sampled(found))
    return Conclusion(standing, sentence + said, tuple(note for note in notes if note))  # type: ignore[arg-type]


def _sampled(found: Mapping[str, Any]) -> str:
    share = found.get("counted_share", 1.0)
    if share >= 1.0:
        return ""
    return (
        f"Activity, long tail, splits' dates and drift are counted over {percent(share, 1)} of the events, in runs of users "
        "that stand evenly in the data; the rows' counts are exact."
    )


def _identity(report: Mapping[str, Any]) -> str:
    """Say that no row was lost, with the numbers, or that the counts do not add up."""
    rows, kept, merged, removed = (report.get(name, 0) for name in ("rows_in", "kept", "merged", "k_core_removed"))
    refused = sum(report.get("quarantined", {}).values())
    total = kept + refused + merged + removed
    sums = f"{kept:,} kept + {refused:,} in the quarantine + {merged:,} merged + {removed:,} removed by the k-core"
    if total == rows:
        return f"No row was lost: {rows:,} read = {sums}."
    return f"The rows do not add up: {rows:,} read, but {sums} = {total:,}: a fault of the program, please report it."


def _no_records(report: Mapping[str, Any]) -> str:
    """Say how many lines of text files are remarks, which no count of rows has."""
    lines = report.get("comment_lines", 0)
    if not lines:
        return ""
    passed = "1 line was" if lines == 1 else f"{lines:,} lines were"
    return f"{passed} passed over as remarks (source.comment); no count of rows holds them."


def _warnings(warned: Sequence[Warned]) -> str:
    rows = "".join(
        f'<li class="{"worse" if one.severe else "plain"}"><b>{escape(one.said)}</b>'
        f"<br>What to do: {escape(one.advice)}.</li>"
        for one in warned
    )
    return f'<ul class="warnings">{rows}</ul>'


def _changes(changes: Mapping[str, Any]) -> str:
    html = paragraph(f"Compared with {changes['before']}.")
    if not changes["changes"]:
        return html + paragraph("Types of ids, signals, times, units, users, items and volume are as they were.")
    rows = [
        [
            change["kind"],
            change["words"],
            "accepted" if change["accepted"] else "stops the run" if change["stops"] else "a warning",
        ]
        for change in changes["changes"]
    ]
    return html + table(["what", "how", "so"], rows, words=(1,))


def _stop(change: Mapping[str, Any]) -> str:
    return "accepted" if change["accepted"] else "stops the run"


def _splits(report: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    split = report.get("split", {})
    positive, asked = report.get("positive_events_per_split", {}), report.get("target_rows", {})
    rows = [
        [
            name,
            f"{part['events']:,}",
            f"{positive.get(name, 0):,}",
            f"{part['users']:,}",
            f"{asked.get(name, 0):,}",
            part["first"] or "–",
            part["last"] or "–",
        ]
        for name in ("train", "valid", "test")
        if (part := found.get("splits", {}).get(name))
    ]
    html = paragraph(f"Split by {split.get('kind', 'an unknown rule')}.")
    if split.get("leaks_across_time"):
        html += paragraph(
            "The last event of each user is asked for, so some users' train events are later than others' targets."
        )
    return html + table(["split", "events", "positive", "users", "rows to predict", "from", "to (UTC)"], rows)


def _leaks(leakage: Mapping[str, Any]) -> str:
    html = paragraph(
        "A leak is information from later than the target. The price is in hits: how many rows a recommender could get "
        "right with the leak at most (counted), what one that reads only the leak gets (measured, by recsys audit), and "
        "what the same one gets without it."
    )
    kinds: dict[str, list[Mapping[str, Any]]] = {}
    for leak in leakage.get("findings", []):
        kinds.setdefault(leak["code"], []).append(leak)
    html += "".join(_leak(leaks) for leaks in kinds.values()) or paragraph("None was found.")
    looked = "".join(f"<li>{escape(words)}</li>" for words in leakage.get("checked", {}).values())
    return html + details(f"What was looked for ({len(leakage.get('checked', {}))} checks)", f"<ul>{looked}</ul>")


def _leak(leaks: Sequence[Mapping[str, Any]]) -> str:
    """One kind of leak with its numbers per split; words and advice are those of the first."""
    first = leaks[0]
    rows = [
        [
            leak["split"],
            f"{leak['rows']:,} of {leak['of']:,} {leak['unit']} ({percent(leak['share'], 1)})",
            *("–" if leak.get(key) is None else f"{leak[key]:.4f}" for key in ("hr_bound", "hr_at_10", "hr_without")),
            ", ".join(leak["examples"]) or "–",
        ]
        for leak in leaks
    ]
    severity = first["severity"]
    badge = f'<span class="badge {_SEVERITY[severity]}">{escape(severity)}</span>'
    head = ["split", "touched", "HR@10 at most", "from the leak", "without it", "examples"]
    return (
        f'<div class="leak {escape(severity)}"><h3>{escape(first["title"])}{badge}</h3>{paragraph(first["words"] + ".")}'
        f"{paragraph('What to do: ' + first['advice'] + '.')}{table(head, rows)}</div>"
    )


def _metadata(found: Mapping[str, Any]) -> str:
    names = {"title": "title", "text": "text", "categories": "categories", "author_id": "author"}
    rows = [
        [names[kind], percent(share["items"] or 0.0, 1), percent(share["events"] or 0.0, 1)]
        for kind in names
        if (share := found["metadata"].get(kind))
    ]
    html = (
        '<div class="two"><div><h3>Items with</h3>' + table(["", "of items", "of events"], rows, cards=False) + "</div>"
    )
    rows = []
    for name, ids in found["ids"].items():
        rows.append([f"{name} ids", ids["type"], ""])
        rows += [
            ["", f"{odd['count']:,} with {form}", ", ".join(map(str, odd["examples"]))]
            for form, odd in ids["odd"].items()
        ]
    return html + "<div><h3>Ids</h3>" + table(["", "kind", "examples"], rows, words=(1, 2)) + "</div></div>"
