"""Where a stage runs and in which numbers: the one place that decides it, refuses what cannot be had, and says it in words.

A recipe says ``device: auto | cpu | cuda | cuda:N`` and ``precision: float32 | bf16-mixed`` once, for all stages. Stage
functions hand the resolved ``torch.device`` on; models, indexes, rules and item vectors are moved there once, and everything
else follows the tensors it meets. Nothing else asks whether there is a GPU.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, get_args

from pydantic import BeforeValidator

from recsys.config import FrozenConfig
from recsys.contracts.errors import ConfigError

if TYPE_CHECKING:  # reading a configuration does not import torch
    import torch

AUTO: Final = "auto"
_NAME: Final = re.compile(r"auto|cpu|cuda(?::(0|[1-9][0-9]*))?")
_BFLOAT16_CAPABILITY: Final = (8, 0)
"""First compute capability with bfloat16 matrix products (Ampere)."""


def check_device_name(value: Any) -> str:
    """Return the name of a device, whether this machine has it or not.

    Raises:
        ValueError: It is none.
    """
    if isinstance(value, str) and _NAME.fullmatch(value):
        return value
    close = value.lower() if isinstance(value, str) and _NAME.fullmatch(value.lower()) else ""
    hint = f"did you mean {close}?" if close else "for example cuda:0"
    raise ValueError(f"expected auto, cpu, cuda or cuda:N, the number of a GPU from 0, {hint}")


DeviceName = Annotated[str, BeforeValidator(check_device_name)]
"""``auto``, ``cpu``, ``cuda`` or ``cuda:N`` in a configuration."""

DecodePrecision = Literal["float32", "bfloat16", "int8"]
"""Of decoding."""

DEVICE_VARIABLE: Final = "RECSYS_DEVICE"
PRECISION_VARIABLE: Final = "RECSYS_PRECISION"
"""Environment variables that a served model looks at, where its parameters say nothing."""

RunPrecision = Literal["float32", "bf16-mixed"]
"""Of a whole run; the precisions of the stages follow where they are not set."""

MIXED: Final = {"train": "bf16-mixed", "reward": "bf16-mixed", "align": "bf16-mixed", "decode": "bfloat16"}
"""What ``precision: bf16-mixed`` of a run means for the sections that do not set their own."""


def fill_precisions(values: Any, config_class: type[FrozenConfig]) -> Any:
    """Give the sections of a recipe the run's precision where they have none of their own; for ``mode="before"``.

    Example:
        >>> class Recipe(FrozenConfig):
        ...     precision: str
        ...     train: dict
        >>> fill_precisions({"precision": "bf16-mixed", "train": {"max_epochs": 1}}, Recipe)
        {'precision': 'bf16-mixed', 'train': {'precision': 'bf16-mixed', 'max_epochs': 1}}
    """
    if not isinstance(values, dict) or values.get("precision") != "bf16-mixed":
        return values
    filled = dict(values)
    for section in MIXED.keys() & config_class.model_fields.keys():
        keys = filled.get(section, {})
        if isinstance(keys, FrozenConfig) and "precision" not in keys.model_fields_set:
            filled[section] = keys.model_copy(update={"precision": MIXED[section]})
        elif isinstance(keys, dict):
            filled[section] = {"precision": MIXED[section], **keys}
    return filled


def resolve_device(name: str = AUTO, key: str = "device") -> torch.device:
    """Return the device that a name means on this machine, a GPU with its number.

    Args:
        name: ``auto`` is the first GPU that torch sees, the CPU where it sees none; ``cuda`` is the first GPU.
        key: What the name was given as, for the message.

    Raises:
        ConfigError: It is no name of a device, or this machine does not have it.
    """
    import torch

    try:
        name = check_device_name(name)
    except ValueError as error:
        raise ConfigError(f"{key} is {name!r}: {error}") from error
    if name == "cpu":
        return torch.device("cpu")
    count = _count()
    if name == AUTO:
        return torch.device("cuda", 0) if count else torch.device("cpu")
    index = int(name.partition(":")[2] or 0)
    if index >= count:
        raise ConfigError(f"{key} is '{name}', and {_seen(count)}; use {key}=auto or {key}=cpu{_why_none(count)}")
    return torch.device("cuda", index)


@dataclass(frozen=True)
class AskedPlacement:
    """Where a model that is served is to run, as it was asked for.

    Attributes:
        device: Name of a device.
        precision: Of decoding; ``None``: what the model was exported with.
    """

    device: str = AUTO
    precision: DecodePrecision | None = None


def asked_placement(device: object = None, precision: object = None) -> AskedPlacement:
    """Read what was asked for; what is ``None`` is taken from the environment, RECSYS_DEVICE and RECSYS_PRECISION.

    Raises:
        ConfigError: It is no name of a device, or no precision of decoding.
    """
    asked = {"device": device, "precision": precision}
    keys = {name: name for name in asked}
    for name, variable in (("device", DEVICE_VARIABLE), ("precision", PRECISION_VARIABLE)):
        if asked[name] is None and os.environ.get(variable):
            asked[name], keys[name] = os.environ[variable], variable
    try:
        name = check_device_name(AUTO if asked["device"] is None else asked["device"])
    except ValueError as error:
        raise ConfigError(f"{keys['device']} is {asked['device']!r}: {error}") from error
    choices: tuple[DecodePrecision, ...] = get_args(DecodePrecision)
    if asked["precision"] is None:
        return AskedPlacement(name)
    for choice in choices:
        if asked["precision"] == choice:
            return AskedPlacement(name, choice)
    raise ConfigError(f"{keys['precision']} is {asked['precision']!r}, expected one of {', '.join(choices)}")


@dataclass(frozen=True)
class Placement:
    """Where something runs, and the numbers of its matrix products.

    Attributes:
        device: Resolved: a GPU has its number.
        precision: ``float32``, ``bfloat16`` or ``int8`` of decoding and encoders, or one of Lightning's names.
    """

    device: torch.device
    precision: str = "float32"

    def check(self, device_key: str = "device", precision_key: str = "precision") -> Placement:
        """Return itself if the device can do the precision; what decoding needs, its configuration knows.

        Args:
            device_key, precision_key: What the two were given as, for the message.

        Raises:
            ConfigError: It cannot, or only by another precision than was asked for.
        """
        if self.device.type == "cpu" and self.precision in ("16-mixed", "16-true"):
            raise ConfigError(
                f"{precision_key} is {self.precision}, which needs a GPU, and this runs on {self.device}: use bf16-mixed, "
                f"or another {device_key}"
            )
        if self.precision.startswith(("bf16", "bfloat16")) and self.device.type == "cuda":
            import torch

            capability = torch.cuda.get_device_capability(self.device)
            if capability < _BFLOAT16_CAPABILITY:
                raise ConfigError(
                    f"{precision_key} is {self.precision}, which needs a GPU of compute capability 8.0 or more, and this "
                    f"runs on {self.device}, {torch.cuda.get_device_name(self.device)} with "
                    f"{'.'.join(map(str, capability))}: use float32"
                )
        return self


def trainer_devices(device: torch.device, processes: int = 1) -> dict[str, Any]:
    """Return what ``lightning.Trainer`` has to be told, ``accelerator`` and ``devices``.

    Args:
        processes: On this machine; each of several has a GPU of its own, from the first.

    Raises:
        ConfigError: Several processes are to share one GPU that is not the first.
    """
    if device.type == "cpu":
        return {"accelerator": "cpu", "devices": processes}
    if processes > 1 and device.index:
        raise ConfigError(
            f"device is '{device}', one GPU, and {processes} processes take a GPU each, from the first: use device=cuda, "
            "and CUDA_VISIBLE_DEVICES to choose which"
        )
    return {"accelerator": "gpu", "devices": [device.index or 0] if processes == 1 else processes}


def describe(placement: Placement, asked: str | None = None) -> str:
    """Say in one line what will be used, and why; for the log, the manifest and ``recsys doctor``.

    Args:
        asked: The name that was resolved; ``None`` says nothing of why.

    Example:
        >>> import torch
        >>> describe(Placement(torch.device("cpu")), "cpu")
        'cpu, float32 (device: cpu)'
    """
    device, what = placement.device, str(placement.device)
    if device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        what = f"{device} {properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    why = ""
    if asked == AUTO:
        why = f" (device: auto, and {_seen(_count())})"
    elif asked is not None:
        why = f" (device: {asked})"
    return f"{what}, {placement.precision}{why}"


def _count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _seen(count: int) -> str:
    numbers = {0: "torch sees no CUDA device on this machine", 1: "torch sees one CUDA device, cuda:0"}
    return numbers.get(count, f"torch sees {count} CUDA devices, cuda:0 to cuda:{count - 1}")


def _why_none(count: int) -> str:
    """What to look at where a GPU was expected."""
    import torch

    if count:
        return ""
    if torch.version.cuda is None:
        return f" (torch {torch.__version__} is a build for CPUs; requirements/cuda.txt has the other)"
    return " (look at nvidia-smi and CUDA_VISIBLE_DEVICES)"
