"""What makes two tables of semantic IDs the same: digests that do not depend on the order of rows.

Item rows of a prepared data set are numbered anew every night, so the identity of a table is taken over rows sorted by item
id. A generation is the set of tables that grew from one fit of the codebooks; its *register* holds every item that ever got
an ID in it, also those that have left the catalogue. The register's digest is a chain, one link per version that brought new
items, so one pass over the rows proves that none of the earlier ones has moved.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.semantic_ids.quantizer import CodeArray, FloatArray


@dataclass(frozen=True)
class Ancestor:
    """An earlier version of the same generation.

    Attributes:
        digest: Of its table, as checkpoints carry it.
        num_items: Items in its catalogue.
        register: Digest of all items that had an ID by then.
    """

    digest: str
    num_items: int
    register: str


def table_digest(codes: CodeArray, level_sizes: Sequence[int], item_ids: pl.Series) -> str:
    """Return the sha256 over level sizes, and item ids and codes sorted by item id.

    Example:
        >>> codes, ids = np.array([[0, 1], [1, 0]], np.int32), pl.Series(["x", "y"])
        >>> table_digest(codes, (2, 2), ids) == table_digest(codes[::-1], (2, 2), ids.reverse())
        True
    """
    order = item_ids.arg_sort().to_numpy()
    return rows_digest(codes[order], level_sizes, item_ids.gather(order))


def rows_digest(codes: CodeArray, level_sizes: Sequence[int], item_ids: pl.Series) -> str:
    """Return the sha256 over level sizes, codes and item ids in the order given, the digest of schema 1."""
    found = hashlib.sha256()
    found.update(json.dumps([list(codes.shape), list(level_sizes)]).encode())
    _add_rows(found, codes, item_ids)
    return found.hexdigest()


def register_chain(
    codes: CodeArray, level_sizes: Sequence[int], item_ids: pl.Series, born: npt.NDArray[np.integer], version: int
) -> list[str]:
    """Return the digest of the register at every version from 0 to ``version``.

    Args:
        codes: ``[R, L]`` of all items that ever got an ID, in any order.
        born: ``[R]`` version in which each got it.
    """
    order = pl.DataFrame({"born": born, "id": item_ids}).select(pl.arg_sort_by("born", "id")).to_series().to_numpy()
    codes, ids = codes[order], item_ids.gather(order)
    ends = np.searchsorted(born[order], np.arange(version + 1), side="right")
    chain: list[str] = []
    digest, start = "", 0
    for end in ends.tolist():
        if end > start or not chain:
            link = hashlib.sha256(json.dumps([digest, end - start, list(level_sizes)]).encode())
            _add_rows(link, codes[start:end], ids[start:end])
            digest = link.hexdigest()
        chain.append(digest)
        start = end
    return chain


def books_digest(codebooks: Sequence[FloatArray]) -> str:
    """Return the sha256 over shapes and values of codebooks."""
    found = hashlib.sha256()
    for book in codebooks:
        found.update(json.dumps(list(book.shape)).encode())
        found.update(np.ascontiguousarray(book, dtype="<f4").tobytes())
    return found.hexdigest()


def _add_rows(digest: hashlib._Hash, codes: CodeArray, item_ids: pl.Series) -> None:
    digest.update(np.ascontiguousarray(codes, dtype="<i4").tobytes())
    # 7 and "7" are different items, and a table of one must not pass for a table of the other
    digest.update(json.dumps(item_ids.to_list(), ensure_ascii=False).encode())
