"""Print one table of what every preset costs: parameters, FLOPs per user by part, keys and values to hold.

Run: ``python -m tests.benchmarks.presets``; seconds, since the models are built without memory (meta device). Large
presets are listed once more at 512 events, where OneRec-V2 compares its architectures, and v2_1b at its production
context of 3000.
"""

from __future__ import annotations

from recsys.model.config import PRESETS
from recsys.model.preset_costs import COST_HEADER, preset_cost
from tests.benchmarks import findings
from tests.benchmarks.paired import write_table
from tests.toy.builders import beauty_sized

COMPARED_EVENTS = {"paper_v1": 512, "tr_0.9b": 512, "v2_1b": 3000}
NOTES = [
    "counted on the meta device, not timed: the same on every machine",
    "12,101 items; FLOPs of matrix products (2 per multiply-add) for one item, per target or per user; float32 K/V",
    "training target: forward and backward with the dense head's softmax over the catalogue; all prefixes in one pass where "
    "the encoder is causal, else one history per target (paper_v1: per session of 5)",
    "encoder and K/V: once per user, whatever the number of beams; the decoder's share includes attention to the history",
    "published: tr_0.9b 0.935 G parameters (arXiv 2506.13695, Table 1); v2_1b 18.89 GFLOPs per training sample at 512 "
    "positions, without a dense head (arXiv 2508.20900, Table 2)",
]


def main() -> None:
    """Print the table and keep it in ``results/presets.md``."""
    costs = [preset_cost(preset, beauty_sized()) for preset in PRESETS]
    costs += [preset_cost(preset, beauty_sized(), max_history=events) for preset, events in COMPARED_EVENTS.items()]
    rows = [cost.cells() for cost in costs]
    print(write_table("presets", "What the presets cost", findings.of_presets(rows), list(COST_HEADER), rows, NOTES))


if __name__ == "__main__":
    main()
