"""A delta job is a full job, row by row, of which little is asked."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from recsys.contracts.columns import Columns
from recsys.contracts.contents import sha256_of_file
from recsys.contracts.errors import ArtifactError
from recsys.data.histories import Histories
from recsys.decoding.rules.item_rules import ItemRules, Quotas
from recsys.runtime import SilentProgress
from serving.answers.frame import Answer
from serving.answers.scorer import Scorer
from serving.batch import carried, shard_scorer
from serving.batch.asked import asked_numbers, rule_numbers
from serving.batch.candidates import write_candidates
from serving.batch.rows import LABELS, CandidateRows
from serving.batch.shards import ShardTables
from serving.config import RecommendConfig
from serving.inputs.history_frame import MappedHistories
from serving.inputs.user_histories import FrameUsers, PreparedUsers
from tests.toy.batch_world import DATA_DIGEST, FIRST_ITEM_ID, World, WorldSize, build_world, write_histories

USERS = 60
QUIET = SilentProgress()
RUN_FIELDS = [Columns.RUN_ID, Columns.SCORED_AT]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    model = {"width": 16, "num_heads": 2, "ffn_width": 16, "expert_width": 16, "max_history": 20}
    size = WorldSize(USERS, 80, 4, 25, (5, 5, 6), model, beam_width=10)
    return build_world(tmp_path_factory.mktemp("world"), size)


def rows_of(folder: Path, kind: str = "part") -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted(folder.glob(f"{kind}-*.parquet")))


def same_answers(left: Path, right: Path) -> bool:
    """Every column but the run's own, bit by bit, and every shortfall and number."""
    tables = [rows_of(folder).drop(RUN_FIELDS) for folder in (left, right)]
    others = [[pl.read_parquet(path) for path in sorted(folder.glob("[as][sh]*.parquet"))] for folder in (left, right)]
    return tables[0].equals(tables[1]) and all(a.equals(b) for a, b in zip(*others, strict=True))


def report_of(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "report.json").read_text())
    return found


def later(path: Path, world: World, change: Callable[[pl.DataFrame], pl.DataFrame]) -> FrameUsers:
    """The histories of another night."""
    change(pl.read_parquet(write_histories(path, world))).write_parquet(path)
    return FrameUsers(path)


def one_event_more(frame: pl.DataFrame) -> pl.DataFrame:
    """Users 3 and 40 have seen one item more, user 7 is gone, and a user came; the rows have another order."""
    longer = pl.when(pl.int_range(pl.len()).is_in([3, 40])).then(
        pl.concat_list("item_ids", pl.lit([FIRST_ITEM_ID + 5], pl.List(pl.Int64)))
    )
    changed = frame.with_columns(longer.otherwise("item_ids").alias("item_ids"))
    came = changed[:1].with_columns(pl.lit(1, pl.Int64).alias("user_id"))
    return pl.concat([changed[:7], changed[8:], came]).sample(fraction=1.0, shuffle=True, seed=4)


@pytest.mark.parametrize(("users", "shards"), [(1, 32), (2, 32), (1024, 1), (1024, 2), (1024, 32)])
def test_only_who_has_changed_is_answered_and_the_table_is_that_of_a_full_job(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users: int, shards: int
) -> None:
    """However many of them are asked together, from however many shards."""
    monkeypatch.setattr(shard_scorer, "ASKED_TOGETHER", users)
    monkeypatch.setattr(shard_scorer, "SHARDS_TOGETHER", shards)
    config = RecommendConfig(k=8, users_per_shard=17)
    first = FrameUsers(write_histories(tmp_path / "1.parquet", world))
    write_candidates(world.bundle, first, config, tmp_path / "monday", QUIET)
    second = later(tmp_path / "2.parquet", world, one_event_more)
    write_candidates(world.bundle, second, config, tmp_path / "full", QUIET)
    counts = write_candidates(world.bundle, second, config, tmp_path / "delta", QUIET, since=tmp_path / "monday")
    assert same_answers(tmp_path / "full", tmp_path / "delta")
    assert counts["rows"] == len(rows_of(tmp_path / "delta")) == USERS * 8
    report = report_of(tmp_path / "delta")
    assert (report["users_answered"], report["users_carried_over"], report["full_because"]) == (3, USERS - 3, None)
    scored = rows_of(tmp_path / "delta").group_by("user_id").agg(pl.col("run_id").first())
    assert sorted(scored["run_id"].value_counts()["count"]) == [3, USERS - 3]
    third = tmp_path / "third"  # a delta is a base like any other
    write_candidates(world.bundle, second, config, third, QUIET, since=tmp_path / "delta")
    assert report_of(third)["users_answered"] == 0
    assert same_answers(third, tmp_path / "full")


