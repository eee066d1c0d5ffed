"""The page around the report's contents: style sheet, tables, sections. Pure functions from values to HTML text.

The page loads nothing: system fonts, inline style, inline figures; it follows the reader's light or dark setting.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any, Final

CSS: Final = """
:root { color-scheme: light dark; --page: #f6f7f9; --card: #ffffff; --ink: #1c2330; --soft: #5c6675; --line: #dfe3e9;
  --accent: #2f6fd6; --good: #14804f; --bad: #b3382c; --tint: #eef3fc; }
@media (prefers-color-scheme: dark) { :root { --page: #12151b; --card: #1b2029; --ink: #e7eaf0; --soft: #9aa5b5;
  --line: #323a47; --accent: #79aaf5; --good: #55c792; --bad: #f08a7e; --tint: #222c3d; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 26px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 0 0 6px; }
h3 { font-size: 15px; margin: 18px 0 6px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 80ch; }
section { background: var(--card); border: 1px solid var(--line); border-radius: 10px;
  padding: 18px 20px; margin-top: 18px; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; width: 100%; }
th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th { font-weight: 600; color: var(--soft); } thead th { vertical-align: bottom; }
th:first-child, td:first-child { text-align: left; }
table.facts { width: auto; } table.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
tr.reference { background: var(--tint); font-weight: 600; }
td small { color: var(--soft); font-weight: 400; }
.better { color: var(--good); } .worse { color: var(--bad); } .equal { color: var(--soft); }
svg { max-width: 100%; height: auto; color: var(--ink); display: block; margin: 6px 0; }
nav a { color: var(--accent); margin-right: 14px; text-decoration: none; }
summary { cursor: pointer; color: var(--accent); }
"""


def page(title: str, lead: str, sections: Sequence[tuple[str, str, str]]) -> str:
    """Assemble the page.

    Args:
        lead: One line under the title, plain text.
        sections: ``(anchor, heading, html)`` in order.
    """
    links = "".join(f'<a href="#{anchor}">{escape(heading)}</a>' for anchor, heading, _ in sections)
    body = "".join(
        f'<section id="{anchor}"><h2>{escape(heading)}</h2>{html}</section>\n' for anchor, heading, html in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{CSS}</style>\n</head>\n<body>\n<main>\n"
        f"<h1>{escape(title)}</h1>\n<p>{escape(lead)}</p>\n<nav>{links}</nav>\n{body}</main>\n</body>\n</html>\n"
    )


def paragraph(text: str) -> str:
    """Return plain text as a paragraph."""
    return f"<p>{escape(text)}</p>"


def facts(values: Mapping[str, Any]) -> str:
    """Show a nested mapping as tables: dotted keys on the left; what is given per level as one column per level.

    Example:
        >>> facts({"items": 12101}).count("<tr>")
        1
        >>> facts({"levels": [{"utilisation": 1.0}, {"utilisation": 0.9}]}).count("<td>levels.utilisation</td>")
        1
    """
    plain: list[tuple[str, Any]] = []
    per_level: list[tuple[str, list[Any]]] = []
    for key, value in flatten(values):
        if _all(value, Mapping):
            levels = [dict(flatten(level)) for level in value]
            names = list(dict.fromkeys(name for level in levels for name in level))
            per_level += [(f"{key}.{name}", [level.get(name) for level in levels]) for name in names]
        elif _all(value, int | float) and len(value) <= _MOST_LEVELS:
            per_level.append((key, list(value)))
        else:
            plain.append((key, value))
    html = ""
    if plain:
        rows = "".join(f"<tr><td>{escape(key)}</td><td>{escape(_text(value))}</td></tr>" for key, value in plain)
        html += f'<div class="scroll"><table class="facts">{rows}</table></div>'
    if per_level:
        html += _level_table(per_level)
    return html


_MOST_LEVELS = 8
"""Longer lists of numbers are histograms and the like, not one number per level."""


def _level_table(rows: Sequence[tuple[str, Sequence[Any]]]) -> str:
    width = max(len(values) for _, values in rows)
    head = "".join(f"<th>{place}</th>" for place in range(1, width + 1))
    body = "".join(
        f"<tr><td>{escape(key)}</td>"
        + "".join(f"<td>{escape(_text(value))}</td>" for value in values)
        + "<td></td>" * (width - len(values))
        + "</tr>"
        for key, values in rows
    )
    return f'<div class="scroll"><table><thead><tr><th>per level</th>{head}</tr></thead>{body}</table></div>'


def _all(value: Any, kind: Any) -> bool:
    return isinstance(value, list | tuple) and bool(value) and all(isinstance(element, kind) for element in value)


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the leaves of a nested mapping with dotted keys, in order.

    Example:
        >>> list(flatten({"a": {"b": 1}, "c": 2}))
        [('a.b', 1), ('c', 2)]
    """
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "–"}[value]
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    if isinstance(value, list | tuple):
        return ", ".join(_text(v) for v in value)
    return str(value)
