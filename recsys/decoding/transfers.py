"""Between host and device without waiting: inputs are prepared one batch ahead, answers are fetched one batch behind.

A GPU works through what it is given in order. While it decodes a batch, a worker thread prepares the next one on the host
and sends it; the answer is copied as soon as it is there, and looked at only when the next batch is on its way. Beside a CPU
nothing is gained by a second thread: there one batch follows the other.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import fields
from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from recsys.contracts.ranking import RankedItems

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")

Pending = Callable[[], RankedItems]
"""A ranking on its way to the host; the call waits for it."""


PREPARING: Final = threading.Lock()
"""Held while a batch is sent to a GPU, and while a search is recorded there, which nothing else may disturb."""


def to_device(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Move a tensor; from a CPU to a GPU by way of pinned memory, so that the host does not wait for the copy."""
    if tensor.is_cpu and torch.device(device).type == "cuda":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def prepared_ahead(
    items: Sequence[Item], prepare: Callable[[Item], Prepared], device: torch.device, *, ahead: bool | None = None
) -> Iterator[Prepared]:
    """Prepare every item, in order; the next one in a worker thread while the caller works with this one.

    Args:
        device: Where the caller works.
        ahead: Whether to use the thread; ``None``: only beside a GPU.

    Raises:
        Exception: What ``prepare`` raised, when it is the item's turn.

    Example:
        >>> list(prepared_ahead([1, 2, 3], lambda number: 10 * number, torch.device("cpu"), ahead=True))
        [10, 20, 30]
    """
    if not (device.type == "cuda" if ahead is None else ahead):
        yield from map(prepare, items)
        return

    def work(item: Item) -> Prepared:
        with PREPARING, torch.cuda.device(device) if device.type == "cuda" else nullcontext():  # of this thread
            return prepare(item)

    with ThreadPoolExecutor(1, "prepare") as worker:
        coming: Future[Prepared] | None = None
        for item in items:
            ready, coming = coming, worker.submit(work, item)
            if ready is not None:
                yield ready.result()
        if coming is not None:
            yield coming.result()


class Fetch:
    """Tensors on their way to the host.

    Args:
        tensors: Copied as soon as what computes them is done, before anything that is launched afterwards.
    """

    def __init__(self, *tensors: torch.Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._tensors = tensors
        if tensors and tensors[0].is_cuda:
            self._tensors = tuple(
                torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
                for tensor in tensors
            )
            self._event = torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(tensors[0].device))

    def arrays(self) -> tuple[npt.NDArray[Any], ...]:
        """The tensors as arrays; waits for these copies and for nothing that came later."""
        if self._event is not None:
            self._event.synchronize()
        return tuple(np.asarray(tensor.cpu().numpy()) for tensor in self._tensors)


def on_its_way(items_BC: torch.Tensor, scores_BC: torch.Tensor, k: int) -> Pending:
    """Cut ordered lists to ``k`` places, or fill them up with -1, and start to copy them to the host."""
    found = min(k, items_BC.shape[1])
    fetch = Fetch(items_BC[:, :found], scores_BC[:, :found].float())

    def ranked() -> RankedItems:
        items, scores = fetch.arrays()
        result = RankedItems(np.full((len(items), k), -1, np.int32), np.full((len(items), k), -np.inf, np.float32))
        result.items[:, :found], result.scores[:, :found] = items, scores
        result.scores[result.items < 0] = -np.inf
        return result

    return ranked


def collect(parts: list[list[RankedItems]], pending: list[Pending]) -> None:
    """Wait for the rankings of a batch, one of each kind, and append them to those of the batches before."""
    for ranked, found in zip(parts, pending, strict=False):
        ranked.append(found())


def stacked(parts: list[RankedItems]) -> RankedItems:
    """Stack rankings of one kind."""
    kind = type(parts[0])
    return kind(**{field.name: np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(kind)})


def rows_of(ranked: RankedItems, rows: npt.NDArray[np.integer]) -> RankedItems:
    """Rows of a ranking by number, in the order given."""
    return type(ranked)(**{field.name: getattr(ranked, field.name)[rows] for field in fields(ranked)})


def replace_rows(ranked: RankedItems, rows: npt.NDArray[np.integer], found: RankedItems) -> None:
    """Replace some rows by those of another ranking of the same kind."""
    for field in fields(ranked):
        getattr(ranked, field.name)[rows] = getattr(found, field.name)
