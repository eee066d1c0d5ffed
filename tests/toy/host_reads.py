"""Find on a CPU what would make the host wait for a GPU: reads of values, results whose shape depends on values, copies."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recsys import native

WAITING = {
    torch.ops.aten._local_scalar_dense.default: "a value is read (item, bool, int, float)",
    torch.ops.aten.nonzero.default: "places are counted",
    torch.ops.aten.masked_select.default: "a mask is counted",
    torch.ops.aten._unique2.default: "distinct values are counted",
    torch.ops.aten.unique_dim.default: "distinct values are counted",
    torch.ops.aten.bincount.default: "the largest value is read",
    torch.ops.aten.repeat_interleave.Tensor: "counts are summed",
    # under inference mode a mode sees what is composed of the above, and not the above
    torch.ops.aten.item.default: "a value is read (item, int, float)",
    torch.ops.aten.is_nonzero.default: "a value is read (bool)",
    torch.ops.aten.where.default: "places are counted",
    torch.ops.aten.nonzero_numpy.default: "places are counted",
    torch.ops.aten.argwhere.default: "places are counted",
    torch.ops.aten.repeat_interleave.self_Tensor: "counts are summed",
}
INDEXING = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)


class HostRead(AssertionError):
    """An operation that would make the host wait."""


class _Watch(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITING:
            raise HostRead(f"{func}: {WAITING[func]}")
        if func in INDEXING and any(index is not None and index.dtype == torch.bool for index in args[1]):
            raise HostRead(f"{func}: a mask as an index is counted")
        return func(*args, **(kwargs or {}))


def _on_device(*arguments: Any, **options: Any) -> torch.Tensor:
    if options.get("device") is not None:
        raise HostRead("torch.tensor(..., device=...): numbers are copied to the device from pageable memory")
    return _tensor(*arguments, **options)


_tensor = torch.tensor


@contextmanager
def no_host_reads() -> Iterator[None]:
    """Raise :class:`HostRead` where an operation inside the block would make the host wait for a GPU.

    The kernels that only a CPU has are switched off, so that what runs is what would run on a GPU, ``is_cuda`` aside.
    """
    with (
        _Watch(),
        mock.patch.object(torch, "tensor", _on_device),
        mock.patch.object(native, "available", return_value=False),
    ):
        yield
