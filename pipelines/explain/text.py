"""An explanation for people: as text for a terminal, and as a page that loads nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from typing import Any, Final

from recsys.reports.html import Conclusion, page, paragraph, table

Explanation = Mapping[str, Any]
Section = tuple[str, str, list[str], list[list[str]]]
_TURNING: Final = "\u200e\u200f\u061c\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""Marks that turn the direction of what stands around them."""


def name_of(item: Mapping[str, Any]) -> str:
    """Title and id of an item, or the id alone.

    Example:
        >>> name_of({"item_id": 7, "title": "Alien"}), name_of({"item_id": 7, "title": None})
        ('Alien (7)', '7')
    """
    title, item_id = plain(item["title"] or ""), plain(str(item["item_id"]))
    return f"{title} ({item_id})" if title else item_id


def plain(text: str) -> str:
    r"""Return a text of somebody else's as one line: what moves a terminal's cursor or turns the direction is a space.

    Example:
        >>> plain("Ali\x1b[2Jen\n\u202e3")
        'Ali [2Jen  3'
    """
    return "".join(" " if unicodedata.category(c) in ("Cc", "Zl", "Zp") or c in _TURNING else c for c in text).strip()


def tables_of(found: Explanation) -> list[Section]:
    """All sections as ``(heading, sentence, column names, rows)``; text and page show the same."""
    items, rules, history = found["items"], found["rules"], found["history"]
    sections = [
        (
            "History",
            f"{history['events']} events, of which the model reads the newest {history['read_by_the_model']}; "
            f"{history['unknown_to_the_model']} more name items that it does not have. Newest first.",
            ["", "item"],
            [[str(place + 1), name_of(item)] for place, item in enumerate(history["newest"])],
        ),
        (
            "Answer",
            f"In the order of: {found['model']['order']}.",
            [
                "session.place" if "sessions" in found else "rank",
                "item",
                "score",
                "probability of each code",
                "of the path",
            ],
            [
                [
                    _place(item),
                    name_of(item),
                    _number(item["score"]),
                    " · ".join(f"{code['code']}: {code['probability']:.3f}" for code in item["codes"]),
                    f"{item['path_log_prob']:.3f}",
                ]
                for item in items
            ],
        ),
        _stages(found),
        (
            "Rules",
            f"{rules['left']} of {rules['catalogue']} items are left to this user. Each rule alone takes: "
            + (", ".join(f"{name} {count}" for name, count in rules["removed"].items()) or "nothing")
            + ". The best items without any rule that are not in the answer:",
            ["rank without rules", "item", "taken by"],
            [
                [str(item["rank_without_rules"]), name_of(item), ", ".join(item["by"])]
                for item in rules["best_items_lost"]
            ],
        ),
        (
            "Neighbours by prefix",
            "Items that share the longest prefix of codes.",
            ["item", "shared codes", "so many", "such as"],
            [
                [
                    name_of(item),
                    str(item["neighbours"]["shared_codes"]),
                    str(item["neighbours"]["count"]),
                    ", ".join(name_of(other) for other in item["neighbours"]["items"]),
                ]
                for item in {item["item_id"]: item for item in items}.values()
            ],
        ),
    ]
    terms = [
        [name_of(item), ", ".join(f"{term['feature']} {term['adds']:+.3f}" for term in item["stages"]["ranker_terms"])]
        for item in items
        if item["stages"].get("ranker_terms")
    ]
    if terms:
        sections.insert(3, ("Terms of the ranker", "The heaviest of each item.", ["item", "terms"], terms))
    if "against" in found:
        sections.append(_against(found))
    return sections


def as_text(found: Explanation) -> str:
    """Sections with aligned columns."""
    model = found["model"]
    lines = [f"user {plain(str(found['user_id']))}, answered by {model['name']} {model['version']}"]
    for heading, sentence, head, rows in tables_of(found):
        lines += ["", heading, sentence]
        if rows:
            widths = [max(len(row[place]) for row in [head, *rows]) for place in range(len(head))]
            for row in [head, *rows]:
                lines.append(
                    "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
                )
    return "\n".join(lines)


def as_html(found: Explanation) -> str:
    """One page."""
    model, items = found["model"], found["items"]
    title = f"User {plain(str(found['user_id']))}"
    given = f"{len(found['sessions'])} sessions" if "sessions" in found else f"{len(items)} items"
    sentence = f"{model['name']} {model['version']} gives {given} in the order of: {model['order']}."
    sections = [
        (f"s{number}", heading, paragraph(words) + (table(head, rows) if rows else ""))
        for number, (heading, words, head, rows) in enumerate(tables_of(found))
    ]
    return page(title, Conclusion("unknown", sentence), "", sections)


def _against(found: Explanation) -> Section:
    other, rank = found["against"]["model"], "session" if "sessions" in found else "rank"
    return (
        f"Against {other['version']}",
        f"In the order of: {other['order']}. Scores of two models have scales of their own.",
        ["item", rank, "score", f"{rank} there", "score there"],
        [
            [name_of(row), *(_number(row[key]) for key in ("rank", "score", "rank_against", "score_against"))]
            for row in found["compared"]
        ],
    )


def _place(item: Mapping[str, Any]) -> str:
    return f"{item['session']}.{item['rank']}" if "session" in item else str(item["rank"])


def _stages(found: Explanation) -> Section:
    """A row per item, or where sessions are answered per session."""
    told = found.get("sessions", found["items"])
    names = [name for name in (told[0]["stages"] if told else {}) if name != "ranker_terms"]
    rows = [
        [str(one["session"]) if "sessions" in found else name_of(one), *(_cell(one["stages"][name]) for name in names)]
        for one in told
    ]
    first = "session" if "sessions" in found else "item"
    return "Scores of every stage", f"– where a stage did not find the {first}.", [first, *names], rows


def _cell(value: Any) -> str:
    return " ".join(value) if isinstance(value, list) else _number(value)


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.4f}"
