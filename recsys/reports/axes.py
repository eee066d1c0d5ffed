"""A frame with two scales, drawn on by hand: lines, bands, bars, intervals, each one SVG element.

For figures whose places are measured; those whose places are counted are in :mod:`recsys.reports.charts`. A drawing library
took a tenth of a night's processor time for its page, most of it to be imported and to measure text. Text and axes take the
colour of the page (``currentColor``), and the same numbers give the same bytes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Final

from recsys.reports.style import PANEL_WIDTH

LETTER: Final = 7.0
"""Width of a digit, in the units of :data:`~recsys.reports.style.PANEL_WIDTH`."""
RIGHT: Final = 12.0
TOP: Final = 8.0
SIZE: Final = 12
"""Of text."""
Number = float | None


@dataclass(frozen=True)
class Scale:
    """Numbers to places along one side of the frame.

    Attributes:
        low: Number at ``start``.
        high: Number at ``end``, another than ``low``.
        log: Equal ratios are equal steps; both ends are positive then.

    Example:
        >>> Scale(0.0, 10.0, 40.0, 240.0)(5.0), round(Scale(1.0, 100.0, 0.0, 200.0, log=True)(10.0), 6)
        (140.0, 100.0)
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, number: float) -> float:
        """The place of a number."""
        low, high = self.low, self.high
        if self.log:
            number, low, high = math.log(number), math.log(low), math.log(high)
        return self.start + (self.end - self.start) * (number - low) / (high - low)


def around(numbers: Sequence[Number], *, log: bool = False, room: float = 0.05) -> tuple[float, float]:
    """Return the ends of a scale that shows all numbers, with some room beside them.

    Args:
        numbers: ``None`` and not-a-number are left out.
        room: Share of the range on either side.

    Example:
        >>> around([0.0, 10.0, None]), around([3.0]), around([])
        ((-0.5, 10.5), (2.5, 3.5), (0.0, 1.0))
    """
    known = [number for number in numbers if number is not None and math.isfinite(number)]
    if not known:
        return (1.0, 10.0) if log else (0.0, 1.0)
    low, high = min(known), max(known)
    if log:
        factor = (high / low) ** room if high > low else 1.5
        return low / factor, high * factor
    beside = (high - low) * room if high > low else max(abs(low), 1.0) / 6
    return low - beside, high + beside


def ticks(low: float, high: float, most: int = 5, *, whole: bool = False) -> list[float]:
    """Return round numbers between two ends, a step of 1, 2 or 5 times a power of ten apart.

    Args:
        most: Steps at most.
        whole: No step is smaller than 1.

    Example:
        >>> ticks(-0.5, 10.5), ticks(0.11, 0.19, 4)
        ([0.0, 5.0, 10.0], [0.12, 0.14, 0.16, 0.18])
    """
    power = 10.0 ** math.floor(math.log10((high - low) / most))
    step = next(unit * power for unit in (1, 2, 5, 10) if (high - low) / (unit * power) <= most * 1.0000001)
    step = max(step, 1.0) if whole else step
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{place * step:.12g}") for place in range(first, last + 1)]


def tick_words(places: Sequence[float]) -> list[str]:
    """Write tick numbers with as many decimals as tell them apart.

    Example:
        >>> tick_words([0.0, 0.05, 0.1]), tick_words([0.0, 5000.0]), tick_words([1e-9, 2e-9])
        (['0.00', '0.05', '0.10'], ['0', '5,000'], ['1e-09', '2e-09'])
    """
    steps = [after - before for before, after in itertools.pairwise(places)] or [abs(p) for p in places if p]
    decimals = max(0, -math.floor(math.log10(min(steps)) + 1e-9)) if steps else 0
    largest = max(map(abs, places), default=0.0)
    if decimals > 6 or largest >= 1e7:
        return [f"{place:.4g}" for place in places]
    return [f"{place:,.{decimals}f}" for place in places]


