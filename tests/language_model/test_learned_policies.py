"""A language policy learns, survives a kill, trains adapters alone where asked, and comes back from disk."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError
from recsys.data.batch import collate_histories
from recsys.data.histories import Histories
from recsys.decoding.bfloat16 import bfloat16_policy
from recsys.language_model.base import from_shape
from recsys.language_model.language_policy import LanguagePolicy
from recsys.model.checkpoint import load_policy, save_policy
from recsys.model.weights import frozen_copy
from recsys.training.fit import build_policy
from tests.toy.dataset import ring_ids, ring_prepared
from tests.toy.language_model import SHAPE, language_model_config, language_policy_for, ring_world
from tests.toy.training_runs import Run

AUXILIARY = {"title_to_id": 0.1, "id_to_title": 0.1, "titles_to_id": 0.1, "items_per_step": 4}


def model_of(**settings: Any) -> dict[str, Any]:
    """Changes of :data:`tests.toy.training_runs.MODEL`."""
    base = {} if "source" in settings else {"shape": SHAPE}
    return {
        "backbone": "llm",
        "language_model": {**base, **settings},
        "features": ("item", "codes"),
        "dropout": 0.1,
        "max_history": 5,
    }


def test_a_killed_run_ends_with_equal_weights(tmp_path: Path) -> None:
    """Dropout and the items of the auxiliary tasks are drawn; 2 epochs of 4 steps, killed in the second."""
    ring_prepared(tmp_path / "data", users=61)
    train = {"max_epochs": 2, "batch_size": 22, "checkpoint_every_s": 1e-9, "learning_rate": 1e-2}
    model = model_of(auxiliary=AUXILIARY, title_tokens=7)
    Run(tmp_path / "whole", tmp_path / "data", train, model)()
    for kill_at in (6, None):
        Run(tmp_path / "killed", tmp_path / "data", train, model, kill_at)()
    whole, killed = (load_file(tmp_path / run / "model" / "model.safetensors") for run in ("whole", "killed"))
    assert whole.keys() == killed.keys()
    for name, weight in whole.items():
        assert torch.equal(weight, killed[name]), name
    names = set(Run(tmp_path / "whole", tmp_path / "data", train, model).losses()["name"])
    assert {"train/title_to_id", "train/id_to_title", "train/titles_to_id"} <= names


def test_search_finds_what_was_learned(tmp_path: Path) -> None:
    """The next item of the ring follows from the last one: nearly every target is found first."""
    ring_prepared(tmp_path / "data", users=61)
    run = Run(tmp_path / "run", tmp_path / "data", {"max_epochs": 12, "learning_rate": 1e-2}, model_of())
    run()
    figures = dict(run.figures().select("name", "value").iter_rows())
    assert figures["valid/beam_ndcg_at_10"] > 0.9


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A folder of transformers with a random model."""
    torch.manual_seed(1)
    from_shape(SHAPE, 0.5).model.save_pretrained(tmp_path / "base")
    return tmp_path / "base"


def adapted(dataset: Dataset, source: Path, keep_base: str) -> LanguagePolicy:
    pytest.importorskip("peft")
    policy = language_policy_for(dataset, source=str(source), tune="lora", keep_base=keep_base)
    with torch.no_grad():
        for weight in policy.parameters():
            if weight.requires_grad:
                weight.add_(torch.randn_like(weight) * 0.1)
    return policy


def log_probs(policy: LanguagePolicy, dataset: Dataset) -> np.ndarray:
    state = policy.start(collate_histories(Histories.from_targets(dataset.history, dataset.all_users()), 6))
    found = policy.next_codes(state, None)
    assert found is not None
    return found.detach().numpy()


