"""A second device on a machine that has none: its tensors hold numbers, and meet no tensor of the CPU.

Inside :func:`other_device` a tensor that is sent to :data:`DEVICE`, or made there, is an :class:`OtherTensor`. It says that
it lies on that device, computes with numbers that lie on the CPU, and refuses what a GPU refuses: an operation with a tensor
of the CPU that has a dimension. A ``.to(device)`` that somebody forgot is found so without a GPU, and results can be
compared with the CPU's. Stricter than a GPU: an index that lies on the CPU is refused as well, because the GPU would wait
for its copy.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE: Final = torch.device("meta")
"""A name that every build of torch knows, and that needs no driver."""

aten = torch.ops.aten


class WrongDevice(AssertionError):
    """Tensors of two devices met."""


class OtherTensor(torch.Tensor):
    """A tensor that says it lies on :data:`DEVICE`; ``numbers`` are its values, on the CPU."""

    numbers: torch.Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, numbers: torch.Tensor) -> OtherTensor:
        made = torch.Tensor._make_wrapper_subclass(
            cls,
            numbers.shape,
            strides=numbers.stride(),
            storage_offset=numbers.storage_offset(),
            dtype=numbers.dtype,
            device=DEVICE,
        )
        made.numbers = numbers
        return made

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    def tolist(self) -> Any:
        """The values; torch offers it for no subclass."""
        return self.cpu().tolist()

    def __repr__(self) -> str:
        return f"OtherTensor({self.numbers!r})"


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})


@contextmanager
def other_device() -> Iterator[torch.device]:
    """Give the process a second device while the block runs."""
    autocast = torch.autocast
    with pytest.MonkeyPatch.context() as patch:
        # it has no autocast; what would be cast on a GPU is not
        patch.setattr(torch, "autocast", lambda name, *rest, **named: autocast(_known(name), *rest, **named))
        patch.setattr(torch, "is_autocast_enabled", lambda name: False)
        # tensors of inference mode have no counter of versions, which views of a wrapped tensor want
        patch.setattr(torch.inference_mode, "__enter__", _enter_no_grad)
        patch.setattr(torch.inference_mode, "__exit__", lambda self, *error: self.inside.__exit__(*error))
        save = torch.save  # a file holds the numbers
        patch.setattr(torch, "save", lambda value, *rest, **named: save(tree_map(_numbers, value), *rest, **named))
        optimizer = import_module("torch.optim.optimizer")
        patch.setattr(optimizer, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type, "cpu"])
        for name in ("tensor", "as_tensor"):  # they make their tensor below the level that a mode sees
            patch.setattr(torch, name, _made_here_and_moved(getattr(torch, name)))
        with _Mode():
            yield DEVICE


def _enter_no_grad(self: Any) -> None:
    self.inside = torch.no_grad()
    self.inside.__enter__()


def _made_here_and_moved(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    def made(data: Any, *, device: torch.device | str | None = None, **others: Any) -> torch.Tensor:
        tensor = make(data, **others)
        return tensor if device is None else tensor.to(device)

    return made


def _known(name: str) -> str:
    return "cpu" if name == DEVICE.type else name


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
    others = {id(leaf.numbers): leaf for leaf in leaves if isinstance(leaf, OtherTensor)}
    if func is aten._fused_sdp_choice.default and others:
        return 0  # attention written out: the kernels of a GPU are not here
    strangers = [leaf for leaf in leaves if not isinstance(leaf, OtherTensor) and leaf.dim() > 0]
    if others and strangers and func not in (aten.copy_.default, aten._copy_from.default):
        shapes = [tuple(leaf.shape) for leaf in strangers]
        raise WrongDevice(f"{func}: tensors of shape {shapes} lie on the CPU, others on {DEVICE}")
    asked = kwargs.get("device")
    there = bool(others) if asked is None else torch.device(asked) == DEVICE
    plain = {**kwargs, "device": torch.device("cpu")} if asked is not None else kwargs
    found = func(*tree_map(_numbers, args), **tree_map(_numbers, plain))
    if func is aten.copy_.default:
        return args[0]

    def placed(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        if id(value) in others:  # changed in place
            return others[id(value)]
        return OtherTensor(value) if there and not isinstance(value, OtherTensor) else value

    return tree_map(placed, found)


def _numbers(value: Any) -> Any:
    return value.numbers if isinstance(value, OtherTensor) else value
