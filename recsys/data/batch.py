"""Padded batches of histories and targets.

Legend: B users, H history events, P prediction points per user, M items per target session, N places.

Rows of the model's tables are ``item_index + 1``; row 0 is padding. A history lies at the left, padding at the right.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.dataset import HistoryArrays
from recsys.data.histories import Histories


@dataclass(frozen=True)
class HistoryBatch:
    """What the encoder reads.

    Attributes:
        user_B: int64 row of the user table, 0 for a user not met in training.
        item_BH, behaviour_BH, gap_BH, watch_BH: int64 table rows, 0 where padded.
        lengths_B: int64 events per user, 0 allowed.
        objective_BO: float32 weight of each of O objectives in this request; ``None`` asks for none in particular.
        words_BT: int64 words of each request, 0 behind them; ``None``: no request says anything.
    """

    user_B: torch.Tensor
    item_BH: torch.Tensor
    behaviour_BH: torch.Tensor
    gap_BH: torch.Tensor
    watch_BH: torch.Tensor
    lengths_B: torch.Tensor
    objective_BO: torch.Tensor | None = None
    words_BT: torch.Tensor | None = None

    def __len__(self) -> int:
        return self.user_B.shape[0]

    def to(self, device: torch.device | str) -> HistoryBatch:
        """Move all tensors."""
        return HistoryBatch(**{name: tensor.to(device, non_blocking=True) for name, tensor in self._tensors().items()})

    def pin_memory(self) -> HistoryBatch:
        """Copy to memory from which a GPU fetches without the host waiting."""
        return HistoryBatch(**{name: tensor.pin_memory() for name, tensor in self._tensors().items()})

    def take(self, rows: torch.Tensor) -> HistoryBatch:
        """Return the users given by number or by a boolean mask."""
        return HistoryBatch(**{name: tensor[rows] for name, tensor in self._tensors().items()})

    def _tensors(self) -> dict[str, torch.Tensor]:
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


@dataclass(frozen=True)
class BatchCounts:
    """How much a batch asks for, on the host: what its arithmetic is counted from.

    Attributes:
        events_N: int64 events of each row's history.
        row_G: int64 row of each of the G points that ask for something.
        items_G: int64 items that each of them asks for.
    """

    events_N: npt.NDArray[np.int64]
    row_G: npt.NDArray[np.int64]
    items_G: npt.NDArray[np.int64]


@dataclass(frozen=True)
class AskedPlaces:
    """Where a batch asks for an item, as places instead of masks.

    How many places a mask has is known only after counting, and counting on a GPU makes the host wait for all that was
    asked of it before. So the places are counted where the batch is made, on the host.

    Attributes:
        point_N: int64 places in ``B * P`` of the points that ask for something, ascending.
        first_N: The same, of the points that ask for a first item.
        item_N: int64 places in ``B * P * M`` of all items that are asked for, ascending.
        session_length: M.
        whole_history: Whether every point may look at its whole history.
        full: Whether the histories are equally long, so that nothing is padding.
        counts: How much is asked for.
    """

    point_N: torch.Tensor
    first_N: torch.Tensor
    item_N: torch.Tensor
    session_length: int
    whole_history: bool
    full: bool
    counts: BatchCounts

    @classmethod
    def of(cls, history: HistoryBatch, target_BPM: torch.Tensor, visible_BP: torch.Tensor) -> AskedPlaces:
        """Count the places; of tensors on a GPU this waits for it, once per batch.

        Example:
            >>> items = torch.tensor([[8, 9, 9], [8, 7, 0]])
            >>> history = HistoryBatch(torch.tensor([1, 2]), items, items, items, items, lengths_B=torch.tensor([3, 2]))
            >>> target = torch.tensor([[[4, 2], [0, 0]], [[0, 0], [7, 0]]])
            >>> places = AskedPlaces.of(history, target, torch.tensor([[0, 3], [1, 2]]))
            >>> places.point_N.tolist(), places.item_N.tolist(), places.whole_history, places.full
            ([0, 3], [0, 1, 6], False, False)
        """
        asked_BPM, lengths_B = target_BPM > 0, history.lengths_B
        first_N = asked_BPM[..., 0].flatten().nonzero()[:, 0]
        whole_history = bool((visible_BP == lengths_B[:, None]).all())
        full = bool((lengths_B == history.item_BH.shape[1]).all())
        point_N = item_N = first_N
        if target_BPM.shape[-1] > 1:
            point_N, item_N = (mask.flatten().nonzero()[:, 0] for mask in (asked_BPM.any(-1), asked_BPM))
        counts = BatchCounts(
            events_N=lengths_B.cpu().numpy(),
            row_G=(point_N // max(target_BPM.shape[1], 1)).cpu().numpy(),
            items_G=asked_BPM.flatten(0, 1)[point_N].sum(-1).cpu().numpy(),
        )
        return cls(point_N, first_N, item_N, target_BPM.shape[-1], whole_history, full, counts)

    def items(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the items that are asked for, ``[B, P, M, ...] -> [N, ...]``."""
        return _at(values.flatten(0, 2), self.item_N)

    def points_of_items(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the point that each item is asked for at, ``[B, P, ...] -> [N, ...]``, in the order of :meth:`items`.

        Example:
            >>> items = torch.tensor([[8, 9], [8, 7]])
            >>> history = HistoryBatch(torch.tensor([1, 2]), items, items, items, items, lengths_B=torch.tensor([2, 2]))
            >>> asked = AskedPlaces.of(history, torch.tensor([[[4, 2]], [[7, 0]]]), torch.tensor([[2], [2]]))
            >>> asked.points_of_items(torch.tensor([[10], [11]])).tolist()
            [10, 10, 11]
        """
        if self.item_N is self.first_N:  # one item at every point
            return self.first_items(values)
        return values.flatten(0, 1).index_select(0, self.item_N // self.session_length)

    def first_items(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the points that ask for a first item, ``[B, P, ...] -> [N, ...]``."""
        return _at(values.flatten(0, 1), self.first_N)

    def each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> AskedPlaces:
        """The same places, each tensor changed once."""
        changed = {id(places): change(places) for places in (self.point_N, self.first_N, self.item_N)}
        point_N, first_N, item_N = (changed[id(places)] for places in (self.point_N, self.first_N, self.item_N))
        return AskedPlaces(point_N, first_N, item_N, self.session_length, self.whole_history, self.full, self.counts)


def _at(values: torch.Tensor, place_N: torch.Tensor) -> torch.Tensor:
    return values if len(place_N) == len(values) else values.index_select(0, place_N)


@dataclass(frozen=True)
class TrainingBatch:
    """Histories with the items to predict from them.

    Attributes:
        history: The encoder's input.
        target_BPM: int64 item rows; 0 where nothing is asked. All-prefix training has P = H + 1 points and M = 1; the
            plain form has P = 1.
        visible_BP: int64, prediction point ``p`` may look at the first ``visible`` events.
        asked: Places of what is asked for; they follow from the targets and move with them.
    """

    history: HistoryBatch
    target_BPM: torch.Tensor
    visible_BP: torch.Tensor
    asked: AskedPlaces = field(init=False)

    def __post_init__(self) -> None:
        asked = AskedPlaces.of(self.history, self.target_BPM, self.visible_BP)
        object.__setattr__(self, "asked", asked)  # frozen

    def __len__(self) -> int:
        return len(self.history)

    def to(self, device: torch.device | str, **_: Any) -> TrainingBatch:
        """Move all tensors (the name Lightning calls)."""
        return self._each(self.history.to(device), lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> TrainingBatch:
        """Copy to memory from which a GPU fetches without the host waiting."""
        return self._each(self.history.pin_memory(), torch.Tensor.pin_memory)

    def _each(self, history: HistoryBatch, change: Callable[[torch.Tensor], torch.Tensor]) -> TrainingBatch:
        """The same batch elsewhere; the places are not counted again."""
        moved = copy.copy(self)
        values = {"history": history, "target_BPM": change(self.target_BPM), "visible_BP": change(self.visible_BP)}
        for name, value in {**values, "asked": self.asked.each(change)}.items():
            object.__setattr__(moved, name, value)
        return moved


def pad_ragged(
    values: npt.NDArray[Any], start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], width: int, offset: int = 0
) -> torch.Tensor:
    """Gather ``values[start:end]`` of every row into ``[rows, width]``, adding ``offset``; 0 where there is nothing.

    Example:
        >>> pad_ragged(np.array([5, 6, 7]), np.array([0, 2]), np.array([2, 3]), 2, offset=1).tolist()
        [[6, 7], [8, 0]]
    """
    index = start[:, None] + np.arange(width)
    inside = index < end[:, None]
    gathered = values[np.where(inside, index, 0)].astype(np.int64) if len(values) else np.zeros(index.shape, np.int64)
    return torch.from_numpy(np.where(inside, gathered + offset, 0))


def collate_histories(histories: Histories, max_history: int, width: int | None = None) -> HistoryBatch:
    """Pad histories, keeping the most recent ``max_history`` events of each.

    Args:
        width: Events to pad to, at least those of the longest history that is kept; ``None``: to that one.
    """
    start = np.maximum(histories.start, histories.end - max_history)
    batch = _history_batch(histories.user_index, start, histories.end, histories, width)
    if histories.objective is not None:
        batch = replace(batch, objective_BO=torch.from_numpy(np.array(histories.objective)))
    if histories.words is not None:
        batch = replace(batch, words_BT=torch.from_numpy(histories.words.astype(np.int64)))
    return batch


def _history_batch(
    user_index: npt.NDArray[np.int32],
    start: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    arrays: Histories | HistoryArrays,
    width: int | None = None,
) -> HistoryBatch:
    width = max(int((end - start).max(initial=0)), 1) if width is None else width
    return HistoryBatch(
        user_B=torch.from_numpy(user_index.astype(np.int64) + 1),
        item_BH=pad_ragged(arrays.item, start, end, width, offset=1),
        behaviour_BH=pad_ragged(arrays.behaviour, start, end, width),
        gap_BH=pad_ragged(arrays.gap, start, end, width),
        watch_BH=pad_ragged(arrays.watch, start, end, width),
        lengths_B=torch.from_numpy((end - start).astype(np.int64)),
    )


def collate_all_prefixes(
    arrays: Histories | HistoryArrays,
    user_index: npt.NDArray[np.int32],
    start: npt.NDArray[np.int64],
    end: npt.NDArray[np.int64],
    first_target: npt.NDArray[np.int64],
) -> TrainingBatch:
    """Build one row per window ``[start, end)``: every event from ``first_target`` on is predicted from those before it.

    The encoder reads the window without its last event, which is only ever a target.
    """
    history = _history_batch(user_index, start, np.maximum(end - 1, start), arrays)
    points = history.item_BH.shape[1] + 1
    target_BP = pad_ragged(arrays.item, start, end, points, offset=1)
    before_first = np.arange(points) < (first_target - start)[:, None]
    target_BP[torch.from_numpy(before_first)] = 0
    visible_BP = torch.arange(points).expand(len(user_index), points)
    return TrainingBatch(history, target_BP[..., None], visible_BP.contiguous())


def collate_targets(
    histories: Histories,
    items: npt.NDArray[np.int32],
    item_offsets: npt.NDArray[np.int64],
    session_length: int,
    max_history: int,
) -> TrainingBatch:
    """Build the plain form: one prediction point per row, a session of up to ``session_length`` items as its target."""
    history = collate_histories(histories, max_history)
    target_BM = pad_ragged(items, item_offsets[:-1], item_offsets[1:], session_length, offset=1)
    return TrainingBatch(history, target_BM[:, None], history.lengths_B[:, None].contiguous())
