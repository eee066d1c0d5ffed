"""Attribute embeddings: items of the same categories and author lie close together.

Reads the item table (category names, author), produces ``[I, width]`` from a multi-hot matrix in which a rare attribute
weighs more than a common one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import numpy as np
import polars as pl
from pydantic import Field

from features.embeddings.factorise import FloatArray, truncated_svd
from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns

if TYPE_CHECKING:  # scipy is imported when a matrix is built, not when a configuration is read
    from scipy import sparse


class AttributesConfig(FrozenConfig):
    """Settings of the attribute embedding.

    Attributes:
        dim: Width, at most; with fewer attributes the embedding is as wide as there are attributes.
        projection: ``svd`` keeps the directions of largest energy, ``random`` is Gaussian and needs one pass only.
        min_items: An attribute of fewer items says nothing about neighbours and is left out.
    """

    dim: int = Field(default=64, ge=1)
    projection: Literal["svd", "random"] = "svd"
    min_items: int = Field(default=2, ge=1)


def attribute_embedding(items: pl.DataFrame, config: AttributesConfig, seed: int) -> FloatArray:
    """Return ``[I, width]``; an item without attributes has a zero row, and without any attribute the width is 0."""
    matrix = attribute_matrix(items, config.min_items)
    num_attributes = matrix.shape[1]
    width = min(config.dim, *matrix.shape)
    if width == 0:
        return np.zeros((matrix.shape[0], 0), np.float32)
    if config.projection == "random":
        directions = np.random.default_rng(seed).standard_normal((num_attributes, width)) / np.sqrt(width)
        return np.ascontiguousarray(matrix @ directions, dtype=np.float32)
    u, sigma = truncated_svd(matrix, width, seed)
    u[np.diff(matrix.indptr) == 0] = 0.0
    return np.ascontiguousarray(u * sigma, dtype=np.float32)


def attribute_matrix(items: pl.DataFrame, min_items: int) -> sparse.csr_matrix:
    """Return items by attributes, ``log(1 + I / items with it)`` where an item has the attribute, rows of length one.

    Attributes are the category names and, where it is known (not 0), the author; columns are sorted by name.
    """
    from scipy import sparse

    category = (
        items.select(Columns.ITEM_INDEX, name=pl.col(Columns.CATEGORIES))
        .explode("name")
        .drop_nulls("name")
        .with_columns(name="category " + pl.col("name"))
    )
    author = items.filter(pl.col(Columns.AUTHOR_INDEX) > 0).select(
        Columns.ITEM_INDEX, name="author " + pl.col(Columns.AUTHOR_INDEX).cast(pl.String)
    )
    pairs = pl.concat([category, author]).unique().sort(Columns.ITEM_INDEX, "name")
    names = pairs.group_by("name").len("holders").filter(pl.col("holders") >= min_items).sort("name")
    names = names.with_row_index("column")
    pairs = pairs.join(names, on="name", how="inner", maintain_order="left")
    weight = np.log1p(len(items) / pairs["holders"].to_numpy())
    matrix = sparse.csr_matrix(
        (weight, (pairs[Columns.ITEM_INDEX].to_numpy(), pairs["column"].to_numpy())), shape=(len(items), len(names))
    )
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1.0 / np.where(norms > 0.0, norms, 1.0)) @ matrix)
