"""Every kind of business rule in the batch job: hand-worked lists, reasons for short ones, refusals, and no illegal item."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pydantic import ValidationError

from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.runtime import PlainProgress
from serving.answers.scorer import Scorer
from serving.batch.candidates import write_candidates
from serving.config import RecommendConfig
from serving.export.export import BundleSources
from serving.inputs.rules.item_rules import read_rules
from serving.inputs.user_histories import PreparedUsers
from serving.registry.pyfunc_model import RecommenderModel
from tests.serving.conftest import NUM_ITEMS
from tests.toy.batch_check import illegal_rows
from tests.toy.batch_world import WorldSize, build_world, write_rules

QUIET = PlainProgress()


@pytest.fixture
def users(sources: BundleSources) -> PreparedUsers:
    return PreparedUsers(sources.prepared, "d" * 64)


@pytest.fixture(scope="module")
def scorer(bundle: Path) -> Scorer:
    return Scorer.open(bundle)


def rows_of(folder: Path, pattern: str = "part-*.parquet") -> pl.DataFrame:
    return pl.concat([pl.read_parquet(path) for path in sorted(folder.glob(pattern))])


def write_csv(path: Path, *lines: str) -> Path:
    path.write_text("\n".join(lines) + "\n")
    return path


def every_rule(folder: Path, item_ids: list[int]) -> dict[str, Any]:
    """The rules of the hand-worked test, as files."""
    available = write_csv(folder / "available.txt", *(str(item) for item in item_ids[:10]))
    deny = write_csv(folder / "deny.csv", "item_id", str(item_ids[3]))
    eu = [f"eu,{item_ids[index]},allow" for index in range(6)]
    rules = write_csv(folder / "rules.csv", "segment,item_id,rule", *eu, f"us,{item_ids[0]},deny")
    segments = write_csv(folder / "segments.csv", "user_id,segment", "u0,eu", "u1,eu", "u2,us", "u3,us", "stranger,eu")
    return {
        "available": available,
        "deny": deny,
        "segments": segments,
        "segment_rules": rules,
        "default_segment": "us",
        "max_per_category": 2,
        "category_limits": {"1": 1},
    }


EXPECTED = {  # item_index; category 1 is 0..3, 2 is 4..7, 3 is 8..11
    "u0": ({4, 5}, 2),
    "u1": ({0, 1, 2, 5}, 2),
    "u2": ({1, 2, 4, 6, 7, 8, 9}, 4),
    "u3": ({1, 2, 4, 5}, 3),
    "u4": ({1, 2, 4, 5, 6, 7, 8, 9}, 4),
}


def test_hand_worked_rules(bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path) -> None:
    """Available are items 0..9, denied is 3; eu may have 0..5 and us all but 0; at most 2 per category, 1 of category 1.

    u0 (eu, seen 0 1 2)   possible 4 5              both of category 2                      2 of 4
    u1 (eu, seen 3 4)     possible 0 1 2 5          one of 0 1 2, and 5                     2 of 4
    u2 (us, seen 5)       possible 1 2 4 6 7 8 9    one, two and two of the categories      4 of 4
    u3 (us, seen 6 to 9)  possible 1 2 4 5          one of 1 2, then 4 and 5                3 of 4
    u4 (default: us)      possible 1 2 4 to 9                                               4 of 4

    Allowed to eu are 0 1 2 4 5 = 5 items, to us 1 2 4 .. 9 = 8 items. u0 has seen three of its 5, so 2 are fewer than 4:
    "seen"; u1 has 4 left and u3 has 4 left, but categories are full: "quotas". Rows: 2 + 2 + 4 + 3 + 4 = 15.
    """
    config = RecommendConfig(k=4, users_per_shard=2, **every_rule(tmp_path, item_ids))
    counts = write_candidates(bundle, users, config, tmp_path / "out", QUIET)
    rows = rows_of(tmp_path / "out")
    for user, (possible, found) in EXPECTED.items():
        own = {item_ids.index(item) for item in rows.filter(pl.col("user_id") == user)["item_id"]}
        assert own <= possible
        assert len(own) == found
        categories = [item // 4 + 1 for item in own]
        assert categories.count(1) <= 1
        assert max(categories.count(2), categories.count(3)) <= 2
    assert (counts["rows"], counts["users_short"]) == (15, 3)
    assert [counts[f"short_by_{reason}"] for reason in ("rules", "seen", "quotas")] == [0, 1, 2]
    names = [path.name for path in sorted((tmp_path / "out").glob("shortfalls-*"))]
    assert names == ["shortfalls-00000-of-00003.parquet", "shortfalls-00001-of-00003.parquet"]
    assert rows_of(tmp_path / "out", "shortfalls-*").rows() == [
        ("u0", 4, 2, 5, 2, "seen"),
        ("u1", 4, 2, 5, 4, "quotas"),
        ("u3", 4, 3, 8, 4, "quotas"),
    ]


def test_shard_size_does_not_change_the_answer(
    bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path
) -> None:
    rules = every_rule(tmp_path, item_ids)
    for size in (1, 3, 5):
        config = RecommendConfig(k=4, users_per_shard=size, **rules)
        write_candidates(bundle, users, config, tmp_path / str(size), QUIET)
    keys = ["user_id", "item_id", "rank"]
    for size in (3, 5):
        assert rows_of(tmp_path / "1").select(keys).equals(rows_of(tmp_path / str(size)).select(keys))
        assert rows_of(tmp_path / "1", "short*").equals(rows_of(tmp_path / str(size), "short*"))


def test_a_segment_without_items_gets_none_and_a_reason(
    bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path
) -> None:
    """The allow list of "new" names an item that the model does not know; "all" has no list of its own."""
    rules = write_csv(tmp_path / "rules.csv", "segment,item_id,rule", "new,4711,allow", "all,,none")
    segments = write_csv(tmp_path / "segments.csv", "user_id,segment", "u4,new")
    config = RecommendConfig(k=2, segments=segments, segment_rules=rules, default_segment="all")
    counts = write_candidates(bundle, users, config, tmp_path / "out", QUIET)
    assert (counts["users_without_items"], counts["short_by_rules"], counts["rows"]) == (1, 1, 8)
    assert rows_of(tmp_path / "out", "short*").rows() == [("u4", 2, 0, 0, 0, "rules")]


def test_personal_lists_by_hand(bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path) -> None:
    """Items 0..9 can be had. u0 has seen 0 1 2 and dislikes 4 (twice) and 5: 3 6 7 8 9 are left, one too few for 6; of its 8
    possible ones (10 without the list of 2) it has seen three. u1 has seen 3 4 and dislikes 3, which costs nothing: 8 left.
    Neither a stranger's row nor an item that the model does not know says anything."""
    available = write_csv(tmp_path / "available.txt", *(str(item) for item in item_ids[:10]))
    pairs = [("u0", item_ids[4]), ("u1", item_ids[3]), ("u0", item_ids[5]), ("u0", item_ids[4])]
    pairs += [("stranger", item_ids[6]), ("u2", 4711)]
    lists = write_csv(tmp_path / "own.csv", "user_id,item_id", *(f"{user},{item}" for user, item in pairs))
    config = RecommendConfig(k=6, users_per_shard=2, available=available, personal_deny=lists)
    write_candidates(bundle, users, config, tmp_path / "out", QUIET)
    given = {
        user: {item_ids.index(item) for item in part["item_id"]}
        for (user,), part in rows_of(tmp_path / "out").group_by("user_id")
    }
    assert given["u0"] == {3, 6, 7, 8, 9}
    assert len(given["u1"]) == 6
    assert given["u1"].isdisjoint({3, 4})
    short = {row[0]: row for row in rows_of(tmp_path / "out", "shortfalls-*").rows()}
    assert short["u0"] == ("u0", 6, 5, 8, 5, "seen")


