"""Whole sessions: hand-worked rows and reasons, every rule inside each session, one answer by every way of asking."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from recsys.contracts.errors import ConfigError
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.model.checkpoint import load_policy
from recsys.runtime import PlainProgress
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.frame import Answer, answer_frame
from serving.answers.scorer import Scorer
from serving.answers.sessions import RankedSessions, explain_short_sessions
from serving.batch.candidates import write_candidates
from serving.batch.shards import SESSION_COLUMNS
from serving.config import AnswerOptions, RecommendConfig
from serving.export.export import BundleSources
from serving.inputs.history_frame import MappedHistories
from serving.inputs.user_histories import FrameUsers, PreparedUsers
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.conftest import HISTORIES

QUIET = PlainProgress()
SESSIONS = AnswerOptions(answer="sessions")


def rows_of(folder: Path, pattern: str = "part-*.parquet") -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob(pattern))])


def test_rows_by_hand() -> None:
    """Item ids are 100, 107, 114. User a has the sessions (2, 0) and (1, 2), user b only (0, 1): 4 + 2 rows."""
    ranked = RankedSessions(
        np.array([[[2, 0], [1, 2]], [[0, 1], [-1, -1]]]), np.array([[-1.0, -2.0], [-0.5, -np.inf]], np.float32)
    )
    no_events = Histories(*(np.zeros(2, np.int64) for _ in range(3)), *(np.zeros(0, np.uint8) for _ in range(4)))
    asked = MappedHistories(pl.Series(["a", "b"]), no_events, np.array([0, 3], np.int32))
    rows = answer_frame(Answer(asked, ranked, []), pl.Series([100, 107, 114]))
    assert rows.columns == ["user_id", "session_rank", "place", "item_id", "score", "num_unknown_items"]
    assert rows["num_unknown_items"].to_list() == [0, 0, 0, 0, 3, 3]
    rows = rows.drop("num_unknown_items")
    assert rows.rows() == [
        ("a", 1, 1, 114, -1.0),
        ("a", 1, 2, 100, -1.0),
        ("a", 2, 1, 107, -2.0),
        ("a", 2, 2, 114, -2.0),
        ("b", 1, 1, 100, -0.5),
        ("b", 1, 2, 107, -0.5),
    ]


def test_batch_frame_registered_model_and_recommender_agree(
    scorer: Scorer,
    steered_bundle: Path,
    steered_sources: BundleSources,
    users: PreparedUsers,
    histories: Histories,
    item_ids: list[int],
    tmp_path: Path,
) -> None:
    ids = SemanticIds.load(steered_sources.semantic_ids)
    trained = Recommender(load_policy(steered_sources.model), ids, DecodeConfig(beam_width=24))
    items, scores = trained.recommend_sessions(histories, 4, exclude_seen=True)
    counts = write_candidates(
        steered_bundle, users, RecommendConfig(k=4, users_per_shard=2, answer="sessions"), tmp_path / "out", QUIET
    )
    batch = rows_of(tmp_path / "out")
    assert batch.columns == list(SESSION_COLUMNS)
    assert (counts["users"], counts["rows"], counts["users_short"], counts["short_by_beam"]) == (5, 5 * 4 * 2, 0, 0)
    expected = np.array(item_ids)[items]
    assert batch["item_id"].to_list() == expected.flatten().tolist()
    assert batch["session_rank"].to_list() == [1, 1, 2, 2, 3, 3, 4, 4] * 5
    assert batch["place"].to_list() == [1, 2] * 20
    np.testing.assert_allclose(batch["score"], np.repeat(scores, 2), rtol=1e-4)
    frame = pl.DataFrame(
        {
            "user_id": [f"u{user}" for user in range(len(HISTORIES))],
            "item_ids": [[item_ids[item] for item in history] for history in HISTORIES],
            "behaviours": [[1] * len(history) for history in HISTORIES],
        },
        schema_overrides={"item_ids": pl.List(pl.Int64), "behaviours": pl.List(pl.Int64)},
    )
    frame.write_parquet(tmp_path / "users.parquet")
    config = RecommendConfig(k=4, users_per_shard=3, answer="sessions")
    write_candidates(steered_bundle, FrameUsers(tmp_path / "users.parquet"), config, tmp_path / "by_file", QUIET)
    model = RecommenderModel()
    model.scorer = scorer
    by_model = pl.from_pandas(model.predict(None, frame, {"k": 4, "answer": "sessions"}))
    names = ["user_id", "session_rank", "place", "item_id"]
    assert batch.select(names).rows() == rows_of(tmp_path / "by_file").select(names).rows()
    assert batch.select(names).rows() == by_model.select(names).rows()


def test_rules_hold_inside_every_session(
    steered_bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path
) -> None:
    """Nothing seen, nothing denied, nothing twice; with one item per category the two are of different categories."""
    (tmp_path / "deny.txt").write_text(f"{item_ids[4]}\n{item_ids[8]}\n")
    config = RecommendConfig(k=6, answer="sessions", deny=tmp_path / "deny.txt", max_per_category=1)
    write_candidates(steered_bundle, users, config, tmp_path / "out", QUIET)
    sessions = rows_of(tmp_path / "out").group_by("user_id", "session_rank", maintain_order=True).agg("item_id")
    assert len(sessions) == 30
    for user, _, items in sessions.rows():
        index = [item_ids.index(item) for item in items]
        assert not set(index) & {4, 8, *HISTORIES[int(user[1:])]}
        assert len({item // 4 for item in index}) == 2


def test_reasons_by_hand(steered_bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path) -> None:
    """Allowed are items 0, 1, 2, 5: 4 * 3 = 12 sessions of two for whoever has seen none of them; ten are asked.

    u0 has seen 0 1 2, so one item and no session is left; u2 has seen 5, which leaves 3 * 2 = 6: both "seen". The others
    get ten. Of 2 allowed items nobody can make more than 2 sessions: "rules". One item per category leaves the pairs of
    5 with 0, 1 or 2 in either order, at most 6 sessions: u1 "quotas".
    """
    (tmp_path / "four.txt").write_text("\n".join(str(item_ids[item]) for item in (0, 1, 2, 5)))
    asked = {"k": 10, "answer": "sessions", "users_per_shard": 5}
    config = RecommendConfig(**asked, allow=tmp_path / "four.txt")
    counts = write_candidates(steered_bundle, users, config, tmp_path / "seen", QUIET)
    assert rows_of(tmp_path / "seen", "short*").rows() == [("u0", 10, 0, 4, 1, "seen"), ("u2", 10, 6, 4, 3, "seen")]
    assert (counts["users_without_items"], counts["rows"]) == (1, 2 * (6 + 3 * 10))
    assert [counts[f"short_by_{reason}"] for reason in ("rules", "seen", "quotas", "beam")] == [0, 2, 0, 0]
    (tmp_path / "two.txt").write_text(f"{item_ids[10]}\n{item_ids[11]}")
    counts = write_candidates(
        steered_bundle, users, RecommendConfig(**asked, allow=tmp_path / "two.txt"), tmp_path / "rules", QUIET
    )
    assert (counts["short_by_rules"], counts["rows"]) == (5, 5 * 2 * 2)
    limited = config.model_copy(update={"max_per_category": 1})
    write_candidates(steered_bundle, users, limited, tmp_path / "quotas", QUIET)
    short = rows_of(tmp_path / "quotas", "short*").filter(pl.col("user_id") == "u1").row(0, named=True)
    assert (short["wanted"], short["allowed"], short["unseen"], short["reason"]) == (10, 4, 4, "quotas")
    assert short["found"] == 6


def test_a_narrow_beam_is_named(steered_sources: BundleSources, histories: Histories) -> None:
    """One beam after the first item can go on in at most 11 ways, fewer than the 20 sessions asked: reason "beam"."""
    ids = SemanticIds.load(steered_sources.semantic_ids)
    config = DecodeConfig(beam_width=1)
    recommender = Recommender(load_policy(steered_sources.model), ids, config)
    one = histories.take(np.array([4]))
    items = np.full((1, 20, 2), -1)
    items[:, :1], scores = recommender.recommend_sessions(one, 1)
    short = explain_short_sessions(one, RankedSessions(items, scores), recommender.compile(None, 1))
    assert [(each.found, each.allowed, each.reason) for each in short] == [(1, 12, "beam")]


def test_segments_and_masks_explain_by_user(scorer: Scorer, histories: Histories) -> None:
    """Segment 0 has items 0..3, segment 1 all twelve; six sessions found. u1 of segment 0 has seen 3: 3 * 2 = 6 of 10."""
    allow = np.stack([np.arange(12) < 4, np.ones(12, bool)])
    two, scores = histories.take(np.array([1, 2])), np.zeros((2, 10), np.float32)
    six = np.full((2, 10, 2), -1)
    six[:, :6] = 0

    def explain(groups: int, limit: int, exclude_seen: bool) -> list[tuple[int, str]]:
        quotas = Quotas.from_groups(np.arange(12) % 4 * groups, limit)
        rules = ItemRules(allow, None, np.array([0, 1]), quotas)
        compiled = scorer.recommender.compile(rules, 2, exclude_seen)
        return [
            (each.unseen, each.reason) for each in explain_short_sessions(two, RankedSessions(six, scores), compiled)
        ]

    assert explain(0, 1, True) == [(3, "seen"), (11, "beam")]  # no group, no limit: 11 * 10 sessions were possible
    assert explain(0, 1, False) == [(4, "beam"), (12, "beam")]
    # items 0 4 8 have no group, the others limits of one per group; of 1 2 3 and of 1 2 3 5 6 7 9 10 11 two at most
    assert explain(1, 1, True) == [(3, "seen"), (11, "beam")]
    assert explain(1, 0, True) == [(3, "quotas"), (11, "quotas")]  # only items without a group: 0, and 0 4 8


def test_models_of_single_items_refuse(bundle: Path, sources: BundleSources, tmp_path: Path) -> None:
    people = PreparedUsers(sources.prepared, "d" * 64)
    with pytest.raises(ConfigError, match="trained for the task 'next_item' and generates single items"):
        write_candidates(bundle, people, RecommendConfig(k=2, answer="sessions"), tmp_path, QUIET)
    assert not list(tmp_path.iterdir())


def test_registered_model_refuses_what_it_does_not_know(scorer: Scorer, item_ids: list[int]) -> None:
    model = RecommenderModel()
    model.scorer = scorer
    frame = pl.DataFrame({"user_id": ["u0"], "item_ids": [item_ids[:1]]})
    for name, value in (("answer", "session"), ("second_stage", "dense")):
        with pytest.raises(ConfigError, match=f"{name} is '{value}', expected one of"):
            model.predict(None, frame, {name: value})


def test_limits_are_per_session_in_the_registered_model(scorer: Scorer, item_ids: list[int]) -> None:
    model = RecommenderModel()
    model.scorer = scorer
    frame = pl.DataFrame({"user_id": ["u0"], "item_ids": [item_ids[:1]]})
    rows = pl.from_pandas(model.predict(None, frame, {"k": 5, "answer": "sessions", "max_per_category": 1}))
    categories = rows.with_columns((pl.col("item_id") - 100) // 28)
    assert categories.group_by("session_rank").agg(pl.col("item_id").n_unique())["item_id"].to_list() == [2] * 5


def test_scores_are_log_probabilities(scorer: Scorer, histories: Histories) -> None:
    """All 12 * 11 sessions of a user without a history are found by a beam that is wide enough; they sum to at most 1."""
    ranked = scorer.score_histories(histories.take(np.array([4])), 132, ItemRules(), SESSIONS)
    assert (ranked.items >= 0).all()
    assert len({tuple(session) for session in ranked.items[0].tolist()}) == 132
    assert 0 < np.exp(ranked.scores).sum() <= 1 + 1e-5
