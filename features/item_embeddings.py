"""The `embed` stage: reads a prepared data set, writes one vector per item from each source and their fusion.

Files (float32 ``[I, D]``, row number = item_index):
    text.npy, collaborative.npy, attributes.npy, precomputed.npy   those that are enabled and that the data can give
    precomputed_given.npy                         bool [I]: whose vector was in the file
    fused.npy                                     what `tokenize` reads
    space.*, rows.parquet, absent.*               the vector space and whose rows these are, :mod:`features.embeddings.space`
    embedding_report.json                         widths, weights, items without a source
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import numpy.typing as npt

from features.embeddings.attributes import attribute_embedding
from features.embeddings.collaborative import collaborative_embedding
from features.embeddings.config import EmbedConfig
from features.embeddings.factorise import FloatArray
from features.embeddings.fusion import FusionSpace
from features.embeddings.growth import Growth, settings_of, texts_of
from features.embeddings.precomputed import TextRidge, precomputed_embedding
from features.embeddings.space import EmbeddingSpace, KnownVectors, space_digest
from features.embeddings.text import is_left_out, text_embedding
from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import write_json
from recsys.runtime import Progress

if TYPE_CHECKING:  # torch is imported when a text is encoded, not when a configuration is read
    import torch

logger = logging.getLogger("recsys.features")

REPORT_NAME: Final = "embedding_report.json"


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
    found, spaces = _sources(prepared, config, seed, progress, device)
    arrays: dict[str, npt.NDArray[Any]] = {}
    if given is not None:
        vectors, _ = given
        arrays["precomputed_given"] = has = np.asarray(vectors.any(axis=1))
        if config.precomputed is not None and config.precomputed.missing == "text":
            spaces["ridge"] = ridge = TextRidge.fit(vectors, has, found["text"])
            vectors = vectors if ridge is None else ridge.fill(vectors, has, found["text"])
        found["precomputed"] = vectors
    weights = {name: float(getattr(config.fusion, name)) for name in found}
    usable = {name: source for name, source in found.items() if source.any()}
    if not any(weights[name] > 0.0 for name in usable):
        raise DataError(
            f"embed: none of the sources {sorted(found) or 'enabled'} with a positive weight says anything about the "
            f"{len(items)} items; enable a source that the data has (text, collaborative, attributes) and give it a weight"
        )
    fusion = FusionSpace.fit(usable, weights, config.fusion.dim)
    arrays |= {**usable, "fused": fusion.fuse(usable)}
    space = EmbeddingSpace(
        settings=settings_of(config),
        fusion=fusion,
        text_width=_width(usable, "text"),
        precomputed_width=_width(usable, "precomputed"),
        # a source that said nothing of the founders is not asked about later items
        **{name: part for name, part in spaces.items() if name == "ridge" or name in usable},
    )
    out_dir.mkdir(parents=True, exist_ok=True)
    space.save(out_dir)
    KnownVectors(items[Columns.ITEM_ID], np.arange(len(items)), arrays).save(out_dir, len(items))
    report = _report(found, arrays, fusion)
    if is_left_out(config.text):
        report["left_out"] = {"text": f"model '{config.text.model}' is not on this machine"}
    if given is not None:
        told = int((found["precomputed"].any(axis=1) & ~has).sum())
        report["precomputed"] = {**given[1], "items_told_from_text": told}
    report["space"] = space_digest(out_dir)
    write_json(out_dir / REPORT_NAME, report)
    return report


def grow_embeddings(
    prepared: Dataset,
    config: EmbedConfig,
    base: Path,
    out_dir: Path,
    progress: Progress,
    device: torch.device | None = None,
) -> dict[str, Any]:
    """Write the embeddings of another night's catalogue in the space of an earlier result.

    See :mod:`features.embeddings.growth` for who keeps a vector and who is projected.

    Args:
        prepared: Tonight's data; items may have come, gone, returned, and stand in another order.
        base: Folder of the earlier result, of the founders or grown itself.
        out_dir: Receives the files that :func:`embed` writes.

    Returns:
        The report as written; beside what :func:`embed` reports, how many items are founders, projected and new, and how
        many founders are not in the catalogue.

    Raises:
        CannotGrow: The settings are others than those that the space was made with.
        DataError: Vectors from a file do not fit.
    """
    growth = Growth(prepared, config, base)
    out_dir.mkdir(parents=True, exist_ok=True)
    arrays = growth.write(out_dir, progress, device)
    sources = {name: array for name, array in arrays.items() if name not in ("fused", "precomputed_given")}
    report = {
        **_report(sources, arrays, growth.space.fusion),
        "founders": len(growth.founders),
        "projected": len(growth.others),
        "new": int(growth.is_new.sum()),
        "absent_founders": len(growth.absent),
        "space": space_digest(out_dir),
    }
    write_json(out_dir / REPORT_NAME, report)
    return report


def _report(
    found: Mapping[str, FloatArray], arrays: Mapping[str, npt.NDArray[Any]], fusion: FusionSpace
) -> dict[str, Any]:
    present = np.column_stack([arrays[name].any(axis=1) for name in fusion.means])
    return {
        "num_items": len(arrays["fused"]),
        "width": int(arrays["fused"].shape[1]),
        "sources": {
            name: {
                "width": int(source.shape[1]),
                "weight": fusion.weights.get(name, 0.0),
                "items_without": int((~source.any(axis=1)).sum()),
                "written": name in arrays,
            }
            for name, source in found.items()
        },
        "items_without_any": int((~present.any(axis=1)).sum()),
        "empty_sources": sorted(set(found) - set(arrays)),
    }


def _width(sources: Mapping[str, FloatArray], name: str) -> int:
    return int(sources[name].shape[1]) if name in sources else 0


def _sources(
    prepared: Dataset, config: EmbedConfig, seed: int, progress: Progress, device: torch.device | None
) -> tuple[dict[str, FloatArray], dict[str, Any]]:
    """Embeddings by source, and by the same names what was fitted for them."""
    found: dict[str, FloatArray] = {}
    spaces: dict[str, Any] = {}
    if is_left_out(config.text):
        logger.warning(
            "embed: text model '%s' is not on this machine, so items have no text embedding (install recsys-gen[text])",
            config.text.model,
        )
    elif config.text.model is not None:
        found["text"] = text_embedding(texts_of(prepared.items), config.text, progress, device)
    if config.collaborative is not None:
        fitted = collaborative_embedding(prepared.history, prepared.spec.num_items, config.collaborative, seed)
        found["collaborative"], spaces["collaborative"] = fitted
    if config.attributes is not None:
        found["attributes"], spaces["attributes"] = attribute_embedding(prepared.items, config.attributes, seed)
    return found, spaces
