"""Requests with objective weights: names become the policy's vector, each row has its own, and what cannot be honoured
is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import polars as pl
import pytest
from pydantic import ValidationError

from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.data.histories import Histories
from recsys.runtime import PlainProgress
from serving.answers.scorer import Scorer
from serving.batch.candidates import write_candidates
from serving.config import AnswerOptions, RecommendConfig
from serving.export.export import BundleSources
from serving.inputs.objectives import objective_weights, row_objectives
from serving.inputs.user_histories import FrameUsers, PreparedUsers
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.conftest import HISTORIES, TOWERS

QUIET = PlainProgress()
LIKES, WATCH = '{"like": 1}', '{"watch_time": 3, "diversity": 1}'


@pytest.fixture(scope="module")
def scorer(steered_bundle: Path) -> Scorer:
    return Scorer.open(steered_bundle)


@pytest.fixture(scope="module")
def histories(steered_sources: BundleSources) -> Histories:
    prepared = Dataset.open(steered_sources.prepared)
    return Histories.from_targets(prepared.history, prepared.all_users())


def frame_of(item_ids: list[int], objectives: list[str | None] | None = None) -> pl.DataFrame:
    frame = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(len(HISTORIES))],
            "item_ids": [[item_ids[item] for item in history] for history in HISTORIES],
        },
        schema_overrides={"item_ids": pl.List(pl.Int64)},
    )
    return frame if objectives is None else frame.with_columns(objective=pl.Series(objectives, dtype=pl.String))


def test_rows_by_hand() -> None:
    """3 : 1 of watch time and diversity is (0, 3/4, 1/4); a row without weights takes the call's (1/2, 1/2, 0)."""
    default = objective_weights({"like": 2, "watch_time": 2}, TOWERS)
    rows = row_objectives(pl.Series([WATCH, None, LIKES, WATCH, ""]), TOWERS, default)
    assert rows.tolist() == [[0, 0.75, 0.25], [0.5, 0.5, 0], [1, 0, 0], [0, 0.75, 0.25], [0.5, 0.5, 0]]
    assert row_objectives(pl.Series([], dtype=pl.String), TOWERS, None).shape == (0, 3)


@pytest.mark.parametrize("second_stage", ["none", "reward"])
@pytest.mark.parametrize("answer", ["items", "sessions"])
def test_every_row_is_answered_as_if_it_were_alone(
    scorer: Scorer, steered_bundle: Path, item_ids: list[int], tmp_path: Path, answer: Any, second_stage: Any
) -> None:
    """A call whose rows have two different objective weights equals two calls; a file of them equals both, however it is
    cut."""
    objectives = [LIKES, WATCH, None, WATCH, LIKES]
    default = {"like": 1.0, "watch_time": 1.0, "diversity": 2.0}
    mixed = scorer.score_frame(frame_of(item_ids, objectives), 4, options=AnswerOptions(answer, second_stage, default))
    alone = []
    for row, objective in enumerate(objectives):
        weights = (
            default
            if objective is None
            else {LIKES: {"like": 5.0}, WATCH: {"watch_time": 0.75, "diversity": 0.25}}[objective]
        )
        alone.append(
            scorer.score_frame(
                frame_of(item_ids)[row : row + 1], 4, options=AnswerOptions(answer, second_stage, weights)
            )
        )
    separate = pl.concat(alone)
    assert mixed.drop("score").equals(separate.drop("score"))
    np.testing.assert_allclose(mixed["score"], separate["score"], rtol=1e-3, atol=1e-4)

    frame_of(item_ids, objectives).write_parquet(tmp_path / "users.parquet")
    config = RecommendConfig(k=4, users_per_shard=2, answer=answer, second_stage=second_stage, objective=default)
    write_candidates(steered_bundle, FrameUsers(tmp_path / "users.parquet"), config, tmp_path / "out", QUIET)
    batch = pl.concat([pl.read_parquet(path) for path in sorted((tmp_path / "out").glob("part-*"))])
    names = [name for name in mixed.columns if name in batch.columns and name != "score"]
    assert batch.select(names).equals(mixed.select(names))


def test_objectives_change_the_answer(scorer: Scorer, item_ids: list[int]) -> None:
    """Of an untrained but not empty policy. Equal weights are no weights, but for who puts the items into order."""

    def answer(objective: dict[str, float] | None, rescore: bool | None = None) -> list[int]:
        rows = scorer.score_frame(frame_of(item_ids), 12, options=AnswerOptions(objective=objective, rescore=rescore))
        return rows["item_id"].to_list()

    likes, watch = answer({"like": 1.0}), answer({"watch_time": 1.0})
    assert likes != watch
    assert answer({"like": 1.0, "watch_time": 1.0, "diversity": 1.0}) == answer(None, rescore=False)
    assert answer(None, rescore=False) not in (likes, watch, answer(None))


def test_histories_take_the_weights_of_the_call(scorer: Scorer, histories: Histories) -> None:
    """Histories of the data take the call's weights; weights that are in them already are not dropped silently."""
    first, second = (
        scorer.score_histories(histories, 6, options=AnswerOptions(objective={tower: 1.0})).items
        for tower in TOWERS[:2]
    )
    assert (first != second).any()
    with pytest.raises(DataError, match="histories carry objective weights already"):
        scorer.score_histories(histories.with_objective(np.eye(3)[0]), 6)


