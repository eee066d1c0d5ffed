"""What a section measures with: the device, its clock, its memory, and the rows it leaves.

A row is one JSON line. ``cell`` names the measurement inside its section, so that the page can find it; ``error`` says that
it could not be had.
"""

from __future__ import annotations

import gc
import json
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, TypeVar

import torch

T = TypeVar("T")

OUT_OF_MEMORY: Final = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "CUDNN_STATUS_ALLOC_FAILED")
"""Libraries below torch say it in their own words, as plain runtime errors."""
POISONED: Final = ("CUDA error", "CUDA driver error", "device-side assert", "NCCL", "CUBLAS_STATUS", "cudaError")
"""After such an error the process may have no GPU any more."""
ROOF_SIZE: Final = {"cuda": 8192, "cpu": 256}


class OutOfTime(Exception):
    """The section's seconds are over."""


class Poisoned(Exception):
    """The process may have lost its GPU: a new worker has to go on."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a smaller batch may work."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(word in str(error) for word in OUT_OF_MEMORY)
    )


@dataclass
class Bench:
    """A worker's view of the machine.

    Attributes:
        device: The GPU, or in the smoke form the CPU.
        smoke: Tiny sizes; what needs a GPU says so instead of running.
        roofs: FLOP/s of a large matrix product by precision, ``bf16``, ``tf32``, ``f32``.
        section: At work now.
    """

    device: torch.device
    smoke: bool
    roofs: dict[str, float] = field(default_factory=dict)
    section: str = ""
    _until: float = 0.0

    def begin(self, section: str, seconds: float) -> None:
        """Start the clock of a section."""
        self.section, self._until = section, time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left to the section."""
        return self._until - time.monotonic()

    def row(self, cell: str, **figures: Any) -> None:
        """Leave a row."""
        print(json.dumps({"section": self.section, "cell": cell, **figures}, default=str), flush=True)

    @contextmanager
    def cell(self, name: str, needs: float = 0.0) -> Iterator[None]:
        """Guard one measurement: what goes wrong inside becomes a row, and the next one goes on.

        Args:
            needs: Seconds it takes at least; with fewer left it is not begun.

        Raises:
            OutOfTime: It was not begun.
            Poisoned: Nothing that follows in this process could be trusted.
        """
        if self.left < needs:
            self.row(name, error=f"no time: {self.left:.0f} s left to the section, it takes {needs:.0f}")
            raise OutOfTime(name)
        lost = False
        try:
            yield
        except OutOfTime:  # of a cell inside this one, which has said so
            pass
        except Poisoned:
            raise
        except Exception as error:
            self.row(name, error=f"{type(error).__name__}: {str(error)[:600]}", place=_place(error))
            traceback.print_exc(file=sys.stderr)
            words = str(error)
            lost = self.is_gpu and not is_out_of_memory(error) and any(word in words for word in POISONED)
        if lost:
            raise Poisoned(name)
        self.free()

    @property
    def is_gpu(self) -> bool:
        """Whether there is a GPU to measure."""
        return self.device.type == "cuda"

    def size(self, full: int, tiny: int) -> int:
        """The full size, or the smoke form's."""
        return tiny if self.smoke else full

    def wait(self) -> None:
        """Until the GPU has done what it was given."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def autocast(self, on: bool = True) -> AbstractContextManager[Any]:
        """Mixed precision with bfloat16."""
        return torch.autocast(self.device.type, torch.bfloat16) if on else nullcontext()

    def seconds(self, run: Callable[[], object], repeats: int = 8, warmup: int = 3) -> float:
        """Median wall seconds of a call; fewer repeats where the section has little time left."""
        return statistics.median(self.times(run, repeats, warmup))

    def times(self, run: Callable[[], object], repeats: int, warmup: int) -> list[float]:
        """Wall seconds of each call, at least one, after ``warmup`` calls that do not count."""
        if self.smoke:
            repeats, warmup = 1, 0
        for _ in range(warmup):
            run()
        self.wait()
        found: list[float] = []
        for _ in range(repeats):
            start = time.perf_counter()
            run()
            self.wait()
            found.append(time.perf_counter() - start)
            if self.left < 2 * found[-1]:
                break
        return found

    def largest(self, name: str, batch: int, run: Callable[[int], T], smallest: int = 1) -> tuple[int, T]:
        """Run with a batch, and with half of it as long as memory does not suffice; each time it does not is a row.

        Returns:
            The batch that was run, and the result.
        """
        while True:
            failed = ""
            try:
                return batch, run(batch)
            except Exception as error:
                if not is_out_of_memory(error) or batch // 2 < smallest:
                    raise
                failed = str(error)[:200]
            self.free()  # outside of the handler, which keeps the frames and what they hold alive
            self.row(name, batch=batch, out_of_memory=failed)
            batch //= 2

    def free(self) -> None:
        """Give back what no variable holds any more."""
        gc.collect()
        if self.is_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak_gb(self) -> float:
        """Most memory held since the last :meth:`free`, GiB."""
        return round(torch.cuda.max_memory_allocated(self.device) / 2**30, 2) if self.is_gpu else 0.0

    def measure_roofs(self) -> None:
        """Time one large matrix product per precision; leaves float32 as torch has it, without TF32.

        The setting is only ever written here: torch refuses to read it once the newer names of it were used.
        """
        size = ROOF_SIZE[self.device.type]
        kinds = (
            ("bf16", torch.bfloat16, "highest"),
            ("tf32", torch.float32, "high"),
            ("f32", torch.float32, "highest"),
        )
        for name, dtype, setting in kinds:
            torch.set_float32_matmul_precision(setting)
            left, right = (torch.randn(size, size, device=self.device, dtype=dtype) for _ in range(2))
            self.roofs[name] = 2 * size**3 / min(self.times(partial(torch.matmul, left, right), 6, 3))
        self.free()


def _place(error: BaseException) -> str:
    """File and line of the innermost frame that belongs to the project."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "site-packages" not in f.filename and "dist-packages" not in f.filename]
    last = (own or frames)[-1] if frames else None
    return "" if last is None else f"{'/'.join(last.filename.split('/')[-3:])}:{last.lineno}"
