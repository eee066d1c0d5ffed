"""The doctor knows the one combination that fits, and names the way out of the others."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.cli.doctor import _cards, _placements, check_pairing, examine
from pipelines.config import load_run_config

DEMO = Path(__file__).resolve().parents[3] / "pipelines" / "recipes" / "demo.yaml"

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


def test_the_stages_of_a_recipe_are_told_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    (default,) = _placements(None)
    assert default.text.startswith("cpu, float32 (device: auto, and torch sees no CUDA device on this machine)")
    found = {
        one.subject: one for one in _placements(load_run_config(DEMO, ["device=cpu", "train.precision=bf16-mixed"]))
    }
    assert found["train"].text == "cpu, bf16-mixed (device: cpu)"
    assert found["tokenize"].text == "cpu, whatever is asked"
    assert "reward" not in found  # the recipe has no such stage
    refused = {one.subject: one for one in _placements(load_run_config(DEMO, ["device=cuda"]))}
    assert refused["evaluate"].level == "problem"
    assert "device is 'cuda', and torch sees no CUDA device" in refused["evaluate"].text
    assert refused["baselines"].level == "ok"


def test_a_card_is_told_with_its_data_sheet(monkeypatch: pytest.MonkeyPatch) -> None:
    assert _cards() == [] or torch.cuda.is_available()
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda index: ("NVIDIA H200", "NVIDIA Something")[index])
    first, second = _cards()
    assert (first.subject, second.subject) == ("cuda:0", "cuda:1")
    assert first.text == "NVIDIA H200, data sheet of H200 SXM: 989 TFLOP/s bfloat16, 494 TF32"
    assert "no data sheet known" in second.text


@pytest.mark.slow
def test_this_environment_is_sound(tmp_path: Path) -> None:
    problems = [finding for finding in examine(tmp_path / "not" / "there") if finding.level == "problem"]
    assert problems == []
