"""An explanation says what is served, and its parts add up: codes to paths, rules to what is missing, terms to scores."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from pipelines.cli.app import main
from pipelines.explain.explain import ExplainedModel, explain, find_user
from pipelines.explain.text import as_html, as_text
from pipelines.explain.trace import side_by_side
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ConfigError, DataError
from recsys.decoding.config import DecodeConfig
from recsys.model.checkpoint import load_policy
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.scorer import Scorer
from serving.config import RecommendConfig
from serving.export.export import BundleSources, export_bundle
from serving.inputs.user_histories import PreparedUsers
from tests.serving.conftest import HISTORIES, LEVEL_SIZES, NUM_ITEMS, write_model, write_prepared, write_semantic_ids
from tests.toy.ranker import write_second_stage

ITEM_IDS = [100 + 7 * index for index in range(NUM_ITEMS)]


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> BundleSources:
    root = tmp_path_factory.mktemp("toy")
    prepared = write_prepared(root / "prepared", ITEM_IDS, HISTORIES)
    (root / "ids").mkdir()
    ids = write_semantic_ids(root / "ids", ITEM_IDS)
    write_model(root / "model", prepared, ids, ("item", "codes", "behaviour", "gap", "watch", "user"))
    return BundleSources(root / "prepared", root / "ids", root / "model", {"data": "d" * 64, "train": "t" * 64})


@pytest.fixture(scope="module")
def plain(sources: BundleSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "plain"
    export_bundle(sources, "toy", DecodeConfig(beam_width=12, rescore="none"), folder)
    return folder


@pytest.fixture(scope="module")
def ranked(sources: BundleSources, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("ranked")
    ids = SemanticIds.load(sources.semantic_ids)
    write_second_stage(root / "ranker", Dataset.open(sources.prepared), load_policy(sources.model), ids)
    with_ranker = replace(sources, digests={**sources.digests, "rank": "k" * 64}, ranker=root / "ranker")
    export_bundle(with_ranker, "toy", DecodeConfig(beam_width=12), root / "bundle")
    return root / "bundle"


HOSTILE = 'Ali\x1b[2J</td><script>alert(1)</script>\n\u202e" onmouseover="x'


def test_titles_and_ids_of_somebody_else_stay_text(plain: Path, sources: BundleSources) -> None:
    """No tag in the page, no line, no command to the terminal and no turned direction in the text."""
    found = of(plain, sources)
    for item in found["items"]:
        item["title"] = HOSTILE
        item["neighbours"]["items"] = [{"item_id": HOSTILE, "title": None}]
    found["user_id"] = HOSTILE
    text, html = as_text(found), as_html(found)
    for shown in (text, html):
        assert not set(shown) & set("\x1b\u202e\u2066")
        assert "Ali" in shown
    assert len(text.splitlines()) == len(as_text(of(plain, sources)).splitlines())
    assert "<script" not in html
    assert '" onmouseover' not in html


def of(bundle: Path, sources: BundleSources, user: str = "u0", **settings: Any) -> dict[str, Any]:
    config = RecommendConfig.model_validate({"k": 5, **settings})
    users = PreparedUsers(sources.prepared, "d" * 64)
    return explain(ExplainedModel(bundle, "1"), None, lambda: users, user, config)


def test_codes_multiply_to_the_path_that_the_search_followed(plain: Path, sources: BundleSources) -> None:
    """Two levels: the logarithms of both probabilities sum to the beam's score, which is the served one here."""
    found = of(plain, sources)
    assert [item["rank"] for item in found["items"]] == [1, 2, 3, 4, 5]
    for item in found["items"]:
        product = math.prod(code["probability"] for code in item["codes"])
        assert math.log(product) == pytest.approx(item["path_log_prob"], abs=1e-4)
        assert item["stages"]["beam"] == pytest.approx(item["path_log_prob"], abs=1e-4)
        assert item["score"] == pytest.approx(item["path_log_prob"], abs=1e-4)
        assert item["stages"]["beam_place"] == item["rank"]
        place = ITEM_IDS.index(item["item_id"])
        assert [code["code"] for code in item["codes"]] == [place // LEVEL_SIZES[1], place % LEVEL_SIZES[1]]


def test_the_list_is_the_one_that_is_served(ranked: Path, sources: BundleSources) -> None:
    users = PreparedUsers(sources.prepared, "d" * 64)
    scorer = Scorer.open(ranked)
    answer = scorer.answer(scorer.request(users, 5)).ranked
    for row, user in enumerate(("u0", "u1", "u2", "u3", "u4")):
        found = of(ranked, sources, user)
        assert [item["item_id"] for item in found["items"]] == [ITEM_IDS[item] for item in answer.items[row]]
        assert [item["score"] for item in found["items"]] == answer.scores[row].tolist()


def test_the_terms_of_the_ranker_are_those_of_its_score(ranked: Path, sources: BundleSources) -> None:
    """Where a learned order is served, the score is the ranker's and every item has terms and sources."""
    found = of(ranked, sources)
    assert found["model"]["order"].startswith("ranker")
    for item in found["items"]:
        stages = item["stages"]
        assert stages["sources"]
        assert {"beam", "guided", "dense", "fused"} <= stages.keys()
        if "ranker" in stages:
            assert stages["ranker"] == pytest.approx(item["score"], abs=1e-5)
            assert stages["ranker_terms"][0]["feature"]


def test_what_rules_took_is_named(plain: Path, sources: BundleSources, tmp_path: Path) -> None:
    """u0 has seen items 0, 1 and 2; the best item that is left is denied: 12 - 3 - 1 = 8 stay, and its absence is named."""
    best = of(plain, sources)["items"][0]["item_id"]
    (tmp_path / "deny.txt").write_text(f"{best}\n")
    rules = of(plain, sources, deny=tmp_path / "deny.txt")["rules"]
    assert (rules["catalogue"], rules["left"]) == (12, 8)
    assert rules["removed"] == {"deny": 1, "seen": 3}
    by = {item["item_id"]: item["by"] for item in rules["best_items_lost"]}
    assert by[best] == ["deny"]
    assert all(by[ITEM_IDS[item]] == ["seen"] for item in (0, 1, 2) if ITEM_IDS[item] in by)


def test_segments_have_their_own_mask(plain: Path, sources: BundleSources, tmp_path: Path) -> None:
    """`eu` may have items 9, 10 and 11 alone; u0 belongs to it."""
    (tmp_path / "segments.csv").write_text("user_id,segment\n" + "".join(f"u{user},eu\n" for user in range(5)))
    listed = "".join(f"eu,{ITEM_IDS[item]},allow\n" for item in (9, 10, 11))
    (tmp_path / "rules.csv").write_text("segment,item_id,rule\n" + listed)
    files = {"segments": tmp_path / "segments.csv", "segment_rules": tmp_path / "rules.csv"}
    found = of(plain, sources, **files)
    assert {item["item_id"] for item in found["items"]} == {ITEM_IDS[item] for item in (9, 10, 11)}
    assert found["rules"]["removed"] == {"segment": 9, "seen": 3}
    assert found["rules"]["left"] == 3


def test_neighbours_share_the_longest_prefix(plain: Path, sources: BundleSources) -> None:
    """Codes are (place // 4, place % 4): an item shares its first code with the three others of its four."""
    for item in of(plain, sources)["items"]:
        place = ITEM_IDS.index(item["item_id"])
        family = [ITEM_IDS[4 * (place // 4) + other] for other in range(4) if other != place % 4]
        assert item["neighbours"]["shared_codes"] == 1
        assert [other["item_id"] for other in item["neighbours"]["items"]] == family


def test_the_history_is_shown_newest_first(plain: Path, sources: BundleSources) -> None:
    history = of(plain, sources, "u3")["history"]
    assert history["events"] == 4
    assert [item["item_id"] for item in history["newest"]] == [ITEM_IDS[item] for item in (9, 8, 7, 6)]
    assert history["newest"][0]["title"] == f"item {ITEM_IDS[9]}"
    assert of(plain, sources, "u4")["history"]["newest"] == []


def test_two_models_side_by_side(plain: Path, ranked: Path, sources: BundleSources) -> None:
    users = PreparedUsers(sources.prepared, "d" * 64)
    models = ExplainedModel(plain, "1"), ExplainedModel(ranked, "2")
    found = explain(*models, lambda: users, "u1", RecommendConfig(k=4))
    ours, theirs = found["items"], found["against"]["items"]
    assert found["compared"] == side_by_side(ours, theirs)
    for row in found["compared"]:
        assert (row["rank"] is None) == (row["item_id"] not in [item["item_id"] for item in ours])
        assert (row["rank_against"] is None) == (row["item_id"] not in [item["item_id"] for item in theirs])
    text, page = as_text(found), as_html(found)
    for part, item in itertools.product((text, page), ours):
        assert str(item["item_id"]) in part
    assert "Against 2" in text
    assert page.startswith("<!DOCTYPE html>")
    assert "http" not in page


def test_titles_cannot_break_the_page(plain: Path, sources: BundleSources) -> None:
    found = of(plain, sources)
    found["items"][0]["title"] = "<script>alert(1)</script>"
    assert "<script>alert" not in as_html(found)


def test_an_unknown_user_and_sessions_of_a_model_of_items_are_refused(plain: Path, sources: BundleSources) -> None:
    with pytest.raises(DataError, match=r"'u9' is not among the 5 users; the nearest ids are 'u4'|nearest ids are"):
        of(plain, sources, "u9")
    assert find_user(pl.Series([30, 7]), "7") == 1
    with pytest.raises(DataError, match="there are no users"):
        find_user(pl.Series([], dtype=pl.Int64), "7")
    users = PreparedUsers(sources.prepared, "d" * 64)
    with pytest.raises(ConfigError, match="session"):
        explain(ExplainedModel(plain, "1"), None, lambda: users, "u0", RecommendConfig(answer="sessions"))


def test_the_command(plain: Path, sources: BundleSources, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "new" / "u0.html"
    common = ["explain", "--model", str(plain), "--users", str(sources.prepared)]

    def call(*more: str) -> int:
        with pytest.raises(SystemExit) as end:
            main([*common, *more])
        assert isinstance(end.value.code, int)
        return end.value.code

    assert call("--user", "u0", "--k", "3", "--json", "--html", str(page)) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["items"]) == 3
    assert "User u0" in page.read_text()
    assert call("--user", "u0", "--json", "k=2") == 0
    assert len(json.loads(capsys.readouterr().out)["items"]) == 2, "as the job would answer"
    assert call("--user", "u0", "--against", str(plain)) == 0
    assert "Neighbours by prefix" in capsys.readouterr().out
    assert call("--user", "nobody") == 3
    assert "is not among the 5 users" in capsys.readouterr().err
    assert call("--user", "u0", "--against", "2") == 2
    assert "without --config" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["explain", "--user", "u0"])
    assert "give --config, or both" in capsys.readouterr().err


def test_probabilities_of_a_level_sum_to_one(plain: Path, sources: BundleSources) -> None:
    """All twelve items of a catalogue with every path used: the probabilities of their paths sum to 1."""
    found = of(plain, sources, k=12, exclude_seen=False)
    total = sum(math.exp(item["path_log_prob"]) for item in found["items"])
    assert total == pytest.approx(1.0, abs=1e-4)


def test_before_the_first_run_nothing_is_explained_and_nothing_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = Path(__file__).parents[3] / "pipelines" / "recipes" / "demo.yaml"
    with pytest.raises(SystemExit) as ended:
        main(["explain", "--config", str(recipe), "--user", "1", f"output_dir={tmp_path / 'run'}"])
    assert ended.value.code == 2
    assert "so that nothing was registered there; name the mlflow.db of a run, or run first" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.db*"))
