"""Ragged histories of many users: what goes into a recommender, at training, in evaluation and in serving alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from recsys.contracts.dataset import ByteArray, HistoryArrays, IntArray, OffsetArray, Targets
from recsys.contracts.errors import DataError


@dataclass(frozen=True)
class Histories:
    """Histories of N users (or of one user at N instants), oldest event first.

    Attributes:
        user_index: ``[N]`` user_index, -1 for a user that the model was not trained on.
        start: ``[N]`` first row of each history in the arrays below.
        end: ``[N]`` row after its last event; ``end == start`` is an empty history and is answered as well.
        item, behaviour, gap, watch: ``[E]`` event arrays, as in :class:`~recsys.contracts.dataset.HistoryArrays`.
        objective: float32 ``[N, O]`` weight of each of O objectives in each request; ``None`` asks for none in particular.
        words: int32 ``[N, T]`` words of each request, 0 behind them; ``None``: nobody says anything.
    """

    user_index: IntArray
    start: OffsetArray
    end: OffsetArray
    item: IntArray
    behaviour: ByteArray
    gap: ByteArray
    watch: ByteArray
    objective: npt.NDArray[np.float32] | None = None
    words: npt.NDArray[np.int32] | None = None

    def __len__(self) -> int:
        return len(self.user_index)

    @property
    def lengths(self) -> OffsetArray:
        """``[N]`` events per history."""
        return self.end - self.start

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return sum(part.nbytes for part in vars(self).values() if part is not None)

    @classmethod
    def from_targets(cls, history: HistoryArrays, targets: Targets) -> Histories:
        """Histories that the rows of ``targets`` may look at; nothing is copied."""
        return cls(
            user_index=targets.user_index,
            start=targets.history_start,
            end=targets.history_end,
            item=history.item,
            behaviour=history.behaviour,
            gap=history.gap,
            watch=history.watch,
        )

    def take(self, rows: npt.NDArray[np.integer]) -> Histories:
        """Return the rows given by number; the event arrays stay shared."""
        return replace(
            self,
            user_index=self.user_index[rows],
            start=self.start[rows],
            end=self.end[rows],
            objective=None if self.objective is None else self.objective[rows],
            words=None if self.words is None else self.words[rows],
        )

    def event_rows(self) -> OffsetArray:
        """Rows of the event arrays that the histories look at, history by history."""
        lengths = self.lengths
        first = np.cumsum(lengths) - lengths
        return np.repeat(self.start - first, lengths) + np.arange(int(lengths.sum()))

    @classmethod
    def joined(cls, parts: Sequence[Histories]) -> Histories:
        """The rows of all parts, one after the other, with those events alone that they look at.

        Args:
            parts: At least one; all ask with objectives and words, or none does.
        """
        for name in ("objective", "words"):
            assert len({getattr(part, name) is None for part in parts}) == 1, f"some parts have {name}, some have none"
        event_P = [part.event_rows() for part in parts]

        def events(name: str) -> npt.NDArray[Any]:
            return np.concatenate([getattr(part, name)[event] for part, event in zip(parts, event_P, strict=True)])

        def rows(name: str) -> Any:
            given = [getattr(part, name) for part in parts]
            return None if given[0] is None else np.concatenate(given)

        lengths = np.concatenate([part.lengths for part in parts])
        end = np.cumsum(lengths)
        named = {name: events(name) for name in ("item", "behaviour", "gap", "watch")}
        return cls(rows("user_index"), end - lengths, end, **named, objective=rows("objective"), words=rows("words"))

    def with_words(self, words: npt.NDArray[np.int32] | None) -> Histories:
        """Return the same histories with other words, ``[N, T]``.

        Raises:
            DataError: Another number of rows.
        """
        if words is not None and len(words) != len(self):
            raise DataError(f"words have {len(words)} rows, the histories {len(self)}; give one row each")
        return replace(self, words=words)

    def with_objective(self, weights: npt.NDArray[np.floating] | None) -> Histories:
        """Return the same histories with other objective weights, ``[N, O]`` or ``[O]`` for all alike.

        Raises:
            DataError: Another number of rows.
        """
        if weights is None:
            return replace(self, objective=None)
        rows = np.broadcast_to(weights, (len(self), weights.shape[-1])) if weights.ndim == 1 else weights
        if len(rows) != len(self):
            raise DataError(f"objective weights have {len(rows)} rows, the histories {len(self)}; give one row each")
        return replace(self, objective=np.ascontiguousarray(rows, np.float32))

    def seen_items(self) -> list[IntArray]:
        """Return each row's items, in order, repeats kept."""
        return [self.item[start:end] for start, end in zip(self.start, self.end, strict=True)]
