"""Grow the semantic IDs by a night: reads an earlier version and tonight's vectors, writes the next version and its report.

The report says, beside what `tokenize` reports of a fit, how used up the generation is; :func:`refit_reasons` holds that
against the configuration.

    fill                 share of all IDs that are taken, by items that are there or have left
    first_code_fill      the same below the first code that is used most: where new items stop getting their nearest code
    drift                mean squared error of the codes of later items, over that of the founders at the fit
    later_item_share     share of the catalogue that came after the fit
    later_traffic_share  share of train events on them
"""

from __future__ import annotations

from math import prod
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.errors import CannotGrow
from recsys.contracts.manifest import read_json, write_json
from recsys.semantic_ids.collisions import NoFreeId
from recsys.semantic_ids.config import RefitConfig, TokenizeConfig
from recsys.semantic_ids.diagnostics import collision_statistics, level_statistics
from recsys.semantic_ids.quantizer import FloatArray, encode_nearest, relative_residual_errors, squared_errors
from recsys.semantic_ids.versions import SemanticIds

REPORT_NAME: Final = "tokenizer_report.json"
FREE: Final = {"generation", "keep_within", "refit"}
"""Settings that may differ from night to night: what becomes of a generation, not how its codebooks were fitted."""


def grow_semantic_ids(
    base: Path,
    embeddings: FloatArray,
    item_ids: pl.Series,
    traffic: npt.NDArray[np.integer],
    space: str,
    config: TokenizeConfig,
    out_dir: Path,
) -> dict[str, Any]:
    """Write the version for tonight's catalogue.

    Args:
        base: Folder of the version to grow from.
        embeddings: ``[I, D]``, row number = item_index; may be memory-mapped.
        item_ids: ``[I]`` ids as the source gives them.
        traffic: ``[I]`` train events per item.
        space: What `embed` calls the space of the vectors.
        config: The stage's settings; all but ``refit`` and ``generation`` as they were at the fit.
        out_dir: Receives the files that `tokenize` writes.

    Returns:
        The report as written.

    Raises:
        CannotGrow: Settings or vector space are others than those of the generation, the base says of neither, or all IDs
            are taken.
        DataError: Inputs do not fit together.
    """
    before = read_json(base / REPORT_NAME)
    _check_generation(before, space, config, base)
    earlier = SemanticIds.load(base)
    counts = np.asarray(traffic, np.int64)
    try:
        grown = earlier.grown(item_ids, embeddings, counts)
    except NoFreeId as error:
        raise CannotGrow(f"{error}; start a new generation") from error
    grown.save(out_dir)
    books = grown.codebooks
    new = np.flatnonzero(earlier.register.rows_of(grown.item_ids) < 0)
    nearest = encode_nearest(np.asarray(embeddings[new], np.float32), books)
    displaced = int((nearest != grown.codes[new, : len(books)]).any(axis=1).sum())
    returned = int((earlier.reserved.rows_of(grown.item_ids) >= 0).sum())
    errors = relative_residual_errors(embeddings, grown.codes[:, : len(books)], books)
    report = {
        "config": before["config"],
        "seed": before["seed"],
        "space": space,
        "founder_error": before["founder_error"],
        "digest": grown.digest,
        "generation": grown.generation,
        "version": grown.version,
        "num_items": grown.num_items,
        "width": int(embeddings.shape[1]),
        "level_sizes": list(grown.level_sizes),
        "levels": [
            {
                "level": level + 1,
                "relative_mse": errors[level],
                **level_statistics(grown.codes[:, level], len(books[level])),
            }
            for level in range(len(books))
        ],
        "after_repair": {
            **collision_statistics(grown.codes, grown.level_sizes, counts),
            "relative_mse": errors[-1],
        },
        "growth": {
            "known": grown.num_items - len(new),
            "new": len(new),
            "returned": returned,
            "gone": earlier.num_items - (grown.num_items - len(new) - returned),
            "reserved": len(grown.reserved),
            "new_not_nearest": displaced,
        },
        "figures": generation_figures(grown, embeddings, counts, before["founder_error"]),
    }
    write_json(out_dir / REPORT_NAME, report)
    return report


def _check_generation(before: dict[str, Any], space: str, config: TokenizeConfig, base: Path) -> None:
    if before.get("space") is None or "founder_error" not in before:
        raise CannotGrow(
            f"tokenize: '{base}' does not say in which vector space its codebooks were fitted, as releases before this one "
            "did not; start a new generation"
        )
    was, now = before["config"], config.model_dump(mode="json", exclude=FREE)
    changed = sorted(key for key in {**was, **now} if was.get(key) != now.get(key))
    if changed:
        key = changed[0]
        raise CannotGrow(
            f"tokenize: {', '.join(f'tokenize.{name}' for name in changed)} changed ({was.get(key)!r} -> {now.get(key)!r}), "
            f"and the codebooks of '{base}' stay as they are; set it back, or start a new generation"
        )
    if before["space"] != space:
        raise CannotGrow(
            f"tokenize: tonight's vectors lie in space {space[:16]}, the codebooks of '{base}' were fitted in "
            f"{before['space'][:16]}; let `embed` grow from the same generation, or start a new one"
        )


def generation_figures(
    ids: SemanticIds, embeddings: FloatArray, traffic: npt.NDArray[np.int64], founder_error: float
) -> dict[str, float | None]:
    """Return the figures of the module's head; ``drift`` is ``None`` where no item came later, or the fit had no error."""
    taken = ids.register.codes
    room = prod(ids.level_sizes[1:])
    later = np.flatnonzero(ids.born > 0)
    drift = None
    if len(later) and founder_error > 0.0:
        drift = mean_error(ids, embeddings, later) / founder_error
    total = int(traffic.sum())
    return {
        "fill": len(taken) / prod(ids.level_sizes),
        "first_code_fill": float(np.bincount(taken[:, 0]).max() / room) if len(taken) else 0.0,
        "drift": drift,
        "later_item_share": len(later) / max(1, ids.num_items),
        "later_traffic_share": int(traffic[later].sum()) / total if total else 0.0,
    }


def mean_error(ids: SemanticIds, embeddings: FloatArray, rows: npt.NDArray[np.integer]) -> float:
    """Return the mean squared distance of some items from what their published codes stand for."""
    books = ids.codebooks
    return float(squared_errors(embeddings[rows], ids.codes[rows, : len(books)], books).mean())


def refit_reasons(figures: dict[str, float | None], config: RefitConfig) -> list[str]:
    """Say why a generation is used up, one sentence each; none where it is not.

    Args:
        figures: ``figures`` of the summary of a version.

    Example:
        >>> refit_reasons({"fill": 0.75, "first_code_fill": 0.9, "drift": None}, RefitConfig(max_fill=0.5))
        ['fill is 0.75, tokenize.refit.max_fill allows 0.5: IDs run out']
    """
    meanings = {
        "fill": "IDs run out",
        "first_code_fill": "new items no longer get the first code that is nearest",
        "drift": "the codes fit later items worse than the founders",
        "later_traffic_share": "most traffic is on items that the codebooks were not fitted on",
    }
    found = []
    for name, meaning in meanings.items():
        value, limit = figures.get(name), getattr(config, f"max_{name}")
        if value is not None and limit is not None and value > limit:
            found.append(f"{name} is {value:.3g}, tokenize.refit.max_{name} allows {limit:g}: {meaning}")
    return found
