"""Small C++ kernels, compiled on the machine they run on; everything works without them, more slowly.

``python -m recsys.native`` compiles (``make install`` does so); the library lies beside the sources and is loaded on first
use. It is compiled for the processor it is compiled on, and its name says which: a copy that is carried to a machine with
another one, as in a registered model, is not loaded there. It is plain C++ behind a C interface, so it knows nothing of the
installed torch and needs no headers but the compiler's own. :func:`available` says whether it is in use; ``recsys doctor``
prints it.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
import os
import platform
import shutil
import subprocess
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch

FOLDER = Path(__file__).parent
"""Of the sources and the library."""
# sums may be re-ordered, which vector units need; not -ffast-math, whose start-up code makes the whole process flush
# small numbers to zero
FLAGS = (
    "-O3",
    "-march=native",
    "-fassociative-math",
    "-fno-signed-zeros",
    "-fno-trapping-math",
    "-fno-math-errno",
    "-fno-strict-aliasing",
    "-std=c++17",
    "-shared",
    "-fPIC",
    "-pthread",
)
SWITCH = "RECSYS_NATIVE"
"""Environment variable; ``0`` keeps to pure PyTorch."""
CPU_INFO = Path("/proc/cpuinfo")
_CPU_KEYS = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "flags",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "Features",
)
"""What of a processor decides the instructions that ``-march=native`` may use; clocks, caches and numbers do not."""

WORTH_THREADS: Final = 1 << 17
"""Elements from which on starting threads costs less than it saves."""

_log = logging.getLogger(__name__)


def processor() -> str:
    """Return a short hash of this machine's processor: its model and the instructions that it offers."""
    try:
        first = CPU_INFO.read_text(encoding="utf-8", errors="replace").strip().partition("\n\n")[0]
        lines = [line.partition(":") for line in first.splitlines()]
        known = [f"{key.strip()}={value.strip()}" for key, _, value in lines if key.strip() in _CPU_KEYS]
    except OSError:
        known = []
    parts = [platform.machine(), *(sorted(known) or [platform.processor(), platform.node()])]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:8]


def sources() -> list[Path]:
    """The kernels' sources and what they include, in a fixed order."""
    return sorted([*FOLDER.glob("*.cpp"), *FOLDER.glob("*.h")])


def library_path() -> Path:
    """Where the library of the present sources for this processor lies; anything else has another name."""
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources()) + " ".join(FLAGS).encode()).hexdigest()[:12]
    return FOLDER / f"_kernels_{key}_{processor()}.so"


def compile_kernels(compiler: str | None = None) -> Path:
    """Compile the kernels for this processor and publish the library by rename.

    Raises:
        RuntimeError: There is no C++ compiler, or it refused a source.
    """
    command = compiler or os.environ.get("CXX") or shutil.which("g++") or shutil.which("clang++")
    if command is None:
        raise RuntimeError("no C++ compiler (g++ or clang++) found; decoding works without it, in pure PyTorch")
    target = library_path()
    partial = target.with_suffix(f".{os.getpid()}.tmp")
    files = [str(path) for path in sources() if path.suffix == ".cpp"]
    done = subprocess.run([command, *FLAGS, *files, "-o", str(partial)], capture_output=True, text=True, check=False)
    if done.returncode:
        partial.unlink(missing_ok=True)
        raise RuntimeError(f"{command} could not compile the kernels: {done.stderr.strip()[:500]}")
    partial.replace(target)
    for other in target.parent.glob("_kernels_*.so"):
        made_for = other.stem.split("_")[3:]  # none: made before names said which processor
        if other != target and made_for in ([], [processor()]):
            other.unlink(missing_ok=True)
    return target


