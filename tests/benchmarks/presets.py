"""Print one table of what every preset costs: parameters, FLOPs per user by part, keys and values to hold.

Run: ``python -m tests.benchmarks.presets``; seconds, since the models are built without memory (meta device). Large
presets are listed once more at 512 events, where OneRec-V2 compares its architectures, and v2_1b at its production
context of 3000.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from recsys.contracts.dataset import DatasetSpec
from recsys.model.config import PRESETS, ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.model.summary import summarise
from tests.benchmarks.paired import write_table

NUM_ITEMS = 12_101
LARGE = {"paper_v1": 8192, "tr_0.9b": 8192, "v2_1b": 8192}
"""Codebook sizes of the presets of published models; the others are counted with 256 codes per level."""
SESSION_LENGTH = {"paper_v1": 5}
COMPARED_EVENTS = {"paper_v1": (512,), "tr_0.9b": (512,), "v2_1b": (3000,)}


def build(config: ModelConfig, codebook_size: int = 256, session_length: int = 1) -> GenerativeRecommender:
    """A policy whose parameters have shapes and no memory."""
    spec = DatasetSpec(
        num_users=22_363,
        num_items=NUM_ITEMS,
        num_authors=445,
        num_categories=195,
        num_behaviours=2,
        num_gap_buckets=32,
        num_watch_buckets=12,
        task="session" if session_length > 1 else "next_item",
        session_length=session_length,
        signals=(),
        has_timestamps=False,
    )
    spec = PolicySpec(model=config, dataset=spec, level_sizes=(codebook_size,) * 3, semantic_id_digest="0" * 64)
    with torch.device("meta"):
        return GenerativeRecommender(spec, torch.zeros(NUM_ITEMS + 1, 5, dtype=torch.int64))


def models() -> Iterator[tuple[str, ModelConfig]]:
    """Every preset at its own history length, then the large ones at lengths that can be compared."""
    for preset in PRESETS:
        yield preset, ModelConfig.model_validate({"preset": preset})
    for preset, lengths in COMPARED_EVENTS.items():
        for events in lengths:
            yield preset, ModelConfig.model_validate({"preset": preset, "max_history": events})


HEADER = [
    "preset",
    "codes",
    "events",
    "parameters",
    "in tables",
    "active per token",
    "training target",
    "encoder and K/V",
    "decoder, beam 1",
    "decoder, beam 50",
    "K/V of the history",
]
NOTES = [
    "counted on the meta device, not timed: the same on every machine",
    f"{NUM_ITEMS:,} items; FLOPs of matrix products (2 per multiply-add) for one item, per target or per user; float32 K/V",
    "training target: forward and backward with the dense head's softmax over the catalogue; all prefixes in one pass where "
    "the encoder is causal, else one history per target (paper_v1: per session of 5)",
    "encoder and K/V: once per user, whatever the number of beams; the decoder's share includes attention to the history",
    "published: tr_0.9b 0.935 G parameters (arXiv 2506.13695, Table 1); v2_1b 18.89 GFLOPs per training sample at 512 "
    "positions, without a dense head (arXiv 2508.20900, Table 2)",
]


def table() -> list[list[str]]:
    """All rows, as text; FLOPs in units of 10^6 or 10^9."""
    rows = []
    for preset, config in models():
        codebook_size = LARGE.get(preset, 256)
        policy = build(config, codebook_size, SESSION_LENGTH.get(preset, 1))
        narrow, wide = summarise(policy, beam_width=1), summarise(policy, beam_width=50)
        counts = [
            wide.total,
            wide.tables,
            wide.active,
            wide.train_mflops_per_target * 1e6,
            wide.encode_mflops_per_user * 1e6,
            narrow.decoder_mflops_per_user * 1e6,
            wide.decoder_mflops_per_user * 1e6,
        ]
        cells = [f"`{preset}`", f"3 x {codebook_size}", str(config.max_history), *map(_scaled, counts)]
        rows.append([*cells, f"{_scaled(wide.key_value_bytes_per_user)}B"])
    return rows


def _scaled(count: float) -> str:
    unit, size = next(((u, s) for u, s in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if count >= s), ("", 1))
    return f"{count / size:.3g} {unit}"


def main() -> None:
    """Print the table and keep it in ``results/presets.md``."""
    print(write_table("presets", "What the presets cost", HEADER, table(), NOTES))


if __name__ == "__main__":
    main()
