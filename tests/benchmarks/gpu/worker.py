"""The process that measures: environment and roofs first, then section after section."""

from __future__ import annotations

import importlib
import json
import platform
import sys
import time
import traceback
from collections.abc import Mapping, Sequence

import torch

from tests.benchmarks.gpu import shim
from tests.benchmarks.gpu.bench import Bench, OutOfTime, Poisoned
from tests.benchmarks.gpu.supervisor import POISONED_CODE

SMOKE_SECONDS = 600.0
"""What a section of the smoke form may take: it measures nothing, and machines of CI are busy."""

MODULES = {
    "correctness": "correctness",
    "training": "training",
    "compile": "training",
    "beauty": "training",
    "decoding": "decoding",
    "transformers": "decoding",
    "catalogue": "decoding",
    "wide_beams": "decoding",
    "serving": "serving",
    "waiting": "waiting",
    "alignment": "alignment",
    "processes": "processes",
}
"""Module of each section; the function has the section's name."""


def work(sections: Sequence[str], seconds: Mapping[str, float], *, smoke: bool) -> int:
    """Run sections; one that fails leaves a row with its error."""
    torch.manual_seed(0)
    if not smoke and not torch.cuda.is_available():
        print("no GPU is visible to torch; on a CPU only --cpu-smoke runs", file=sys.stderr)
        return 2
    bench = Bench(torch.device("cpu") if smoke else torch.device("cuda", torch.cuda.current_device()), smoke)
    if smoke:
        torch.set_num_threads(min(2, torch.get_num_threads()))
    bench.begin("environment", 60)
    bench.row("shim", added=shim.install())
    bench.measure_roofs()
    bench.row(
        "machine", **environment(), **{f"roof_{name}_tflops": round(r / 1e12, 2) for name, r in bench.roofs.items()}
    )
    for name in sections:
        print(json.dumps({"event": "begin", "section": name}), flush=True)
        start = time.monotonic()
        bench.begin(name, seconds[name] if not smoke else SMOKE_SECONDS)
        try:
            module = importlib.import_module(f"tests.benchmarks.gpu.{MODULES[name]}")
            getattr(module, name)(bench)
        except Poisoned:
            return _end(name, start, POISONED_CODE)
        except OutOfTime as cell:  # it has said so
            print(f"{name} ends before {cell}", file=sys.stderr)
        except Exception as error:
            bench.row("section", error=f"{type(error).__name__}: {str(error)[:600]}")
            traceback.print_exc(file=sys.stderr)
        bench.free()
        _end(name, start, 0)
    return 0


def _end(section: str, start: float, code: int) -> int:
    print(json.dumps({"event": "end", "section": section, "seconds": round(time.monotonic() - start, 1)}), flush=True)
    return code


def environment() -> dict[str, object]:
    """Versions and the card; no host name."""
    import torchrec
    import transformers

    from recsys import native

    found: dict[str, object] = {
        "torch": torch.__version__,
        "torchrec": getattr(torchrec, "__version__", "unknown"),
        "transformers": getattr(transformers, "__version__", "unknown"),
        "python": platform.python_version(),
        "native_kernels": native.available(),
        "threads": torch.get_num_threads(),
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        found |= {
            "card": properties.name,
            "card_gb": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
            "cuda": torch.version.cuda,
        }
    return found
