"""What a recipe may ask of a language model, and what it is told where that cannot be had."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from recsys.contracts.errors import ConfigError
from recsys.language_model import base
from recsys.language_model.adapters import add_adapters
from recsys.language_model.base import from_shape, from_source, longest_sequence
from recsys.language_model.prompt import text_tokens
from recsys.model.config import ModelConfig
from recsys.model.language_config import LoraConfig
from tests.toy.language_model import SHAPE, language_model_config, language_policy_for, ring_world


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"language_model": None}, "needs language_model.source or"),
        ({"language_model": {}}, "name either source"),
        ({"language_model": {"shape": SHAPE, "source": "x"}}, "name either source"),
        ({"language_model": {"shape": {"hidden_size": 8}}}, "with model_type"),
        ({"language_model": {"shape": SHAPE, "keep_base": "reference"}}, "keep_base: reference leaves out"),
        ({"language_model": {"source": "x", "keep_base": "reference"}}, "keep_base: reference leaves out"),
        ({"backbone": "encoder_decoder"}, "set backbone: llm"),
        ({"encoder_attention": "bidirectional"}, "reads histories causally"),
        ({"features": ("item", "codes", "gap")}, "features are item, codes, gap"),
        ({"features": ("item",)}, "features are item; backbone: llm reads codes"),
        ({"num_objectives": 2}, "takes no num_objectives"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ModelConfig.model_validate({"backbone": "llm", "language_model": {"shape": SHAPE}, **changes})


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"decode_precision": "int8"}, "decode.precision is int8"),
        ({"compiles": True}, "train.compile is blocks"),
        ({"spreads": True}, "train.processes is above 1"),
        ({"smooths": True}, "train.label_smoothing is set"),
        ({"distils": True}, "train.distillation_weight is set"),
    ],
)
def test_what_only_an_encoder_decoder_can_do_is_refused(asked: dict[str, Any], message: str) -> None:
    nothing = {"decode_precision": "float32", "compiles": False, "spreads": False, "smooths": False, "distils": False}
    config = language_model_config(softmax="vocabulary")
    config.check_beside(**nothing)
    ModelConfig.model_validate({}).check_beside(**{**nothing, **asked})
    with pytest.raises(ConfigError, match=message):
        config.check_beside(**{**nothing, **asked})


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"model_type": "gpt2"}, "models of type 'gpt2' are not supported, expected one of llama"),
        ({**SHAPE, "num_hiden_layers": 2}, "has no 'num_hiden_layers'; did you mean 'num_hidden_layers'"),
        ({**SHAPE, "num_attention_heads": 0}, "shape is no llama model"),
        ({**SHAPE, "hidden_act": "swiglu"}, "shape is no llama model: 'swiglu'"),
        ({**SHAPE, "rms_norm_eps": "small"}, "shape is no llama model: .*rms_norm_eps"),
        ({**SHAPE, "num_key_value_heads": 3}, "num_key_value_heads 3 does not divide num_attention_heads 4"),
        ({**SHAPE, "attention_dropout": 0.1}, "attention_dropout is 0.1, which is not read; .* set model.dropout"),
        ({**SHAPE, "dtype": "bfloat16"}, "dtype is bfloat16, which is not read; .* set train.precision"),
    ],
)
def test_a_shape_that_is_no_model_is_refused(shape: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_shape(shape, 0.02)


def test_positions_that_depend_on_the_batch_are_refused() -> None:
    shape = {**SHAPE, "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}
    with pytest.raises(ConfigError, match="rotary positions of type 'dynamic'"):
        from_shape(shape, 0.02)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (None, "is neither a folder"),
        ((), "is neither a folder"),
        (("a.gguf", "b.gguf"), r"holds a.gguf, b.gguf; name one"),
        (("config.json",), r"holds no \*.safetensors"),
        (("config.json", "model.safetensors"), "holds no causal language model"),
    ],
)
def test_a_source_that_is_no_model_is_refused(tmp_path: Path, files: tuple[str, ...] | None, message: str) -> None:
    folder = tmp_path / "model"
    if files is not None:
        folder.mkdir()
        for name in files:
            (folder / name).write_text("{}")
    with pytest.raises(ConfigError, match=message):
        from_source(str(folder))


def _without(name: str) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda weights: {key: weight for key, weight in weights.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("model.layers.0.mlp.up_proj.weight"), "lacks 1 weights, such as model.layers.0.mlp.up_proj.weight"),
        (_without("lm_head.weight"), "lacks 1 weights, such as lm_head.weight, .* its head included"),
        (lambda weights: {f"x.{name}": weight for name, weight in weights.items()}, "lacks 21 weights"),
        (lambda weights: {**weights, "model.norm.weight": torch.ones(3)}, "holds no causal language model"),
        (None, "holds no causal language model"),
    ],
    ids=["a layer", "the head", "all", "another size", "cut off"],
)
def test_weights_that_would_be_drawn_at_random_are_refused(
    tmp_path: Path, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]] | None, message: str
) -> None:
    from_shape(SHAPE, 0.02).model.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    if change is None:
        file.write_bytes(file.read_bytes()[:1000])
    else:
        save_file(change(load_file(file)), file, metadata={"format": "pt"})
    with pytest.raises(ConfigError, match=message):
        from_source(str(tmp_path))


def test_text_without_a_tokenizer_is_warned_of(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from_shape(SHAPE, 0.02).model.save_pretrained(tmp_path / "base")
    dataset, source = ring_world(tmp_path), str(tmp_path / "base")
    with caplog.at_level(logging.WARNING, logger="recsys.language_model"):
        language_policy_for(dataset, source=source)
        assert caplog.text == ""
        language_policy_for(dataset, source=source, titles=True)
    assert "has no tokenizer that can be read: its text is read as bytes" in caplog.text


def test_what_an_extra_brings_is_named_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    with pytest.raises(ConfigError, match=r"needs the library gguf, which is not installed; install recsys-gen\[llm\]"):
        from_source(str(tmp_path / "x.gguf"))
    with pytest.raises(ConfigError, match=r"tune: lora needs the library peft"):
        add_adapters(from_shape(SHAPE, 0.02).model, LoraConfig())


def test_an_adapter_for_a_layer_that_does_not_exist_is_refused() -> None:
    pytest.importorskip("peft")
    with pytest.raises(ConfigError, match="no layers c_attn; it has down_proj, gate_proj"):
        add_adapters(from_shape(SHAPE, 0.02).model, LoraConfig(targets=("q_proj", "c_attn")))


def test_a_history_longer_than_the_model_reads_is_refused(tmp_path: Path) -> None:
    """A mark, six events of three codes, and four tokens of an answer are 23."""
    dataset = ring_world(tmp_path)
    language_policy_for(dataset, shape={"max_position_embeddings": 23})
    with pytest.raises(ConfigError, match=r"sequences of up to 23 tokens, and this language model reads at most 22"):
        language_policy_for(dataset, shape={"max_position_embeddings": 22})


@pytest.mark.parametrize(
    ("task", "title_tokens", "longest"),
    [("titles_to_id", 7, 47), ("title_to_id", 40, 45), ("id_to_title", 40, 45)],
)
def test_tasks_longer_than_the_model_reads_are_refused(
    tmp_path: Path, task: str, title_tokens: int, longest: int
) -> None:
    """A mark, six titles of 7 and four tokens of an answer are 47; two marks, a title of 40 and three codes are 45."""
    dataset, settings = ring_world(tmp_path), {"title_tokens": title_tokens, "auxiliary": {task: 1.0}}
    language_policy_for(dataset, shape={"max_position_embeddings": longest}, **settings)
    message = f"up to {longest} tokens in model.language_model.auxiliary, and this language model reads at most"
    with pytest.raises(ConfigError, match=message):
        language_policy_for(dataset, shape={"max_position_embeddings": longest - 1}, **settings)


def test_a_sliding_window_bounds_the_sequence() -> None:
    shape = {**SHAPE, "model_type": "mistral", "sliding_window": 40}
    assert longest_sequence(from_shape(shape, 0.02).model.config) == 40
    assert longest_sequence(from_shape(SHAPE, 0.02).model.config) == 128


def test_text_as_bytes_needs_room_for_bytes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vocabulary of 255 has no room for 256"):
        language_policy_for(ring_world(tmp_path), shape={"vocab_size": 255}, instruction="likes: ")


def test_a_tokenizer_of_another_vocabulary_is_refused() -> None:
    def tokenizer(text: str, add_special_tokens: bool) -> dict[str, list[int]]:
        return {"input_ids": [ord(letter) for letter in text]}

    assert text_tokens(["zaz", None, ""], tokenizer, 2, 123) == [[122, 97], [], []]
    with pytest.raises(ConfigError, match=r"has a token 122, and the model's vocabulary 122"):
        text_tokens(["az"], tokenizer, 2, 122)


def test_words_are_trained_only_where_they_are_read_or_written(tmp_path: Path) -> None:
    dataset = ring_world(tmp_path)
    for settings, expected in (
        ({}, False),
        ({"softmax": "vocabulary"}, True),
        ({"titles": True}, True),
        ({"instruction": "likes"}, True),
    ):
        policy = language_policy_for(dataset, **settings)
        assert policy.vocabulary.text.weight.requires_grad is expected
