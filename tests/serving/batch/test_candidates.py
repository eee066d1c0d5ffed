"""The batch job: every user once, restartable, refusing to mix jobs."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from pyarrow.parquet import ParquetWriter

from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.model.summary import decoding_flops, fed_widths
from recsys.runtime import PlainProgress
from serving.answers.scorer import Scorer
from serving.batch.candidates import plan_candidates, write_candidates
from serving.batch.ledger import Ledger, read_contents, verify_candidates
from serving.batch.shard_scorer import ScoredShard, ShardScorer
from serving.batch.shards import CANDIDATE_COLUMNS
from serving.config import RecommendConfig
from serving.export.export import BundleSources
from serving.inputs import row_blocks, user_histories
from serving.inputs.rules.item_lists import read_item_list
from serving.inputs.user_histories import FrameUsers, PreparedUsers

QUIET = PlainProgress()


def all_rows(folder: Path) -> pl.DataFrame:
    return pl.concat(pl.read_parquet(path) for path in sorted(folder.glob("part-*.parquet")))


def bytes_of(folder: Path) -> dict[str, bytes]:
    """Every file but the report of the last call."""
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "report.json"}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.fixture
def users(sources: BundleSources) -> PreparedUsers:
    return PreparedUsers(sources.prepared, "d" * 64)


def test_five_users_in_shards_of_two(bundle: Path, users: PreparedUsers, tmp_path: Path) -> None:
    """Three files; 3 items each for 5 users are 15 rows; each user stands in one file only."""
    counts = write_candidates(bundle, users, RecommendConfig(k=3, users_per_shard=2), tmp_path, QUIET)
    names = [path.name for path in sorted(tmp_path.glob("part-*"))]
    assert names == [f"part-0000{n}-of-00003.parquet" for n in range(3)]
    rows = all_rows(tmp_path)
    assert rows.columns == list(CANDIDATE_COLUMNS)
    assert (counts["users"], counts["rows"], counts["users_without_items"]) == (5, 15, 0)
    assert rows["user_id"].to_list() == [f"u{user}" for user in range(5) for _ in range(3)]
    assert rows["rank"].to_list() == [1, 2, 3] * 5
    assert rows["scored_at"].n_unique() == rows["run_id"].n_unique() == rows["semantic_id_digest"].n_unique() == 1
    assert rows["model_version"].unique().to_list() == ["unregistered-tttttttttttt"]


def test_shard_size_does_not_change_the_answer(bundle: Path, users: PreparedUsers, tmp_path: Path) -> None:
    for size in (1, 5):
        write_candidates(bundle, users, RecommendConfig(k=4, users_per_shard=size), tmp_path / str(size), QUIET)
    keys = ["user_id", "item_id", "rank"]
    assert all_rows(tmp_path / "1").select(keys).equals(all_rows(tmp_path / "5").select(keys))


def test_a_killed_job_goes_on_and_keeps_finished_shards(
    bundle: Path, users: PreparedUsers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RecommendConfig(k=3, users_per_shard=2)
    scored: list[int] = []
    original = ShardScorer.scored

    def dies_in_the_third(
        self: ShardScorer, numbers: Iterable[int], job: dict[str, Any]
    ) -> Iterator[tuple[int, ScoredShard]]:
        for number, shard in original(self, numbers, job):
            if number == 2 and len(scored) == 2:
                raise KeyboardInterrupt
            scored.append(number)
            yield number, shard

    monkeypatch.setattr(ShardScorer, "scored", dies_in_the_third)
    with pytest.raises(KeyboardInterrupt):
        write_candidates(bundle, users, config, tmp_path, QUIET)
    assert not (tmp_path / "candidates.json").exists()
    first_part = (tmp_path / "part-00000-of-00003.parquet").read_bytes()
    scored.append(-1)
    write_candidates(bundle, users, config, tmp_path, QUIET)
    assert scored[:3] == [0, 1, -1]
    assert scored[-1] == 2  # the shard being written when it died may be asked again
    assert (tmp_path / "part-00000-of-00003.parquet").read_bytes() == first_part
    assert all_rows(tmp_path)["scored_at"].n_unique() == 1


def test_a_folder_of_another_job_is_refused(bundle: Path, users: PreparedUsers, tmp_path: Path) -> None:
    write_candidates(bundle, users, RecommendConfig(k=3), tmp_path, QUIET)
    with pytest.raises(ArtifactError, match="holds another job"):
        write_candidates(bundle, users, RecommendConfig(k=4), tmp_path, QUIET)


def test_lists_by_file(bundle: Path, users: PreparedUsers, item_ids: list[int], tmp_path: Path) -> None:
    """Allowed are items 9, 10, 11, denied is 10; u3 has seen 9, so it has one candidate, the others two."""
    allow, deny = tmp_path / "allow.csv", tmp_path / "deny.txt"
    allow.write_text("item_id,why\n" + "".join(f"{item},x\n" for item in item_ids[9:]))
    deny.write_text(f"{item_ids[10]}\n\n")
    config = RecommendConfig(k=5, allow=allow, deny=deny)
    counts = write_candidates(bundle, users, config, tmp_path / "out", QUIET)
    assert counts["rows"] == 4 * 2 + 1
    assert set(all_rows(tmp_path / "out")["item_id"]) == {item_ids[9], item_ids[11]}


def test_bad_lists_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        read_item_list(tmp_path / "no.txt", pl.Int64())
    (tmp_path / "a.txt").write_text("seven\n")
    with pytest.raises(DataError, match="'item_id' is to hold Int64"):
        read_item_list(tmp_path / "a.txt", pl.Int64())
    (tmp_path / "a.csv").write_text("id\n1\n")
    with pytest.raises(DataError, match="expected 'item_id'"):
        read_item_list(tmp_path / "a.csv", pl.Int64())


def test_users_from_a_file(bundle: Path, item_ids: list[int], tmp_path: Path) -> None:
    frame = pl.DataFrame({"user_id": [5, 6], "item_ids": [[item_ids[0]], [4711]]})
    frame.with_columns(pl.col("user_id").cast(pl.String)).write_parquet(tmp_path / "users.parquet")
    counts = write_candidates(
        bundle, FrameUsers(tmp_path / "users.parquet"), RecommendConfig(k=2), tmp_path / "out", QUIET
    )
    assert counts["rows"] == 4


def test_the_same_file_with_other_histories_is_another_job(bundle: Path, item_ids: list[int], tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    for number, item in enumerate(item_ids[:2]):
        pl.DataFrame({"user_id": ["5"], "item_ids": [[item]]}).write_parquet(path)
        if number == 0:
            write_candidates(bundle, FrameUsers(path), RecommendConfig(k=2), tmp_path / "out", QUIET)
    with pytest.raises(ArtifactError, match="holds another job"):
        write_candidates(bundle, FrameUsers(path), RecommendConfig(k=2), tmp_path / "out", QUIET)


def test_a_truncated_users_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": [5], "item_ids": [[1]]}).write_parquet(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read"):
        FrameUsers(path)


@pytest.mark.parametrize("read_ahead", [1, 3, 100])
def test_a_file_is_read_in_pieces_with_the_same_answer(
    bundle: Path, item_ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read_ahead: int
) -> None:
    """Of seven users u3 and u1 are known to the model; a shard must give each row its own user and history."""
    for module in (user_histories, row_blocks):
        monkeypatch.setattr(module, "READ_AHEAD", read_ahead)
    names = ["x", "u3", "y", "z", "u1", "v", "w"]
    histories = [[item_ids[(place + step) % len(item_ids)] for step in range(place)] for place in range(len(names))]
    frame = pl.DataFrame({"user_id": names, "item_ids": histories}, schema_overrides={"item_ids": pl.List(pl.Int64)})
    frame.write_parquet(tmp_path / "users.parquet", row_group_size=3)
    for size in (1, 2, 7):
        config = RecommendConfig(k=4, users_per_shard=size)
        write_candidates(bundle, FrameUsers(tmp_path / "users.parquet"), config, tmp_path / str(size), QUIET)
    whole = Scorer.open(bundle).score_frame(frame, 4)
    for size in (1, 2, 7):
        rows = all_rows(tmp_path / str(size))
        assert rows.select("user_id", "item_id", "rank").equals(whole.select("user_id", "item_id", "rank"))


def test_a_file_without_users_is_refused(tmp_path: Path) -> None:
    pl.DataFrame({"user": [5], "item_ids": [[1]]}).write_parquet(tmp_path / "users.parquet")
    with pytest.raises(DataError, match="lack the column 'user_id'; they have"):
        FrameUsers(tmp_path / "users.parquet")


@pytest.mark.parametrize("done", [True, False])
@pytest.mark.parametrize("what", ["part", "asked", "shortfalls"])
def test_a_flipped_bit_in_a_finished_shard_is_found_and_the_shard_written_again(
    bundle: Path, users: PreparedUsers, tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, done: bool
) -> None:
    config = RecommendConfig(k=12, users_per_shard=2)
    write_candidates(bundle, users, config, tmp_path, QUIET)
    before = bytes_of(tmp_path)
    if not done:  # as a kill after the last shard leaves it
        records = read_contents(tmp_path).shard_records
        Ledger(tmp_path).reopen({record.shard: record for record in records})
    flip(tmp_path / f"{what}-00001-of-00003.parquet")
    if done:
        with pytest.raises(ArtifactError, match=f"{what}-00001.* has changed since it was published"):
            verify_candidates(tmp_path)
    write_candidates(bundle, users, config, tmp_path, QUIET)
    assert "shard part-00001-of-00003.parquet is written again" in caplog.text
    assert bytes_of(tmp_path) == before
    assert verify_candidates(tmp_path)["rows"] == len(all_rows(tmp_path))
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["shards_kept"], [shard["shard"] for shard in report["shards"]]) == (
        2,
        ["part-00001-of-00003.parquet"],
    )


def test_a_line_of_the_list_that_a_kill_cut_short_counts_for_nothing(
    bundle: Path, users: PreparedUsers, tmp_path: Path
) -> None:
    config = RecommendConfig(k=3, users_per_shard=2)
    write_candidates(bundle, users, config, tmp_path, QUIET)
    before, records = bytes_of(tmp_path), read_contents(tmp_path).shard_records
    Ledger(tmp_path).reopen({record.shard: record for record in records[:2]})
    with (tmp_path / "shards.jsonl").open("a") as handle:
        handle.write(records[2].model_dump_json()[:50])
    assert list(Ledger(tmp_path).intact([record.shard for record in records])) == [r.shard for r in records[:2]]
    write_candidates(bundle, users, config, tmp_path, QUIET)
    assert bytes_of(tmp_path) == before


def test_what_does_not_belong_to_a_job_is_named(bundle: Path, users: PreparedUsers, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"holds no candidates\.json"):
        verify_candidates(tmp_path)
    write_candidates(bundle, users, RecommendConfig(k=3), tmp_path, QUIET)
    pl.DataFrame({"a": [1]}).write_parquet(tmp_path / "part-00007-of-00009.parquet")
    with pytest.raises(ArtifactError, match=r"part-00007-of-00009\.parquet' belongs to no shard"):
        verify_candidates(tmp_path)
    (tmp_path / "candidates.json").write_text("{}")
    with pytest.raises(ArtifactError, match="is no list of candidates with hashes"):
        verify_candidates(tmp_path)


def test_a_plan_says_what_a_job_will_write(bundle: Path, users: PreparedUsers, tmp_path: Path) -> None:
    """Five users in shards of two are three files, and with k = 3 fifteen rows."""
    plan = plan_candidates(bundle, users, RecommendConfig(k=3, users_per_shard=2), tmp_path)
    assert (plan.users, plan.shards, plan.shards_done, plan.rows_at_most) == (5, 3, 0, 15)
    assert plan.users_per_second > 0
    assert plan.memory_mb > 50
    assert not list(tmp_path.iterdir())
    assert "5 users in 3 files (0 done), at most 15 rows" in plan.text()


def test_a_failing_disk_stops_the_job_and_a_restart_completes_it(
    bundle: Path, users: PreparedUsers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Writing happens beside decoding; its error must arrive all the same, and leave no part that is not whole."""

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    config = RecommendConfig(k=3, users_per_shard=2)
    with monkeypatch.context() as patch:
        patch.setattr(ParquetWriter, "write_table", full)
        with pytest.raises(ArtifactError, match="no space left"):
            write_candidates(bundle, users, config, tmp_path, QUIET)
    assert not list(tmp_path.glob("part-*"))
    assert not (tmp_path / "candidates.json").exists()
    assert write_candidates(bundle, users, config, tmp_path, QUIET)["rows"] == 15