def test_personal_lists_hold_where_seen_items_may_come_again(
    bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path
) -> None:
    """u0 dislikes all but two items, both seen: with seen items it gets them, and the list of denied ones is the reason."""
    denied = [f"u0,{item}" for item in item_ids[2:]]
    lists = write_csv(tmp_path / "own.csv", "user_id,item_id", *denied)
    config = RecommendConfig(k=3, personal_deny=lists, exclude_seen=False)
    write_candidates(bundle, users, config, tmp_path / "out", QUIET)
    rows = rows_of(tmp_path / "out")
    assert {item_ids.index(item) for item in rows.filter(pl.col("user_id") == "u0")["item_id"]} == {0, 1}
    assert rows_of(tmp_path / "out", "shortfalls-*").rows() == [("u0", 3, 2, 2, 2, "rules")]


def test_categories_from_a_file(scorer: Scorer, item_ids: list[int], tmp_path: Path) -> None:
    """Items 0 and 2 are toys, 1 is a book, the rest nothing; names are numbered in order: book 1, toy 2."""
    lines = [f"{item_ids[0]},toy", f"{item_ids[2]},toy", f"{item_ids[1]},book"]
    path = write_csv(tmp_path / "categories.csv", "item_id,category", *lines)
    config = RecommendConfig(k=5, category_limits={"toy": 1, "book": 9}, item_categories=path)
    quotas = read_rules(config, scorer.catalogue, pl.Series(["u0"])).quotas
    assert quotas is not None
    assert quotas.group_I.tolist() == [2, 1, 2] + [0] * (NUM_ITEMS - 3)
    assert quotas.limit_G.tolist()[1:] == [5, 1]


