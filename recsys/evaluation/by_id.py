"""Figures by a semantic ID that was given with the data, beside those by item.

Systems that generate IDs which several items may share (MiniOneRec's, arXiv 2510.24431) count a hit when the *ID* of the
target is generated, whichever of its items was meant. Lists of items are read that way here: of the items that share an
ID the first stands for all, the ones behind it move up, and a target is found where its ID is.

Reads the file that :class:`~recsys.evaluation.config.ByIdConfig` names; produces one number per distinct ID for every
item, and rankings and targets of such numbers, which :func:`~recsys.metrics.ranking.row_metrics` evaluates like items.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.dataset import Targets
from recsys.contracts.errors import DataError
from recsys.contracts.manifest import sha256_of_file
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.config import ByIdConfig

IdArray = npt.NDArray[np.int64]


def ids_file(config: ByIdConfig, source_folder: Path | None) -> Path:
    """Return the file's place.

    Raises:
        DataError: There is no such file.
    """
    path = config.file if source_folder is None else source_folder / config.file
    if not path.is_file():
        raise DataError(
            f"evaluate.by_id.file '{path.absolute()}' is no file; name the Parquet file that holds every item's semantic ID "
            "(a relative path starts at source.path), or set evaluate.by_id to null"
        )
    return path


def fingerprint(config: ByIdConfig | None, source_folder: Path | None) -> dict[str, str]:
    """Content hash of the file of IDs, by the key that names it."""
    return {} if config is None else {"evaluate.by_id.file": sha256_of_file(ids_file(config, source_folder))}


def read_ids(config: ByIdConfig, source_folder: Path | None, item_ids: pl.Series) -> IdArray:
    """Number the distinct IDs of the catalogue.

    Args:
        source_folder: Where a relative file lies.
        item_ids: ``[I]`` ids of the catalogue.

    Returns:
        ``[I]``: equal numbers for items that share an ID.

    Raises:
        DataError: The file or a column is missing, an item of the catalogue has no ID or two, or an ID has a null.
    """
    path = ids_file(config, source_folder)
    try:
        frame = pl.read_parquet(path, glob=False)
    except (OSError, pl.exceptions.PolarsError) as error:
        raise DataError(
            f"evaluate.by_id.file '{path}' cannot be read as Parquet: {error}; write it as Parquet"
        ) from error
    absent = [name for name in (config.item_id, *config.columns) if name not in frame.columns]
    if absent:
        raise DataError(
            f"evaluate.by_id: '{path}' has no column {', '.join(absent)}, but {', '.join(frame.columns)}; name its "
            "columns in evaluate.by_id.item_id and evaluate.by_id.columns"
        )
    key, number = "key", "number"
    given = frame.select(
        pl.col(config.item_id).cast(pl.String).alias(key),
        pl.when(pl.all_horizontal(pl.col(name).is_not_null() for name in config.columns))
        .then(pl.struct(config.columns).rank("dense"))
        .cast(pl.Int64)
        .alias(number),
    ).filter(pl.col(key).is_in(item_ids.cast(pl.String).implode()))
    repeated = given.filter(pl.col(key).is_duplicated())
    if len(repeated):
        raise DataError(f"evaluate.by_id: '{path}' has item {repeated[key][0]} more than once; keep one row per item")
    wanted = pl.DataFrame({key: item_ids.cast(pl.String)}).join(given, on=key, how="left", maintain_order="left")
    missing = wanted.filter(pl.col(number).is_null())
    if len(missing):
        raise DataError(
            f"evaluate.by_id: '{path}' has no ID for {len(missing)} of {len(wanted)} items of the catalogue, the first is "
            f"{missing[key][0]}; every item needs one in {', '.join(config.columns)}"
        )
    return wanted[number].to_numpy()


def rank_ids(ranked: RankedItems, ids: IdArray) -> RankedItems:
    """Turn lists of items into lists of IDs: the first item of each ID stands for it, later ones leave the list.

    Args:
        ranked: ``[N, k]``.
        ids: ``[I]``.

    Returns:
        ``[N, k]``; a list that held an ID twice is padded with -1, so at the largest cut-off figures by ID are a lower
        bound.

    Example:
        >>> answer = RankedItems(np.array([[2, 0, 1, -1]], np.int32), np.array([[3.0, 2.0, 1.0, -np.inf]], np.float32))
        >>> rank_ids(answer, np.array([7, 8, 7])).items.tolist()
        [[7, 8, -1, -1]]
    """
    given = np.where(ranked.items >= 0, ids[np.maximum(ranked.items, 0)], -1)
    order = np.argsort(given, axis=1, kind="stable")  # equal IDs side by side, the better placed first
    ordered = np.take_along_axis(given, order, axis=1)
    later = np.zeros_like(given, bool)
    later[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
    repeated = np.empty_like(later)
    np.put_along_axis(repeated, order, later, axis=1)
    dropped = repeated | (given < 0)
    places = np.argsort(dropped, axis=1, kind="stable")
    gone = np.take_along_axis(dropped, places, axis=1)
    found = np.where(gone, -1, np.take_along_axis(given, places, axis=1)).astype(np.int32)
    scores = np.where(gone, -np.inf, np.take_along_axis(ranked.scores, places, axis=1)).astype(np.float32)
    return RankedItems(found, scores)


def target_ids(targets: Targets, ids: IdArray) -> Targets:
    """Let every row ask for the IDs of its items."""
    return Targets(
        targets.user_index,
        targets.history_start,
        targets.history_end,
        ids[targets.items].astype(targets.items.dtype),
        targets.item_offsets,
    )
