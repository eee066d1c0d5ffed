"""Low-rank adapters of the language model's linear layers, by peft."""

from __future__ import annotations

from torch import nn

from recsys.contracts.errors import ConfigError
from recsys.language_model.base import need
from recsys.model.language_config import LoraConfig


def add_adapters(decoder: nn.Module, config: LoraConfig) -> None:
    """Put an adapter beside every named layer, in place; at first it changes no result.

    Raises:
        ConfigError: peft is not installed, or the model has none of these layers.
    """
    need("peft", "model.language_model.tune: lora")
    from peft import LoraConfig as PeftConfig
    from peft import inject_adapter_in_model

    names = {name.rpartition(".")[2] for name, module in decoder.named_modules() if isinstance(module, nn.Linear)}
    missing = sorted(set(config.targets) - names)
    if missing:
        raise ConfigError(
            f"model.language_model.lora.targets: this model has no layers {', '.join(missing)}; it has "
            f"{', '.join(sorted(names))}"
        )
    inject_adapter_in_model(
        PeftConfig(
            r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=list(config.targets)
        ),
        decoder,
    )