@cache
def _library() -> ctypes.CDLL | None:
    if os.environ.get(SWITCH) == "0":
        return None
    path = library_path()
    if not path.exists():
        if any(FOLDER.glob("_kernels_*.so")):
            _log.warning(
                "native kernels were compiled for another processor or from another source (python -m recsys.native "
                "compiles them here); decoding runs in pure PyTorch"
            )
        else:
            _log.info("native kernels are not compiled (python -m recsys.native); decoding runs in pure PyTorch")
        return None
    library = ctypes.CDLL(str(path))
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    library.prefix_attention.argtypes = [pointer] * 4 + [number] * 5 + [ctypes.c_float, number, pointer]
    library.prefix_attention.restype = None
    library.quantise_rows.argtypes = [pointer, number, number, pointer, pointer]
    library.quantise_rows.restype = None
    library.dequantise.argtypes = [pointer, number, number, pointer, pointer]
    library.dequantise.restype = None
    library.gate_rows.argtypes = [pointer, number, number, number, pointer]
    library.gate_rows.restype = None
    library.norm_rows.argtypes = [pointer, pointer, number, number, ctypes.c_float, number, pointer]
    library.norm_rows.restype = None
    library.exp_sums.argtypes = [pointer, number, number, pointer, number, pointer, pointer]
    library.exp_sums.restype = None
    sizes_between: list[type[ctypes.c_void_p] | type[ctypes.c_int64]] = [pointer, number] * 3
    library.product_sums.argtypes = [*sizes_between, *[pointer] * 4, number, number, pointer, pointer]
    library.product_sums.restype = None
    library.add_products.argtypes = [pointer, pointer, pointer, number, number, number, number, pointer]
    library.add_products.restype = None
    return library


def available() -> bool:
    """Whether the kernels are compiled and not switched off."""
    return _library() is not None


