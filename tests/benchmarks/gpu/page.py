"""The page: goals with their gates beside today's figures, then everything that was measured, section by section."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Row = dict[str, Any]
Figure = Callable[[dict[tuple[str, str], Row]], float]


@dataclass(frozen=True)
class Goal:
    """A line of the goals table.

    Attributes:
        before: What was measured before this benchmark existed (one H200, torch 2.11).
        gate, stretch: What is to be reached; ``None``: to be measured.
        unit: ``share``, ``times``, ``ms`` (where less is better).
        figure: From all rows, by section and cell.
    """

    what: str
    before: str
    gate: float | None
    stretch: float | None
    unit: str
    figure: Figure

    def line(self, rows: dict[tuple[str, str], Row]) -> list[str]:
        """Cells of the table."""
        try:
            value = self.figure(rows)
        except (KeyError, ValueError, TypeError):
            return [self.what, self.before, self._text(self.gate), self._text(self.stretch), "not measured", "open"]
        met = "measured"
        if self.gate is not None:
            met = "yes" if self._reaches(value, self.gate) else "**no**"
        if self.stretch is not None and self._reaches(value, self.stretch):
            met = "yes, and the stretch"
        return [self.what, self.before, self._text(self.gate), self._text(self.stretch), self._text(value), met]

    def _reaches(self, value: float, goal: float) -> bool:
        return value <= goal if self.unit == "ms" else value >= goal

    def _text(self, value: float | None) -> str:
        if value is None:
            return "–"
        return {"share": f"{value:.1%}", "times": f"{value:.3g}×", "ms": f"{value:.3g} ms"}[self.unit]


def best(section: str, cells: Sequence[str], name: str, least: bool = False) -> Figure:
    """The best of some cells that were measured."""

    def figure(rows: dict[tuple[str, str], Row]) -> float:
        found = [float(rows[section, cell][name]) for cell in cells if name in rows.get((section, cell), {})]
        return min(found) if least else max(found)

    return figure


def at_batch(section: str, cells: Sequence[str], batch: int, name: str) -> Figure:
    """The same over cells that memory let run with the asked batch."""

    def figure(rows: dict[tuple[str, str], Row]) -> float:
        return max(
            float(rows[section, cell][name]) for cell in cells if rows.get((section, cell), {}).get("batch") == batch
        )

    return figure


def training_best(cell: str, batch: int) -> Figure:
    """Plain or compiled."""

    def figure(rows: dict[tuple[str, str], Row]) -> float:
        both = [rows.get(("training", cell), {}), rows.get(("compile", f"{cell}_compiled"), {})]
        return max(float(row["mfu"]) for row in both if row.get("batch") == batch and "mfu" in row)

    return figure


GOALS: Final = (
    Goal(
        "training `paper_v1`, batch 512, MFU of the measured roof",
        "34 %",
        0.40,
        0.50,
        "share",
        training_best("paper_v1_512", 512),
    ),
    Goal(
        "training `small`, all prefixes, batch 512 × 100, MFU",
        "3.2 %",
        0.20,
        0.30,
        "share",
        training_best("small_512", 512),
    ),
    Goal(
        "Beauty, an epoch of the recipe, against one CPU core of the same machine",
        "not measured",
        15,
        40,
        "times",
        best("beauty", ["against_one_core"], "times"),
    ),
    Goal(
        "decoding `paper_v1`, batch 512, beam 50, MFU",
        "34 %",
        0.42,
        0.50,
        "share",
        at_batch("decoding", ["paper_v1_512", "paper_v1_512_graph"], 512, "mfu"),
    ),
    Goal(
        "decoding `tiny`, batch 1,024, end to end with seen items left out, of the raw search",
        "18 %",
        0.85,
        0.95,
        "share",
        best("serving", ["tiny_1024", "tiny_1024_graph"], "of_raw"),
    ),
    Goal(
        "decoding `small`, the same",
        "29 %",
        0.85,
        0.95,
        "share",
        best("serving", ["small_1024", "small_1024_graph"], "of_raw"),
    ),
    Goal(
        "one user, `small`, beam 50, median latency",
        "not measured",
        5,
        2,
        "ms",
        best("serving", ["one_user", "one_user_graph"], "longest_ms", least=True),
    ),
    Goal(
        "users per second over 1M items, of those over 12k",
        "66 %",
        0.9,
        1.0,
        "share",
        best("catalogue", ["ratio", "ratio_graph"], "ratio"),
    ),
    Goal(
        "against `transformers`, beam 50, batch 32", "16×", 25, 40, "times", best("transformers", ["batch_32"], "times")
    ),
    Goal(
        "against `transformers`, beam 50, batch 256",
        "178×",
        200,
        300,
        "times",
        best("transformers", ["batch_256"], "times"),
    ),
    Goal(
        "`paper_v1`, beam 256, batch 1 (sid-gr, H100, Qwen3-1.7B, context 1000, as reported: 17.6 ms)",
        "not measured",
        None,
        17.6,
        "ms",
        best("wide_beams", ["beam_256_batch_1", "beam_256_batch_1_graph"], "ms", least=True),
    ),
    Goal(
        "`paper_v1`, beam 256, batch 8 (the same: 93.2 ms)",
        "not measured",
        None,
        93.2,
        "ms",
        best("wide_beams", ["beam_256_batch_8", "beam_256_batch_8_graph"], "ms", least=True),
    ),
    Goal(
        "`paper_v1`, beam 5,000, batch 1 (SGLang, H200, Qwen3-0.6B, as reported: 158 ms)",
        "not measured",
        None,
        158,
        "ms",
        best("wide_beams", ["beam_5000_batch_1", "beam_5000_batch_1_graph"], "ms", least=True),
    ),
)


def write_page(rows: Sequence[Row], command: str, path: Path) -> str:
    """Write the page and return it."""
    text = page(rows, command)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return text


def page(rows: Sequence[Row], command: str) -> str:
    """Finding, command, machine, goals, figures by section, failures."""
    by_cell = {(row["section"], row["cell"]): row for row in rows if "cell" in row and "out_of_memory" not in row}
    machine = by_cell.get(("environment", "machine"), {})
    goals = [goal.line(by_cell) for goal in GOALS]
    gated = [line for goal, line in zip(GOALS, goals, strict=True) if goal.gate is not None]
    reached = sum(line[-1].startswith("yes") for line in gated)
    finding = f"{reached} of {len(gated)} gates are met on {machine.get('card')}."
    if not machine:
        finding = f"No GPU has run this benchmark yet: all {len(gated)} gates are open."
    figures = ", ".join(f"{name} {value}" for name, value in machine.items() if name not in ("section", "cell"))
    lines = [
        "# The project on one GPU",
        "",
        f"**{finding}**",
        "",
        f"`{command}`",
        "",
        figures or "no machine",
        "",
        *table(["goal", "before", "gate", "stretch", "today", "met"], goals),
        "",
        "- MFU: useful FLOPs (`recsys.model.summary`) over the rate of one 8192³ matrix product in the same process",
        "- before: one H200, torch 2.11, commit 7be21f4",
        "- where memory does not suffice a batch is halved, and a halved batch counts for no goal",
        "- `–`: no gate is set; anchors of other engines are theirs, on their models",
    ]
    failed = [row for row in rows if "error" in row]
    if failed:
        cells = [
            [row["section"], row.get("cell", "section"), row["error"].replace("|", "/"), row.get("place", "")]
            for row in failed
        ]
        lines += ["", "## What could not be measured", "", *table(["section", "cell", "error", "place"], cells)]
    for section in dict.fromkeys(row["section"] for row in rows if "cell" in row):
        found = [row for row in rows if row["section"] == section and "cell" in row and "error" not in row]
        lines += ["", f"## {section}", "", *[_line(row) for row in found]]
    return "\n".join([*lines, ""])


def _line(row: Row) -> str:
    figures = ", ".join(f"{name} {value}" for name, value in row.items() if name not in ("section", "cell"))
    return f"- `{row['cell']}`: {figures}"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A Markdown table."""
    head = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return [*head, *("| " + " | ".join(str(cell).replace("\n", " ") for cell in row) + " |" for row in rows)]
