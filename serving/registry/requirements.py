"""What a fresh machine has to install to load a registered model, with and without a GPU.

TorchRec requires the name ``fbgemm-gpu``, whose wheel needs the NVIDIA driver when it is imported. A machine without one
gets ``fbgemm-gpu-cpu`` and, in place of the GPU build, an empty wheel of its name that is logged with the model; MLflow
installs from the model's folder, so that a relative path finds it. Both lists are logged; ``requirements.txt``, which
MLflow reads by itself, is that of the machine that registers.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import zipfile
from collections.abc import Collection
from pathlib import Path
from typing import Final, Literal

from recsys.contracts.manifest import read_json
from recsys.model.checkpoint import SPEC_NAME

Flavour = Literal["cpu", "gpu"]

PACKAGES: Final = (
    "mlflow",
    "torch",
    "torchrec",
    "polars",
    "dataframely",
    "pyarrow",
    "numpy",
    "pydantic",
    "safetensors",
    "pyyaml",
    "pandas",
    "psutil",
    "scipy",
    "lightgbm",
)
GPU_BUILD: Final = "fbgemm-gpu"
CPU_BUILD: Final = "fbgemm-gpu-cpu"
CODE_FOLDER: Final = "code"
"""Where MLflow puts what is logged beside a model."""
_TIME: Final = (1980, 1, 1, 0, 0, 0)
"""The oldest that a zip file knows: equal models have equal bytes."""


def installed_flavour() -> Flavour:
    """Which list describes this machine."""
    try:
        importlib.metadata.version(CPU_BUILD)
    except importlib.metadata.PackageNotFoundError:
        return "gpu"
    return "cpu"


def language_packages(bundle: Path) -> tuple[str, ...]:
    """What a bundle's policy needs beyond :data:`PACKAGES`; an encoder-decoder needs nothing.

    A base by reference is read as it was here: from a GGUF file by packages that are installed then, from a folder without.
    """
    model = read_json(bundle / "model" / SPEC_NAME)["model"]
    settings = model.get("language_model")
    if settings is None:
        return ()
    adapters = ("peft",) if settings["tune"] == "lora" else ()
    named = settings["keep_base"] == "reference"
    base = [name for name in ("gguf", "accelerate") if named and importlib.util.find_spec(name) is not None]
    return ("transformers", *adapters, *base)


def requirements(flavour: Flavour, more: Collection[str] = ()) -> list[str]:
    """Pin what a process needs to load the model, as installed here.

    Args:
        more: Packages of this model alone, from :func:`language_packages`.

    Returns:
        Lines of a requirements file, for ``pip install`` in the model's folder.
    """
    pinned = [f"{name}=={_version(name)}" for name in (*PACKAGES, *more)]
    if flavour == "gpu":
        return [*pinned, f"{GPU_BUILD}=={_fbgemm_version()}"]
    return [*pinned, f"./{CODE_FOLDER}/{_wheel_name()}", f"{CPU_BUILD}=={_fbgemm_version()}"]


def write_install_files(folder: Path, more: Collection[str] = ()) -> list[Path]:
    """Write the empty wheel and both lists, to be logged beside the model; ``more`` as for :func:`requirements`.

    Returns:
        The files.
    """
    files = []
    for flavour in ("cpu", "gpu"):
        path = folder / f"requirements-{flavour}.txt"
        path.write_text("\n".join(requirements(flavour, more)) + "\n", encoding="utf-8")
        files.append(path)
    return [*files, _write_wheel(folder)]


def _version(name: str) -> str:
    return importlib.metadata.version(name).split("+")[0]


def _fbgemm_version() -> str:
    return _version(CPU_BUILD if installed_flavour() == "cpu" else GPU_BUILD)


def _wheel_name() -> str:
    return f"fbgemm_gpu-{_fbgemm_version()}-py3-none-any.whl"


def _write_wheel(folder: Path) -> Path:
    """Write a wheel without modules that requires the CPU build (the packaging guide's *binary distribution format*)."""
    info = f"fbgemm_gpu-{_fbgemm_version()}.dist-info"
    contents = {
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {GPU_BUILD}\nVersion: {_fbgemm_version()}\n"
        "Summary: Points TorchRec's fbgemm-gpu requirement at the CPU build.\n"
        f"Requires-Dist: {CPU_BUILD}=={_fbgemm_version()}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: recsys-gen\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = [f"{name},sha256={_record_hash(text)},{len(text.encode())}" for name, text in contents.items()]
    contents[f"{info}/RECORD"] = "\n".join([*record, f"{info}/RECORD,,"]) + "\n"
    path = folder / _wheel_name()
    with zipfile.ZipFile(path, "w") as wheel:
        for name, text in contents.items():
            wheel.writestr(zipfile.ZipInfo(name, _TIME), text)
    return path


def _record_hash(text: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()
