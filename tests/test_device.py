"""Names of devices mean what the machine has; what it cannot do is refused with the way out."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from recsys.contracts.errors import ConfigError
from recsys.device import Placement, check_device_name, describe, resolve_device


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch):
    """Pretend a number of GPUs of one compute capability."""

    def pretend(count: int, capability: tuple[int, int] = (9, 0)) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T1000")
        card = SimpleNamespace(name="NVIDIA H200", total_memory=140 * 2**30)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)

    return pretend


@pytest.mark.parametrize(
    ("name", "count", "device"),
    [
        ("auto", 0, "cpu"),
        ("auto", 2, "cuda:0"),
        ("cpu", 2, "cpu"),
        ("cuda", 1, "cuda:0"),
        ("cuda:0", 1, "cuda:0"),
        ("cuda:1", 2, "cuda:1"),
    ],
)
def test_a_name_means_one_device_and_a_gpu_has_its_number(gpus, name: str, count: int, device: str) -> None:
    gpus(count)
    assert resolve_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("cuda", 0, "device is 'cuda', and torch sees no CUDA device on this machine; use device=auto or device=cpu"),
        ("cuda:7", 0, "device is 'cuda:7', and torch sees no CUDA device"),
        ("cuda:1", 1, "device is 'cuda:1', and torch sees one CUDA device, cuda:0; use"),
        ("cuda:2", 2, "and torch sees 2 CUDA devices, cuda:0 to cuda:1; use"),
        ("cuda:99999999999999999999", 2, "torch sees 2 CUDA devices"),
        ("gpu", 1, "device is 'gpu': expected auto, cpu, cuda or cuda:N"),
    ],
)
def test_a_device_that_is_not_there_is_refused(gpus, name: str, count: int, message: str) -> None:
    gpus(count)
    with pytest.raises(ConfigError, match=message):
        resolve_device(name)


@pytest.mark.parametrize(
    "name", ["gpu", "CUDA:0", "cuda:-1", "cuda:01", "cuda:", "cuda:0 ", "cuda:٣", "", 0, None, True]
)
def test_no_other_name_is_one(name: object) -> None:
    with pytest.raises(ValueError, match="expected auto, cpu, cuda or cuda:N"):
        check_device_name(name)


def test_another_case_is_answered_with_the_right_one() -> None:
    with pytest.raises(ValueError, match="did you mean cpu"):
        check_device_name("CPU")


@pytest.mark.parametrize(
    ("device", "precision", "message"),
    [
        ("cpu", "16-mixed", "p is 16-mixed, which needs a GPU.*use bf16-mixed"),
        ("cpu", "16-true", "or another d"),
        ("cuda:0", "bf16-mixed", "compute capability 8.0 or more, and this runs on cuda:0, NVIDIA T1000 with 7.5"),
        ("cuda:0", "bfloat16", "compute capability 8.0"),
    ],
)
def test_a_precision_that_a_device_cannot_do_is_refused(gpus, device: str, precision: str, message: str) -> None:
    gpus(1, (7, 5))
    with pytest.raises(ConfigError, match=message):
        Placement(torch.device(device), precision).check("d", "p")


@pytest.mark.parametrize(
    ("device", "precision"),
    [("cpu", "float32"), ("cpu", "bfloat16"), ("cpu", "bf16-mixed"), ("cuda:0", "bfloat16"), ("cuda:0", "16-mixed")],
)
def test_a_precision_that_a_device_can_do_is_taken(gpus, device: str, precision: str) -> None:
    gpus(1)
    placement = Placement(torch.device(device), precision)
    assert placement.check() is placement


def test_what_will_be_used_is_said_in_one_line(gpus) -> None:
    gpus(1)
    on_gpu = Placement(torch.device("cuda:0"), "bf16-mixed")
    assert describe(on_gpu, "auto") == (
        "cuda:0 NVIDIA H200, 140 GiB, bf16-mixed (device: auto, and torch sees one CUDA device, cuda:0)"
    )
    gpus(0)
    on_cpu = Placement(torch.device("cpu"))
    assert describe(on_cpu, "auto") == "cpu, float32 (device: auto, and torch sees no CUDA device on this machine)"
    assert describe(on_cpu) == "cpu, float32"
