"""Scorers by item vectors: the cosine of every item to the decayed mean of the history's vectors.

Legend: N rows (histories), I items, C candidates of a row, D width.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recsys.model.layers.rows import wants_filling, whole_tiles
from recsys.scorers.events import FloatArray
from recsys.scorers.item_scorer import ItemArray, Scale, WeighedHistories


@dataclass(frozen=True)
class SimilarityScorer:
    """Scores by cosine.

    Attributes:
        vectors: ``[I, D]`` float32 of length one; an item of which nothing is known has a zero row and scores 0.
        history_decay: Weight of a history event per later event.
    """

    name: str
    scale: Scale
    vectors: FloatArray
    history_decay: float

    def scores(self, rows: WeighedHistories) -> FloatArray:
        """Return cosines ``[N, I]``; an empty history has 0 everywhere."""
        return self._profiles(rows) @ self.vectors.T

    @torch.no_grad()
    def add_scaled(self, rows: WeighedHistories, weight: float, out: FloatArray) -> None:
        """One matrix product that adds to ``out``."""
        amount = weight * _factor(self.scale)
        sum_NI = torch.from_numpy(out)
        profiles, vectors = torch.from_numpy(self._profiles(rows)), torch.from_numpy(self.vectors)
        if wants_filling(profiles, len(profiles)):  # so that a row's sum does not depend on how many there are
            filled = whole_tiles(sum_NI)
            sum_NI.copy_(torch.addmm(filled, whole_tiles(profiles), vectors.T, alpha=amount)[: len(profiles)])
        else:
            torch.addmm(sum_NI, profiles, vectors.T, alpha=amount, out=sum_NI)

    def product(self, rows: WeighedHistories, weight: float) -> tuple[torch.Tensor, torch.Tensor]:
        """What :meth:`add_scaled` adds, as a query ``[N, D]`` and vectors ``[I, D]`` whose product it is."""
        query = self._profiles(rows) * np.float32(weight * _factor(self.scale))
        return torch.from_numpy(query), torch.from_numpy(self.vectors)

    def scaled_at(self, rows: WeighedHistories, items: ItemArray) -> FloatArray:
        """Products with the given items alone."""
        found = np.einsum("nd,ncd->nc", self._profiles(rows), self.vectors[items])
        return self.scale.apply(found.astype(np.float32))

    def arrays(self) -> dict[str, npt.NDArray[np.generic]]:
        """The vectors."""
        return {"vectors": self.vectors}

    def _profiles(self, rows: WeighedHistories) -> FloatArray:
        """Decayed sums of the history's vectors, scaled to length one, ``[N, D]``."""
        return unit_rows(np.asarray(rows.weights(self.history_decay) @ self.vectors, dtype=np.float32))


def _factor(scale: Scale) -> float:
    assert scale.kind == "linear", "a cosine may be negative"
    return scale.amount


def unit_rows(x: FloatArray) -> FloatArray:
    """Scale rows to length one, in place; zero rows stay."""
    length = np.sqrt(np.einsum("nd,nd->n", x, x))[:, None]
    np.divide(x, length, out=x, where=length > 0)
    return x


def item_vectors(given: FloatArray, width: int | None) -> FloatArray:
    """Prepare ``[I, D]`` vectors: project onto the principal directions if wider than ``width``, scale to length one.

    The directions are those of the uncentred second moments, so that cosines change least; a zero row stays zero.
    """
    x = unit_rows(np.array(given, dtype=np.float32, order="C"))
    if width is not None and x.shape[1] > width:
        moments = np.zeros((x.shape[1], x.shape[1]))
        for begin in range(0, len(x), 65_536):
            block = x[begin : begin + 65_536].astype(np.float64)
            moments += block.T @ block
        _, directions = np.linalg.eigh(moments)  # ascending
        x = unit_rows(np.ascontiguousarray(x @ directions[:, -width:].astype(np.float32)))
    return x
