"""What a shape of model costs before anything is trained: policies without memory, and one line per preset.

Parameters, FLOPs and keys and values are counted on the meta device, so a model of a billion parameters takes as long as
a small one, and the numbers are the same on every machine.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys.contracts.dataset import DatasetSpec
from recsys.data.item_catalogue import ItemCatalogue
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import GenerativeRecommender, PolicySpec
from recsys.model.summary import PolicySummary, summarise

PUBLISHED_CODES = {"paper_v1": 8192, "tr_0.9b": 8192, "v2_1b": 8192}
"""Codebook sizes of the presets of published models; the others are counted with 256 codes per level."""
PUBLISHED_SESSION = {"paper_v1": 5}
"""Items per answer of the presets of published models; the others answer with one."""

COST_HEADER = (
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
)


def shape_only(
    config: ModelConfig, dataset: DatasetSpec, *, codebook_size: int = 256, levels: int = 3
) -> GenerativeRecommender:
    """Build a policy whose parameters have shapes and no memory; it can be counted and not be run.

    Args:
        dataset: Sizes of the tables, and the session length.
        codebook_size: Codes of each level.
    """
    spec = PolicySpec(model=config, dataset=dataset, level_sizes=(codebook_size,) * levels, semantic_id_digest="0" * 64)
    with torch.device("meta"):
        return GenerativeRecommender(spec, ItemCatalogue.blank(dataset.num_items, levels))


@dataclass(frozen=True)
class PresetCost:
    """Counts of one preset.

    Attributes:
        codebook_size: Codes per level, three levels.
        max_history: Events of the history.
        greedy, searched: Counts with one beam and with fifty.
    """

    preset: str
    codebook_size: int
    max_history: int
    greedy: PolicySummary
    searched: PolicySummary

    def cells(self) -> list[str]:
        """One row under :data:`COST_HEADER`: three figures and a unit; FLOPs in units of 10^6 or 10^9."""
        counts = (
            self.searched.total,
            self.searched.tables,
            self.searched.active,
            self.searched.train_mflops_per_target * 1e6,
            self.searched.encode_mflops_per_user * 1e6,
            self.greedy.decoder_mflops_per_user * 1e6,
            self.searched.decoder_mflops_per_user * 1e6,
        )
        shape = [f"`{self.preset}`", f"3 x {self.codebook_size}", str(self.max_history)]
        return [*shape, *map(_scaled, counts), f"{_scaled(self.searched.key_value_bytes_per_user)}B"]


def preset_cost(preset: str, dataset: DatasetSpec, *, max_history: int | None = None) -> PresetCost:
    """Count a preset on a data set of the given sizes.

    Args:
        dataset: Its ``task`` and ``session_length`` give way to those of the published model.
        max_history: Events of the history; ``None``: the preset's own.
    """
    chosen = {"preset": preset} if max_history is None else {"preset": preset, "max_history": max_history}
    config = ModelConfig.model_validate(chosen)
    items = PUBLISHED_SESSION.get(preset, 1)
    asked = dataset.model_copy(update={"task": "session" if items > 1 else "next_item", "session_length": items})
    codebook_size = PUBLISHED_CODES.get(preset, 256)
    policy = shape_only(config, asked, codebook_size=codebook_size)
    greedy, searched = summarise(policy, beam_width=1), summarise(policy, beam_width=50)
    return PresetCost(preset, codebook_size, config.max_history, greedy, searched)


def _scaled(count: float) -> str:
    unit, size = next(((u, s) for u, s in (("G", 1e9), ("M", 1e6), ("k", 1e3)) if count >= s), ("", 1))
    return f"{count / size:.3g} {unit}"