def test_the_dense_head_orders_nothing_that_is_asked_for(
    scorer: Scorer, steered_bundle: Path, item_ids: list[int], tmp_path: Path
) -> None:
    for frame, options in (
        (frame_of(item_ids), AnswerOptions(objective={"like": 1.0}, rescore=True)),
        (frame_of(item_ids, [LIKES] * 5), AnswerOptions(rescore=True)),
    ):
        with pytest.raises(ConfigError, match="the dense head takes none"):
            scorer.score_frame(frame, 3, options=options)
    with pytest.raises(ValidationError, match="the dense head takes none"):
        RecommendConfig(rescore=True, objective={"like": 1.0})
    frame_of(item_ids, [LIKES] * 5).write_parquet(tmp_path / "users.parquet")
    people, config = FrameUsers(tmp_path / "users.parquet"), RecommendConfig(k=2, rescore=True)
    with pytest.raises(ConfigError, match="leave rescore out"):
        write_candidates(steered_bundle, people, config, tmp_path / "out", QUIET)


def test_the_registered_model_takes_objectives_as_text(scorer: Scorer, item_ids: list[int]) -> None:
    model = RecommenderModel()
    model.scorer = scorer
    objectives = [LIKES, None, WATCH, "", None]
    expected = scorer.score_frame(
        frame_of(item_ids, objectives), 3, options=AnswerOptions(objective={"diversity": 1.0})
    )
    pandas = frame_of(item_ids, objectives).to_pandas()
    rows = pl.from_pandas(model.predict(None, pandas, {"k": 3, "objective": '{"diversity": 1}'}))
    assert rows["item_id"].to_list() == expected["item_id"].to_list()
    pandas["objective"] = None  # a signature fills optional columns like this
    plain = scorer.score_frame(frame_of(item_ids), 3)
    without = model.predict(None, pandas, {"k": 3, "objective": ""})
    assert without["item_id"].tolist() == plain["item_id"].to_list()
    assert isinstance(without, pd.DataFrame)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"likes": 1.0}, "'likes' is no tower; the policy was aligned with like, watch_time, diversity; did you mean"),
        ({"like": -1.0}, "the weight of 'like' is -1.0, expected a finite number of at least 0"),
        ({"like": float("nan")}, "the weight of 'like' is nan"),
        ({"like": 0.0}, "gives no tower a weight above 0; name at least one of like, watch_time, diversity"),
        ({}, "gives no tower a weight above 0"),
    ],
)  # fmt: skip
def test_objectives_that_mean_nothing_are_refused(
    scorer: Scorer, histories: Histories, asked: dict[str, float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        scorer.score_histories(histories, 3, options=AnswerOptions(objective=asked))


def test_a_policy_without_towers_refuses_objectives(bundle: Path, sources: BundleSources, tmp_path: Path) -> None:
    config = RecommendConfig(k=2, objective={"like": 1.0})
    with pytest.raises(ConfigError, match="was not aligned with any: it cannot be steered"):
        write_candidates(bundle, PreparedUsers(sources.prepared, "d" * 64), config, tmp_path, QUIET)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("objective", "message"),
    [
        ("likes", "is 'likes', which is no JSON"),
        ('["like"]', "expected a JSON object of numbers"),
        ('{"like": true}', "expected a JSON object of numbers"),
        ('{"follow": 1}', "'follow' is no tower"),
        (None, "is empty for some rows, and the call names no weights for such"),
    ],
)
def test_bad_rows_are_refused_before_anything_is_written(
    steered_bundle: Path, item_ids: list[int], tmp_path: Path, objective: str | None, message: str
) -> None:
    frame_of(item_ids, [LIKES, LIKES, LIKES, LIKES, objective]).write_parquet(tmp_path / "users.parquet")
    people = FrameUsers(tmp_path / "users.parquet")
    with pytest.raises(DataError, match=message):
        write_candidates(steered_bundle, people, RecommendConfig(k=2, users_per_shard=1), tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


def test_a_column_of_numbers_is_no_objective(scorer: Scorer, item_ids: list[int]) -> None:
    with pytest.raises(DataError, match="column 'objective' is Float64, expected JSON text"):
        scorer.score_frame(frame_of(item_ids).with_columns(objective=0.5), 2)


def test_negative_weights_are_no_configuration() -> None:
    with pytest.raises(ValidationError, match="greater than or equal to 0"):
        RecommendConfig(objective={"like": -1.0})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"like": NaN}', "the weight of 'like' is nan, expected a finite number"),
        ('{"like": Infinity}', "the weight of 'like' is inf"),
        ('{"like": -1}', "the weight of 'like' is -1.0"),
        ('{"": 1}', "'' is no tower"),
        ('{"likes": 1}', "did you mean 'like'?"),
        ('{"like": {"like": 1}}', "expected a JSON object of numbers"),
        ('{"like": [1]}', "expected a JSON object of numbers"),
        ('{"like": null}', "expected a JSON object of numbers"),
        ('{"like": "1"}', "expected a JSON object of numbers"),
        ("[1]", "expected a JSON object of numbers"),
        ("like", "which is no JSON"),
        ('{"a":' * 50_000 + "1" + "}" * 50_000, "it is nested too deep"),
        ("{}", "gives no tower a weight above 0"),
    ],
)
def test_texts_that_are_no_weights(scorer: Scorer, item_ids: list[int], text: str, message: str) -> None:
    with pytest.raises(DataError) as refused:
        scorer.score_frame(
            frame_of(item_ids, [text, None, None, None, None]), 2, options=AnswerOptions(objective={"like": 1})
        )
    assert message in str(refused.value)
    assert len(str(refused.value)) < 900
