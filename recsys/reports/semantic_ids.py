"""Semantic IDs as a picture and in words: how the tree of codes fans out, one item's path, who stands beside it.

Reads the table of semantic IDs, the items' titles and the tokenizer's report; produces HTML. Legend: I items, L levels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.reports.charts import row_chart
from recsys.reports.html import as_panel, details, facts, grid, item_title, paragraph, percent
from recsys.reports.style import PALETTE, PANEL_WIDTH
from recsys.semantic_ids.collisions import group_numbers
from recsys.semantic_ids.versions import SemanticIds

CodeArray = npt.NDArray[np.int32]

NEIGHBOURS_SHOWN: Final = 3


@dataclass(frozen=True)
class IdCatalogue:
    """Semantic IDs with what people call the items.

    Attributes:
        semantic_ids: Codes ``[I, L]``.
        items: ``item_id``, ``title`` and ``train_count``, row number = item_index.
    """

    semantic_ids: SemanticIds
    items: pl.DataFrame

    def title(self, item: int) -> str:
        """Return the title of an item as HTML."""
        return item_title(self.items[Columns.TITLE][item], self.items[Columns.ITEM_ID][item])


def semantic_id_section(report: Mapping[str, Any], catalogue: IdCatalogue | None) -> str:
    """Return the section: words, the tree, prefix sizes, one item's path, and the report itself folded away.

    Args:
        report: ``tokenizer_report.json``; what it lacks is left out.
        catalogue: ``None`` leaves out what needs the codes.
    """
    html = paragraph(
        "An item's semantic ID is a short path of codes, from coarse to fine, made from its embedding: items that share the "
        "first codes are alike. The model writes an ID code by code, and the search follows only paths that lead to an item."
    )
    if catalogue is not None and catalogue.semantic_ids.num_items:
        codes, sizes = catalogue.semantic_ids.codes, catalogue.semantic_ids.level_sizes
        example = example_item(codes, catalogue.items[Columns.TRAIN_COUNT].to_numpy())
        html += _levels_table(codes, sizes, report)
        html += _collisions(report)
        html += f'<div class="two"><div>{_tree(codes, example)}</div><div>{_path(catalogue, example)}</div></div>'
        html += "<h3>How many items share a prefix</h3>" + _prefix_sizes(codes, sizes)
    else:
        html += _collisions(report)
    return html + details("The tokenizer's whole report", facts(report))


def prefix_counts(codes: CodeArray, level_sizes: Sequence[int]) -> list[npt.NDArray[np.int64]]:
    """Return, for every depth, how many items stand behind each prefix of that many codes that is in use.

    Example:
        >>> counts = prefix_counts(np.array([[0, 0], [0, 1], [2, 1]], np.int32), (3, 2))
        >>> [sorted(found.tolist()) for found in counts]
        [[1, 2], [1, 1, 1]]
    """
    depths = range(1, codes.shape[1] + 1)
    return [np.bincount(group_numbers(codes[:, :depth], tuple(level_sizes[:depth]))) for depth in depths]


def example_item(codes: CodeArray, traffic: npt.NDArray[np.integer]) -> int:
    """Choose the item whose path is shown: the most taken of those that have company at every level but the last.

    Example:
        >>> example_item(np.array([[0, 0, 0], [0, 0, 1], [1, 0, 0]], np.int32), np.array([3, 4, 9]))
        1
    """
    levels = codes.shape[1]
    company = np.zeros(len(codes), np.int64)
    for depth in range(1, levels):
        _, group, counts = np.unique(codes[:, :depth], axis=0, return_inverse=True, return_counts=True)
        company += counts[group.ravel()] > 1
    best = np.flatnonzero(company == company.max())
    return int(best[np.argmax(np.asarray(traffic)[best])])


def code_name(level: int, code: int) -> str:
    """Return a code as people see it: a letter for the level.

    Example:
        >>> code_name(0, 12)
        'a_12'
    """
    return f"{chr(ord('a') + level)}_{code}"


def _levels_table(codes: CodeArray, sizes: Sequence[int], report: Mapping[str, Any]) -> str:
    head = ["level", "codes in use", "codes in effective use", "different prefixes", "items per prefix", "error left"]
    body = ""
    for level, counts in enumerate(prefix_counts(codes, sizes)):
        used, size = len(np.unique(codes[:, level])), sizes[level]
        fitted = report.get("levels", [])
        stats = fitted[level] if level < len(fitted) and isinstance(fitted[level], Mapping) else {}
        perplexity, error = stats.get("perplexity"), stats.get("relative_mse")
        cells = [
            f"{used:,} of {size:,}",
            "–" if perplexity is None else f"{perplexity:.0f}",
            f"{len(counts):,}",
            f"median {np.median(counts):.0f}, largest {counts.max():,}",
            "–" if error is None else percent(error, 1),
        ]
        body += f"<tr><td>{level + 1}</td>" + "".join(
            f'<td data-label="{escape(name)}">{escape(cell)}</td>' for name, cell in zip(head[1:], cells, strict=True)
        )
        body += "</tr>"
    body = body.replace("<tr><td>", "<tr><td>level ")
    titles = "".join(f"<th>{escape(name)}</th>" for name in head)
    return (
        f'<div class="scroll"><table class="cards"><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>'
        + paragraph(
            "Look for: nearly all codes in use, in effective use (perplexity) not far fewer, and no prefix much larger than "
            "the median, since a crowded one leaves much to the codes after it. The error is what the codes so far leave of "
            "the embeddings' variance."
        )
    )


def _collisions(report: Mapping[str, Any]) -> str:
    before, after = report.get("before_repair"), report.get("after_repair")
    if not isinstance(before, Mapping) or not isinstance(after, Mapping):
        return ""
    share, traffic = before.get("colliding_item_share"), before.get("colliding_traffic_share")
    left, moved = after.get("colliding_item_share"), report.get("moved_item_share")
    if share is None or traffic is None or left is None:
        return ""
    most = before.get("largest_bucket", 0)
    said = (
        f"As fitted, {percent(share, 1)} of the items, with {percent(traffic, 1)} of the traffic, shared their ID with "
        f"another item (at most {most:,} on one ID). "
    )
    if moved:
        said += f"{percent(moved, 1)} of the items were moved to another ID to part them. "
    said += (
        "Now every item has an ID of its own." if not left else f"{percent(left, 1)} of the items still share theirs."
    )
    return paragraph(said)


_TOP, _HEIGHT, _GAP = 40.0, 250.0, 26.0
_LABELLED: Final = 13.0
"""Shortest box that holds a line of text."""
_MOST_BOXES: Final = 160
"""More prefixes than this in a column are drawn as one box, with the number in words above."""


def _tree(codes: CodeArray, example: int) -> str:
    """Draw the fan-out along one item's path: a column per level, boxes as high as their share of the items."""
    levels = codes.shape[1]
    width = (PANEL_WIDTH - _GAP * (levels - 1)) / levels
    inside = np.ones(len(codes), bool)
    parts: list[str] = []
    opened: tuple[float, float] | None = None
    for level in range(levels):
        left = level * (width + _GAP)
        values, counts = np.unique(codes[inside, level], return_counts=True)
        if opened is not None:
            x, (top, bottom) = left - _GAP, opened
            parts.append(
                f'<path d="M{x:.1f} {top:.1f}L{left:.1f} {_TOP}V{_TOP + _HEIGHT}L{x:.1f} {bottom:.1f}Z" '
                f'fill="{PALETTE[0]}" opacity="0.16"/>'
            )
        total = int(counts.sum())
        parts.append(f'<text x="{left:.1f}" y="14" font-size="12">{total:,} item{"s" * (total != 1)}</text>')
        parts.append(
            f'<text x="{left:.1f}" y="30" font-size="12">{len(values):,} code{"s" * (len(values) != 1)}</text>'
        )
        opened = _column(parts, left, width, level, values, counts, int(codes[example, level]))
        inside &= codes[:, level] == codes[example, level]
    height = _TOP + _HEIGHT + 4
    label = "Tree of semantic IDs along one item's path"
    svg = (
        f'<svg role="img" aria-label="{escape(label)}" viewBox="0 0 {PANEL_WIDTH} {height:.0f}" fill="currentColor">'
        + "".join(parts)
        + "</svg>"
    )
    words = (
        "Each column is one more code. A box is a prefix, as high as its share of the items; the blue one is on the path of "
        "one item, and the next column shows what is inside it."
    )
    return as_panel("From all items to one", words, svg).replace("<figure>", '<figure class="tree">', 1)