@dataclass
class Axes:
    """What is drawn, in order.

    Attributes:
        height: Of the drawing.
        left: Where the frame begins.
        bottom: Room under the frame.
        x: Horizontal scale.
        y: Vertical scale, its low end at the bottom of the frame.
        parts: SVG elements.
    """

    height: float
    left: float
    bottom: float
    x: Scale
    y: Scale
    parts: list[str] = field(default_factory=list)

    @classmethod
    def of(
        cls,
        height: float,
        x: tuple[float, float],
        y: tuple[float, float],
        *,
        left: float = 16.0,
        bottom: float = 24.0,
        log_x: bool = False,
    ) -> Axes:
        """Make a frame from the ends of its scales."""
        across = Scale(*x, left, PANEL_WIDTH - RIGHT, log_x)
        return cls(height, left, bottom, across, Scale(*y, height - bottom, TOP))

    def text(self, x: float, y: float, words: str, anchor: str, *, halo: bool = False) -> None:
        """Write words at a place of the drawing; a halo hides lines behind them."""
        behind = ' stroke="var(--card)" stroke-width="4" paint-order="stroke"' if halo else ""
        self.parts.append(
            f'<text x="{x:.1f}" y="{y:.1f}" font-size="{SIZE}" text-anchor="{anchor}"{behind}>{escape(words)}</text>'
        )

    def x_ticks(self, places: Sequence[float], words: Sequence[str], *, label: str = "") -> None:
        """Draw grid lines that stand upright, with a word under each and a label under all."""
        floor = self.height - self.bottom
        for place, word in zip(places, words, strict=True):
            at = self.x(place)
            self.parts.append(_grid_line(at, at, TOP, floor))
            self.text(at, floor + 16, word, "middle")
        if label:
            self.text((self.left + PANEL_WIDTH - RIGHT) / 2, floor + 33, label, "middle")

    def y_ticks(self, places: Sequence[float]) -> None:
        """Draw level grid lines, with their numbers at the left."""
        for place, word in zip(places, tick_words(places), strict=True):
            at = self.y(place)
            self.parts.append(_grid_line(self.left, PANEL_WIDTH - RIGHT, at, at))
            self.text(self.left - 5, at + 4, word, "end")

    def line(self, xs: Sequence[float], ys: Sequence[Number], colour: str, dash: str = "", *, dots: bool) -> None:
        """Draw a line; an unknown number leaves a gap, and a number between two gaps is a dot."""
        dashed = f' stroke-dasharray="{dash}"' if dash else ""
        for run in runs(ys):
            places = [(self.x(xs[at]), self.y(ys[at] or 0.0)) for at in run]
            if len(places) > 1:
                points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
                self.parts.append(
                    f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.8"{dashed}/>'
                )
            if dots or len(places) == 1:
                self.parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2" fill="{colour}"/>' for x, y in places]

    def band(self, xs: Sequence[float], lows: Sequence[Number], highs: Sequence[Number], colour: str) -> None:
        """Fill what lies between two lines, where both are known."""
        both = [None if low is None or high is None else high - low for low, high in zip(lows, highs, strict=True)]
        for run in runs(both):
            ways = [(at, highs) for at in run] + [(at, lows) for at in reversed(run)]
            points = " ".join(f"{self.x(xs[at]):.1f},{self.y(side[at] or 0.0):.1f}" for at, side in ways)
            self.parts.append(f'<polygon points="{points}" fill="{colour}" opacity="0.15"/>')

    def bar(self, y: float, thick: float, length: float, colour: str) -> None:
        """Draw a bar that lies, from the left side of the frame.

        Args:
            y: Its middle, in numbers of the vertical scale, as is ``thick``.
        """
        above, below = sorted((self.y(y - thick / 2), self.y(y + thick / 2)))
        width = max(self.x(length) - self.left, 0.7)
        self.parts.append(
            f'<rect x="{self.left:.1f}" y="{above:.1f}" width="{width:.1f}" height="{below - above:.1f}" fill="{colour}"/>'
        )

    def interval(self, y: float, low: Number, high: Number, colour: str) -> None:
        """Draw an interval that lies, with a stroke at either end; nothing where an end is not known."""
        if low is None or high is None:
            return
        left, right, at = self.x(low), self.x(high), self.y(y)
        self.parts.append(
            f'<path d="M{left:.1f} {at:.1f}H{right:.1f}M{left:.1f} {at - 3:.1f}v6M{right:.1f} {at - 3:.1f}v6" fill="none" '
            f'stroke="{colour}" stroke-width="1.2"/>'
        )

    def dot(self, x: float, y: float, colour: str) -> None:
        """Draw a dot."""
        self.parts.append(f'<circle cx="{self.x(x):.1f}" cy="{self.y(y):.1f}" r="3" fill="{colour}"/>')

    def upright(self, x: float) -> None:
        """Draw a dashed line from top to bottom."""
        at = self.x(x)
        self.parts.append(
            f'<line x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{self.height - self.bottom:.1f}" stroke="currentColor" '
            'stroke-dasharray="4 2"/>'
        )

    def svg(self, label: str) -> str:
        """Return the drawing as an ``<svg>`` element that scales with the page.

        Args:
            label: What it shows, for readers who cannot see it.
        """
        floor = self.height - self.bottom
        frame = f'<path d="M{self.left:.1f} {floor:.1f}H{PANEL_WIDTH - RIGHT}" stroke="currentColor"/>'
        return (
            f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {PANEL_WIDTH} {self.height:.0f}" '
            f'fill="currentColor">{"".join(self.parts)}{frame}</svg>'
        )


def room_for(words: Sequence[str]) -> float:
    """Width of the widest of some words and what stands beside them, to the left of a frame."""
    return 9.0 + LETTER * max(map(len, words), default=1)


def _grid_line(x1: float, x2: float, y1: float, y2: float) -> str:
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" stroke="#888888" stroke-width="0.8" opacity="0.3"/>'


def runs(numbers: Sequence[Number]) -> list[list[int]]:
    """Places of known numbers that stand side by side.

    Example:
        >>> runs([1.0, 2.0, None, 3.0])
        [[0, 1], [3]]
    """
    runs: list[list[int]] = []
    for place, number in enumerate(numbers):
        if number is None or not math.isfinite(number):
            continue
        if runs and runs[-1][-1] == place - 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    return runs
