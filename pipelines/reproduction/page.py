"""What a reproduction prints and writes: one table of our figures, expected ranges and published rows; a page of all packs.

Reads packs and the ``result.json`` files below an output folder; produces text and Markdown.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.reproduction.pack import Pack, PublishedRow, pack_names, read_pack
from pipelines.reproduction.run import RESULT_FILE
from recsys.contracts.manifest import explain_write_errors, read_json

_FIRST = ("generative (served)", "generative (guided)", "generative (beam)", "dense head")
_NOT_RUN = "has not been run for this page"
_SEEN = {"filtered": "seen items filtered", "kept": "seen items kept"}


def text_table(pack: Pack, result: Mapping[str, Any]) -> str:
    """Return the table as a terminal shows it: aligned columns, ours first, published rows below."""
    lines = [_head(result)]
    for seen in pack.seen:
        lines += ["", _SEEN[seen], *_aligned(_rows(pack, result, seen))]
    lines += ["", *(_expected_line(bound) for bound in result["expected"])]
    return "\n".join([*lines, *_not_compared(result)]).rstrip()


def write_page(path: Path, output_dir: Path) -> None:
    """Write the Markdown page of all packs: results below ``output_dir``, and what the present page says of the others."""
    results: dict[str, Mapping[str, Any]] = {}
    kept = _Kept.of(path.read_text(encoding="utf-8")) if path.is_file() else _Kept({}, [])
    for name in pack_names():
        file = output_dir / name / RESULT_FILE
        if file.exists():
            results[name] = read_json(file)
    with explain_write_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(markdown(results, kept), encoding="utf-8")


@dataclass(frozen=True)
class _Kept:
    """What stays of a page.

    Attributes:
        sections: Title -> lines of its section, where a pack was run for it.
        findings: The parts of its finding, ``title: …``.
    """

    sections: Mapping[str, list[str]]
    findings: Sequence[str]

    @classmethod
    def of(cls, page: str) -> _Kept:
        head, *sections = page.rstrip().split("\n## ")
        bold = re.search(r"^\*\*(.*)\.\*\*$", head, re.MULTILINE)
        found = {
            text.partition("\n")[0]: f"## {text.rstrip()}".split("\n") for text in sections if _NOT_RUN not in text
        }
        return cls(found, bold[1].split("; ") if bold else [])

    def finding(self, title: str) -> str | None:
        """What the finding says of a pack."""
        return next((part for part in self.findings if part.startswith(f"{title}: ")), None)


def markdown(results: Mapping[str, Mapping[str, Any]], kept: _Kept) -> str:
    """Return the page: a finding, then a section per pack."""
    lines = ["# Published numbers, reproduced", "", f"**{_finding(results, kept)}**", ""]
    lines += [
        "`recsys reproduce PACK --page tests/benchmarks/results/reproduction.md` renews a section; without a name it lists "
        "the packs. Ours are means over seeds with 95 % bootstrap intervals over users (a user's rows under all seeds are "
        "drawn together), and ± half the 95 % interval over seeds.",
    ]
    for name in pack_names():
        pack = read_pack(name)
        result = results.get(name)
        if result is not None:
            lines += ["", *_section(name, pack, result)]
        else:
            lines += ["", *kept.sections.get(pack.title, _section_without_result(name, pack))]
    return "\n".join([*lines, ""])


def _section(name: str, pack: Pack, result: Mapping[str, Any]) -> list[str]:
    lines = [f"## {result['title']}", "", f"`recsys reproduce {name}`: {_head(result)}.", ""]
    lines += [f"- {sentence}" for sentence in pack.protocol]
    for seen in pack.seen:
        rows = _rows(pack, result, seen)
        lines += ["", f"{_SEEN[seen].capitalize()}:", "", _line(rows[0]), "|" + "---|" * len(rows[0])]
        lines += [_line(row) for row in rows[1:]]
    if result["expected"]:
        lines += ["", *(f"- {_expected_line(bound)}" for bound in result["expected"])]
    lines += [*_not_compared(result), "", "Files, by sha256:", ""]
    return lines + [f"- `{file}` `{digest}`" for file, digest in result["data"].items()]


def _section_without_result(name: str, pack: Pack) -> list[str]:
    """What others published, until the pack has been run."""
    metrics = list(pack.metrics)
    rows = [["system", *metrics, "by", "source"], *(_published(row, metrics) for row in pack.published)]
    lines = [f"## {pack.title}", "", f"`recsys reproduce {name}` {_NOT_RUN}.", ""]
    lines += [*(f"- {sentence}" for sentence in pack.protocol), "", _line(rows[0]), "|" + "---|" * len(rows[0])]
    return lines + [_line(row) for row in rows[1:]]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _rows(pack: Pack, result: Mapping[str, Any], seen: str) -> list[list[str]]:
    """Heads, our systems, then the published rows that can be held against lists of this kind."""
    metrics = list(pack.metrics)
    rows = [["system", *metrics, "by", "source"]]
    found = {(f["system"], f["metric"]): f for f in result["figures"] if f["seen"] == seen}
    systems = list(dict.fromkeys(f["system"] for f in result["figures"]))
    ordered = [name for name in _FIRST if name in systems] + [name for name in systems if name not in _FIRST]
    rows += [[name, *[_figure(found[name, metric]) for metric in metrics], "", "this run"] for name in ordered]
    return rows + [_published(row, metrics) for row in pack.published if row.seen in (seen, "unknown")]


def _published(row: PublishedRow, metrics: Sequence[str]) -> list[str]:
    """A published row; figures by ID stand in the columns by ID."""
    cells = []
    for metric in metrics:
        plain = metric.replace("_by_id@", "@")
        other_kind = any("_by_id@" in name for name in metrics) and ("_by_id@" in metric) != (row.by == "id")
        value = None if other_kind else row.values.get(plain)
        text = "" if value is None else short(value)
        cells.append(f"[{text}]" if plain in row.doubtful and text else text)
    seen = {"filtered": "filtered", "kept": "kept", "unknown": "filter unknown"}[row.seen]
    return [row.method, *cells, row.by, "; ".join(part for part in (row.source, seen, row.note) if part)]


def _figure(figure: Mapping[str, Any]) -> str:
    margin = "" if figure["seed_margin"] is None else f" ±{short(figure['seed_margin'])}"
    return f"{short(figure['mean'])} [{short(figure['low'])}, {short(figure['high'])}]{margin}"


def _head(result: Mapping[str, Any]) -> str:
    seeds = ", ".join(map(str, result["seeds"]))
    changed = f", with {' '.join(result['overrides'])}" if result["overrides"] else ""
    return (
        f"{result['rows']} test rows of {result['users']} users, recipe {result['recipe']}{changed}, "
        f"{'seeds' if len(result['seeds']) > 1 else 'seed'} {seeds}"
    )


def _expected_line(bound: Mapping[str, Any]) -> str:
    mean = "not measured" if bound["mean"] is None else short(bound["mean"])
    verdict = "as expected" if bound["within"] else "OUTSIDE"
    return (
        f"{bound['system']} {bound['metric']} ({bound['seen']}): {mean}, expected {short(bound['low'])} to "
        f"{short(bound['high'])}: {verdict}"
    )


def _not_compared(result: Mapping[str, Any]) -> list[str]:
    if result["compared"]:
        return []
    why = "other files" if result["data_differs"] else "other settings"
    said = [f"other data: {difference}" for difference in result["data_differs"]]
    return ["", f"{why} than the pack's: nothing is compared with expected ranges", *said]


def _finding(results: Mapping[str, Mapping[str, Any]], kept: _Kept) -> str:
    """One sentence: where the served list stands against the best published row, pack by pack."""
    parts = []
    for name in pack_names():
        pack = read_pack(name)
        part = _standing(pack, results[name]) if name in results else kept.finding(pack.title)
        parts += [part] if part is not None else []
    return "; ".join(parts) + "." if parts else "Published rows of four protocols; ours are added as they are run."


def _standing(pack: Pack, result: Mapping[str, Any]) -> str | None:
    last, seen = pack.metrics[-1].replace("_by_id@", "@"), pack.seen[0]
    metric = next((m for m in reversed(pack.metrics) if m.startswith("ndcg") and "_by_id@" not in m), last)
    ours = [f for f in result["figures"] if f["seen"] == seen and f["metric"] == metric]
    best = max((row for row in pack.published if metric in row.values and metric not in row.doubtful), key=_by(metric))
    served = next((f for f in ours if f["system"] == _FIRST[0]), None)
    if served is None:
        return None
    return (
        f"{result['title']}: served {metric} {short(served['mean'])}, best published {short(best.values[metric])} "
        f"({best.method})"
    )


def _by(metric: str) -> Any:
    return lambda row: row.values[metric]


def short(value: float) -> str:
    """Write a share with four digits and no leading zero.

    Example:
        >>> short(0.0384)
        '.0384'
    """
    text = f"{value:.4f}"
    return text[1:] if text.startswith("0.") else text


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