def _column(
    parts: list[str],
    left: float,
    width: float,
    level: int,
    values: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int64],
    chosen: int,
) -> tuple[float, float]:
    """Add one column's boxes; return top and bottom of the chosen one, at least a visible line high."""
    tops = _TOP + _HEIGHT * np.concatenate([[0.0], np.cumsum(counts)]) / counts.sum()
    if len(values) > _MOST_BOXES:
        parts.append(
            f'<rect x="{left:.1f}" y="{_TOP}" width="{width:.1f}" height="{_HEIGHT}" fill="#888888" opacity="0.35"/>'
        )
    found = (_TOP, _TOP + _HEIGHT)
    for value, top, bottom in zip(values.tolist(), tops[:-1].tolist(), tops[1:].tolist(), strict=True):
        here = value == chosen
        if here:
            found = (top, max(bottom, top + 2.0))
        elif len(values) > _MOST_BOXES:
            continue
        height = max(bottom - top - 0.8, 2.0 if here else 0.6)
        fill = f'fill="{PALETTE[0]}"' if here else 'fill="#888888" opacity="0.4"'
        parts.append(f'<rect x="{left:.1f}" y="{top:.2f}" width="{width:.1f}" height="{height:.2f}" {fill}/>')
        if height >= _LABELLED:
            colour = ' fill="#ffffff"' if here else ""
            middle = top + height / 2 + 4
            name = code_name(level, value)
            parts.append(f'<text x="{left + 5:.1f}" y="{middle:.1f}" font-size="12"{colour}>{name}</text>')
    return found


