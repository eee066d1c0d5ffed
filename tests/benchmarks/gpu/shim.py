"""A CUDA form of the one operator that an unsharded TorchRec collection asks of fbgemm, for machines with its CPU build.

``asynchronous_complete_cumsum`` turns lengths into offsets: cumulative sums with a zero in front, along the last dimension.
The CUDA build of fbgemm is ten times the size of the CPU build and not on every machine.
"""

from __future__ import annotations

from typing import Final

import torch
import torch.nn.functional as F

OPERATOR: Final = "fbgemm::asynchronous_complete_cumsum"
_libraries: list[torch.library.Library] = []


def complete_cumsum(lengths: torch.Tensor) -> torch.Tensor:
    """Offsets of lengths, ``[..., N] -> [..., N + 1]``.

    Example:
        >>> complete_cumsum(torch.tensor([2, 0, 3])).tolist()
        [0, 2, 2, 5]
    """
    return F.pad(torch.cumsum(lengths, -1, dtype=lengths.dtype), (1, 0))


def has_kernel(key: str) -> bool:
    """Whether fbgemm registered the operator for a dispatch key, ``CPU`` or ``CUDA``."""
    import fbgemm_gpu  # noqa: F401  # registers the operators

    return bool(torch._C._dispatch_has_kernel_for_dispatch_key(OPERATOR, key))


def install() -> bool:
    """Add the CUDA form where there is a GPU and the operator lacks one; return whether it was added."""
    if _libraries or not torch.cuda.is_available() or has_kernel("CUDA"):
        return False
    library = torch.library.Library("fbgemm", "IMPL")
    library.impl("asynchronous_complete_cumsum", complete_cumsum, "CUDA")
    _libraries.append(library)  # the registration lives as long as the library
    return True
