"""Plain charts written as SVG by hand: bars and lines over time, for pages that must not wait for a drawing library.

Pure functions from numbers to HTML. Text and axes take the colour of the page (``currentColor``), widths are in the units of
:data:`~recsys.reports.style.PANEL_WIDTH`, and the same numbers give the same bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from html import escape
from typing import Final

from recsys.reports.axes import runs
from recsys.reports.html import as_panel
from recsys.reports.style import PALETTE, PANEL_WIDTH

LEFT, RIGHT, TOP, BOTTOM = 46.0, 8.0, 8.0, 24.0
HEIGHT: Final = 190.0
ROW: Final = 23.0


def line_chart(
    heading: str,
    words: str,
    lines: Mapping[str, Sequence[float | None]],
    labels: Sequence[str],
    *,
    percent: bool = False,
) -> str:
    """Draw lines that share their places on the horizontal axis.

    Args:
        lines: By name, one value per label; ``None`` leaves a gap.
        labels: Names of the places; the first, the middle and the last are written.
        percent: Values are shares.
    """
    known = [value for line in lines.values() for value in line if value is not None]
    top = _round_up(max(known, default=0.0) or 1.0)
    width, height = PANEL_WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
    count = max(len(labels), 2)

    def x(place: int) -> float:
        return LEFT + width * place / (count - 1)

    def y(value: float) -> float:
        return TOP + height * (1 - value / top)

    parts = [_level(y(share * top), _number(share * top, percent)) for share in (0.0, 0.5, 1.0)]
    for colour, line in zip(_colours(len(lines)), lines.values(), strict=True):
        for run in runs(line):
            if len(run) == 1:
                parts.append(f'<circle cx="{x(run[0]):.1f}" cy="{y(line[run[0]] or 0.0):.1f}" r="2" fill="{colour}"/>')
                continue
            points = " ".join(f"{x(place):.1f},{y(line[place] or 0.0):.1f}" for place in run)
            parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
    parts += _axis_labels(labels, x)
    drawn = as_panel(heading, words, _svg(heading, "".join(parts), HEIGHT))
    if len(lines) < 2:
        return drawn
    legend = "".join(
        f'<li><svg viewBox="0 0 26 10" aria-hidden="true"><line x1="1" x2="25" y1="5" y2="5" stroke="{colour}" '
        f'stroke-width="3.5"/></svg>{escape(name)}</li>'
        for colour, name in zip(_colours(len(lines)), lines, strict=True)
    )
    return drawn.replace("</figcaption>", f'<ul class="legend">{legend}</ul></figcaption>', 1)


def row_chart(heading: str, words: str, rows: Sequence[tuple[str, float]], *, percent: bool = False) -> str:
    """Draw one bar per row, with its number behind it.

    Args:
        rows: Label and value, in order; empty ones at both ends are left out. Counts, or shares with ``percent``.
    """
    filled = [place for place, (_, value) in enumerate(rows) if value]
    shown = list(rows[filled[0] : filled[-1] + 1]) if filled else list(rows[:1])
    longest = max((value for _, value in shown), default=0.0) or 1.0
    left = 14.0 + 7.2 * max((len(label) for label, _ in shown), default=1)
    room = PANEL_WIDTH - left - 74.0
    parts = []
    for place, (label, value) in enumerate(shown):
        top = 4 + ROW * place
        length = room * value / longest
        middle = top + ROW / 2 + 1
        parts.append(
            f'<text x="{left - 7:.1f}" y="{middle:.1f}" font-size="12" text-anchor="end">{escape(label)}</text>'
        )
        parts.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(length, 0.7):.1f}" height="{ROW - 8:.1f}" fill="{PALETTE[0]}"/>'
        )
        number = _number(value, percent) if percent else f"{value:,.0f}"
        parts.append(f'<text x="{left + length + 5:.1f}" y="{middle:.1f}" font-size="12">{number}</text>')
    drawn = as_panel(heading, words, _svg(heading, "".join(parts), 8 + ROW * max(len(shown), 1)))
    return drawn.replace("<figure>", '<figure class="top">', 1)


def _svg(label: str, body: str, height: float) -> str:
    return (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {PANEL_WIDTH} {height:.0f}" fill="currentColor">'
        f"{body}</svg>"
    )


def _level(height: float, text: str) -> str:
    return (
        f'<line x1="{LEFT}" x2="{PANEL_WIDTH - RIGHT}" y1="{height:.1f}" y2="{height:.1f}" stroke="#888888" opacity="0.35"/>'
        f'<text x="{LEFT - 5}" y="{height + 4:.1f}" font-size="12" text-anchor="end">{text}</text>'
    )


def _axis_labels(labels: Sequence[str], x: Callable[[int], float]) -> list[str]:
    last = len(labels) - 1
    places = sorted({0, last}) if last < 4 else [0, last // 2, last]
    anchors = {0: "start", last: "end"}
    return [
        f'<text x="{x(place):.1f}" y="{HEIGHT - 6:.1f}" font-size="12" '
        f'text-anchor="{anchors.get(place, "middle")}">{escape(labels[place])}</text>'
        for place in places
        if last >= 0
    ]


def _colours(count: int) -> list[str]:
    return [PALETTE[place % len(PALETTE)] for place in range(count)]


def _round_up(value: float) -> float:
    """Return the next of 1, 2, 5, 10, … times a power of ten.

    Example:
        >>> _round_up(0.31), _round_up(4100.0)
        (0.5, 5000.0)
    """
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 2, 5, 10) if step * power >= value * 0.999999)


def _number(value: float, percent: bool = False) -> str:
    """Write a number in few letters.

    Example:
        >>> _number(12500), _number(0.125, percent=True), _number(3.0)
        ('12.5k', '12.5%', '3')
    """
    if percent:
        return f"{value * 100:.3g}%"
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e4, "k")):
        if value >= limit:
            return f"{value / (limit if unit != 'k' else 1e3):.3g}{unit}"
    return f"{value:.3g}" if value < 100 else f"{value:,.0f}"