def test_other_rules_are_another_job_and_moved_files_are_not(
    bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path
) -> None:
    rules = every_rule(tmp_path, item_ids)
    config = RecommendConfig(k=4, **rules)
    first = write_candidates(bundle, users, config, tmp_path / "out", QUIET)
    rules["available"].rename(tmp_path / "elsewhere.txt")
    moved = config.model_copy(update={"available": tmp_path / "elsewhere.txt"})
    again = write_candidates(bundle, users, moved, tmp_path / "out", QUIET)
    assert {**again, "users_per_second": 0} == {**first, "users_per_second": 0}
    for changed in ({"category_limits": {"1": 2}}, {"default_segment": "eu"}):
        with pytest.raises(ArtifactError, match="holds another job"):
            write_candidates(bundle, users, moved.model_copy(update=changed), tmp_path / "out", QUIET)
    with rules["segments"].open("a") as lines:
        lines.write("u4,eu\n")
    with pytest.raises(ArtifactError, match="holds another job"):
        write_candidates(bundle, users, moved, tmp_path / "out", QUIET)


SEGMENTS = ["user_id,segment", "u0,eu", "u1,eu", "u2,eu", "u3,eu", "u4,eu"]
RULES = ["segment,item_id,rule", "eu,100,allow", "eu,107,allow"]
CATEGORIES = ["item_id,category", "100,toy"]


@pytest.mark.parametrize(
    ("files", "settings", "message"),
    [
        ({"available": ["item_id"]}, {}, "leave no item of the catalogue to anybody"),
        ({"available": ["item_id", "7.5"]}, {}, "'item_id' is to hold Int64"),
        ({"segments": SEGMENTS[:3], "segment_rules": RULES}, {}, "3 of 5 users have no segment, the first is user_id 'u2'"),
        ({"segments": [*SEGMENTS, "u0,eu"], "segment_rules": RULES}, {}, "2 of 6 rows name a user that occurs more than"),
        ({"segments": [*SEGMENTS, "x,EU"], "segment_rules": RULES}, {}, "1 of 6 rows have a segment without rules .*'eu'"),
        ({"segments": [*SEGMENTS, "x,"], "segment_rules": RULES}, {}, "lack the user or the segment"),
        ({"segments": SEGMENTS, "segment_rules": RULES[:1]}, {}, "holds no row"),
        ({"segments": SEGMENTS, "segment_rules": [*RULES, "eu,100,ban"]}, {}, "have a rule that is none of allow, deny"),
        ({"segments": SEGMENTS, "segment_rules": [*RULES, "eu,,deny"]}, {}, "name an item under 'none', or none under"),
        ({"segments": SEGMENTS, "segment_rules": ["tenant,item_id,rule", "eu,1,deny"]}, {}, "expected 'segment'"),
        (
            {"segments": SEGMENTS, "segment_rules": RULES},
            {"default_segment": "us"},
            "default_segment is 'us', which has no rules",
        ),
        ({"personal_deny": ["user_id,item_id", "u0,"]}, {}, "1 of 1 rows lack the user or the item"),
        ({"personal_deny": ["user_id,item_id", "U0,100"]}, {}, "none of its 1 rows names a user of the job"),
        ({"personal_deny": ["user_id,item", "u0,100"]}, {}, "expected 'item_id'"),
        ({}, {"category_limits": {"4": 1}}, "no item is of category '4'; there are '1', '2', '3'"),
        ({"item_categories": CATEGORIES}, {"category_limits": {"tyo": 1}}, "did you mean 'toy'"),
        ({"item_categories": [*CATEGORIES, "100,book"]}, {"max_per_category": 1}, "an item that occurs more than once"),
    ],
)  # fmt: skip
def test_bad_rules_are_refused_before_anything_is_written(
    bundle: Path,
    users: PreparedUsers,
    tmp_path: Path,
    files: dict[str, list[str]],
    settings: dict[str, Any],
    message: str,
) -> None:
    paths = {name: write_csv(tmp_path / f"{name}.csv", *lines) for name, lines in files.items()}
    config = RecommendConfig(k=2, **paths, **settings)
    with pytest.raises((DataError, ConfigError), match=message):
        write_candidates(bundle, users, config, tmp_path / "out", QUIET)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"segments": Path("s.csv")}, "need each other"),
        ({"default_segment": "eu"}, "there is no file of segments"),
        ({"item_categories": Path("c.csv")}, "no effect without a limit"),
        ({"category_limits": {"toy": -1}}, "greater than or equal to 0"),
    ],
)
def test_settings_that_do_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        RecommendConfig(**settings)


