"""Features of candidates: what every scorer says of an item, what the item is, and how it fits the user's history.

Reads gathered matrices and the histories they are for; produces float32 ``[N, C, F]`` and F names. The same function makes
them at the fit, in evaluation and in every answer. NaN means "not known": LightGBM sends it its own way, the linear ranker
puts the constant of :func:`imputed_values` in its place.

| name | what it is |
|---|---|
| ``path_score`` | log-probability of the item's path, less the row's best; NaN where the search did not end there |
| ``path_rank`` | log2 of the place among the search's items, from 1; NaN as above |
| ``<scorer>_score`` | the scorer's score as it was summed: ``dense``, ``fused`` and every item scorer |
| ``<scorer>_rank`` | log2 of the place among the row's candidates by it, from 1; equal scores share the better place |
| ``found_by_<source>`` | 1 where the source brought the candidate, else 0 |
| ``popularity`` | log(1 + train events of the item) |
| ``item_age``, ``item_idle`` | log(1 + days) from the item's first and last train event to the history's last event |
| ``times_seen`` | log(1 + times the item stands among the history's last events) |
| ``category_last``, ``author_last`` | 1 where the item shares it with the history's last event, else 0 |
| ``category_share``, ``author_share`` | share of the history's last events that share it with the item |
| ``category_watch``, ``author_watch`` | mean bucket of watched share of those events; NaN without one |
| ``history_length`` | log(1 + events), the same for all candidates of a row |
| ``history_gap`` | bucket of the time between the history's last two events, the same for all candidates of a row |

Shape legend: N rows, C candidates, F features, I items, H last events of a history.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset, IntArray
from recsys.contracts.errors import ArtifactError, DataError
from recsys.data.histories import Histories
from recsys.ranker.table import FloatArray, Mask

FUSED: Final = "fused_score"

LAST_EVENTS: Final = 20
"""Events of a history that items, categories and authors are compared with: every one costs a comparison per candidate."""

_DAY_US: Final = 86_400_000_000
_FACTS_FILE: Final = "items.safetensors"

_HISTORY_NAMES: Final = (
    "popularity",
    "item_age",
    "item_idle",
    "times_seen",
    "category_last",
    "category_share",
    "category_watch",
    "author_last",
    "author_share",
    "author_watch",
    "history_length",
    "history_gap",
)

_IMPUTED: Final[Mapping[str, float]] = {"path_score": -20.0, "path_rank": 10.0}
"""A path that the search dropped is taken for a bad one: e^-20 of the best, place 1024. Anything else counts 0."""


@dataclass(frozen=True, eq=False)
class ItemFacts:
    """What features need to know of every item; counted on train events.

    Attributes:
        popularity: float32 ``[I]`` log(1 + train events).
        first_day, last_day: float32 ``[I]`` days since 1970 of the first and last train event, NaN where not known.
        author, category: int32 ``[I]``, 0 not known.
    """

    popularity: FloatArray
    first_day: FloatArray
    last_day: FloatArray
    author: IntArray
    category: IntArray

    @property
    def num_items(self) -> int:
        """I."""
        return len(self.popularity)

    @classmethod
    def from_dataset(cls, prepared: Dataset) -> ItemFacts:
        """Count the train events of a prepared data set."""
        history, num_items = prepared.history, prepared.spec.num_items
        events = np.arange(len(history.item))
        owner = np.searchsorted(np.asarray(history.offsets), events, side="right") - 1
        train = events < np.asarray(history.train_end)[owner]
        item, time = np.asarray(history.item)[train], np.asarray(history.timestamp[train])
        known = time >= 0
        first, last = np.full(num_items, np.inf), np.full(num_items, -np.inf)
        np.minimum.at(first, item[known], time[known] / _DAY_US)
        np.maximum.at(last, item[known], time[known] / _DAY_US)
        counts = np.bincount(item, minlength=num_items)
        return cls(
            popularity=np.log1p(counts).astype(np.float32),
            first_day=np.where(np.isfinite(first), first, np.nan).astype(np.float32),
            last_day=np.where(np.isfinite(last), last, np.nan).astype(np.float32),
            author=prepared.items[Columns.AUTHOR_INDEX].to_numpy().astype(np.int32),
            category=prepared.items[Columns.CATEGORY_INDEX].to_numpy().astype(np.int32),
        )

    def save(self, folder: Path) -> None:
        """Write ``items.safetensors``."""
        from safetensors.numpy import save_file

        folder.mkdir(parents=True, exist_ok=True)
        save_file(
            {name: np.ascontiguousarray(getattr(self, name)) for name in self.__annotations__}, folder / _FACTS_FILE
        )

    @classmethod
    def load(cls, folder: Path, num_items: int) -> ItemFacts:
        """Read what :meth:`save` wrote.

        Raises:
            ArtifactError: The file is damaged, or of a catalogue with another number of items.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        path = folder / _FACTS_FILE
        try:
            arrays = load_file(path)
            found = cls(**{name: arrays[name] for name in cls.__annotations__})
        except (OSError, SafetensorError, KeyError) as error:
            raise ArtifactError(f"'{path}' cannot be read: {error}; run `rank` again") from error
        shapes = {name: array.shape for name, array in arrays.items()}
        if any(shape != (num_items,) for shape in shapes.values()):
            raise ArtifactError(f"'{path}' holds arrays {shapes}, expected {num_items} items each; run `rank` again")
        return found