@pytest.mark.parametrize("before", ["nobody", "nothing", "somebody"])
@pytest.mark.parametrize("now", ["nobody", "everybody"])
def test_nights_of_nobody_and_nights_without_an_answer(
    world: World, tmp_path: Path, before: str, now: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A first night whose file holds no users, or whose users may have no item at all, is a base like any other.

    The speed of answers to nobody is not told, as there is none.
    """
    caplog.set_level(logging.INFO, logger="recsys.serving")
    config = RecommendConfig(k=8, users_per_shard=17)
    denied = pl.Series([list(range(FIRST_ITEM_ID, FIRST_ITEM_ID + 80))])
    changes: dict[str, Callable[[pl.DataFrame], pl.DataFrame]] = {
        "nobody": lambda frame: frame[:0],
        "somebody": lambda frame: frame[:3],
        "everybody": lambda frame: frame,
        "nothing": lambda frame: frame.with_columns(denied.new_from_index(0, len(frame)).alias("deny_item_ids")),
    }
    first = later(tmp_path / "1.parquet", world, changes[before])
    write_candidates(world.bundle, first, config, tmp_path / "monday", QUIET)
    second = later(tmp_path / "2.parquet", world, changes[now])
    write_candidates(world.bundle, second, config, tmp_path / "full", QUIET)
    write_candidates(world.bundle, second, config, tmp_path / "delta", QUIET, since=tmp_path / "monday")
    assert same_answers(tmp_path / "full", tmp_path / "delta")
    report = report_of(tmp_path / "delta")
    met = 3 if before == "somebody" and now == "everybody" else 0
    assert (report["users_answered"], report["users_carried_over"]) == ((USERS if now == "everybody" else 0) - met, met)
    assert ("is of no users" in str(report["full_because"])) == (before == "nobody")
    again = tmp_path / "again"
    write_candidates(world.bundle, first, config, again, QUIET, since=tmp_path / "monday")
    assert same_answers(again, tmp_path / "monday")
    told = [
        record.getMessage()
        for record in caplog.records
        if " users" in record.getMessage() and " in " in record.getMessage()
    ]
    assert told, "every job says how many users it answered"
    assert not [line for line in told if "None" in line]


def test_parts_of_another_writer_are_a_base_too(world: World, tmp_path: Path) -> None:
    """Text written plainly, as jobs of earlier versions have it, in a part that such a job had finished."""
    config = RecommendConfig(k=8, users_per_shard=17)
    first = FrameUsers(write_histories(tmp_path / "1.parquet", world))
    monday = tmp_path / "monday"
    write_candidates(world.bundle, first, config, monday, QUIET)
    listed = json.loads((monday / "candidates.json").read_text())
    for record in listed["shard_records"][:2]:
        path = monday / record["shard"]
        pl.read_parquet(path).write_parquet(path)
        entry = next(entry for entry in record["files"] if entry["path"] == path.name)
        entry |= {"bytes": path.stat().st_size, "sha256": sha256_of_file(path)}
    (monday / "candidates.json").write_text(json.dumps(listed))
    second = later(tmp_path / "2.parquet", world, one_event_more)
    write_candidates(world.bundle, second, config, tmp_path / "full", QUIET)
    write_candidates(world.bundle, second, config, tmp_path / "delta", QUIET, since=monday)
    assert report_of(tmp_path / "delta")["users_answered"] == 3
    assert same_answers(tmp_path / "full", tmp_path / "delta")


def test_the_changed_users_of_several_shards_are_one_batch(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of 60 users in four shards: the model is asked once about three, not four times about one or none."""
    config = RecommendConfig(k=8, users_per_shard=17)
    first = FrameUsers(write_histories(tmp_path / "1.parquet", world))
    write_candidates(world.bundle, first, config, tmp_path / "monday", QUIET)
    asked: list[int] = []
    answer = Scorer.answer_asked

    def counting(self: Scorer, users: MappedHistories, *rest: Any) -> Answer:
        asked.append(len(users.user_ids))
        return answer(self, users, *rest)

    monkeypatch.setattr(Scorer, "answer_asked", counting)
    second = later(tmp_path / "2.parquet", world, one_event_more)
    write_candidates(world.bundle, second, config, tmp_path / "delta", QUIET, since=tmp_path / "monday")
    assert asked == [3]
    asked.clear()
    monkeypatch.setattr(shard_scorer, "SHARDS_TOGETHER", 2)
    write_candidates(world.bundle, second, config, tmp_path / "two", QUIET, since=tmp_path / "monday")
    assert (len(asked), sum(asked)) == (2, 3)
    asked.clear()
    write_candidates(world.bundle, second, config, tmp_path / "full", QUIET)
    assert asked == [17, 17, 17, 9]


@pytest.mark.parametrize("waiting", [1, 32])
def test_sentences_of_some_shards_reach_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, waiting: int
) -> None:
    """Four shards asked together; nobody of the first and last says anything, an empty text and none are the same."""
    monkeypatch.setattr(shard_scorer, "SHARDS_TOGETHER", waiting)
    model = {"width": 16, "num_heads": 2, "ffn_width": 16, "expert_width": 16, "max_history": 20, "words": {}}
    world = build_world(tmp_path / "world", WorldSize(USERS, 80, 4, 25, (5, 5, 6), model, 10, ("glue", "tape")))
    config = RecommendConfig(k=8, users_per_shard=17)

    def say(frame: pl.DataFrame, texts: dict[int, str]) -> pl.DataFrame:
        return frame.with_columns(pl.Series("words", [texts.get(row) for row in range(len(frame))], pl.String))

    quiet = FrameUsers(write_histories(tmp_path / "1.parquet", world))
    write_candidates(world.bundle, quiet, config, tmp_path / "monday", QUIET)
    texts = {19: "tape", 25: "glue", 40: "tape please", 41: " ", 3: ""}
    asking = later(tmp_path / "2.parquet", world, lambda frame: say(one_event_more(frame), texts))
    write_candidates(world.bundle, asking, config, tmp_path / "full", QUIET)
    write_candidates(world.bundle, asking, config, tmp_path / "delta", QUIET, since=tmp_path / "monday")
    assert same_answers(tmp_path / "full", tmp_path / "delta")
    assert report_of(tmp_path / "delta")["users_answered"] <= 6
    silent = later(tmp_path / "3.parquet", world, one_event_more)
    write_candidates(world.bundle, silent, config, tmp_path / "silent", QUIET)
    key = ["user_id", "rank"]
    tables = [rows_of(tmp_path / name).drop(RUN_FIELDS).sort(key) for name in ("full", "silent")]
    other = tables[0].filter(tables[0]["score"] != tables[1]["score"])["user_id"].unique().to_list()
    assert set(other) == {int(asking.user_ids[row]) for row in (19, 25, 40)}