def _path(catalogue: IdCatalogue, example: int) -> str:
    """Tell one item's path from the outside in, with other items that share it so far."""
    codes = catalogue.semantic_ids.codes
    levels = codes.shape[1]
    traffic = catalogue.items[Columns.TRAIN_COUNT].to_numpy()
    inside = np.ones(len(codes), bool)
    html, closing = "", ""
    for level in range(levels):
        code = int(codes[example, level])
        inside &= codes[:, level] == code
        deeper = inside.copy()
        if level + 1 < levels:
            deeper &= codes[:, level + 1] == codes[example, level + 1]
        beside = np.flatnonzero(inside & ~deeper if level + 1 < levels else inside)
        beside = beside[beside != example]
        beside = beside[np.argsort(-traffic[beside], kind="stable")][:NEIGHBOURS_SHOWN]
        total = int(inside.sum())
        rest = "this item alone" if total == 1 else f"{total:,} items"
        others = "".join(f"<li>{catalogue.title(int(item))}</li>" for item in beside)
        html += f"<ul><li><code>{code_name(level, code)}</code> · {rest}<ul>{others}"
        closing = "</ul></li></ul>" + closing
    html += f'<li class="this">{catalogue.title(example)}</li>' + closing
    html = html.replace("<ul>", '<ul class="path">', 1)
    sid = escape(catalogue.semantic_ids.sids()[example])
    return (
        f"<h4>The path of one item</h4><p>{catalogue.title(example)} has the ID <code>{sid}</code>. Under each code stand "
        f"the most taken items that share the path up to there and then part from it: they should be ever more like it.</p>"
        f"{html}"
    )


def _prefix_sizes(codes: CodeArray, sizes: Sequence[int]) -> str:
    panels = []
    for depth, counts in enumerate(prefix_counts(codes, sizes), 1):
        bins = np.frexp(counts.astype(np.float64))[1] - 1  # 1, 2-3, 4-7, ...
        numbers = np.bincount(bins)
        labels = ["1" if b == 0 else f"{2**b}–{2 ** (b + 1) - 1}" for b in range(len(numbers))]
        heading = f"{depth} code{'s' if depth > 1 else ''}: {len(counts):,} prefixes"
        words = "Left: items behind a prefix; right: how many prefixes hold so many."
        panels.append(row_chart(heading, words, list(zip(labels, numbers.tolist(), strict=True))))
    return grid(panels)
