"""A model as it is registered, loaded by MLflow, and the dresses in which a request may come."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import mlflow
import pandas as pd
import polars as pl
import pytest
from mlflow.pyfunc.scoring_server import invocations

from recsys.decoding.config import DecodeConfig
from serving.answers.scorer import Scorer
from serving.config import ServingLimits
from serving.export.export import BundleSources, export_bundle
from serving.registry.model_registry import MODEL_CONFIG, model_signature
from tests.serving.conftest import HISTORIES, NUM_ITEMS, write_model, write_prepared, write_semantic_ids

ITEMS = [100 + 7 * index for index in range(NUM_ITEMS)]
START = 1_700_000_000_000_000
SECOND = 1_000_000
LIMITS = ServingLimits(max_k=50, max_history_items=20, max_rows=6, max_rule_items=15)
NAN = float("nan")

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> mlflow.pyfunc.PyFuncModel:
    """A model without a table of users, so that user ids of any type are answered."""
    root = tmp_path_factory.mktemp("front_door")
    prepared = write_prepared(root / "prepared", ITEMS, HISTORIES)
    (root / "ids").mkdir()
    semantic_ids = write_semantic_ids(root / "ids", ITEMS)
    write_model(root / "model", prepared, semantic_ids, ("item", "codes", "behaviour", "gap", "watch"))
    sources = BundleSources(root / "prepared", root / "ids", root / "model", {"data": "d" * 64, "train": "t" * 64})
    export_bundle(sources, "toy", DecodeConfig(beam_width=12), root / "bundle", LIMITS)
    catalogue = Scorer.open(root / "bundle").catalogue
    import serving.registry.pyfunc_model as code

    mlflow.pyfunc.save_model(
        str(root / "saved"),
        python_model=str(code.__file__),
        artifacts={"bundle": str(root / "bundle")},
        signature=model_signature(catalogue),
        model_config=MODEL_CONFIG,
        pip_requirements=[],
    )
    return mlflow.pyfunc.load_model(str(root / "saved"), model_config={"device": "cpu", "precision": "float32"})


def as_pandas(model: Any, rows: Rows, params: dict[str, Any]) -> pd.DataFrame:
    return model.predict(pd.DataFrame(rows), params=params)


def as_polars(model: Any, rows: Rows, params: dict[str, Any]) -> pd.DataFrame:
    try:
        names = list(dict.fromkeys(name for row in rows for name in row))
        frame = pl.DataFrame([pl.Series(name, [row.get(name) for row in rows], strict=True) for name in names])
    except (TypeError, pl.exceptions.PolarsError, OverflowError):
        pytest.skip("Polars itself cannot hold these values in one column")
    return model.predict(frame, params=params)


def served(model: Any, body: dict[str, Any]) -> pd.DataFrame:
    try:
        text = json.dumps(body)
    except TypeError:
        pytest.skip("JSON itself cannot hold these values")
    answer = invocations(text, "application/json", model, model.metadata.get_input_schema())
    return pd.DataFrame(json.loads(answer.response)["predictions"])


def as_split(model: Any, rows: Rows, params: dict[str, Any]) -> pd.DataFrame:
    names = list(dict.fromkeys(name for row in rows for name in row))
    data = [[row.get(name) for name in names] for row in rows]
    return served(model, {"dataframe_split": {"columns": names, "data": data}, "params": params})


def as_records(model: Any, rows: Rows, params: dict[str, Any]) -> pd.DataFrame:
    return served(model, {"dataframe_records": rows, "params": params})


def as_inputs(model: Any, rows: Rows, params: dict[str, Any]) -> pd.DataFrame:
    return served(model, {"inputs": rows, "params": params})


Dress = Callable[[Any, Rows, dict[str, Any]], pd.DataFrame]
every_dress = pytest.mark.parametrize("dress", [as_pandas, as_polars, as_split, as_records, as_inputs])


def listed(answer: pd.DataFrame) -> list[tuple[Any, ...]]:
    return list(answer[["user_id", "item_id", "rank", "num_unknown_items"]].itertuples(index=False, name=None))


def history(user: Any, *items: int | None, **lists: Any) -> dict[str, Any]:
    return {"user_id": user, "item_ids": [None if item is None else ITEMS[item] for item in items], **lists}


def times(*seconds: float) -> list[int]:
    return [START + int(second * SECOND) for second in seconds]
