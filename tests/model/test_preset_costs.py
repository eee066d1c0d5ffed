"""The committed table of the presets is what the presets cost today."""

from pathlib import Path

from recsys.model.config import PRESETS
from recsys.model.preset_costs import preset_cost
from tests.toy.builders import beauty_sized

COMMITTED = Path(__file__).parents[1] / "benchmarks" / "results" / "presets.md"


def test_the_committed_table_is_current() -> None:
    """``python -m tests.benchmarks.presets`` writes it; here every row is counted again, at the row's own history length."""
    rows = [line for line in COMMITTED.read_text(encoding="utf-8").splitlines() if line.startswith("| `")]
    listed = [(cells[1].strip("` "), int(cells[3])) for cells in (row.split("|") for row in rows)]
    assert {preset for preset, _ in listed} == set(PRESETS)
    counted = [preset_cost(preset, beauty_sized(), max_history=events).cells() for preset, events in listed]
    assert rows == [f"| {' | '.join(cells)} |" for cells in counted]


def test_a_published_preset_answers_as_it_was_published() -> None:
    """paper_v1 generates sessions of 5 items over three codebooks of 8192 codes, whatever the data set asks."""
    cost = preset_cost("paper_v1", beauty_sized())
    assert cost.codebook_size == 8192
    assert cost.cells()[:3] == ["`paper_v1`", "3 x 8192", "256"]
