"""Parameters of the registered model: out of range, of another type, of another name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
import polars as pl
import pytest
from mlflow.exceptions import MlflowException

from recsys.contracts.errors import ConfigError, RecsysError
from recsys.device import AskedPlacement, asked_placement
from serving.answers.scorer import Scorer
from serving.registry.model_registry import _examined_on_cpu
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.conftest import sealed
from tests.serving.registry.conftest import (
    ITEMS,
    NAN,
    Dress,
    as_pandas,
    every_dress,
    history,
    listed,
    times,
)


@every_dress
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k": 0}, "k is 0, expected at least 1"),
        ({"k": -1}, "k is -1, expected at least 1"),
        ({"k": 51}, "k is 51, the bundle of 'toy' answers with at most 50 per user"),
        ({"k": 10**9}, "k is 1000000000, the bundle of 'toy' answers with at most 50"),
        ({"k": 10**30}, "answers with at most 50"),
        ({"k": None}, "k is None, expected a whole number"),
        ({"exclude_seen": None}, "exclude_seen is None, expected true or false"),
        ({"max_per_category": -1}, "max_per_category is -1, expected at least 1, or 0 for no limit"),
        ({"answer": "lists"}, "answer is 'lists', expected one of items, sessions"),
        ({"answer": "sessions"}, "generates single items"),
        ({"second_stage": "best"}, "second_stage is 'best'"),
        ({"objective": "{" * 3}, "which is no JSON"),
        ({"objective": "[" * 100_000 + "]" * 100_000}, "nested too deep"),
        ({"objective": '{"like": {"more": 1}}'}, "expected a JSON object of numbers"),
        ({"objective": '{"like": true}'}, "expected a JSON object of numbers"),
        ({"objective": '{"like": 1}'}, "it cannot be steered"),
        ({"objective": '{"like": ' + "9" * 400 + "}"}, "a number that is too large"),
        ({"deny": [None]}, "deny holds 1 values that are null"),
        ({"deny": list(range(16))}, "deny lists 16 items, at most 15 are taken in one call"),
        ({"deny": ITEMS}, "the item rules together leave no item"),
        ({"allow": [1, 2]}, "the item rules together leave no item"),
        ({"timestamp_unit": "minutes"}, "timestamp_unit is 'minutes', expected one of s, ms, us, ns"),
    ],
)
def test_parameters_out_of_range_are_refused(loaded: Any, dress: Dress, params: dict[str, Any], message: str) -> None:
    with pytest.raises(RecsysError) as refused:
        dress(loaded, [history(1, 0)], params)
    assert message in str(refused.value)


@every_dress
@pytest.mark.parametrize(
    "params", [{"k": 1.5}, {"k": "5"}, {"k": True}, {"deny": ["107"]}, {"exclude_seen": 1}, {"k": [3]}]
)
def test_parameters_of_another_type_are_refused_by_mlflow_itself(
    loaded: Any, dress: Dress, params: dict[str, Any]
) -> None:
    (name,) = params
    with pytest.raises(MlflowException, match=f"Invalid parameters found.*{name}"):
        dress(loaded, [history(1, 0)], params)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"k": 1.5}, "k is 1.5, expected a whole number"),
        ({"k": "5"}, "k is '5', expected a whole number"),
        ({"k": True}, "k is True, expected a whole number"),
        ({"k": NAN}, "k is nan, expected a whole number"),
        ({"exclude_seen": "no"}, "exclude_seen is 'no', expected true or false"),
        ({"deny": "107"}, "deny is '107', expected a list of item ids"),
        ({"deny": [True]}, "deny are Boolean, expected integers or text"),
        ({"deny": ["107"]}, "deny is to hold item ids of type Int64"),
        ({"deny": [107, "114"]}, "deny mixes types"),
        ({"answer": 3}, "answer is 3, expected a text"),
        ({"objective": {"like": True}}, "cannot be steered"),
        ({"kk": 3}, "parameter 'kk' is unknown; did you mean 'k'?"),
        ({"max_per_author": 1}, "parameter 'max_per_author' is unknown; did you mean 'max_per_category'?"),
        ({"exclude-seen": True}, "did you mean 'exclude_seen'?"),
        ([("k", 3)], "parameters are [('k', 3)], expected a mapping of names to values"),
        ({"temperature": 1.0}, "parameter 'temperature' is unknown; there are k, exclude_seen"),
    ],
)
def test_without_mlflow_in_between_types_and_names_are_checked_as_well(
    loaded: Any, params: dict[str, Any], message: str
) -> None:
    model = RecommenderModel()
    model.scorer = loaded.unwrap_python_model().scorer
    with pytest.raises(ConfigError if "deny" not in params else RecsysError) as refused:
        model.predict(None, pd.DataFrame([history(1, 0)]), params)  # type: ignore[arg-type]  # the context is not read
    assert message in str(refused.value)


@every_dress
@pytest.mark.parametrize("unit", ["s", "ms", "ns"])
def test_a_declared_unit_is_read(loaded: Any, dress: Dress, unit: str) -> None:
    scale = {"s": 1e-6, "ms": 1e-3, "ns": 1000}[unit]
    rows = [history(1, 0, 1, timestamps=[int(time * scale) for time in times(0, 9)])]
    found = dress(loaded, rows, {"k": 4, "timestamp_unit": unit})
    assert listed(found) == listed(as_pandas(loaded, [history(1, 0, 1, timestamps=times(0, 9))], {"k": 4}))


def test_whoever_loads_the_model_says_where_and_in_which_numbers(
    loaded: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By the model configuration, by the environment; a wrong word and a device that is not there are refused."""
    place = loaded._model_impl.context.artifacts["bundle"].rpartition("/artifacts/")[0]

    def opened(**config: str) -> RecommenderModel:
        return mlflow.pyfunc.load_model(place, model_config=config).unwrap_python_model()

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with caplog.at_level("INFO", "recsys.serving"):
        assert opened(precision="int8").scorer.recommender.config.precision == "int8"
    assert "toy answers on cpu, int8 (device: auto, and torch sees no CUDA device on this machine)" in caplog.text
    monkeypatch.setenv("RECSYS_PRECISION", "int8")
    assert opened(device="cpu").scorer.recommender.config.precision == "int8"
    assert opened(device="cpu", precision="float32").scorer.recommender.config.precision == "float32"
    with pytest.raises(ConfigError, match="device is 'cuda:1', and torch sees no CUDA device"):
        opened(device="cuda:1")
    with pytest.raises(ConfigError, match=r"decode\.precision is bfloat16, which needs a GPU"):
        opened(precision="bfloat16")
    monkeypatch.setenv("RECSYS_DEVICE", "gpu")
    with pytest.raises(ConfigError, match="RECSYS_DEVICE is 'gpu'"):
        opened()


