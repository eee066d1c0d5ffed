"""The registered model, as code: MLflow stores this file and runs it when the model is loaded.

It answers a frame of histories (columns: :mod:`serving.inputs.history_frame`) with the rows of
:func:`serving.answers.frame.answer_frame`: items, or whole sessions. Its only data is the serving bundle,
safetensors and JSON; it knows nothing of the pipeline.

Its signature names parameters and outputs, and no inputs: with inputs MLflow would refuse a Polars frame and nulls inside of
lists, and drop columns that it does not know, before any of this code could say what is wrong.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import polars as pl
from mlflow.exceptions import MlflowException
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc import PythonModel, PythonModelContext

from recsys.contracts import errors
from recsys.device import Placement, asked_placement, describe, resolve_device
from serving.answers.scorer import Scorer
from serving.inputs.callers_frame import to_frame
from serving.inputs.parameters import read_parameters
from serving.inputs.rules.item_rules import listed_rules
from serving.registry.aliases import CONTENT_TAG

logger = logging.getLogger("recsys.serving")


class ConfigError(errors.ConfigError, MlflowException):
    """A wrong parameter; as MLflow's own error its words reach who called over HTTP, with status 400."""


class DataError(errors.DataError, MlflowException):
    """Wrong histories; the same."""


class RecommenderModel(PythonModel):
    """Scores histories with the bundle that was logged with it."""

    def load_context(self, context: PythonModelContext) -> None:
        """Open the bundle on the device that was asked for. MLflow passes the argument by keyword, so its name must stay.

        The model configuration of the call that loads it (``load_model(uri, model_config={"device": "cuda:0"})``) may hold
        ``device`` and ``precision``; what it leaves out, RECSYS_DEVICE and RECSYS_PRECISION say; and else it is the first
        GPU where there is one, in the precision that the model was exported with.

        Raises:
            ConfigError: This machine does not have the device, or it cannot do the precision.
            ArtifactError: The bundle is damaged, or another than the model was logged with.
        """
        config = context.model_config or {}
        asked = asked_placement(config.get("device"), config.get("precision"))
        device = resolve_device(asked.device)
        bundle, content = Path(context.artifacts["bundle"]), config.get(CONTENT_TAG)
        self.scorer = Scorer.open(bundle, device, asked.precision, content)
        placement = Placement(device, self.scorer.recommender.config.precision)
        logger.info("%s answers on %s", self.scorer.info.name, describe(placement, asked.device))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Rank items for each row, or generate sessions.

        Args:
            model_input: Histories: a pandas or Polars frame, or rows as mappings, which is how JSON arrives; columns
                and what null
                means in them: :mod:`serving.inputs.history_frame`. (MLflow reads the type hint as a schema and refuses
                    a union.)
            params: See :class:`~serving.inputs.parameters.Parameters`.

        Returns:
            Rows of users in the order given; no rows for no users, with the same types.

        Raises:
            ConfigError: A parameter has another type or value, or the bundle cannot do what it asks.
            DataError: The histories do not keep the form.
        """
        try:
            return self._answer(model_input, params)
        except errors.ConfigError as error:
            raise ConfigError(str(error), INVALID_PARAMETER_VALUE) from None
        except errors.DataError as error:
            raise DataError(str(error), INVALID_PARAMETER_VALUE) from None

    def _answer(self, model_input: Any, params: dict[str, Any] | None) -> pd.DataFrame:
        asked = read_parameters(params)
        options = asked.options
        frame = to_frame(model_input)
        options.check(asked.k)
        self.scorer.catalogue.limits.check_k(asked.k, self.scorer.info.name)
        rules = listed_rules(
            self.scorer.catalogue,
            asked.k,
            options.answer,
            allow=asked.allow,
            deny=asked.deny,
            max_per_category=asked.max_per_category,
            exclude_seen=asked.exclude_seen,
        )
        return _to_pandas(self.scorer.score_frame(frame, asked.k, rules, options, asked.timestamp_unit))


def _to_pandas(rows: pl.DataFrame) -> pd.DataFrame:
    """Convert column by column; integers are int64, scores float64, text objects, with and without rows."""
    columns: dict[str, Any] = {}
    for name, dtype in rows.schema.items():
        if dtype.is_integer():
            columns[name] = rows[name].cast(pl.Int64).to_numpy()
        elif dtype.is_float():
            columns[name] = rows[name].cast(pl.Float64).to_numpy()
        else:
            columns[name] = np.array(rows[name].to_list(), dtype=object)
    return pd.DataFrame(columns)


mlflow.models.set_model(RecommenderModel())
