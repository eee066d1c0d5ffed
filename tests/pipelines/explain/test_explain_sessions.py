"""An explanation of sessions says what is served, code by code after the items before it; towers are the reward model's."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipelines.cli.app import main
from pipelines.explain.explain import ExplainedModel, explain
from pipelines.explain.sessions import first_places
from pipelines.explain.text import as_html, as_text
from recsys.decoding.config import DecodeConfig
from recsys.decoding.rules.item_rules import ItemRules
from serving.answers.scorer import Scorer
from serving.config import AnswerOptions, RecommendConfig
from serving.export.export import BundleSources, export_bundle
from serving.inputs.user_histories import PreparedUsers
from tests.serving.conftest import (
    HISTORIES,
    NUM_ITEMS,
    TOWERS,
    write_model,
    write_prepared,
    write_reward_model,
    write_semantic_ids,
)

ITEM_IDS = [100 + 7 * index for index in range(NUM_ITEMS)]
USERS = ("u0", "u1", "u2", "u3", "u4")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> BundleSources:
    """Sessions of two items of twelve, and a reward model."""
    root = tmp_path_factory.mktemp("sessions")
    prepared = write_prepared(root / "prepared", ITEM_IDS, HISTORIES, session_length=2)
    (root / "ids").mkdir()
    ids = write_semantic_ids(root / "ids", ITEM_IDS)
    write_model(root / "model", prepared, ids, ("item", "codes", "behaviour", "user"), TOWERS, 4)
    write_reward_model(root / "reward", prepared, ids)
    digests = {"data": "d" * 64, "train": "t" * 64, "align": "a" * 64, "reward": "r" * 64}
    return BundleSources(root / "prepared", root / "ids", root / "model", digests, root / "reward")


@pytest.fixture(scope="module")
def bundle(sources: BundleSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "sessions"
    export_bundle(sources, "toy", DecodeConfig(beam_width=24), folder)
    return folder


def of(bundle: Path, sources: BundleSources, user: str = "u0", **settings: Any) -> dict[str, Any]:
    config = RecommendConfig.model_validate({"k": 3, "answer": "sessions", **settings})
    users = PreparedUsers(sources.prepared, "d" * 64)
    return explain(ExplainedModel(bundle, "1"), None, lambda: users, user, config)


GUIDED = {"reward_guidance": 50.0}


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"second_stage": "reward"},
        {"objective": {"like": 1.0}},
        GUIDED,
        {"reward_guidance": 2.5, "second_stage": "reward"},
    ],
)
def test_the_sessions_are_those_that_are_served(bundle: Path, sources: BundleSources, options: dict[str, Any]) -> None:
    users = PreparedUsers(sources.prepared, "d" * 64)
    scorer = Scorer.open(bundle)
    ranked = scorer.answer(scorer.request(users, 3, None, AnswerOptions(answer="sessions", **options))).ranked
    for row, user in enumerate(USERS):
        found = of(bundle, sources, user, **options)
        assert [[item["item_id"] for item in one["items"]] for one in found["sessions"]] == [
            [ITEM_IDS[item] for item in session] for session in ranked.items[row].tolist()
        ]
        assert [one["score"] for one in found["sessions"]] == pytest.approx(ranked.scores[row].tolist(), rel=1e-5)


def test_codes_of_all_places_multiply_to_the_path_that_the_search_followed(
    bundle: Path, sources: BundleSources
) -> None:
    """Two items of two codes: four probabilities, whose product is the path of the session and, here, its score."""
    found = of(bundle, sources)
    for number, one in enumerate(found["sessions"], 1):
        items = [item for item in found["items"] if item["session"] == number]
        assert [item["rank"] for item in items] == [1, 2]
        product = math.prod(code["probability"] for item in items for code in item["codes"])
        assert math.log(product) == pytest.approx(one["path_log_prob"], abs=1e-4)
        assert one["stages"]["search"] == pytest.approx(one["path_log_prob"], abs=1e-4)
        assert one["score"] == pytest.approx(one["path_log_prob"], abs=1e-4)
        assert one["stages"]["search_place"] == number


def test_a_guided_search_adds_the_reward_of_both_items_to_the_path(bundle: Path, sources: BundleSources) -> None:
    found, plain = (of(bundle, sources, **options) for options in (GUIDED, {}))
    assert found["model"]["order"] == "path probability and 50 times the reward of each item"
    assert plain["model"]["order"] == "path probability of the whole session"
    scorer = Scorer.open(bundle)
    users = PreparedUsers(sources.prepared, "d" * 64)
    guide = scorer.guided_by(AnswerOptions(answer="sessions", reward_guidance=50.0))
    assert guide is not None
    reward_I = guide(scorer.request(users, 3).shard(0, 1)[0].histories)[0].tolist()
    sums = []
    for number, one in enumerate(found["sessions"], 1):
        assert one["stages"]["search_place"] == number
        assert one["stages"]["search"] == pytest.approx(one["score"], rel=1e-5)
        bonus = sum(reward_I[ITEM_IDS.index(item["item_id"])] for item in one["items"])
        sums.append(one["score"] - one["path_log_prob"] - bonus)
    assert max(sums) - min(sums) < 1e-3, "a constant of the user, which no order depends on"
    assert [one["items"] for one in found["sessions"]] != [one["items"] for one in plain["sessions"]]


def test_items_of_a_guided_search_have_its_scores(bundle: Path, sources: BundleSources) -> None:
    found = of(bundle, sources, answer="items", **GUIDED)
    assert found["model"]["order"] == "path probability and 50 times the reward of each item"
    for place, one in enumerate(found["items"], 1):
        assert one["stages"]["guided"] == pytest.approx(one["score"], rel=1e-5)
        assert one["stages"]["guided_place"] == place
    plain = of(bundle, sources, answer="items", rescore=False)
    assert [one["item_id"] for one in plain["items"]] != [one["item_id"] for one in found["items"]]
    assert all("guided" not in one["stages"] for one in plain["items"])


def test_the_second_item_is_asked_after_the_first(bundle: Path, sources: BundleSources) -> None:
    """The same item at the second place has another probability after another first item."""
    found = of(bundle, sources, k=24, exclude_seen=False)
    by_item: dict[int, set[float]] = {}
    for item in found["items"]:
        if item["rank"] == 2:
            by_item.setdefault(item["item_id"], set()).add(round(item["path_log_prob"], 4))
    assert any(len(values) > 1 for values in by_item.values())


def test_towers_and_reward_are_those_of_the_reward_model(bundle: Path, sources: BundleSources) -> None:
    found = of(bundle, sources, "u1", second_stage="reward")
    assert found["model"]["order"] == "reward model"
    users = PreparedUsers(sources.prepared, "d" * 64)
    scorer = Scorer.open(bundle)
    request = scorer.request(users, 3)
    histories = request.shard(1, 2)[0].histories
    every, _ = scorer.recommender.generate(histories, 24, scorer.recommender.compile(ItemRules(exclude_seen=True), 1))
    assert scorer.reward_model is not None
    of_all = scorer.reward_model.reward(histories, torch.from_numpy(every))[0].tolist()
    values = scorer.reward_model.values(histories, torch.from_numpy(every))[0]
    for one in found["sessions"]:
        place = one["stages"]["search_place"] - 1
        assert [ITEM_IDS[item] for item in every[0, place]] == [item["item_id"] for item in one["items"]]
        assert one["score"] == pytest.approx(of_all[place], rel=1e-4)
        assert one["stages"]["reward"] == pytest.approx(of_all[place], rel=1e-4)
        towers = [one["stages"][f"reward {name}"] for name in scorer.reward_model.towers]
        assert towers == pytest.approx(values[place].tolist(), rel=1e-4)
        assert one["stages"]["search"] == pytest.approx(one["path_log_prob"], abs=1e-4)
    rewards = [one["score"] for one in found["sessions"]]
    assert np.all(np.diff(rewards) <= 1e-6)


def test_what_rules_took_is_named(bundle: Path, sources: BundleSources, tmp_path: Path) -> None:
    """u0 has seen three of twelve items; the first item of the best session is denied: eight are left, and it is named."""
    best = of(bundle, sources)["sessions"][0]["items"][0]["item_id"]
    (tmp_path / "deny.txt").write_text(f"{best}\n")
    found = of(bundle, sources, deny=tmp_path / "deny.txt", k=10)
    assert found["rules"]["removed"] == {"deny": 1, "seen": 3}
    assert found["rules"]["left"] == 8
    assert best not in {item["item_id"] for item in found["items"]}
    by = {item["item_id"]: item["by"] for item in found["rules"]["best_items_lost"]}
    assert by[best] == ["deny"]
    assert all(by[ITEM_IDS[item]] == ["seen"] for item in (0, 1, 2) if ITEM_IDS[item] in by)


def test_text_and_page_and_another_model_beside_it(bundle: Path, sources: BundleSources) -> None:
    users = PreparedUsers(sources.prepared, "d" * 64)
    models = ExplainedModel(bundle, "1"), ExplainedModel(bundle, "2")
    found = explain(*models, lambda: users, "u2", RecommendConfig(k=3, answer="sessions", second_stage="reward"))
    text, page = as_text(found), as_html(found)
    for heading in ("session.place", "Scores of every stage", "reward", "Against 2", "Neighbours by prefix", "Rules"):
        assert heading in text
        assert heading in page
    assert "gives 3 sessions" in page
    assert "3.2" in text  # the second place of the third session
    for row in found["compared"]:
        assert row["rank"] == row["rank_against"] is not None
    shown = {item["item_id"] for item in found["items"]}
    assert {row["item_id"] for row in found["compared"]} == shown
    assert len(found["compared"]) == len(shown)
    (first,) = {item["rank"] for item in first_places(found) if item["item_id"] == found["items"][0]["item_id"]}
    assert first == 1


def test_the_command(bundle: Path, sources: BundleSources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "u0.html"
    common = ["explain", "--model", str(bundle), "--users", str(sources.prepared), "--user", "u0", "--k", "2"]
    with pytest.raises(SystemExit) as end:
        main([*common, "--json", "--html", str(page), "answer=sessions"])
    assert end.value.code == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["sessions"]) == 2
    assert len(found["items"]) == 4
    assert "gives 2 sessions" in page.read_text()


def test_nobody_has_a_session_where_nothing_is_allowed(bundle: Path, sources: BundleSources, tmp_path: Path) -> None:
    """One item is allowed, and a session shows two different ones."""
    (tmp_path / "allow.txt").write_text(f"{ITEM_IDS[9]}\n")
    found = of(bundle, sources, allow=tmp_path / "allow.txt")
    assert found["sessions"] == found["items"] == []
    assert "gives 0 sessions" in as_html(found)
    assert "1 of 12 items are left" in as_text(found)