def test_a_bundle_for_a_gpu_is_opened_on_a_cpu_where_it_is_logged_and_where_it_is_told(
    loaded: mlflow.pyfunc.PyFuncModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exported with a recorded search in bfloat16, it answers on a CPU in float32, with the items of the plain search."""
    bundle = shutil.copytree(loaded._model_impl.context.artifacts["bundle"], tmp_path / "bundle")
    decode = json.loads((bundle / "decode.json").read_text())
    (bundle / "decode.json").write_text(json.dumps(decode | {"cuda_graph": True, "precision": "bfloat16"}))
    sealed(bundle)
    with pytest.raises(ConfigError, match="needs a GPU"):
        Scorer.open(bundle)
    monkeypatch.setenv("RECSYS_DEVICE", "cuda:5")
    monkeypatch.delenv("RECSYS_PRECISION", raising=False)
    with _examined_on_cpu():
        asked = asked_placement()
    assert asked == AskedPlacement("cpu", "float32")
    assert asked_placement() == AskedPlacement("cuda:5")
    scorer = Scorer.open(bundle, asked.device, asked.precision)
    assert not scorer.recommender.config.cuda_graph
    frame = pl.DataFrame({"user_id": ["7"], "item_ids": [ITEMS[:2]]})
    assert scorer.score_frame(frame, 5).equals(loaded.unwrap_python_model().scorer.score_frame(frame, 5))


def test_batches_of_a_partition_answer_like_one_table(loaded: Any) -> None:
    """What Spark's ``mapInPandas`` calls: a function from an iterator of frames to one, here without Spark."""

    def answered(batches: Iterator[pd.DataFrame]) -> Iterator[pd.DataFrame]:
        for batch in batches:
            yield loaded.predict(batch, {"k": 3})

    users = pd.DataFrame([history(user, user % 3) for user in range(1, 6)])
    parts = list(answered(users.iloc[first : first + 2].reset_index(drop=True) for first in range(0, 5, 2)))
    whole = loaded.predict(users, {"k": 3})
    assert [part["user_id"].nunique() for part in parts] == [2, 2, 1]
    pd.testing.assert_frame_equal(pd.concat(parts, ignore_index=True), whole)
