"""One request by every entrance: what is wrong is refused with the same words everywhere, before anything is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from recsys.contracts.errors import DataError, RecsysError
from recsys.decoding.rules.item_rules import ItemRules
from recsys.runtime import PlainProgress
from serving.answers.scorer import Scorer
from serving.batch.candidates import write_candidates
from serving.config import AnswerOptions, RecommendConfig
from serving.export.export import BundleSources
from serving.inputs.rules.item_rules import listed_rules
from serving.inputs.user_histories import FrameUsers, MappedUsers, PreparedUsers
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.conftest import frame_of

QUIET = PlainProgress()
OPTIONS = ("answer", "second_stage", "objective", "rescore")


def options_of(asked: dict[str, Any]) -> AnswerOptions:
    return AnswerOptions(**{name: asked[name] for name in OPTIONS if name in asked})


def rules_of(scorer: Scorer, asked: dict[str, Any]) -> ItemRules:
    return listed_rules(scorer.catalogue, asked.get("k", 3), asked.get("answer", "items"), deny=asked.get("deny", []))


def by_batch_job(bundle: Path, sources: BundleSources, asked: dict[str, Any], folder: Path) -> None:
    if "deny" in asked:
        (folder / "deny.txt").write_text("\n".join(map(str, asked["deny"])))
        asked = asked | {"deny": folder / "deny.txt"}
    try:
        write_candidates(
            bundle, PreparedUsers(sources.prepared, "d" * 64), RecommendConfig(**asked), folder / "out", QUIET
        )
    finally:
        assert not (folder / "out").exists()


def by_registered_model(bundle: Path, sources: BundleSources, asked: dict[str, Any], folder: Path) -> None:
    model = RecommenderModel()
    model.scorer = Scorer.open(bundle)
    params = asked | ({"objective": json.dumps(asked["objective"])} if "objective" in asked else {})
    model.predict(None, frame_of(model.scorer.catalogue.item_ids.to_list()), params)


def by_frame(bundle: Path, sources: BundleSources, asked: dict[str, Any], folder: Path) -> None:
    scorer = Scorer.open(bundle)
    frame = frame_of(scorer.catalogue.item_ids.to_list())
    scorer.score_frame(frame, asked.get("k", 3), rules_of(scorer, asked), options_of(asked))


def by_gate(bundle: Path, sources: BundleSources, asked: dict[str, Any], folder: Path) -> None:
    """As the gate asks: rows of a prepared data set."""
    scorer, users = Scorer.open(bundle), PreparedUsers(sources.prepared, "d" * 64)
    mapped = MappedUsers(users.map_targets(users.prepared.all_users(), scorer.catalogue))
    scorer.answer(scorer.request(mapped, asked.get("k", 3), rules_of(scorer, asked), options_of(asked)))


ENTRANCES: tuple[Callable[..., None], ...] = (by_batch_job, by_registered_model, by_frame, by_gate)


def message_of(entrance: Callable[..., None], *arguments: Any) -> str:
    with pytest.raises((RecsysError, ValidationError)) as refused:
        entrance(*arguments)
    if isinstance(refused.value, ValidationError):
        (only,) = refused.value.errors()
        return str(only["msg"]).removeprefix("Value error, ")
    return str(refused.value)


@pytest.mark.parametrize(
    ("steered", "asked", "message"),
    [
        (False, {"k": 0}, "k is 0, expected at least 1: the number of items per user"),
        (
            False,
            {"k": 2, "answer": "sessions"},
            "'toy' was trained for the task 'next_item' and generates single items",
        ),
        (False, {"k": 2, "second_stage": "reward"}, "the bundle of 'toy' has no reward model; export it with"),
        (False, {"k": 2, "objective": {"like": 1.0}}, "was not aligned with any: it cannot be steered"),
        (
            True,
            {"k": 2, "objective": {"likes": 1.0}},
            "'likes' is no tower; the policy was aligned with like, watch_time",
        ),
        (True, {"k": 2, "objective": {"like": 0.0}}, "gives no tower a weight above 0"),
        (False, {"k": 2, "deny": [100 + 7 * item for item in range(12)]}, "the item rules together leave no item"),
    ],
)
def test_a_wrong_request_is_refused_with_the_same_words_everywhere(
    bundle: Path,
    sources: BundleSources,
    steered_bundle: Path,
    steered_sources: BundleSources,
    tmp_path: Path,
    steered: bool,
    asked: dict[str, Any],
    message: str,
) -> None:
    world = (steered_bundle, steered_sources) if steered else (bundle, sources)
    messages = {message_of(entrance, *world, asked, tmp_path) for entrance in ENTRANCES}
    assert len(messages) == 1
    assert message in messages.pop()


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"rescore": True, "objective": {"like": 1.0}}, "the dense head takes none and would put items back"),
        (
            {"rescore": False, "second_stage": "reward"},
            "the dense head decides no order with answer: items and second_stage",
        ),
        (
            {"rescore": True, "answer": "sessions"},
            "the dense head decides no order with answer: sessions and second_stage",
        ),
    ],
)
def test_an_order_that_would_not_show_is_refused_with_the_same_words_everywhere(
    steered_bundle: Path, steered_sources: BundleSources, tmp_path: Path, asked: dict[str, Any], message: str
) -> None:
    """The registered model has no such parameter."""
    entrances = (by_batch_job, by_frame, by_gate)
    messages = {message_of(each, steered_bundle, steered_sources, asked, tmp_path) for each in entrances}
    assert len(messages) == 1
    assert message in messages.pop()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"user_id": ["a"]}, "histories lack the column 'item_ids'"),
        ({"user_id": ["a", None], "item_ids": [[107], [107]]}, "user_id is null in 1 of 2 rows"),
        (
            {"user_id": ["a", "a"], "item_ids": [[107], [107]]},
            "user_id 'a' occurs more than once; give one row per user",
        ),
        ({"user_id": ["a"], "item_ids": [[107]], "clicks": [1]}, "column 'clicks', which the model would not read"),
        ({"user_id": ["a"], "item_ids": [107]}, "column 'item_ids' is Int64, expected a list per user"),
    ],
)
def test_wrong_histories_are_refused_with_the_same_words_everywhere(
    bundle: Path, tmp_path: Path, columns: dict[str, list[Any]], message: str
) -> None:
    """In memory, by the registered model, and as a file, whose name comes into the message."""
    frame, path = pl.DataFrame(columns), tmp_path / "users.parquet"
    frame.write_parquet(path)
    model = RecommenderModel()
    model.scorer = Scorer.open(bundle)
    found = []
    for call in (
        lambda: model.scorer.score_frame(frame, 3),
        lambda: model.predict(None, frame, {"k": 3}),
        lambda: FrameUsers(path),
    ):
        with pytest.raises(DataError) as refused:
            call()
        found.append(str(refused.value).replace(f" '{path}'", ""))
    assert found[0] == found[1] == found[2]
    assert message in found[0]


def test_a_request_of_two_users_by_hand(bundle: Path, item_ids: list[int]) -> None:
    """u0 of segment 1 has seen 0 1 2, u1 of segment 0 has seen 3 4; segment 0 has items 0..5, segment 1 items 2, 6 and 7.

    Left to u0 are 6 and 7, so one of three is missing: 3 allowed, 2 unseen, "seen". To u1 are left 0 1 2 5: three of them.
    Asked for u1 alone, as a shard, the answer is the same.
    """
    scorer = Scorer.open(bundle)
    frame = frame_of(item_ids)[:2]
    frame.write_parquet(path := bundle.parent / "two.parquet")
    allow = np.isin(np.arange(12), [0, 1, 2, 3, 4, 5])
    rules = ItemRules(
        np.stack([allow, np.isin(np.arange(12), [2, 6, 7])]), segments=np.array([1, 0]), exclude_seen=True
    )
    request = scorer.request(FrameUsers(path), 3, rules)
    answer = scorer.answer(request)
    assert set(answer.ranked.items[0].tolist()) == {6, 7, -1}
    assert set(answer.ranked.items[1].tolist()) <= {0, 1, 2, 5}
    assert [(short.row, short.allowed, short.unseen, short.reason) for short in answer.short] == [(0, 3, 2, "seen")]
    second = scorer.answer(request, 1, 2)
    assert second.asked.user_ids.to_list() == ["u1"]
    assert second.ranked.items.tolist() == answer.ranked.items[1:].tolist()
    assert second.short == []
    with pytest.raises(DataError, match="segments have shape \\(2,\\), expected \\(5,\\)"):
        scorer.score_frame(frame_of(item_ids), 3, rules)


def test_listed_rules_refuse_ids_of_another_type(bundle: Path) -> None:
    catalogue = Scorer.open(bundle).catalogue
    with pytest.raises(DataError, match="deny is to hold item ids of type Int64, and a value does not"):
        listed_rules(catalogue, 3, "items", deny=["seven"])
    with pytest.raises(RecsysError, match="max_per_category is -1, expected at least 1, or 0 for no limit"):
        listed_rules(catalogue, 3, "items", max_per_category=-1)
