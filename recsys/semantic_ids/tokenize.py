"""The `tokenize` stage: reads item embeddings ``[I, D]`` and train traffic, writes a version of semantic IDs and a report.

In order: check the catalogue against the codebook, fit, encode, describe the collisions, repair them, describe again, save.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.errors import DataError
from recsys.contracts.manifest import write_json
from recsys.semantic_ids.balanced_kmeans import BalancedResidualKMeans
from recsys.semantic_ids.collisions import Repair, make_unique
from recsys.semantic_ids.config import TokenizeConfig, advised_codebook_size, check_codebook_size
from recsys.semantic_ids.diagnostics import collision_statistics, level_statistics
from recsys.semantic_ids.generations.comparison import compare
from recsys.semantic_ids.generations.growth import FREE, REPORT_NAME, generation_figures, mean_error
from recsys.semantic_ids.generations.naming import names_after, near_enough, renamed
from recsys.semantic_ids.quantizer import (
    CodeArray,
    FloatArray,
    Quantizer,
    check_embeddings,
    relative_residual_errors,
)
from recsys.semantic_ids.register import as_ids
from recsys.semantic_ids.residual_kmeans import ResidualKMeans
from recsys.semantic_ids.versions import SemanticIds


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
    space: str | None = None,
    named_after: SemanticIds | None = None,
) -> dict[str, Any]:
    """Give every item a semantic ID and write this first version with its report.

    Args:
        embeddings: ``[I, D]``, row number = item_index; may be memory-mapped.
        item_ids: ``[I]`` ids as the source gives them.
        traffic: ``[I]`` train events per item: who keeps a contested ID, and the weight of collisions in the report.
        config: The stage's settings.
        out_dir: Receives the files of :class:`~recsys.semantic_ids.versions.SemanticIds` and ``tokenizer_report.json``.
        seed: Decides samples, first centroids and orders.
        space: What `embed` calls the space of the vectors; later versions must come with vectors of the same.
        named_after: A version of the generation before. Codebooks are fitted anew, and their codes are numbered so that as
            much traffic as possible keeps its IDs.

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
    codes, books = quantizer.encode_catalogue(embeddings), quantizer.codebooks
    aligned_to: tuple[str, ...] = ()
    if named_after is not None and _can_be_named_after(named_after, books):
        codes, books = _named(codes, books, ids, counts, named_after)
        if config.keep_within and config.assign == "nearest":
            codes = near_enough(embeddings, books, _codes_before(named_after, ids)[:, : len(books)], config.keep_within)
        aligned_to = (named_after.digest, *sorted(named_after.earlier_digests))
    repair = make_unique(codes, embeddings, books, counts, config.unique)
    version = SemanticIds(repair.codes, repair.level_sizes, ids, books, traffic=counts, aligned_to=aligned_to)
    version.save(out_dir)
    founder_error = mean_error(version, embeddings, np.arange(len(ids)))
    report = {
        "config": config.model_dump(mode="json", exclude=FREE),
        "seed": seed,
        "space": space,
        "founder_error": founder_error,
        "digest": version.digest,
        "generation": version.generation,
        "version": 0,
        "named_after": aligned_to[0] if aligned_to else None,
        "num_items": len(ids),
        "width": int(embeddings.shape[1]),
        "advised_codebook_size": advised_codebook_size(len(ids)),
        "warnings": warnings,
        **_describe(embeddings, codes, repair, books, counts),
        "figures": generation_figures(version, embeddings, counts, founder_error),
    }
    if named_after is not None:
        report["compared_with_before"] = compare(named_after, version)
    write_json(out_dir / REPORT_NAME, report)
    return report


def _can_be_named_after(old: SemanticIds, books: tuple[FloatArray, ...]) -> bool:
    """Whether both have the same levels of the same sizes; codes of others have nothing in common."""
    return [len(book) for book in old.codebooks] == [len(book) for book in books]


def _named(
    codes: CodeArray,
    books: tuple[FloatArray, ...],
    ids: pl.Series,
    traffic: npt.NDArray[np.int64],
    old: SemanticIds,
) -> tuple[CodeArray, tuple[FloatArray, ...]]:
    """Codes and codebooks under the names that keep most."""
    before = _codes_before(old, ids)[:, : len(books)]
    both = before[:, 0] >= 0
    names = names_after(before[both], codes[both], traffic[both], [len(book) for book in books])
    moved = tuple(np.ascontiguousarray(book[np.argsort(name)]) for book, name in zip(books, names, strict=True))
    return renamed(codes, names), moved


def _codes_before(old: SemanticIds, ids: pl.Series) -> CodeArray:
    """Codes ``[I, L]`` that the items had, -1 for those that had none."""
    rows = old.register.rows_of(as_ids(ids, old.item_ids.dtype))
    codes = np.full((len(ids), old.num_levels), -1, np.int32)
    codes[rows >= 0] = old.register.codes[rows[rows >= 0]]
    return codes


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
