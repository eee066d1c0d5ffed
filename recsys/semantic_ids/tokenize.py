"""The `tokenize` stage: reads item embeddings ``[I, D]`` and train traffic, writes a version of semantic IDs and a report.

In order: check the catalogue against the codebook, fit, encode, describe the collisions, repair them, describe again, save.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.errors import DataError
from recsys.contracts.manifest import write_json
from recsys.semantic_ids.balanced_kmeans import BalancedResidualKMeans
from recsys.semantic_ids.collisions import Repair, make_unique
from recsys.semantic_ids.config import TokenizeConfig, advised_codebook_size, check_codebook_size
from recsys.semantic_ids.diagnostics import collision_statistics, level_statistics
from recsys.semantic_ids.quantizer import (
    CodeArray,
    FloatArray,
    Quantizer,
    check_embeddings,
    relative_residual_errors,
)
from recsys.semantic_ids.residual_kmeans import ResidualKMeans
from recsys.semantic_ids.versions import SemanticIds

REPORT_NAME: Final = "tokenizer_report.json"


def build_quantizer(config: TokenizeConfig) -> Quantizer:
    """Return the quantizer that the configuration names, not yet fitted."""
    if config.method == "residual_kmeans":
        return ResidualKMeans(
            config.num_levels,
            config.codebook_size,
            max_iterations=config.max_iterations,
            tolerance=config.tolerance,
            sample_size=config.sample_size,
            init=config.init,
        )
    return BalancedResidualKMeans(
        config.num_levels,
        config.codebook_size,
        max_iterations=config.max_iterations,
        tolerance=config.tolerance,
        sample_size=config.sample_size,
        init=config.init,
        assign=config.assign,
        balancing=config.balancing,
    )


def tokenize(
    embeddings: FloatArray,
    item_ids: pl.Series | Sequence[int | str],
    traffic: npt.NDArray[np.integer],
    config: TokenizeConfig,
    out_dir: Path,
    seed: int,
) -> dict[str, Any]:
    """Give every item a semantic ID and write this first version with its report.

    Args:
        embeddings: ``[I, D]``, row number = item_index; may be memory-mapped.
        item_ids: ``[I]`` ids as the source gives them.
        traffic: ``[I]`` train events per item: who keeps a contested ID, and the weight of collisions in the report.
        config: The stage's settings.
        out_dir: Receives the files of :class:`~recsys.semantic_ids.versions.SemanticIds` and ``tokenizer_report.json``.
        seed: Decides samples, first centroids and orders.

    Returns:
        The report as written.

    Raises:
        DataError: Fewer items than codes per level, or inputs that do not fit together.
    """
    ids = item_ids if isinstance(item_ids, pl.Series) else pl.Series(values=list(item_ids))
    counts = np.asarray(traffic, dtype=np.int64)
    _check_inputs(embeddings, ids, counts)
    warnings = check_codebook_size(len(ids), config)
    quantizer = build_quantizer(config)
    quantizer.fit(embeddings, seed)
    codes = quantizer.encode_catalogue(embeddings)
    repair = make_unique(codes, embeddings, quantizer.codebooks, counts, config.unique)
    semantic_ids = SemanticIds(repair.codes, repair.level_sizes, ids, quantizer.codebooks, traffic=counts)
    semantic_ids.save(out_dir)
    report = {
        "config": config.model_dump(mode="json"),
        "seed": seed,
        "digest": semantic_ids.digest,
        "num_items": len(ids),
        "width": int(embeddings.shape[1]),
        "advised_codebook_size": advised_codebook_size(len(ids)),
        "warnings": warnings,
        **_describe(embeddings, codes, repair, quantizer.codebooks, counts),
    }
    write_json(out_dir / REPORT_NAME, report)
    return report


def _check_inputs(embeddings: FloatArray, ids: pl.Series, traffic: npt.NDArray[np.int64]) -> None:
    check_embeddings(embeddings, "tokenize")
    if not len(embeddings) == len(ids) == len(traffic):
        raise DataError(
            f"tokenize: {len(embeddings)} embeddings, {len(ids)} item ids and {len(traffic)} traffic counts, expected "
            "equally many; the embeddings were made for another catalogue: run `embed` again"
        )
    if ids.null_count() or ids.is_duplicated().any():
        raise DataError("tokenize: item ids hold nulls or repeat, expected one row per item; run `prepare` again")
    if (traffic < 0).any():
        raise DataError(
            f"tokenize: traffic is {int(traffic.min())} for some item, expected counts from 0; run `prepare` again"
        )


def _describe(
    embeddings: FloatArray,
    codes: CodeArray,
    repair: Repair,
    codebooks: tuple[FloatArray, ...],
    traffic: npt.NDArray[np.int64],
) -> dict[str, Any]:
    sizes = tuple(len(book) for book in codebooks)
    levels = len(sizes)
    errors = relative_residual_errors(embeddings, codes, codebooks)
    repaired = relative_residual_errors(embeddings, repair.codes[:, :levels], codebooks)
    total = int(traffic.sum())
    return {
        "level_sizes": list(repair.level_sizes),
        "levels": [
            {"level": level + 1, "relative_mse": errors[level], **level_statistics(codes[:, level], sizes[level])}
            for level in range(levels)
        ],
        "before_repair": collision_statistics(codes, sizes, traffic),
        "after_repair": {
            **collision_statistics(repair.codes, repair.level_sizes, traffic),
            "relative_mse": repaired[-1],
        },
        "moved_item_share": float(repair.moved.mean()),
        "moved_traffic_share": float(traffic[repair.moved].sum() / total) if total else 0.0,
    }