def test_no_permission_is_explained(bundle: Path, users: PreparedUsers, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ArtifactError, match="cannot write below"):
        write_candidates(bundle, users, RecommendConfig(k=2), tmp_path / "file" / "out", QUIET)


@pytest.mark.parametrize("users_per_shard", [2, 7])
def test_the_arithmetic_that_is_told_is_of_the_events_read(
    bundle: Path, item_ids: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, users_per_shard: int
) -> None:
    """A job keeps how many users had how many events, and no figure of each user; long histories count as far as read."""
    told: list[float] = []

    def described(count: int, what: str, flops: float, *rest: Any) -> str:
        told.append(flops)
        return f"{count} {what}"

    monkeypatch.setattr("serving.batch.candidates.describe", described)
    recommender = Scorer.open(bundle).recommender
    longest = recommender.policy.spec.model.max_history
    lengths = [1, 2, 1, 2, 2, longest, longest + 3]
    histories = [[item_ids[step % len(item_ids)] for step in range(length)] for length in lengths]
    path = tmp_path / "users.parquet"
    pl.DataFrame({"user_id": [f"v{user}" for user in range(7)], "item_ids": histories}).write_parquet(path)
    config = RecommendConfig(k=3, users_per_shard=users_per_shard, second_stage="none", exclude_seen=False)
    write_candidates(bundle, FrameUsers(path), config, tmp_path / "out", QUIET)
    widths = fed_widths(max(recommender.config.beam_width, 3), recommender.index.max_children)
    assert told == [pytest.approx(decoding_flops(recommender.policy, np.minimum(lengths, longest), widths))]
    write_candidates(bundle, FrameUsers(path), config, tmp_path / "out", QUIET)  # nothing is left to do or to tell
    assert len(told) == 1
