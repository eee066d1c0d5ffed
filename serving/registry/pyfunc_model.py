"""The registered model, as code: MLflow stores this file and runs it when the model is loaded.

It answers a frame of histories (columns: :mod:`serving.inputs.history_frame`) with the rows of
:func:`serving.answers.frame.answer_frame`: items, or whole sessions. Its only data is the serving bundle,
safetensors and JSON; it knows nothing of the pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import polars as pl
from mlflow.pyfunc import PythonModel, PythonModelContext

from recsys.contracts.columns import Columns
from serving.answers.scorer import Scorer
from serving.config import AnswerOptions
from serving.inputs.history_frame import OPTIONAL_LISTS
from serving.inputs.item_rules import listed_rules
from serving.inputs.objectives import parse_objective


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
        k, options = int(values.get("k", 10)), _options(values)
        rules = listed_rules(
            self.scorer.catalogue,
            k,
            options.answer,
            allow=_listed(values, "allow"),
            deny=_listed(values, "deny"),
            max_per_category=int(values.get("max_per_category", 0)),
            exclude_seen=bool(values.get("exclude_seen", True)),
        )
        rows = self.scorer.score_frame(frame, k, rules, options)
        return pd.DataFrame({name: rows[name].to_list() for name in rows.columns})


def _options(values: dict[str, Any]) -> AnswerOptions:
    objective = values.get(Columns.OBJECTIVE) or None
    where = f"parameter '{Columns.OBJECTIVE}'"
    return AnswerOptions(
        answer=values.get("answer", "items"),
        second_stage=values.get("second_stage", "none"),
        objective=parse_objective(objective, where) if isinstance(objective, str) else objective,
    )


def _listed(values: dict[str, Any], name: str) -> list[Any]:
    listed = values.get(name)
    return [] if listed is None else list(listed)


def _to_polars(frame: pd.DataFrame) -> pl.DataFrame:
    """Convert column by column: pandas keeps lists as objects, whose type only their values tell."""
    columns: dict[str, pl.Series] = {}
    for name in frame.columns:
        values = frame[name].tolist()
        if name == Columns.ITEM_IDS or name in OPTIONAL_LISTS:
            if name in OPTIONAL_LISTS and all(value is None for value in values):
                continue  # an optional column that the signature filled in
            values = [[] if value is None else list(value) for value in values]
        if name == Columns.OBJECTIVE:
            values = [None if pd.isna(value) else value for value in values]
            if all(value is None for value in values):
                continue
        columns[str(name)] = pl.Series(str(name), values)
    result = pl.DataFrame(columns)
    if Columns.ITEM_IDS in result.columns and result.schema[Columns.ITEM_IDS] == pl.List(pl.Null):
        return result.with_columns(pl.col(Columns.ITEM_IDS).cast(pl.List(pl.Int64)))
    return result


mlflow.models.set_model(RecommenderModel())
