"""Which sessions are good enough to be generated: OneRec's three criteria, counted on all events of a session.

Reads the event log and its sessions; produces one flag per session. The generator's training targets come from good sessions
only; everything else, the reward model's sessions among it, reads all of them.

Source: OneRec (arXiv 2502.18965), section 3.2: at least 5 videos actually watched, a total watch time above a threshold, an
interaction such as like, collect or share. The paper gives neither the threshold nor whether all three are asked for, and
what is watched is not defined: here all are asked for unless ``needs`` says otherwise, and the length that counts is a
setting.
"""

from __future__ import annotations

from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator

from features.log.arrays import BoolArray
from features.log.event_log import EventLog
from features.splits import SplitArray
from recsys.config import FrozenConfig
from recsys.contracts.columns import TRAIN
from recsys.contracts.errors import ConfigError, DataError


class HighQualityConfig(FrozenConfig):
    """What a session needs; a bound of 0 asks for nothing.

    Attributes:
        min_watched: Distinct items that were watched.
        watched_seconds: Shortest watch of an item that counts as watched; what is shorter still adds to the total.
        min_watch_seconds: Watch time of the whole session.
        min_interactions: Events with an interaction.
        interactions: Signals that are interactions; ``None`` takes all of the source.
        needs: ``all`` of the bounds that are set, or ``any`` of them.
    """

    min_watched: int = Field(default=5, ge=0)
    watched_seconds: float = Field(default=1.0, gt=0)
    min_watch_seconds: float = Field(default=0.0, ge=0)
    min_interactions: int = Field(default=0, ge=0)
    interactions: tuple[str, ...] | None = None
    needs: Literal["all", "any"] = "all"

    @model_validator(mode="after")
    def _asks_for_something(self) -> Self:
        if not (self.min_watched or self.min_watch_seconds or self.min_interactions):
            raise ValueError("all bounds are 0, so every session is good; set one, or leave high_quality out")
        if self.interactions is not None and not self.min_interactions:
            raise ValueError("interactions are named, but min_interactions is 0; set how many a session needs")
        return self


def good_sessions(
    log: EventLog, split: SplitArray, sessions: npt.NDArray[np.int32], config: HighQualityConfig
) -> tuple[BoolArray, dict[str, Any]]:
    """Return ``[S]`` which sessions are good, and counts for the report.

    Args:
        split: ``[E]``.
        sessions: ``[E]`` number of each event's session, ascending.

    Raises:
        ConfigError: A bound needs a measurement or a signal that the source does not have.
        DataError: No train session is good.
    """
    count = int(sessions[-1]) + 1
    passes: dict[str, BoolArray] = {}
    if config.min_watched:
        watched = _watch_seconds(log, "min_watched") >= config.watched_seconds
        passes["min_watched"] = _distinct(sessions[watched], log.item[watched], count) >= config.min_watched
    if config.min_watch_seconds:
        seconds = np.nan_to_num(_watch_seconds(log, "min_watch_seconds"))
        passes["min_watch_seconds"] = np.bincount(sessions, seconds, count) >= config.min_watch_seconds
    if config.min_interactions:
        passes["min_interactions"] = (
            np.bincount(sessions[_interactions(log, config)], minlength=count) >= config.min_interactions
        )
    combine = np.logical_and if config.needs == "all" else np.logical_or
    good: BoolArray = combine.reduce(list(passes.values()))
    first = np.flatnonzero(np.diff(sessions, prepend=-1))
    train = split[first] == TRAIN
    facts = {
        "good": int(good.sum()),
        "train": int(train.sum()),
        "train_good": int((train & good).sum()),
        "train_passing": {name: int((flags & train).sum()) for name, flags in passes.items()},
    }
    if not facts["train_good"]:
        raise DataError(
            f"features.sessions.high_quality: none of {facts['train']} train sessions is good ({facts['train_passing']} of "
            f"them pass each bound, needs: {config.needs}); lower a bound, or leave it out"
        )
    return good, facts


def _watch_seconds(log: EventLog, bound: str) -> npt.NDArray[np.float64]:
    if log.watch_time is None:
        raise ConfigError(
            f"features.sessions.high_quality.{bound} counts watch time, and the source has none; map "
            f"source.columns.watch_time, or set {bound} to 0"
        )
    return log.watch_time.astype(np.float64) / 1000.0


def _interactions(log: EventLog, config: HighQualityConfig) -> BoolArray:
    names = log.signals if config.interactions is None else config.interactions
    unknown = [name for name in names if name not in log.signals]
    if unknown or not names:
        what = f"'{unknown[0]}' is none of the signals" if unknown else "there are no signals"
        raise ConfigError(
            f"features.sessions.high_quality.min_interactions counts signals, and {what} of the source "
            f"({', '.join(log.signals) or 'none'}); name some in source.signals, or set min_interactions to 0"
        )
    bits = sum(1 << log.signals.index(name) for name in set(names))
    return (log.signal_values & log.signal_known & bits) > 0


def _distinct(sessions: npt.NDArray[np.int32], items: npt.NDArray[Any], count: int) -> npt.NDArray[np.int64]:
    """Distinct items of every session, ``[S]``."""
    order = np.lexsort((items, sessions))
    new = np.ones(len(order), bool)
    new[1:] = (np.diff(sessions[order]) != 0) | (items[order][1:] != items[order][:-1])
    return np.bincount(sessions[order][new], minlength=count)
