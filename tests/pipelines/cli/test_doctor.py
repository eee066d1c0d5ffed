"""The doctor knows the one combination that fits, and names the way out of the others."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli.doctor import check_pairing, examine

GOOD = {"torch": "2.13.0", "torchrec": "1.8.0", "fbgemm-gpu-cpu": "1.8.0", "fbgemm-gpu": None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"torch": "2.12.1"}, "torch 2.12.1 does not fit"),
        ({"torchrec": "1.9.0"}, "torchrec 1.9.0 does not fit"),
        ({"fbgemm-gpu-cpu": "1.9.0"}, "fbgemm 1.9.0 does not fit"),
        ({"fbgemm-gpu-cpu": None}, "fbgemm is missing"),
        ({"fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"}, "is the GPU build, but there is no NVIDIA driver"),
    ],
)
def test_wrong_pairings_on_a_cpu_machine(change: dict[str, str | None], message: str) -> None:
    (finding,) = check_pairing({**GOOD, **change}, cuda_expected=False)
    assert finding.level == "problem"
    assert message in finding.text
    assert "requirements/cpu.txt" in finding.text


def test_the_gpu_build_is_right_where_there_is_a_gpu() -> None:
    versions = {**GOOD, "fbgemm-gpu-cpu": None, "fbgemm-gpu": "1.8.0"}
    assert [finding.level for finding in check_pairing(versions, cuda_expected=True)] == ["ok"]


@pytest.mark.slow
def test_this_environment_is_sound(tmp_path: Path) -> None:
    problems = [finding for finding in examine(tmp_path / "not" / "there") if finding.level == "problem"]
    assert problems == []
