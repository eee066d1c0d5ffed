"""Where the stages of a configuration run and in which numbers, asked before anything starts.

Reads a :class:`~pipelines.config.RunConfig`; produces a :class:`~recsys.device.Placement` for every stage that models take
part in. The others (`prepare`, `tokenize`, `baselines`) run on the CPU whatever is asked.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from recsys.contracts.errors import ConfigError
from recsys.device import Placement, describe, resolve_device

if TYPE_CHECKING:
    from pipelines.config import RunConfig

PRECISION_KEYS: Final = {
    "embed": "embed.text.precision",
    "train": "train.precision",
    "reward": "reward.precision",
    "align": "align.precision",
    "rank": "decode.precision",
    "evaluate": "decode.precision",
    "export": "decode.precision",
    "recommend": "decode.precision",
}
"""Stages that run on the device, each with the key of its matrix products."""

DECODING: Final = ("train", "align", "rank", "evaluate", "export", "recommend")
"""Stages that decode, whatever else they do."""


def placement_of(name: str, config: RunConfig) -> Placement | None:
    """Return where a stage runs; ``None`` where no model takes part in it.

    Raises:
        ConfigError: This machine does not have the device, or the device cannot do what the stage is asked for.
    """
    if name not in PRECISION_KEYS or (name == "embed" and config.embed.text.model is None):
        return None
    device, key = resolve_device(config.device), PRECISION_KEYS[name]
    if name in DECODING:
        if config.precision == "bf16-mixed" and config.decode.precision == "bfloat16" and device.type == "cpu":
            raise ConfigError(
                f"precision is bf16-mixed, which decodes in bfloat16 too, and that needs a GPU; this runs on {device}: add "
                "decode.precision=float32, or set train.precision=bf16-mixed alone"
            )
        config.decode.check_device(device.type)
        Placement(device, config.decode.precision).check(precision_key="decode.precision")
    return Placement(device, _precision(name, config)).check(precision_key=key)


def check_placements(names: Iterable[str], config: RunConfig) -> None:
    """Refuse a device or a precision that some of these stages cannot have; nothing has been done yet.

    Raises:
        ConfigError: As :func:`placement_of` does.
    """
    for name in names:
        placement_of(name, config)


def say_placement(name: str, config: RunConfig) -> str | None:
    """Say in one line where a stage runs and why; ``None`` where no model takes part in it.

    Raises:
        ConfigError: As :func:`placement_of` does.
    """
    placement = placement_of(name, config)
    return None if placement is None else describe(placement, config.device)


def _precision(name: str, config: RunConfig) -> str:
    """Value of the stage's key of precision."""
    node: object = config
    for part in PRECISION_KEYS[name].split("."):
        node = getattr(node, part)
    return str(node)