def test_other_data_of_the_same_users_ask_the_same(world: World, tmp_path: Path) -> None:
    """The night of the training the data are the model's own, the night after they are others: nobody is asked again."""
    config = RecommendConfig(k=8, users_per_shard=17)
    assert Scorer.open(world.bundle).catalogue.user_ids is None, "the policy tells nobody apart"
    write_candidates(world.bundle, PreparedUsers(world.prepared, DATA_DIGEST), config, tmp_path / "trained", QUIET)
    tonight = PreparedUsers(world.prepared, "e" * 64)
    write_candidates(world.bundle, tonight, config, tmp_path / "delta", QUIET, since=tmp_path / "trained")
    assert report_of(tmp_path / "delta")["users_answered"] == 0
    assert same_answers(tmp_path / "trained", tmp_path / "delta")


def test_a_shard_whose_users_have_all_changed_may_be_asked_with_others(world: World, tmp_path: Path) -> None:
    """The first 17 users, and two of the third shard; of 80 items nobody has 79 unseen, so that all have shortfalls."""

    def change(frame: pl.DataFrame) -> pl.DataFrame:
        longer = pl.concat_list("item_ids", pl.lit([FIRST_ITEM_ID + 5], pl.List(pl.Int64)))
        place = pl.int_range(pl.len())
        return frame.with_columns(pl.when((place < 17) | place.is_in([36, 40])).then(longer).otherwise("item_ids"))

    config = RecommendConfig(k=79, users_per_shard=17)
    first = FrameUsers(write_histories(tmp_path / "1.parquet", world))
    write_candidates(world.bundle, first, config, tmp_path / "monday", QUIET)
    second = later(tmp_path / "2.parquet", world, change)
    write_candidates(world.bundle, second, config, tmp_path / "full", QUIET)
    write_candidates(world.bundle, second, config, tmp_path / "delta", QUIET, since=tmp_path / "monday")
    assert same_answers(tmp_path / "full", tmp_path / "delta")
    assert len(rows_of(tmp_path / "full", "shortfalls")) > 17
    assert report_of(tmp_path / "delta")["users_answered"] == 19