@dataclass(frozen=True, eq=False)
class Candidates:
    """What sources and scorers say of the candidates of N rows.

    Attributes:
        items: int32 ``[N, C]``, -1 where there is none.
        path: float32 ``[N, C]`` log-probability of the item's path; NaN where the search did not end there.
        scores: float32 ``[N, C]`` by scorer: ``dense``, every item scorer, ``fused``.
        found: bool ``[N, C]`` by source: who brought the candidate.
    """

    items: npt.NDArray[np.int32]
    path: FloatArray
    scores: Mapping[str, FloatArray]
    found: Mapping[str, Mask]


def feature_names(scorers: Sequence[str], sources: Sequence[str]) -> tuple[str, ...]:
    """Names of what :func:`candidate_features` gives, in its order.

    Args:
        scorers: Keys of :attr:`Candidates.scores`.
        sources: Keys of :attr:`Candidates.found`.

    Example:
        >>> feature_names(["dense"], ["beam"])[:5]
        ('path_score', 'path_rank', 'dense_score', 'dense_rank', 'found_by_beam')
    """
    scored = [name for scorer in scorers for name in (f"{scorer}_score", f"{scorer}_rank")]
    return ("path_score", "path_rank", *scored, *(f"found_by_{source}" for source in sources), *_HISTORY_NAMES)


def imputed_values(names: Sequence[str]) -> FloatArray:
    """What stands for NaN in each feature, for the linear ranker: float32 ``[F]``."""
    return np.array([_IMPUTED.get(name, 0.0) for name in names], np.float32)


def candidate_features(
    candidates: Candidates,
    histories: Histories,
    facts: ItemFacts,
    last_time: npt.NDArray[np.int64] | None = None,
) -> FloatArray:
    """Return the features ``[N, C, F]``, named by :func:`feature_names`; NaN where there is no candidate.

    Args:
        candidates: Of these histories, in their order.
        last_time: ``[N]`` UTC microseconds of each history's last event, -1 not known; ``None``: of none.

    Raises:
        DataError: The numbers of rows differ, or a candidate is no item of the catalogue.
    """
    items = candidates.items
    if len(items) != len(histories) or int(items.max(initial=-1)) >= facts.num_items:
        raise DataError(
            f"candidates of {len(items)} rows with items up to {int(items.max(initial=-1))}, the histories have "
            f"{len(histories)} rows and the catalogue {facts.num_items} items; gather candidates for these histories"
        )
    names = feature_names(list(candidates.scores), list(candidates.found))
    features = np.empty((*items.shape, len(names)), np.float32)
    columns = _scored(candidates)
    place = 0
    for place, column in enumerate(columns):
        features[..., place] = column
    for offset, column in enumerate(_of_history(items, histories, facts, last_time), start=place + 1):
        features[..., offset] = column
    features[items < 0] = np.nan
    return features