def test_fractions_are_no_ids(bundle: Path, users: PreparedUsers, tmp_path: Path) -> None:
    """Data frames with gaps hold integers as 100.0, which is an id; 100.5 is not, and must not become 100."""
    for value, fits in ((100.0, True), (100.5, False)):
        path = tmp_path / f"{value}.parquet"
        pl.DataFrame({"item_id": [value]}).write_parquet(path)
        config = RecommendConfig(k=1, deny=path)
        if fits:
            write_candidates(bundle, users, config, tmp_path / "out", QUIET)
            assert 100 not in rows_of(tmp_path / "out")["item_id"]
        else:
            with pytest.raises(DataError, match=r"hold 100.5 .Float64., expected whole ids"):
                write_candidates(bundle, users, config, tmp_path / "other", QUIET)


def test_the_registered_model_limits_categories(scorer: Scorer, item_ids: list[int]) -> None:
    """With one item of each of three categories a user gets three rows, however many are asked."""
    model = RecommenderModel()
    model.scorer = scorer
    frame = pl.DataFrame({"user_id": ["u0"], "item_ids": [[item_ids[0]]]})
    rows = model.predict(None, frame, {"k": 5, "max_per_category": 1})
    assert sorted(item_ids.index(item) // 4 for item in rows["item_id"]) == [0, 1, 2]
    assert len(model.predict(None, frame, {"k": 5})) == 5


SMALL = WorldSize(
    users=600,
    items=300,
    categories=6,
    max_events=8,
    level_sizes=(20, 20),
    model={"width": 16, "num_heads": 2, "ffn_width": 16, "expert_width": 16, "features": ("item", "codes", "category")},
    beam_width=20,
)


def test_no_illegal_item_under_random_rules(tmp_path: Path) -> None:
    """Availability, tenants, categories and seen items at once; the checker works on ids and files alone.

    The checker is checked as well: told of other rules than those of the job, it finds offences of every kind.
    """
    world = build_world(tmp_path / "world", SMALL)
    rules = write_rules(tmp_path, world, seed=1)
    people = PreparedUsers(world.prepared, "d" * 64)
    config = RecommendConfig(k=10, users_per_shard=250, **rules)
    counts = write_candidates(world.bundle, people, config, tmp_path / "out", QUIET)
    assert counts["rows"] > 3000
    assert counts["users_short"] == sum(counts[f"short_by_{reason}"] for reason in ("seen", "quotas", "rules", "beam"))
    assert set(illegal_rows(world, config, tmp_path / "out").values()) == {0}
    free = RecommendConfig(k=10, exclude_seen=False)
    write_candidates(world.bundle, people, free, tmp_path / "free", QUIET)
    offences = illegal_rows(world, config, tmp_path / "free")
    assert min(offences[name] for name in ("not available", "not for the segment", "over the quota", "seen")) > 0
    assert offences["not in the catalogue"] == offences["repeated"] == 0
    assert np.sum(list(illegal_rows(world, free, tmp_path / "free").values())) == 0
