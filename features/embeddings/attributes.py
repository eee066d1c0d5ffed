"""Attribute embeddings: items of the same categories and author lie close together.

Reads the item table (category names, author), produces ``[I, width]`` from a multi-hot matrix in which a rare attribute
weighs more than a common one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import polars as pl
from pydantic import Field

from features.embeddings.factorise import NOTHING, FloatArray, truncated_svd
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


@dataclass(frozen=True)
class AttributeSpace:
    """Where an item lies by its attributes, also one that came after the fit; attributes of later items are not known here.

    Attributes:
        names: ``[A]`` attributes, sorted.
        weights: ``[A]`` of each, by how rare it was.
        directions: ``[A, width]``.
    """

    names: tuple[str, ...]
    weights: FloatArray
    directions: FloatArray

    def project(self, items: pl.DataFrame) -> FloatArray:
        """Return ``[rows of items, width]``; an item without a known attribute has a zero row."""
        return np.ascontiguousarray(attribute_matrix(items, self.names, self.weights) @ self.directions, np.float32)


def attribute_embedding(items: pl.DataFrame, config: AttributesConfig, seed: int) -> tuple[FloatArray, AttributeSpace]:
    """Return ``[I, width]`` and the space; an item without attributes has a zero row, and without any the width is 0."""
    names, weights = attribute_vocabulary(items, config.min_items)
    matrix = attribute_matrix(items, names, weights)
    num_attributes = matrix.shape[1]
    width = min(config.dim, *matrix.shape)
    if width == 0:
        nothing = np.zeros((num_attributes, 0), np.float32)
        return np.zeros((matrix.shape[0], 0), np.float32), AttributeSpace(names, weights.astype(np.float32), nothing)
    if config.projection == "random":
        directions = np.random.default_rng(seed).standard_normal((num_attributes, width)) / np.sqrt(width)
        vectors = matrix @ directions
    else:
        u, sigma = truncated_svd(matrix, width, seed)
        u[np.diff(matrix.indptr) == 0] = 0.0
        vectors = u * sigma
        directions = (matrix.T @ u) / np.where(sigma > NOTHING * sigma[0], sigma, np.inf)
    space = AttributeSpace(names, weights.astype(np.float32), np.ascontiguousarray(directions, np.float32))
    return np.ascontiguousarray(vectors, dtype=np.float32), space


def attribute_vocabulary(items: pl.DataFrame, min_items: int) -> tuple[tuple[str, ...], npt.NDArray[np.float64]]:
    """Return the attributes that at least ``min_items`` items have, sorted, and ``log(1 + I / items with it)`` of each."""
    names = _pairs(items).group_by("name").len("holders").filter(pl.col("holders") >= min_items).sort("name")
    return tuple(names["name"].to_list()), np.log1p(len(items) / names["holders"].to_numpy())


def attribute_matrix(items: pl.DataFrame, names: Sequence[str], weights: npt.NDArray[np.floating]) -> sparse.csr_matrix:
    """Return rows of ``items`` by attributes, the weight where an item has the attribute, rows of length one.

    Attributes are the category names and, where it is known, the author.
    """
    from scipy import sparse

    columns = pl.DataFrame({"name": pl.Series(names, dtype=pl.String)}).with_row_index("column")
    pairs = _pairs(items).join(columns, on="name", how="inner", maintain_order="left")
    column = pairs["column"].to_numpy()
    weight = np.asarray(weights, np.float64)[column]
    matrix = sparse.csr_matrix((weight, (pairs["row"].to_numpy(), column)), shape=(len(items), len(names)))
    norms = np.sqrt(np.asarray(matrix.multiply(matrix).sum(axis=1)).ravel())
    return sparse.csr_matrix(sparse.diags(1.0 / np.where(norms > 0.0, norms, 1.0)) @ matrix)


def _pairs(items: pl.DataFrame) -> pl.DataFrame:
    """One row per row of ``items`` and attribute, in the order of rows and names; ids and names keep from night to night."""
    rows = items.with_row_index("row")
    category = rows.select("row", name=pl.col(Columns.CATEGORIES)).explode("name").drop_nulls("name")
    author = rows.select("row", name=pl.col(Columns.AUTHOR_ID).cast(pl.String)).drop_nulls("name")
    named = [
        category.with_columns(name="category " + pl.col("name")),
        author.with_columns(name="author " + pl.col("name")),
    ]
    return pl.concat(named).unique().sort("row", "name")
