"""The `embed` stage: reads a prepared data set, writes one vector per item from each source and their fusion.

Files (float32 ``[I, D]``, row number = item_index):
    text.npy, collaborative.npy, attributes.npy, precomputed.npy   those that are enabled and that the data can give
    precomputed_given.npy                         bool [I]: whose vector was in the file
    fused.npy                                     what `tokenize` reads
    embedding_report.json                         widths, weights, items without a source
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

import numpy as np
import polars as pl
from pydantic import model_validator

from features.embeddings.attributes import AttributesConfig, attribute_embedding
from features.embeddings.collaborative import CollaborativeConfig, collaborative_embedding
from features.embeddings.factorise import FloatArray
from features.embeddings.fusion import FusionConfig, fuse
from features.embeddings.precomputed import PrecomputedConfig, precomputed_embedding, told_from_text
from features.embeddings.text import TextConfig, is_left_out, text_embedding
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import write_json
from recsys.runtime import Progress

if TYPE_CHECKING:  # torch is imported when a text is encoded, not when a configuration is read
    import torch

logger = logging.getLogger("recsys.features")

REPORT_NAME: Final = "embedding_report.json"


class EmbedConfig(FrozenConfig):
    """Settings of the `embed` stage; a source set to ``None`` (``text.model`` for text) is switched off.

    Attributes:
        precomputed: Vectors from a file, such as those of an encoder of pictures or of your own language model.
    """

    renamed_keys: ClassVar[Mapping[str, str]] = {"device": "device, at the top of the recipe"}

    precomputed: PrecomputedConfig | None = None
    text: TextConfig = TextConfig()
    collaborative: CollaborativeConfig | None = CollaborativeConfig()
    attributes: AttributesConfig | None = AttributesConfig()
    fusion: FusionConfig = FusionConfig()

    @model_validator(mode="after")
    def _has_text(self) -> Self:
        if self.precomputed is not None and self.precomputed.missing == "text" and self.text.model is None:
            raise ValueError(
                "precomputed.missing is 'text', but text.model is null: there is no text to tell vectors from"
            )
        if self.precomputed is not None and self.precomputed.missing == "text" and self.text.optional:
            raise ValueError(
                "precomputed.missing is 'text', but text.optional is true: without the model no vector could be told from "
                "its text; set text.optional to false, or precomputed.missing to zeros"
            )
        return self


def embed(
    prepared: Dataset,
    config: EmbedConfig,
    out_dir: Path,
    seed: int,
    progress: Progress,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Write the item embeddings.

    Args:
        prepared: Only train events and the item table are read.
        config: The stage's settings.
        out_dir: Receives the files above.
        seed: Decides start vectors and random projections.
        progress: Shows the text batches.
        device: Where the text encoder runs; ``None`` for the CPU.

    Returns:
        The report as written. ``items_without`` counts, per source, the items whose row is zero; ``items_without_any``
        counts those that only have the mean of the catalogue, which is the zero vector.

    Raises:
        DataError: No enabled source of positive weight finds anything in the data.
    """
    items = prepared.items
    # the file is looked at before anything long is done
    given = (
        precomputed_embedding(items[Columns.ITEM_ID], config.precomputed) if config.precomputed is not None else None
    )
    found = _sources(prepared, config, seed, progress, device)
    if given is not None:
        vectors, counts = given
        has = np.asarray(vectors.any(axis=1))
        if config.precomputed is not None and config.precomputed.missing == "text":
            vectors = told_from_text(vectors, has, found["text"])
        found["precomputed"] = vectors
    weights = {name: float(getattr(config.fusion, name)) for name in found}
    usable = {name: source for name, source in found.items() if source.any()}
    if not any(weights[name] > 0.0 for name in usable):
        raise DataError(
            f"embed: none of the sources {sorted(found) or 'enabled'} with a positive weight says anything about the "
            f"{len(items)} items; enable a source that the data has (text, collaborative, attributes) and give it a weight"
        )
    fused = fuse(usable, weights, config.fusion.dim)
    out_dir.mkdir(parents=True, exist_ok=True)
    for name, array in {**usable, "fused": fused}.items():
        np.save(out_dir / f"{name}.npy", array)
    if given is not None:
        np.save(out_dir / "precomputed_given.npy", has)
    present = np.column_stack([usable[name].any(axis=1) for name in usable if weights[name] > 0.0])
    report = {
        "num_items": len(items),
        "width": int(fused.shape[1]),
        "sources": {
            name: {
                "width": int(source.shape[1]),
                "weight": weights[name],
                "items_without": int((~source.any(axis=1)).sum()),
                "written": name in usable,
            }
            for name, source in found.items()
        },
        "items_without_any": int((~present.any(axis=1)).sum()),
        "empty_sources": sorted(set(found) - set(usable)),
    }
    if is_left_out(config.text):
        report["left_out"] = {"text": f"model '{config.text.model}' is not on this machine"}
    if given is not None:
        told = int((found["precomputed"].any(axis=1) & ~has).sum())
        report["precomputed"] = {**counts, "items_told_from_text": told}
    write_json(out_dir / REPORT_NAME, report)
    return report


def _sources(
    prepared: Dataset, config: EmbedConfig, seed: int, progress: Progress, device: torch.device | None
) -> dict[str, FloatArray]:
    found: dict[str, FloatArray] = {}
    if is_left_out(config.text):
        logger.warning(
            "embed: text model '%s' is not on this machine, so items have no text embedding (install recsys-gen[text])",
            config.text.model,
        )
    elif config.text.model is not None:
        found["text"] = text_embedding(_texts(prepared.items), config.text, progress, device)
    if config.collaborative is not None:
        num_items = prepared.spec.num_items
        found["collaborative"] = collaborative_embedding(prepared.history, num_items, config.collaborative, seed)
    if config.attributes is not None:
        found["attributes"] = attribute_embedding(prepared.items, config.attributes, seed)
    return found


def _texts(items: pl.DataFrame) -> list[str | None]:
    """The item's text, or its title where there is no longer text."""
    return items.select(pl.coalesce(Columns.TEXT, Columns.TITLE)).to_series().to_list()
