"""The registered model, as code: MLflow stores this file and runs it when the model is loaded.

It answers a frame of histories (columns: :mod:`serving.inputs.history_frame`) with the rows of
:meth:`serving.answers.scorer.Scorer.to_frame`: items, or whole sessions. Its only data is the serving bundle,
safetensors and JSON; it knows nothing of the pipeline.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import mlflow
import pandas as pd
import polars as pl
from mlflow.pyfunc import PythonModel, PythonModelContext

from recsys.contracts.errors import ConfigError
from serving.answers.item_rules import category_quotas
from serving.answers.scorer import AnswerOptions, Rules, Scorer
from serving.config import AnswerKind, SecondStage
from serving.inputs.history_frame import ITEM_IDS, OPTIONAL_LISTS
from serving.inputs.objectives import OBJECTIVE, parse_objective


class RecommenderModel(PythonModel):
    """Scores histories with the bundle that was logged with it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle. MLflow passes the argument by keyword, so its name must stay."""
        self.scorer = Scorer.open(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Rank items for each row, or generate sessions.

        Args:
            model_input: Frame of histories, pandas or polars. (MLflow reads the type hint as a schema and refuses a union.)
            params: ``k`` items or sessions per user; ``exclude_seen``; ``allow`` and ``deny``, lists of item ids (empty: no
                rule); ``max_per_category``, items of one category per list or session (0: no limit); ``answer``,
                ``items`` or ``sessions``; ``second_stage``, ``none`` or ``reward``; ``objective``, weights of the towers
                as JSON text (empty: none in particular), for rows whose own column ``objective`` is empty.

        Raises:
            ConfigError: A parameter has another value, or the bundle cannot do what it asks.
        """
        values: dict[str, Any] = params or {}
        frame = model_input if isinstance(model_input, pl.DataFrame) else _to_polars(model_input)
        allow, deny = values.get("allow"), values.get("deny")
        k, max_per_category = int(values.get("k", 10)), int(values.get("max_per_category", 0))
        options = _options(values)
        length = k if options.answer == "items" else self.scorer.session_length
        rules = Rules(
            exclude_seen=bool(values.get("exclude_seen", True)),
            allow=self._mask(allow) if allow is not None and len(allow) else None,
            deny=self._mask(deny) if deny is not None and len(deny) else None,
            quotas=category_quotas(self.scorer, length, max_per_category) if max_per_category else None,
        )
        rows = self.scorer.score_frame(frame, k, rules, options)
        return pd.DataFrame({name: rows[name].to_list() for name in rows.columns})

    def _mask(self, item_ids: Any) -> Any:
        return self.scorer.mask(pl.Series(list(item_ids), dtype=self.scorer.catalogue.item_ids.dtype))


def _options(values: dict[str, Any]) -> AnswerOptions:
    objective = values.get(OBJECTIVE) or None
    return AnswerOptions(
        answer=_one_of(values, "answer", get_args(AnswerKind)),
        second_stage=_one_of(values, "second_stage", get_args(SecondStage)),
        objective=parse_objective(objective, f"parameter '{OBJECTIVE}'") if isinstance(objective, str) else objective,
    )


def _one_of(values: dict[str, Any], name: str, choices: Sequence[str]) -> Any:
    value = values.get(name, choices[0])
    if value not in choices:
        raise ConfigError(f"parameter '{name}' is {value!r}, expected one of {', '.join(choices)}")
    return value


def _to_polars(frame: pd.DataFrame) -> pl.DataFrame:
    """Convert column by column: pandas keeps lists as objects, whose type only their values tell."""
    columns: dict[str, pl.Series] = {}
    for name in frame.columns:
        values = frame[name].tolist()
        if name == ITEM_IDS or name in OPTIONAL_LISTS:
            if name in OPTIONAL_LISTS and all(value is None for value in values):
                continue  # an optional column that the signature filled in
            values = [[] if value is None else list(value) for value in values]
        if name == OBJECTIVE:
            values = [None if pd.isna(value) else value for value in values]
            if all(value is None for value in values):
                continue
        columns[str(name)] = pl.Series(str(name), values)
    result = pl.DataFrame(columns)
    if ITEM_IDS in result.columns and result.schema[ITEM_IDS] == pl.List(pl.Null):
        return result.with_columns(pl.col(ITEM_IDS).cast(pl.List(pl.Int64)))
    return result


mlflow.models.set_model(RecommenderModel())
