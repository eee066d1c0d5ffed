"""Make the next batches while the current one trains: collated, pinned and copied to the GPU by a worker thread.

Order and content are those of the plain loop, as nothing a batch is made of is drawn from a shared random state.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import Any, Protocol, TypeVar, cast

import torch


class Batch(Protocol):
    """A dataclass of tensors that can be moved."""

    def pin_memory(self) -> Any:
        """Copy to memory from which a GPU fetches without the host waiting."""
        ...

    def to(self, device: torch.device) -> Any:
        """Move all tensors."""
        ...


Made = TypeVar("Made")


def prefetched(
    makers: Iterable[Callable[[], Made]], depth: int, device: torch.device | None = None
) -> Generator[Made, None, None]:
    """Call one function after the other in a thread, up to ``depth`` results ahead, and yield the results in order.

    An exception of a function is raised where its result would have come. When the iterator is closed or dropped the
    thread ends with the call it is in, and this waits for it.

    Args:
        makers: Functions without arguments that make a batch each.
        depth: Results that wait at a time; 0 makes each when it is asked for, without a thread.
        device: A GPU to copy the batches to (:class:`Batch`), on a stream of the thread's own; others change nothing.

    Example:
        >>> list(prefetched([lambda n=n: n * n for n in range(4)], depth=2))
        [0, 1, 4, 9]
    """
    on_gpu = device if device is not None and device.type == "cuda" else None
    if depth == 0:
        yield from (make() for make in makers)
        return
    ready: queue.Queue[tuple[Any, BaseException | None, Any]] = queue.Queue(depth)
    stopped = threading.Event()
    worker = threading.Thread(target=_work, args=(makers, ready, stopped, on_gpu), name="prefetch", daemon=True)
    worker.start()
    try:
        while (taken := ready.get()) is not _END:
            made, error, copied = taken
            if error is not None:
                raise error
            if on_gpu is not None:
                _hand_over(made, copied, on_gpu)
            yield cast("Made", made)
    finally:
        stopped.set()
        while worker.is_alive():
            with suppress(queue.Empty):  # room for a worker that waits to put
                ready.get_nowait()
            worker.join(0.01)


_END: Any = object()


def _work(
    makers: Iterable[Callable[[], Any]], ready: queue.Queue[Any], stopped: threading.Event, device: torch.device | None
) -> None:
    stream = None if device is None else torch.cuda.Stream(device)
    try:
        for make in makers:
            if stopped.is_set():
                return
            made, copied = make(), None
            if device is not None and stream is not None:
                with torch.cuda.stream(stream):
                    made = made.pin_memory().to(device)
                    copied = stream.record_event()
            ready.put((made, None, copied))
        ready.put(_END)
    except BaseException as error:  # whatever it is, it belongs to whoever waits for the batch
        ready.put((None, error, None))


def _hand_over(batch: Any, copied: torch.cuda.Event, device: torch.device) -> None:
    """Let the current stream wait for the copy, without the host, and keep the memory until that stream is done with it."""
    stream = torch.cuda.current_stream(device)
    stream.wait_event(copied)
    for tensor in tensors_of(batch):
        tensor.record_stream(stream)


def tensors_of(batch: Any) -> Iterator[torch.Tensor]:
    """All tensors of a dataclass and of the dataclasses in it."""
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, torch.Tensor):
            yield value
        elif is_dataclass(value):
            yield from tensors_of(value)