def prefix_attention(
    blocks: list[torch.Tensor],
    ancestry: list[torch.Tensor],
    num_heads: int,
    scale: float,
    bias_AT: torch.Tensor | None = None,
) -> torch.Tensor:
    """Attend from every beam to its own prefix; the fast twin of :func:`recsys.model.layers.beam_cache.attend_to_prefix`.

    Args:
        blocks: Per step, contiguous float32 ``[B, W_t, 3 * A * C]`` (query, key, value); the last is the newest.
        ancestry: Per step but the newest, contiguous int64 ``[B, W]``.
        bias_AT: Added to the scores of head A and step T.

    Returns:
        ``[B, W, A * C]``.
    """
    import torch

    library = _library()
    assert library is not None
    assert all(tensor.is_cpu for tensor in (*blocks, *ancestry)), "the kernels read the memory of the CPU"
    users, beams, row = blocks[-1].shape
    steps = len(blocks)
    out = torch.empty(users, beams, row // 3)
    assert all(block.is_contiguous() and block.dtype == torch.float32 for block in blocks)
    assert all(columns.is_contiguous() and columns.shape == (users, beams) for columns in ancestry)
    block_pointers = (ctypes.c_void_p * steps)(*[block.data_ptr() for block in blocks])
    ancestry_pointers = (ctypes.c_void_p * steps)(*[columns.data_ptr() for columns in ancestry], None)
    widths = (ctypes.c_int64 * steps)(*[block.shape[1] for block in blocks])
    bias = bias_AT.contiguous() if bias_AT is not None else None
    library.prefix_attention(
        block_pointers,
        widths,
        ancestry_pointers,
        bias.data_ptr() if bias is not None else None,
        users,
        steps,
        beams,
        num_heads,
        row // 3 // num_heads,
        scale,
        torch.get_num_threads(),
        out.data_ptr(),
    )
    return out


def quantise_rows(values_NK: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round each row to int8 with a scale of its own; the fast twin of :func:`recsys.model.int8.quantise_rows`."""
    import torch

    library = _library()
    assert library is not None
    assert values_NK.is_cpu, "the kernels read the memory of the CPU"
    values_NK = values_NK.contiguous()
    rows, columns = values_NK.shape
    quantised = torch.empty(rows, columns, dtype=torch.int8)
    scales = torch.empty(rows)
    library.quantise_rows(values_NK.data_ptr(), rows, columns, quantised.data_ptr(), scales.data_ptr())
    return quantised, scales


def dequantise_(sums_NM: torch.Tensor, row_scales_N: torch.Tensor, column_scales_M: torch.Tensor) -> torch.Tensor:
    """Turn int32 sums into floats in their own memory and return them as float32; ``sums`` is used up."""
    import torch

    library = _library()
    assert library is not None
    assert all(tensor.is_cpu for tensor in (sums_NM, row_scales_N, column_scales_M))
    assert sums_NM.is_contiguous()
    assert sums_NM.dtype == torch.int32
    rows, columns = sums_NM.shape
    library.dequantise(sums_NM.data_ptr(), rows, columns, row_scales_N.data_ptr(), column_scales_M.data_ptr())
    return sums_NM.view(torch.float32)


def gate_rows(up: torch.Tensor) -> torch.Tensor:
    """``silu`` of the first half of the channels times the second half, as in :func:`recsys.model.layers.attention.gated`.

    Args:
        up: Contiguous float32 ``[..., 2 * F]``.

    Returns:
        ``[..., F]``.
    """
    import torch

    library = _library()
    assert library is not None
    assert up.is_cpu, "the kernels read the memory of the CPU"
    assert up.is_contiguous()
    assert up.dtype == torch.float32
    out = torch.empty(*up.shape[:-1], up.shape[-1] // 2)
    rows = out.numel() // max(1, out.shape[-1])
    library.gate_rows(up.data_ptr(), rows, out.shape[-1], _threads(out), out.data_ptr())
    return out


def norm_rows(x: torch.Tensor, weight_D: torch.Tensor, eps: float) -> torch.Tensor:
    """Root mean square norm over the last dimension; the fast twin of ``F.rms_norm``.

    Args:
        x: Contiguous float32 ``[..., D]``.
        weight_D: Contiguous float32.
    """
    import torch

    library = _library()
    assert library is not None
    assert all(tensor.is_cpu for tensor in (x, weight_D)), "the kernels read the memory of the CPU"
    assert all(tensor.is_contiguous() and tensor.dtype == torch.float32 for tensor in (x, weight_D))
    out = torch.empty_like(x)
    rows = out.numel() // max(1, len(weight_D))
    library.norm_rows(x.data_ptr(), weight_D.data_ptr(), rows, len(weight_D), eps, _threads(out), out.data_ptr())
    return out


def exp_sums(score_BN: torch.Tensor, first: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of ``exp(score - best)`` over neighbours, and the best of each row; the scores are used up.

    Args:
        score_BN: Contiguous float32; ``-inf`` counts 0.
        first: Contiguous int64 ``[V + 1]`` where each range begins, and where the last ends; counted from the first one,
            which stands in column 0.

    Returns:
        ``(sums [B, V], best [B])``; best is finite.
    """
    import torch

    library = _library()
    assert library is not None
    assert all(tensor.is_cpu and tensor.is_contiguous() for tensor in (score_BN, first)), (
        "the kernels read plain memory"
    )
    assert (score_BN.dtype, first.dtype) == (torch.float32, torch.int64)
    rows, columns = score_BN.shape
    sums_BV, best_B = torch.empty(rows, len(first) - 1), torch.empty(rows)
    library.exp_sums(
        score_BN.data_ptr(), rows, columns, first.data_ptr(), len(first) - 1, best_B.data_ptr(), sums_BV.data_ptr()
    )
    return sums_BV, best_B


def product_sums(
    query_BD: torch.Tensor,
    vectors_ID: torch.Tensor,
    first: torch.Tensor,
    *,
    alive_SI: torch.Tensor | None = None,
    segment_B: torch.Tensor | None = None,
    closed: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Sums of ``exp(score - best)`` over neighbours, where a score is the product of a query with a leaf's vector.

    A user's sums are the same whoever else is asked for, on any number of threads.

    Args:
        query_BD: Contiguous float32.
        vectors_ID: Contiguous float32, of the leaves in their order.
        first: Contiguous int64 ``[V + 1]`` where each range of leaves begins, from 0 to I; none is empty.
        alive_SI: Contiguous bool; ``False``: forbidden to the segment.
        segment_B: Contiguous int64, the segment of each user; ``None`` puts all into the first.
        closed: Contiguous int64 leaves, ascending, and the user that each is forbidden to.

    Returns:
        ``(sums [B, V], best [B, V])``; best is the highest allowed score of a range, and finite even without one.
    """
    import torch

    library = _library()
    assert library is not None
    leaves, users = closed if closed is not None else (first[:0], first[:0])
    given = [
        (query_BD, torch.float32),
        (vectors_ID, torch.float32),
        (first, torch.int64),
        (alive_SI, torch.bool),
        (segment_B, torch.int64),
        (leaves, torch.int64),
        (users, torch.int64),
    ]
    for tensor, dtype in given:
        assert tensor is None or (tensor.is_cpu and tensor.is_contiguous()), "the kernels read plain memory"
        assert tensor is None or tensor.dtype == dtype
    assert query_BD.shape[1] == vectors_ID.shape[1]
    assert [*first[:1].tolist(), *first[-1:].tolist()] == [0, len(vectors_ID)], "the ranges are not of these leaves"
    assert bool((first.diff() > 0).all()), "a range is empty, or begins before the one in front of it"
    assert alive_SI is None or alive_SI.shape[1] == len(vectors_ID)
    assert segment_B is None or len(segment_B) == len(query_BD), "one segment for each user"
    lowest, highest = (0, 0) if segment_B is None or not len(query_BD) else map(int, segment_B.aminmax())
    assert alive_SI is None or 0 <= lowest <= highest < len(alive_SI), "a segment without leaves"
    assert len(leaves) == len(users), "one user for each leaf that is closed"
    borders = torch.cat([leaves.new_tensor([0]), leaves, leaves.new_tensor([len(vectors_ID) - 1])])
    assert not len(leaves) or bool((borders.diff() >= 0).all()), "closed leaves are not in order, or are not there"
    best_BV = torch.empty(len(query_BD), len(first) - 1)
    sums_BV = torch.empty_like(best_BV)
    library.product_sums(
        query_BD.data_ptr(),
        len(query_BD),
        vectors_ID.data_ptr(),
        vectors_ID.shape[1],
        first.data_ptr(),
        len(first) - 1,
        None if alive_SI is None else alive_SI.data_ptr(),
        None if segment_B is None else segment_B.data_ptr(),
        leaves.data_ptr(),
        users.data_ptr(),
        len(leaves),
        _threads(vectors_ID),
        best_BV.data_ptr(),
        sums_BV.data_ptr(),
    )
    return sums_BV, best_BV


def add_products(terms: Sequence[tuple[torch.Tensor, torch.Tensor]], out_BI: torch.Tensor) -> None:
    """Add the sum of all ``query @ vectors^T`` to ``out``, in place; a user's row is the same whoever else is asked for.

    Args:
        terms: Contiguous float32 ``query [B, D]`` and ``vectors [I, D]``; each with a D of its own.
        out_BI: Contiguous float32.
    """
    import torch

    library = _library()
    assert library is not None
    for tensor in (*itertools.chain.from_iterable(terms), out_BI):
        assert tensor.is_cpu and tensor.is_contiguous(), "the kernels read plain memory"  # noqa: PT018
        assert tensor.dtype == torch.float32, f"{tensor.dtype}, expected float32"
    for query_BD, vectors_ID in terms:
        assert out_BI.shape == (len(query_BD), len(vectors_ID))
        assert query_BD.shape[1] == vectors_ID.shape[1]
    queries = (ctypes.c_void_p * len(terms))(*(query.data_ptr() for query, _ in terms))
    vectors = (ctypes.c_void_p * len(terms))(*(vectors.data_ptr() for _, vectors in terms))
    widths = (ctypes.c_int64 * len(terms))(*(query.shape[1] for query, _ in terms))
    library.add_products(queries, vectors, widths, len(terms), *out_BI.shape, _threads(out_BI), out_BI.data_ptr())


def _threads(out: torch.Tensor) -> int:
    import torch

    return torch.get_num_threads() if out.numel() >= WORTH_THREADS else 1
