"""What a request wants more of: weights of the towers that the policy was aligned with, by name and as the vector it reads.

A request gives a JSON object such as ``{"like": 3, "diversity": 1}``. Only the proportions count: alignment drew its weights
from a Dirichlet distribution, so the policy has met weights that sum to 1 and no others, and requests are scaled to that.
A tower that is not named weighs 0. A tower that lowers the reward counts against, by as much as it weighs.

Legend: N rows, O objectives.
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Mapping, Sequence
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ConfigError, DataError

FloatArray = npt.NDArray[np.float32]


def objective_weights(asked: Mapping[str, float], towers: Sequence[str], where: str = Columns.OBJECTIVE) -> FloatArray:
    """Return the weights in the order of the towers, ``[O]``, scaled to sum 1.

    Args:
        towers: ``PolicySpec.objectives``; empty for a policy that cannot be steered.
        where: What the weights were given in, for the error.

    Raises:
        ConfigError: The policy cannot be steered, a name is no tower, or a weight is negative, not finite, or all are 0.

    Example:
        >>> objective_weights({"like": 3.0, "diversity": 1.0}, ("watch_time", "like", "diversity")).tolist()
        [0.0, 0.75, 0.25]
    """
    if not towers:
        raise ConfigError(
            f"{where} names weights, but the policy was not aligned with any: it cannot be steered; leave them out, or "
            "train with model.num_objectives and align with align.ipa.objective"
        )
    for name, weight in asked.items():
        if isinstance(weight, bool) or not isinstance(weight, int | float):
            raise ConfigError(f"{where}: the weight of '{name}' is {weight!r}, expected a number of at least 0")
        if name not in towers:
            close = difflib.get_close_matches(name, towers, n=1)
            hint = f"; did you mean '{close[0]}'?" if close else ""
            raise ConfigError(f"{where}: '{name}' is no tower; the policy was aligned with {', '.join(towers)}{hint}")
        if not (math.isfinite(weight) and weight >= 0):
            raise ConfigError(f"{where}: the weight of '{name}' is {weight}, expected a finite number of at least 0")
    total = math.fsum(asked.values())
    if total <= 0:
        raise ConfigError(f"{where} gives no tower a weight above 0; name at least one of {', '.join(towers)}")
    return np.array([asked.get(name, 0.0) / total for name in towers], np.float32)


def parse_objective(text: str, where: str = Columns.OBJECTIVE) -> dict[str, float]:
    """Read a JSON object of numbers.

    Raises:
        DataError: It is something else.

    Example:
        >>> parse_objective('{"like": 3, "diversity": 1}')
        {'like': 3.0, 'diversity': 1.0}
    """
    try:
        values = json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        why = error if isinstance(error, json.JSONDecodeError) else "it is nested too deep"
        raise DataError(f"{where} is {_cut(text)}, which is no JSON: {why}; give for example {_EXAMPLE}") from None
    numbers = isinstance(values, dict) and all(type(value) in (int, float) for value in values.values())
    if not numbers:
        raise DataError(f"{where} is {_cut(text)}, expected a JSON object of numbers; give for example {_EXAMPLE}")
    try:
        return {name: float(value) for name, value in values.items()}
    except OverflowError:
        raise DataError(f"{where} is {_cut(text)}, which holds a number that is too large") from None


def _cut(text: str) -> str:
    return repr(text) if len(text) <= 200 else f"{text[:160]!r}... ({len(text)} characters)"


def row_objectives(texts: pl.Series, towers: Sequence[str], default: FloatArray | None) -> FloatArray:
    """Return the weights of every row, ``[N, O]``; each distinct text is read once.

    Args:
        texts: ``[N]`` JSON objects; null or empty takes ``default``.
        default: ``[O]`` weights of the call, ``None`` if it names none.

    Raises:
        DataError: A text is no JSON object, names weights that the policy does not take, or is missing without a default.
    """
    if texts.dtype not in (pl.String, pl.Null):
        raise DataError(f"column '{Columns.OBJECTIVE}' is {texts.dtype}, expected JSON text such as {_EXAMPLE}")
    texts = texts.cast(pl.String).fill_null("")
    known: dict[str, FloatArray] = {}
    for text in texts.unique(maintain_order=True):
        where = f"column '{Columns.OBJECTIVE}' ({text if len(text) <= 200 else text[:160] + '...'})"
        if text:
            try:
                known[text] = objective_weights(parse_objective(text, where), towers, where)
            except ConfigError as error:
                raise DataError(str(error)) from error
        elif default is not None:
            known[text] = default
        else:
            raise DataError(
                f"column '{Columns.OBJECTIVE}' is empty for some rows, and the call names no weights for such; fill the "
                f"column, or set recommend.{Columns.OBJECTIVE} (of the registered model: the parameter of that name)"
            )
    if not known:
        return np.zeros((0, len(towers)), np.float32)
    place = texts.replace_strict(list(known), list(range(len(known))), return_dtype=pl.Int64)
    return np.stack(list(known.values()))[place.to_numpy()]


_EXAMPLE: Final = "'{\"like\": 1.0}'"
