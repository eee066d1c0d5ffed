"""Novelty, diversity, Vendi score and calibration of the lists of an evaluation, row by row, beside its hits.

Reads a prepared data set, the rows that are evaluated and item vectors; produces float64 values per row for the lists of
any system, by the functions of :mod:`recsys.metrics.beyond_accuracy`. What the data cannot tell is left out and said.

Shape legend: b rows of a block, k places, I items, D vector width, C categories.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, Targets
from recsys.contracts.errors import DataError
from recsys.contracts.ranking import RankedItems
from recsys.metrics.beyond_accuracy import (
    Values,
    Vectors,
    calibration,
    diversity,
    novelty,
    self_information,
    unit_vectors,
    vendi_score,
)

NEEDS_VECTORS: Final = ("diversity", "vendi")
_ROWS: Final = 4096
"""Rows measured at once: their vectors, 10 places of 64 numbers, take 20 MB."""


@dataclass(frozen=True)
class ListQuality:
    """Measures lists at one cut-off.

    Attributes:
        metrics: Which of them.
        k: Places looked at.
        information: ``[I]`` self-information, bits.
        units: ``[I, D]`` item vectors of length 1, where ``metrics`` need them.
        category: ``[I]`` category_index; 0, "not known", is a category like others.
        num_categories: C.
        history_items: Items of all positive events, which the targets' histories point into.
        notes: What is left out, and why.
    """

    metrics: tuple[str, ...]
    k: int
    information: Values
    units: Vectors | None
    category: npt.NDArray[np.int64]
    num_categories: int
    history_items: npt.NDArray[np.int32]
    notes: tuple[str, ...]

    @classmethod
    def of(
        cls, prepared: Dataset, metrics: Sequence[str], k: int, vectors: npt.NDArray[np.floating] | None
    ) -> ListQuality:
        """Collect what the metrics need.

        Args:
            metrics: Those asked for, of novelty, diversity, vendi and calibration.
            k: Places looked at.
            vectors: ``[I, D]`` by item_index; ``None`` leaves out what needs them.

        Raises:
            DataError: There is another number of vectors than of items.
        """
        spec, items = prepared.spec, prepared.items
        if vectors is not None and len(vectors) != spec.num_items:
            raise DataError(f"{len(vectors)} item vectors for {spec.num_items} items; run `embed` on this data set")
        reasons = {} if vectors is not None else dict.fromkeys(NEEDS_VECTORS, "no item vectors were given")
        if spec.num_categories < 2:
            reasons["calibration"] = "the data have no categories"
        wanted = tuple(name for name in metrics if name not in reasons)
        left_out = [name for name in metrics if name in reasons]
        return cls(
            metrics=wanted,
            k=k,
            information=self_information(items[Columns.TRAIN_COUNT].to_numpy()),
            units=unit_vectors(vectors) if vectors is not None and set(wanted) & set(NEEDS_VECTORS) else None,
            category=items[Columns.CATEGORY_INDEX].to_numpy().astype(np.int64),
            num_categories=spec.num_categories,
            history_items=prepared.history.item,
            notes=tuple(f"{name}@{k} is left out: {reasons[name]}" for name in left_out),
        )

    @property
    def names(self) -> list[str]:
        """Columns: ``novelty@10`` and so on."""
        return [f"{name}@{self.k}" for name in self.metrics]

    def values(self, ranked: RankedItems, targets: Targets) -> Mapping[str, Values]:
        """Measure the lists of some rows, ``{name: [b]}``.

        Args:
            ranked: ``[b, width]`` with at least ``k`` places.
            targets: The same rows.
        """
        cuts = [*range(0, len(targets), _ROWS), len(targets)]
        parts = [
            self._values(
                ranked.items[first:end, : self.k], targets.history_start[first:end], targets.history_end[first:end]
            )
            for first, end in pairwise(cuts)
        ]
        return {f"{name}@{self.k}": np.concatenate([part[name] for part in parts]) for name in self.metrics if parts}

    def _values(
        self, items: npt.NDArray[np.int32], starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]
    ) -> dict[str, Values]:
        found: dict[str, Values] = {}
        for name in self.metrics:
            if name == "novelty":
                found[name] = novelty(items, self.information)
            elif name == "calibration":
                found[name] = calibration(self._shown(items), self._liked(starts, ends))
            elif self.units is not None:
                found[name] = (diversity if name == "diversity" else vendi_score)(items, self.units)
        return found

    def _shown(self, items: npt.NDArray[np.int32]) -> Values:
        """Items of each list per category, ``[b, C]``."""
        rows, places = np.nonzero(items >= 0)
        return self._counted(rows, items[rows, places], len(items))

    def _liked(self, starts: npt.NDArray[np.int64], ends: npt.NDArray[np.int64]) -> Values:
        """Events of each history per category, ``[b, C]``."""
        lengths = ends - starts
        rows = np.repeat(np.arange(len(starts)), lengths)
        before = np.repeat(starts - np.concatenate([[0], np.cumsum(lengths)[:-1]]), lengths)
        return self._counted(rows, self.history_items[before + np.arange(len(rows))], len(starts))

    def _counted(self, rows: npt.NDArray[np.integer], items: npt.NDArray[np.integer], num_rows: int) -> Values:
        cells = rows.astype(np.int64) * self.num_categories + self.category[items]
        counts = np.bincount(cells, minlength=num_rows * self.num_categories)
        return counts.reshape(num_rows, self.num_categories).astype(np.float64)