def _scored(candidates: Candidates) -> Iterator[FloatArray]:
    present = candidates.items >= 0
    found = present & ~np.isnan(candidates.path)
    best = np.max(candidates.path, axis=1, keepdims=True, where=found, initial=-np.inf)
    with np.errstate(invalid="ignore"):
        yield np.where(found, candidates.path - best, np.nan)
    yield np.where(found, _log_place(candidates.path, found), np.nan)
    for score in candidates.scores.values():
        yield score
        yield _log_place(score, present & ~np.isnan(score))
    for by_source in candidates.found.values():
        yield by_source.astype(np.float32)


def _log_place(score: FloatArray, known: Mask) -> FloatArray:
    """log2 of the place by descending score, from 1; what is not known comes last, equal scores share the better place."""
    value = np.where(known, score, -np.inf)
    order = np.argsort(-value, axis=1)
    ordered = np.take_along_axis(value, order, axis=1)
    step = np.arange(1, value.shape[1] + 1, dtype=np.int32) * np.ones((len(value), 1), np.int32)
    step[:, 1:][ordered[:, 1:] == ordered[:, :-1]] = 0
    place = np.empty_like(step)
    np.put_along_axis(place, order, np.maximum.accumulate(step, axis=1), axis=1)
    return np.log2(place, dtype=np.float32)


def _of_history(
    items: npt.NDArray[np.int32],
    histories: Histories,
    facts: ItemFacts,
    last_time: npt.NDArray[np.int64] | None,
) -> Iterator[FloatArray]:
    """The features of :data:`_HISTORY_NAMES`, in order."""
    now = np.full(len(items), np.nan, np.float32)
    if last_time is not None:
        now = np.where(last_time >= 0, last_time / _DAY_US, np.nan).astype(np.float32)
    yield facts.popularity[items]
    yield np.log1p(np.maximum(now[:, None] - facts.first_day[items], 0.0))
    yield np.log1p(np.maximum(now[:, None] - facts.last_day[items], 0.0))
    event = histories.end[:, None] - 1 - np.arange(min(LAST_EVENTS, max(1, int(histories.lengths.max(initial=0)))))
    there = event >= histories.start[:, None]
    event = np.where(there, event, 0)
    blank = not len(histories.item)
    past = np.full(event.shape, -1, np.int32) if blank else np.where(there, np.asarray(histories.item)[event], -1)
    watch = np.zeros(event.shape, np.float32) if blank else np.asarray(histories.watch)[event].astype(np.float32)
    yield np.log1p(_shared(items, past, past >= 0).sum(axis=2, dtype=np.float32))
    for attribute in (facts.category, facts.author):
        value = np.where(past >= 0, attribute[past], 0)
        shared = _shared(attribute[items], value, value > 0)
        yield shared[..., 0].astype(np.float32)
        yield shared.sum(axis=2, dtype=np.float32) / np.maximum(there.sum(axis=1, dtype=np.float32), 1.0)[:, None]
        watched = shared & (watch > 0)[:, None, :]
        count = watched.sum(axis=2, dtype=np.float32)
        total = np.einsum("nch,nh->nc", watched.astype(np.float32), watch)
        yield np.divide(total, count, out=np.full(count.shape, np.nan, np.float32), where=count > 0)
    ones = np.ones((1, items.shape[1]), np.float32)
    yield np.log1p(histories.lengths.astype(np.float32))[:, None] * ones
    gap = np.zeros(len(items), np.float32) if blank else np.asarray(histories.gap)[event[:, 0]].astype(np.float32)
    yield np.where(there[:, 0], gap, np.nan)[:, None] * ones


def _shared(value_NC: IntArray, past_NH: IntArray, known_NH: Mask) -> Mask:
    return (value_NC[:, :, None] == past_NH[:, None, :]) & known_NH[:, None, :]
