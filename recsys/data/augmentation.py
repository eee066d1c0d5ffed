"""Cropped, reordered and masked histories for training; what a row becomes depends on seed, epoch and row alone.

Validation, evaluation and serving never come here.

Legend: N rows, E events of those rows end to end, B rows of a batch, H history events.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.dataset import HistoryArrays
from recsys.data.batch import TrainingBatch
from recsys.data.histories import Histories
from recsys.data.options import AugmentConfig

IntArray = npt.NDArray[np.int64]

_CROP, _CROP_SIZE, _REORDER, _MOVE, _MASK = range(5)
"""What a number is drawn for; no two draws of a row share one."""

_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_FACTORS: Final = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def scrambled(counter: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Turn counters into random bits: SplitMix64 (Steele, Lea and Flood 2014), whose first output for seed 0 is known.

    A function of its argument, unlike a generator: the row that is asked first, in which process and after how many
    restarts changes nothing.

    Example:
        >>> hex(int(scrambled(np.array([0], np.uint64))[0]))
        '0xe220a8397b1dcdaf'
    """
    with np.errstate(over="ignore"):
        bits = counter + _STEP
        bits = (bits ^ (bits >> np.uint64(30))) * _FACTORS[0]
        bits = (bits ^ (bits >> np.uint64(27))) * _FACTORS[1]
        mixed: npt.NDArray[np.uint64] = bits ^ (bits >> np.uint64(31))
    return mixed


@dataclass(frozen=True)
class Augmentation:
    """The changes of one epoch.

    1. *crop*: a row of the chosen share loses its oldest events, a number from 0 to all but ``keep`` with equal
       probabilities. Only the front is cut: every prefix of a row is a history already, so cutting its end would take
       targets away and show nothing new.
    2. *reorder*: in a row of the chosen share event ``j`` is given the place ``j + span · u``, ``u`` uniform in [0, 1), and
       the row is sorted by it. Histories and the targets drawn from the same row move together, so no event is seen before
       it is asked for.
    3. *mask*: an item of the history is replaced by row 0, "not known", which is what serving gives for items that training
       has not met.

    Args:
        seed: Of the run.
        epoch: From 0.
    """

    config: AugmentConfig
    seed: int
    epoch: int

    def _uniform(self, purpose: int, rows: IntArray, place: IntArray | int = 0) -> npt.NDArray[np.floating]:
        """Numbers in [0, 1) for places of rows."""
        bits = np.array([self.seed], np.uint64)
        for part in (self.epoch, purpose, rows, place):
            bits = scrambled(bits ^ np.asarray(part).astype(np.uint64))
        return (bits >> np.uint64(11)) * 2.0**-53

    def windows(
        self,
        events: Histories | HistoryArrays,
        user_index: npt.NDArray[np.int32],
        rows: IntArray,
        start: IntArray,
        end: IntArray,
        keep: int,
    ) -> tuple[Histories, IntArray]:
        """Crop and reorder the events ``[start, end)`` of each row.

        Args:
            rows: ``[N]`` row numbers, which the draws depend on.
            keep: Events that a crop leaves at least.

        Returns:
            The changed rows, copied, and ``[N]`` how many events each lost from its front.
        """
        crops = self._uniform(_CROP, rows) < self.config.crop_share
        most = np.maximum(end - start - keep, 0)
        dropped = np.where(crops, (self._uniform(_CROP_SIZE, rows) * (most + 1)).astype(np.int64), 0)
        lengths = end - start - dropped
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        row_E = np.repeat(np.arange(len(rows)), lengths)
        place_E = np.arange(len(row_E)) - offsets[row_E]
        moves_E = (self._uniform(_REORDER, rows) < self.config.reorder_share)[row_E]
        wanted_E = place_E + moves_E * self.config.reorder_span * self._uniform(_MOVE, rows[row_E], place_E)
        event_E = ((start + dropped)[row_E] + place_E)[np.lexsort((wanted_E, row_E))]
        changed = Histories(
            user_index=user_index,
            start=offsets[:-1],
            end=offsets[1:],
            item=np.asarray(events.item)[event_E],
            behaviour=np.asarray(events.behaviour)[event_E],
            gap=np.asarray(events.gap)[event_E],
            watch=np.asarray(events.watch)[event_E],
        )
        return changed, dropped

    def masked(self, batch: TrainingBatch, rows: IntArray) -> TrainingBatch:
        """Hide items of the histories; targets stay."""
        if self.config.mask_share == 0:
            return batch
        item_BH = batch.history.item_BH
        place_BH = np.broadcast_to(np.arange(item_BH.shape[1]), tuple(item_BH.shape))
        hidden_BH = self._uniform(_MASK, rows[:, None], place_BH) < self.config.mask_share
        masked_BH = item_BH.masked_fill(torch.from_numpy(hidden_BH), 0)
        return replace(batch, history=replace(batch.history, item_BH=masked_BH))
