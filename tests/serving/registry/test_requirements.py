"""What a registered model asks a fresh machine to install: one build of fbgemm, and all that loading it imports."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import json
import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from serving.registry.requirements import PACKAGES, Flavour, installed_flavour, requirements, write_install_files

FBGEMM = re.compile(r"fbgemm[-_]gpu(-cpu)?[-=]")


@pytest.mark.parametrize(
    ("flavour", "expected"),
    [
        ("cpu", ["./code/fbgemm_gpu-1.8.0-py3-none-any.whl", "fbgemm-gpu-cpu==1.8.0"]),
        ("gpu", ["fbgemm-gpu==1.8.0"]),
    ],
)
def test_one_build_of_fbgemm(flavour: Flavour, expected: list[str]) -> None:
    """TorchRec asks for fbgemm-gpu: on a CPU the empty wheel must answer, or both builds would be installed."""
    lines = requirements(flavour)
    assert "torchrec==1.8.0" in lines
    assert f"lightgbm=={importlib.metadata.version('lightgbm')}" in lines, "a ranker of trees is read with it"
    assert [line for line in lines if FBGEMM.search(line)] == expected
    assert not any("+" in line for line in lines), "a local version is on no index"


def test_the_files_of_an_install(tmp_path: Path) -> None:
    """Both lists, and a wheel whose record holds; written twice it has the same bytes."""
    files = {path.name: path for path in write_install_files(tmp_path)}
    assert set(files) == {"requirements-cpu.txt", "requirements-gpu.txt", "fbgemm_gpu-1.8.0-py3-none-any.whl"}
    assert files["requirements-gpu.txt"].read_text().splitlines() == requirements("gpu")
    wheel = files["fbgemm_gpu-1.8.0-py3-none-any.whl"]
    first = wheel.read_bytes()
    write_install_files(tmp_path)
    assert wheel.read_bytes() == first
    with zipfile.ZipFile(wheel) as content:
        held = {name: content.read(name) for name in content.namelist()}
    record = held["fbgemm_gpu-1.8.0.dist-info/RECORD"].decode().splitlines()
    for line in record[:-1]:
        name, digest, size = line.split(",")
        found = base64.urlsafe_b64encode(hashlib.sha256(held[name]).digest()).rstrip(b"=").decode()
        assert (digest, int(size)) == (f"sha256={found}", len(held[name]))


def test_pip_installs_the_wheel(tmp_path: Path) -> None:
    """Without an index; what is installed has TorchRec's name and asks for the CPU build."""
    *_, wheel = write_install_files(tmp_path)
    pip = [sys.executable, "-m", "pip", "install", "--no-index", "--no-deps", "--quiet", "--target"]
    done = subprocess.run(
        [*pip, str(tmp_path / "site"), str(wheel)], capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    (found,) = importlib.metadata.distributions(path=[str(tmp_path / "site")])
    assert (found.metadata["Name"], found.version) == ("fbgemm-gpu", "1.8.0")
    assert found.requires == ["fbgemm-gpu-cpu==1.8.0"]


IMPORTS = """
import json, sys
from pathlib import Path
import mlflow, pandas
import serving.registry.pyfunc_model
from serving.answers.scorer import Scorer
rows = pandas.DataFrame({"user_id": ["7"], "item_ids": [[107, 114]]})
scorer = Scorer.open(Path(sys.argv[1]))
from serving.inputs.callers_frame import to_frame
assert len(scorer.score_frame(to_frame(rows), 3)) == 3
print(json.dumps(sorted({name.partition(".")[0] for name, module in list(sys.modules.items()) if module is not None})))
"""


def _closure(names: list[str]) -> set[str]:
    """Distributions that these require, and what those require, extras aside; names in the plain form."""
    found: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in found:
            continue
        try:
            asked = importlib.metadata.requires(name) or []
        except importlib.metadata.PackageNotFoundError:
            continue
        found.add(name)
        names += [re.split(r"[^\w.-]", one)[0] for one in asked if "extra ==" not in one]
    return found


def test_what_loading_imports_is_asked_for(bundle: Path) -> None:
    """Every package that a process has loaded after an answer belongs to the list, or to what the list requires."""
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS, str(bundle)], capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    owners = importlib.metadata.packages_distributions()
    asked = _closure([*PACKAGES, "fbgemm-gpu-cpu" if installed_flavour() == "cpu" else "fbgemm-gpu"])
    missing = {
        name: owners[name]
        for name in loaded & owners.keys() - {"recsys", "serving", "features", "pipelines"}
        if not asked & {re.sub(r"[-_.]+", "-", owner).lower() for owner in owners[name]}
    }
    assert not missing


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["cpu", "gpu"])
def test_pip_resolves_the_list_for_a_fresh_machine(tmp_path: Path, flavour: Flavour) -> None:
    """Against the index of this machine; nothing is installed. The GPU build is not among what a CPU machine gets."""
    (tmp_path / "code").mkdir()
    write_install_files(tmp_path / "code")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--dry-run",
        "--quiet",
        "--ignore-installed",
        "--report",
        "found.json",
    ]
    done = subprocess.run(
        [*pip, "-r", f"code/requirements-{flavour}.txt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    if "No matching distribution found for mlflow" in done.stderr or "Temporary failure" in done.stderr:
        pytest.skip("no index can be reached")
    assert done.returncode == 0, done.stderr
    report: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    found = {one["metadata"]["name"].lower().replace("_", "-"): one for one in report["install"]}
    assert found["torchrec"]["metadata"]["version"] == "1.8.0"
    real_gpu_build = "fbgemm-gpu" in found and not found["fbgemm-gpu"]["download_info"]["url"].startswith("file:")
    assert (real_gpu_build, "fbgemm-gpu-cpu" in found) == (flavour == "gpu", flavour == "cpu")
