"""Parameters of one call of the registered model: each has its type and range, whoever sends it and however.

MLflow checks types against the signature, and drops names that it does not know with a warning of its own; whoever calls the
model class directly, or sends null, comes straight here. Ranges are checked where the request is made.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Any

import numpy as np

from recsys.contracts.errors import ConfigError
from recsys.contracts.event_times import NumberUnit
from serving.config import AnswerOptions
from serving.inputs.history_times import check_unit
from serving.inputs.objectives import parse_objective


@dataclass(frozen=True)
class Parameters:
    """What a call says beside its rows.

    Attributes:
        k: Items or sessions per user.
        exclude_seen: Leave out what the history holds.
        allow, deny: Item ids; empty sets no rule.
        max_per_category: Items of one category per list or session; 0 sets no limit.
        answer: ``items`` or ``sessions``.
        second_stage: ``none`` or ``reward``.
        reward_guidance: How much the reward model guides the search; 0: not at all.
        objective: Weights of the towers as JSON text, for rows that name none; empty for none in particular.
        timestamp_unit: What numbers in ``timestamps`` count.
    """

    k: int = 10
    exclude_seen: bool = True
    allow: Sequence[Any] = ()
    deny: Sequence[Any] = ()
    max_per_category: int = 0
    answer: str = "items"
    second_stage: str = "none"
    reward_guidance: float = 0.0
    objective: str | Mapping[str, float] = ""
    timestamp_unit: NumberUnit = "us"

    @property
    def options(self) -> AnswerOptions:
        """How the request is answered.

        Raises:
            DataError: ``objective`` is no JSON object of numbers.
        """
        weights = self.objective or None
        if isinstance(weights, str):
            weights = parse_objective(weights, "parameter 'objective'")
        return AnswerOptions(
            self.answer,  # type: ignore[arg-type]  # checked by the options
            self.second_stage,  # type: ignore[arg-type]
            weights,
            reward_guidance=self.reward_guidance,
        )


def read_parameters(given: Mapping[str, Any] | None) -> Parameters:
    """Read the parameters of a call; what is not given takes its default.

    Raises:
        ConfigError: A name is unknown (the closest one is named), or a value is of another type.

    Example:
        >>> read_parameters({"k": 3, "deny": None}).k
        3
        >>> read_parameters({"kk": 3})  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        recsys.contracts.errors.ConfigError: parameter 'kk' is unknown; did you mean 'k'? there are k, exclude_seen, ...
    """
    if given is not None and not isinstance(given, Mapping):
        raise ConfigError(f"parameters are {given!r}, expected a mapping of names to values")
    known = [field.name for field in fields(Parameters)]
    values: dict[str, Any] = {}
    for name, value in (given or {}).items():
        if name not in known:
            close = difflib.get_close_matches(str(name), known, n=1)
            hint = f"did you mean '{close[0]}'? " if close else ""
            raise ConfigError(f"parameter '{name}' is unknown; {hint}there are {', '.join(known)}")
        values[name] = _READERS[name](name, value)
    return Parameters(**values)


def _whole(name: str, value: Any) -> int:
    value = _scalar(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Integral):
        raise ConfigError(f"{name} is {value!r}, expected a whole number")
    return int(value)


def _flag(name: str, value: Any) -> bool:
    value = _scalar(value)
    if not isinstance(value, bool | np.bool_):
        raise ConfigError(f"{name} is {value!r}, expected true or false")
    return bool(value)


def _number(name: str, value: Any) -> float:
    value = _scalar(value)
    if isinstance(value, bool | np.bool_) or not isinstance(value, Real):
        raise ConfigError(f"{name} is {value!r}, expected a number")
    return float(value)


def _text(name: str, value: Any) -> str:
    value = _scalar(value)
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {value!r}, expected a text")
    return value


def _objective(name: str, value: Any) -> str | Mapping[str, float]:
    value = _scalar(value)
    if value is None:
        return ""
    if isinstance(value, Mapping):
        return value
    if not isinstance(value, str):
        raise ConfigError(f"{name} is {value!r}, expected JSON text such as '{{\"like\": 1.0}}'")
    return value


def _ids(name: str, value: Any) -> Sequence[Any]:
    value = _scalar(value)
    if value is None:
        return ()
    if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__iter__"):
        raise ConfigError(f"{name} is {value!r}, expected a list of item ids")
    return list(value)


def _scalar(value: Any) -> Any:
    return value.item() if isinstance(value, np.ndarray) and value.ndim == 0 else value


_READERS: dict[str, Callable[[str, Any], Any]] = {
    "k": _whole,
    "exclude_seen": _flag,
    "allow": _ids,
    "deny": _ids,
    "max_per_category": _whole,
    "answer": _text,
    "second_stage": _text,
    "reward_guidance": _number,
    "objective": _objective,
    "timestamp_unit": lambda name, value: check_unit(_scalar(value)),
}
