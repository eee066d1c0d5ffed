"""The page around the report's contents: sections, tables, names and titles as HTML. Pure functions from values to text.

The page loads nothing: system fonts, inline style, inline figures; it follows the reader's light or dark setting, and reads
at the width of a telephone. Everything that comes from data is escaped here.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final, Literal

from recsys.reports.style import CSS

Standing = Literal["better", "worse", "equal", "unknown"]


@dataclass(frozen=True)
class Conclusion:
    """What a page says before anything else; plain text.

    Attributes:
        standing: Gives the box its colour.
        sentence: The one sentence.
        notes: What qualifies it, a paragraph each.
    """

    standing: Standing
    sentence: str
    notes: tuple[str, ...] = ()


def page(title: str, conclusion: Conclusion, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """Assemble the page.

    Args:
        lead: How the numbers were made, under the conclusion; plain text.
        sections: ``(anchor, heading, html)`` in order.
    """
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{html}</section>\n' for anchor, heading, html in sections
    )
    notes = "".join(paragraph(note) for note in (*conclusion.notes, lead) if note)
    top = f'<div class="conclusion {conclusion.standing}"><p class="sentence">{escape(conclusion.sentence)}</p>{notes}</div>'
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n{top}\n<nav>{links}</nav>\n{body}</main>\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """Return plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = (), cards: bool = True) -> str:
    """Return a table.

    Args:
        head: Names of the columns, plain text.
        rows: Cells, plain text.
        words: Columns that hold sentences, which wrap.
        cards: On a narrow page every row becomes a card; leave it off for a few short columns.

    Example:
        >>> table(["", "n"], [["a&b", "1"]]).count("a&amp;b")
        1
    """
    css = dict.fromkeys(words, ' class="words"')
    titles = "".join(f"<th{css.get(place, '')}>{escape(name)}</th>" for place, name in enumerate(head))
    labels = [f' data-label="{escape(name)}"' if place and name else "" for place, name in enumerate(head)]
    body = "".join(
        "<tr>"
        + "".join(f"<td{css.get(place, '')}{labels[place]}>{escape(cell)}</td>" for place, cell in enumerate(row))
        + "</tr>"
        for row in rows
    )
    kind = ' class="cards"' if cards else ""
    return f'<div class="scroll"><table{kind}><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'


def details(summary: str, html: str) -> str:
    """Return HTML that is folded away under one line of plain text."""
    return f"<details><summary>{escape(summary)}</summary>{html}</details>"


def as_panel(heading: str, words: str, svg: str) -> str:
    """Put heading and words above a drawing."""
    said = paragraph(words) if words else ""
    return f"<figure><figcaption><h4>{escape(heading)}</h4>{said}</figcaption>{svg}</figure>"


def grid(panels: Sequence[str], legend: str = "") -> str:
    """Lay panels side by side where there is room; the legend above them belongs to all."""
    css = "panels wide" if len(panels) == 4 else "panels"
    return f'{legend}<div class="{css}">{"".join(panels)}</div>'


def key(name: str) -> str:
    """Return a name of the program in monospace; it may wrap after a separator, never inside a word.

    Example:
        >>> key("levels.cluster_sizes")
        '<code>levels.<wbr>cluster_<wbr>sizes</code>'
    """
    return "<code>" + re.sub(r"([._/-]+)", r"\1<wbr>", escape(name)) + "</code>"


TITLE_LENGTH: Final = 110
"""Longer titles are cut; the whole one appears under the pointer."""


def item_title(title: str | None, item_id: object) -> str:
    """Return an item's title, or its id where it has none.

    ``<bdi>`` keeps right-to-left titles, and marks that turn the direction, from reordering what stands around them.

    Example:
        >>> item_title("Tips & <b>tricks</b>", 7)
        '<bdi>Tips &amp; &lt;b&gt;tricks&lt;/b&gt;</bdi>'
        >>> item_title(" ", 7)
        '<code>7</code>'
    """
    text = "".join(" " if unicodedata.category(c) == "Cc" else c for c in title or "").strip()
    if not text:
        return f"<code>{escape(str(item_id))}</code>"
    if len(text) <= TITLE_LENGTH:
        return f"<bdi>{escape(text)}</bdi>"
    return f'<bdi title="{escape(text)}">{escape(text[:TITLE_LENGTH].rstrip())}…</bdi>'


def facts(values: Mapping[str, Any]) -> str:
    """Show a nested mapping: dotted keys with their values; what is given per level as one column per level.

    Example:
        >>> facts({"items": 12101})
        '<dl class="facts"><div><dt><code>items</code></dt><dd>12,101</dd></div></dl>'
        >>> facts({"levels": [{"utilisation": 1.0}, {"utilisation": 0.9}]}).count("<td>")
        3
    """
    plain: list[tuple[str, Any]] = []
    per_level: list[tuple[str, list[Any]]] = []
    for name, value in flatten(values):
        if _all(value, Mapping):
            levels = [dict(flatten(level)) for level in value]
            names = list(dict.fromkeys(name for level in levels for name in level))
            per_level += [(f"{name}.{inner}", [level.get(inner) for level in levels]) for inner in names]
        elif _all(value, int | float) and len(value) <= _MOST_LEVELS:
            per_level.append((name, list(value)))
        else:
            plain.append((name, value))
    html = ""
    if plain:
        rows = "".join(f"<div><dt>{key(name)}</dt><dd>{_value(value)}</dd></div>" for name, value in plain)
        html += f'<dl class="facts">{rows}</dl>'
    if per_level:
        html += _level_table(per_level)
    return html


_MOST_LEVELS = 8
"""Longer lists of numbers are histograms and the like, not one number per level."""


def _level_table(rows: Sequence[tuple[str, Sequence[Any]]]) -> str:
    width = max(len(values) for _, values in rows)
    head = "".join(f"<th>{place}</th>" for place in range(1, width + 1))
    body = "".join(
        f"<tr><td>{key(name)}</td>"
        + "".join(f"<td>{escape(_text(value))}</td>" for value in values)
        + "<td></td>" * (width - len(values))
        + "</tr>"
        for name, values in rows
    )
    return f'<div class="scroll"><table><thead><tr><th>per level</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _all(value: Any, kind: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(element, kind) for element in value)


NO_BREAK: Final = "\u00a0"


def percent(share: float, digits: int = 0) -> str:
    r"""Write a share as per cent.

    Example:
        >>> percent(0.1234, 1)
        '12.3\xa0%'
    """
    return f"{share * 100:.{digits}f}{NO_BREAK}%"


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested mapping with dotted keys, in order.

    Example:
        >>> list(flatten({"a": {"b": 1}, "c": 2}))
        [('a.b', 1), ('c', 2)]
    """
    for name, value in values.items():
        dotted = f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{dotted}.")
        else:
            yield dotted, value


def _value(value: Any) -> str:
    text = escape(_text(value))
    return f"<code>{text}</code>" if isinstance(value, str) and re.fullmatch(r"[0-9a-f]{12,}", value) else text


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value) or "–"
    return str(value)
