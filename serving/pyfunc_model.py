"""The registered model, as code: MLflow stores this file and runs it when the model is loaded.

It answers a frame of histories (columns: :mod:`serving.history_frame`) with rows ``user_id, item_id, rank, score,
num_unknown_items``. Its only data is the serving bundle, safetensors and JSON; it knows nothing of the pipeline.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import polars as pl
from mlflow.pyfunc import PythonModel, PythonModelContext

from serving.history_frame import ITEM_IDS, OPTIONAL_LISTS
from serving.item_rules import category_quotas
from serving.scorer import Rules, Scorer


class RecommenderModel(PythonModel):
    """Scores histories with the bundle that was logged with it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle. MLflow passes the argument by keyword, so its name must stay."""
        self.scorer = Scorer.open(Path(context.artifacts["bundle"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Rank items for each row.

        Args:
            model_input: Frame of histories, pandas or polars. (MLflow reads the type hint as a schema and refuses a union.)
            params: ``k`` rows per user; ``exclude_seen``; ``allow`` and ``deny``, lists of item ids (empty: no rule);
                ``max_per_category``, items of one category per user (0: no limit).
        """
        values: dict[str, Any] = params or {}
        frame = model_input if isinstance(model_input, pl.DataFrame) else _to_polars(model_input)
        allow, deny = values.get("allow"), values.get("deny")
        k, max_per_category = int(values.get("k", 10)), int(values.get("max_per_category", 0))
        rules = Rules(
            exclude_seen=bool(values.get("exclude_seen", True)),
            allow=self._mask(allow) if allow is not None and len(allow) else None,
            deny=self._mask(deny) if deny is not None and len(deny) else None,
            quotas=category_quotas(self.scorer, k, max_per_category) if max_per_category else None,
        )
        rows = self.scorer.score_frame(frame, k, rules)
        return pd.DataFrame({name: rows[name].to_list() for name in rows.columns})

    def _mask(self, item_ids: Any) -> Any:
        return self.scorer.mask(pl.Series(list(item_ids), dtype=self.scorer.catalogue.item_ids.dtype))


def _to_polars(frame: pd.DataFrame) -> pl.DataFrame:
    """Convert column by column: pandas keeps lists as objects, whose type only their values tell."""
    columns: dict[str, pl.Series] = {}
    for name in frame.columns:
        values = frame[name].tolist()
        if name == ITEM_IDS or name in OPTIONAL_LISTS:
            if name in OPTIONAL_LISTS and all(value is None for value in values):
                continue  # an optional column that the signature filled in
            values = [[] if value is None else list(value) for value in values]
        columns[str(name)] = pl.Series(str(name), values)
    result = pl.DataFrame(columns)
    if ITEM_IDS in result.columns and result.schema[ITEM_IDS] == pl.List(pl.Null):
        return result.with_columns(pl.col(ITEM_IDS).cast(pl.List(pl.Int64)))
    return result


mlflow.models.set_model(RecommenderModel())
