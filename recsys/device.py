"""Where a stage runs and in which numbers: the one place that decides it, refuses what cannot be had, and says it in words.

A recipe says ``device: auto | cpu | cuda | cuda:N`` and ``precision: float32 | bf16-mixed`` once, for all stages. Stage
functions hand the resolved ``torch.device`` on; models, indexes, rules and item vectors are moved there once, and everything
else follows the tensors it meets. Nothing else asks whether there is a GPU.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import BeforeValidator

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

RunPrecision = Literal["float32", "bf16-mixed"]
"""Of a whole run; the precisions of the stages follow where they are not set."""


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
class Placement:
    """Where something runs, and the numbers of its matrix products.

    Attributes:
        device: Resolved: a GPU has its number.
        precision: ``float32``, ``bfloat16`` or ``int8`` of decoding and encoders, or one of Lightning's names.
    """

    device: torch.device
    precision: str = "float32"

    def check(self, device_key: str = "device", precision_key: str = "precision") -> Placement:
        """Return itself if the device can do the precision.

        Args:
            device_key, precision_key: What the two were given as, for the message.

        Raises:
            ConfigError: It cannot, or only by another precision than was asked for.
        """
        asked, place = f"{precision_key} is {self.precision}", f"this runs on {self.device}"
        if self.device.type == "cpu":
            if self.precision == "bfloat16":
                raise ConfigError(
                    f"{asked}, which needs a GPU, and {place}: use {precision_key}=float32 or int8, or another {device_key}"
                )
            if self.precision in ("16-mixed", "16-true", "float16"):
                raise ConfigError(f"{asked}, which needs a GPU, and {place}: use bf16-mixed, or another {device_key}")
            return self
        if self.precision == "int8":
            raise ConfigError(
                f"{asked}, which needs a CPU, and {place}: use {precision_key}=bfloat16, or {device_key}=cpu"
            )
        if self.precision.startswith(("bf16", "bfloat16")) and self.device.type == "cuda":
            import torch

            capability = torch.cuda.get_device_capability(self.device)
            if capability < _BFLOAT16_CAPABILITY:
                raise ConfigError(
                    f"{asked}, which needs a GPU of compute capability 8.0 or more, and {place}, "
                    f"{torch.cuda.get_device_name(self.device)} with {'.'.join(map(str, capability))}: use float32"
                )
        return self


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