def test_a_base_is_inside_or_named_by_its_digest(tmp_path: Path, source: Path) -> None:
    dataset = ring_world(tmp_path)
    sizes = {}
    for keep_base in ("inside", "reference"):
        policy = adapted(dataset, source, keep_base)
        save_policy(tmp_path / keep_base, policy)
        again = load_policy(tmp_path / keep_base, policy.spec.semantic_id_digest)
        np.testing.assert_array_equal(log_probs(policy, dataset), log_probs(again, dataset))
        sizes[keep_base] = set(load_file(tmp_path / keep_base / "model.safetensors"))
    assert not [name for name in sizes["reference"] if name.startswith("base.") and "lora_" not in name]
    missing = sizes["inside"] - sizes["reference"]
    assert "base.model.embed_tokens.weight" in missing
    assert all(name.startswith("base.") for name in missing)

    weights = load_file(source / "model.safetensors")
    weights["model.norm.weight"] += 1
    save_file(weights, source / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ArtifactError, match="put that model back, or train again with keep_base: inside"):
        load_policy(tmp_path / "reference")
    load_policy(tmp_path / "inside")


def test_a_base_is_read_as_it_was_trained_whatever_its_folder_says_by_now(tmp_path: Path, source: Path) -> None:
    """The digest is of the weights; positions that turn faster and another epsilon would be another model."""
    dataset = ring_world(tmp_path)
    policy = adapted(dataset, source, "reference")
    save_policy(tmp_path / "policy", policy)
    config = json.loads((source / "config.json").read_text())
    config["rope_parameters"]["rope_theta"], config["rms_norm_eps"] = 100.0, 0.5
    (source / "config.json").write_text(json.dumps(config))
    np.testing.assert_array_equal(log_probs(policy, dataset), log_probs(load_policy(tmp_path / "policy"), dataset))


def test_a_policy_of_any_width_comes_back(tmp_path: Path) -> None:
    """30 channels in three heads: no multiple of the heads of an encoder-decoder's preset, nor of what its experts need."""
    dataset = ring_world(tmp_path)
    policy = language_policy_for(dataset, shape={"hidden_size": 30, "num_attention_heads": 3, "num_key_value_heads": 3})
    save_policy(tmp_path / "policy", policy)
    again = load_policy(tmp_path / "policy")
    np.testing.assert_array_equal(log_probs(policy, dataset), log_probs(again, dataset))
    assert bfloat16_policy(again).spec.model.width == 30


def test_adapters_train_and_the_base_stays(tmp_path: Path, source: Path) -> None:
    pytest.importorskip("peft")
    ring_prepared(tmp_path / "data", users=61)
    model = model_of(source=str(source), tune="lora")
    Run(tmp_path / "run", tmp_path / "data", {"max_epochs": 1, "learning_rate": 1e-2}, model)()
    trained, base = load_file(tmp_path / "run" / "model" / "model.safetensors"), load_file(source / "model.safetensors")
    for name, weight in base.items():
        kept = trained.get(f"base.{name}", trained.get(f"base.{name.removesuffix('.weight')}.base_layer.weight"))
        assert kept is not None, name
        assert torch.equal(kept, weight), name
    assert all(weight.any() for name, weight in trained.items() if "lora_B" in name)


def test_a_reference_shares_what_nothing_moves(tmp_path: Path, source: Path) -> None:
    policy = adapted(ring_world(tmp_path), source, "inside")
    reference = frozen_copy(policy)
    for (name, own), other in zip(policy.named_parameters(), reference.parameters(), strict=True):
        assert (own is other) is not own.requires_grad, name
    whole = frozen_copy(build_policy(ring_prepared(tmp_path / "data"), ring_ids(), language_model_config(), None))
    assert not any(weight.requires_grad for weight in whole.parameters())


def test_a_copy_in_bfloat16_answers_nearly_the_same(tmp_path: Path) -> None:
    """What a GPU decodes, emulated: rounded weights inside autocast."""
    dataset = ring_world(tmp_path)
    policy = language_policy_for(dataset)
    exact = log_probs(policy, dataset)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        rounded = log_probs(bfloat16_policy(policy), dataset)  # type: ignore[arg-type]
    assert rounded.dtype == np.float32
    assert 0 < np.abs(rounded - exact).max() < 0.2
    assert policy.blocks.decoder.layers[0].mlp.up_proj.weight.dtype == torch.float32