def test_rules_are_asked_again_where_they_changed(world: World, tmp_path: Path) -> None:
    """Item 3 is denied to `north` on the second night: its users are answered, those of `south` keep their rows."""
    users = FrameUsers(write_histories(tmp_path / "users.parquet", world))
    segments = pl.DataFrame({"user_id": users.user_ids, "segment": ["north", "south", "south"] * (USERS // 3)})
    segments.write_parquet(tmp_path / "segments.parquet")
    common = {"k": 70, "users_per_shard": 25, "segments": tmp_path / "segments.parquet"}

    def night(name: str, denied: list[int]) -> RecommendConfig:
        rule_file = tmp_path / f"{name}.parquet"
        rules = pl.DataFrame({"segment": "north", "item_id": [item + FIRST_ITEM_ID for item in denied], "rule": "deny"})
        none = pl.DataFrame({"segment": ["south"], "item_id": [None], "rule": ["none"]}, rules.schema)
        pl.concat([rules, none]).write_parquet(rule_file)
        return RecommendConfig.model_validate({**common, "segment_rules": rule_file})

    write_candidates(world.bundle, users, night("1", [2]), tmp_path / "monday", QUIET)
    for name, since in (("full", None), ("delta", tmp_path / "monday")):
        write_candidates(world.bundle, users, night("2", [2, 3]), tmp_path / name, QUIET, since=since)
    assert same_answers(tmp_path / "full", tmp_path / "delta")
    assert list((tmp_path / "full").glob("shortfalls-*")), "nobody lacked an item, so nothing is shown"
    assert report_of(tmp_path / "delta")["users_answered"] == USERS // 3


def test_users_whose_own_list_changed_are_asked_again(world: World, tmp_path: Path) -> None:
    """One user's list grew, another's stands in another order: only the first is answered."""
    users = FrameUsers(write_histories(tmp_path / "users.parquet", world))
    one, other = users.user_ids[0], users.user_ids[1]

    def night(name: str, pairs: list[tuple[Any, int]]) -> RecommendConfig:
        path = tmp_path / f"{name}.parquet"
        table = pl.DataFrame(pairs, schema={"user_id": users.user_ids.dtype, "item_id": pl.Int64}, orient="row")
        table.with_columns(pl.col("item_id") + FIRST_ITEM_ID).write_parquet(path)
        return RecommendConfig.model_validate({"k": 70, "users_per_shard": 25, "personal_deny": path})

    first, second = [(one, 2), (other, 2), (other, 3)], [(other, 3), (one, 5), (one, 2), (other, 2)]
    write_candidates(world.bundle, users, night("1", first), tmp_path / "monday", QUIET)
    for name, since in (("full", None), ("delta", tmp_path / "monday")):
        write_candidates(world.bundle, users, night("2", second), tmp_path / name, QUIET, since=since)
    assert same_answers(tmp_path / "full", tmp_path / "delta")
    assert report_of(tmp_path / "delta")["users_answered"] == 1


@pytest.mark.parametrize(
    ("change", "because"),
    [
        ({"k": 5}, "other options"),
        ({"rescore": False}, "other options"),
        ({"code": True}, "other code"),
    ],
)
def test_everybody_is_answered_where_the_basis_is_another(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, Any], because: str
) -> None:
    users = FrameUsers(write_histories(tmp_path / "users.parquet", world))
    write_candidates(world.bundle, users, RecommendConfig(k=8), tmp_path / "monday", QUIET)
    if change.pop("code", False):
        monkeypatch.setattr(carried, "code_digest", lambda: "0" * 64)
    config = RecommendConfig.model_validate({"k": 8, **change})
    write_candidates(world.bundle, users, config, tmp_path / "new", QUIET, since=tmp_path / "monday")
    report = report_of(tmp_path / "new")
    assert because in report["full_because"]
    assert report["users_answered"] == USERS


def test_damaged_earlier_candidates_are_refused(world: World, tmp_path: Path) -> None:
    users, config = FrameUsers(write_histories(tmp_path / "users.parquet", world)), RecommendConfig(k=8)
    write_candidates(world.bundle, users, config, tmp_path / "monday", QUIET)
    part = next((tmp_path / "monday").glob("part-*"))
    part.write_bytes(part.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="has changed since it was published"):
        write_candidates(world.bundle, users, config, tmp_path / "new", QUIET, since=tmp_path / "monday")
    assert not (tmp_path / "new").exists()
    with pytest.raises(ArtifactError, match=r"holds no candidates\.json"):
        write_candidates(world.bundle, users, config, tmp_path / "new", QUIET, since=tmp_path / "nothing")


def test_a_number_of_all_that_is_asked() -> None:
    """Equal askings have one number wherever they lie; every single change gives another."""

    def one(
        user: int = 4, item: tuple[int, ...] = (1, 2), watch: int = 0, gap: int = 3, weights: list[float] | None = None
    ) -> Histories:
        n = len(item)
        return Histories(
            np.array([user], np.int32),
            np.array([0]),
            np.array([n]),
            np.array(item, np.int32),
            np.ones(n, np.uint8),
            np.full(n, gap, np.uint8),
            np.full(n, watch, np.uint8),
            None if weights is None else np.array([weights], np.float32),
        )

    def number(histories: Histories, rules: ItemRules | None = None) -> int:
        return int(asked_numbers(histories, rule_numbers(rules or ItemRules(), 1))[0])

    only = np.array([True, False, True])
    found = [
        number(one()),
        number(one(user=5)),
        number(one(item=(2, 1))),
        number(one(item=(1,))),
        number(one(item=())),
        number(one(item=(1, 2, 0))),
        number(one(watch=1)),
        number(one(gap=4)),
        number(one(weights=[1.0, 0.0])),
        number(one(weights=[0.0, 1.0])),
        number(one(), ItemRules(exclude_seen=False)),
        number(one(), ItemRules(only)),
        number(one(), ItemRules(deny=only)),
        number(one(), ItemRules(quotas=Quotas.from_groups(np.array([1, 1, 2]), 1))),
        number(one(), ItemRules(quotas=Quotas.from_groups(np.array([1, 1, 2]), 2))),
    ]
    assert len(set(found)) == len(found)
    base = one(item=(9, 9, 1, 2, 9))
    moved = replace(base, user_index=np.array([8, 4], np.int32), start=np.array([0, 2]), end=np.array([2, 4]))
    assert asked_numbers(moved, rule_numbers(ItemRules(), 2))[1] == found[0]


@pytest.mark.parametrize("kind", [pl.Int64, pl.String])
def test_rows_of_answered_and_carried_users_stand_in_the_order_of_the_shard(kind: Any) -> None:
    """User 5 is new, 2 was answered again, 4 never got an item, 9 is gone; 3 and 1 stand in two earlier parts."""

    def table(*rows: tuple[int, int], run: str = "old") -> CandidateRows:
        frame = pl.DataFrame(rows, schema={"user_id": pl.Int64, "item_id": pl.Int64}, orient="row")
        job = {**dict.fromkeys(LABELS, "same"), "run_id": run, "scored_at": "2026-01-05T02:00:00+00:00"}
        return CandidateRows.of_job(frame.cast({"user_id": kind}), job)

    def shown(rows: CandidateRows) -> list[tuple[int, int, str]]:
        return rows.frame().select(pl.col("user_id").cast(pl.Int64), "item_id", "run_id").rows()

    order = pl.Series("user_id", [3, 5, 2, 4, 1]).cast(kind)
    same_N = np.array([True, False, False, True, True])
    none = pl.DataFrame(schema={"user_id": kind, "reason": pl.String})
    fresh = ShardTables(table((5, 50), (2, 20), (2, 21), run="new"), none, none)
    earlier = [table((9, 90), (1, 10), (1, 11)), table((2, 22), (2, 23), (3, 30))]
    found = carried.merged(fresh, order, np.arange(5, dtype=np.uint64), same_N, earlier, None)
    new = [(5, 50, "new"), (2, 20, "new"), (2, 21, "new")]
    assert shown(found.rows) == [(3, 30, "old"), *new, (1, 10, "old"), (1, 11, "old")]
    assert found.asked["user_id"].equals(order)
    users = table((3, 30), (5, 52), (2, 22), (2, 23), (4, 40), (1, 10), (1, 11))  # everybody, in this order
    again = carried.merged(fresh, order, np.arange(5, dtype=np.uint64), same_N, [users], None)
    assert shown(again.rows) == [(3, 30, "old"), *new, (4, 40, "old"), (1, 10, "old"), (1, 11, "old")]
