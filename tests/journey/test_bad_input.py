"""Bad input, from end to end through the command line: the right exit code, a message with the way out, nothing lost.

The rest of the list is tested where it belongs, through the same entry point, in ``tests/pipelines/cli/test_cli.py``:
unknown configuration key, truncated interactions, an output folder that cannot be written, an artefact that was
truncated, an unreachable MLflow server.
"""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines.cli.app import main
from recsys.contracts.columns import Columns
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.scorer import Scorer
from tests.serving.conftest import sealed
from tests.toy.three_topics import TOPICS, USER, USERS, VIDEOS, WATCHED, recipe, write_raw

LOG, CATALOGUE = "interactions.parquet", "items.parquet"
BARE = "cake 0"
"""Item without any metadata in the module's finished run: it is not in the catalogue file."""


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@dataclass(frozen=True)
class World:
    """Raw files that a test may spoil, and a recipe that reads them."""

    raw: Path
    output: Path
    recipe: Path

    @classmethod
    def create(cls, root: Path, **changes: Any) -> World:
        values = recipe(write_raw(root / "raw"), root / "run") | changes
        (root / "recipe.yaml").write_text(yaml.safe_dump(values))
        return cls(root / "raw", root / "run", root / "recipe.yaml")

    def call(self, verb: str, *overrides: str) -> int:
        return call(verb, "--config", str(self.recipe), *overrides)

    def rewrite(self, name: str, change: Callable[[pl.DataFrame], pl.DataFrame]) -> None:
        path = self.raw / name
        change(pl.read_parquet(path)).write_parquet(path)

    def published(self, kind: str) -> Path:
        (path,) = (self.output / "artifacts" / kind).glob("[!.]*")
        return path


@pytest.fixture(scope="module", autouse=True)
def one_database(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One MLflow database for the module: creating one takes seconds, and these tests are not about it."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db")
        yield


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World.create(tmp_path)


@pytest.fixture(scope="module")
def served(one_database: None, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run of the stages from `prepare` to the bundle, with an item that the catalogue does not describe."""
    train = {"max_epochs": 1, "batch_size": 64}
    world = World.create(tmp_path_factory.mktemp("served"), train=train)
    world.rewrite(CATALOGUE, lambda items: items.filter(pl.col("item_id") != BARE))
    for verb in ("prepare", "embed", "tokenize", "train", "rank"):
        assert world.call(verb) == 0, verb
    return world


def without_column(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.rename({"item_id": "itemid"})


def in_milliseconds(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.with_columns(pl.col("timestamp") * 1000)


def with_tenth_repeated(frame: pl.DataFrame) -> pl.DataFrame:
    return pl.concat([frame, frame.head(len(frame) // 10)])


def two_events_each(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.group_by("user_id", maintain_order=True).head(2)


@dataclass(frozen=True)
class Case:
    """One kind of bad input.

    Attributes:
        spoil: What happens to the interactions.
        overrides: What happens to the configuration.
        code: Exit code.
        says: Pieces of the message: what is wrong, and the way out.
    """

    spoil: Callable[[pl.DataFrame], pl.DataFrame] | None
    overrides: tuple[str, ...]
    code: int
    says: tuple[str, ...]


CASES = {
    "wrong type": Case(None, ("train.max_epochs=many",), 2, ("key 'train.max_epochs' is 'many'", "valid integer")),
    "missing column": Case(
        without_column, (), 3, (LOG, "missing column 'item_id'", "did you mean 'itemid'?", "Set the column map")
    ),
    "wrong unit": Case(in_milliseconds, (), 3, (LOG, "timestamps in the wrong unit", "declare timestamp_unit: ms")),
    "too many duplicates": Case(
        with_tenth_repeated,
        ("features.duplicates=drop",),
        3,
        ("are unusable, allowed are 5.0%", "duplicate: ", "set features.duplicates: keep"),
    ),
    "empty split": Case(two_events_each, (), 3, ("empty split 'valid'", "change features.split")),
}


@pytest.mark.parametrize("name", CASES)
def test_prepare_refuses(world: World, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`validate` finds bad data too, with the same words; neither leaves anything that looks like a result."""
    case = CASES[name]
    if case.spoil is not None:
        world.rewrite(LOG, case.spoil)
    for verb in ("validate", "prepare"):
        assert world.call(verb, *case.overrides) == case.code
        said = capsys.readouterr().err
        for piece in case.says:
            assert piece in said, verb
    assert not list(world.output.glob("artifacts/*/[!.]*"))


def test_a_truncated_catalogue_is_named(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.raw / CATALOGUE
    path.write_bytes(path.read_bytes()[:-25])
    assert world.call("prepare") == 3
    said = capsys.readouterr().err
    assert f"'{path}' cannot be read" in said
    assert "fetch it again" in said


def test_a_few_duplicates_are_merged_and_counted(world: World) -> None:
    """1533 rows: 191 users of 8 events and user 7 with 5; their repeat and three more rows are merged, none is lost."""
    world.rewrite(LOG, lambda log: pl.concat([log, log.filter(pl.col("user_id") == "user 8").head(3)]))
    assert world.call("prepare") == 0
    merged = pl.read_parquet(world.published("prepared") / "merged.parquet")
    report = json.loads((world.published("prepared") / "data_report.json").read_text())
    assert sorted(merged["user_id"]) == [USER, *["user 8"] * 3]
    assert (merged["into_row"] < merged["row"]).all()
    assert (report["quarantined"], report["merged"]) == ({}, 4)
    assert (report["rows_in"], report["kept"]) == (1533 + 4, 1533)


def test_a_catalogue_smaller_than_the_codebook(world: World, capsys: pytest.CaptureFixture[str]) -> None:
    for verb in ("prepare", "embed"):
        assert world.call(verb) == 0
    assert world.call("tokenize", "tokenize.codebook_size=64") == 3
    said = capsys.readouterr().err
    assert "the catalogue has 24 items, fewer than codebook_size=64 codes per level" in said
    assert "set tokenize.codebook_size to at most 24" in said


def test_no_space_left_loses_nothing(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The disk is full while `embed` writes; with room again, the same command goes on behind `prepare`."""
    assert world.call("prepare") == 0

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(np, "save", full)
        assert world.call("embed") == 4
    said = capsys.readouterr().err
    assert f"no space left while writing below '{world.output / 'artifacts'}'" in said
    assert "free space and run again: finished stages are kept" in said
    assert not list(world.output.glob("artifacts/embeddings/[!.]*"))
    assert world.call("embed") == 0
    assert world.call("prepare") == 0
    assert "prepare: nothing to do" in capsys.readouterr().out


def test_a_full_disk_under_a_parquet_file_is_explained_too(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Polars reports a full disk with an error of its own, which carries no number; ``/dev/full`` makes it raise it."""
    write, large = pl.DataFrame.write_parquet, pl.DataFrame({"number": range(100_000)})
    monkeypatch.setattr(pl.DataFrame, "write_parquet", lambda *_, **__: write(large, "/dev/full"))
    assert world.call("prepare") == 4
    assert "no space left while writing below" in capsys.readouterr().err
    assert not list(world.output.glob("artifacts/prepared/[!.]*"))


def test_an_item_without_metadata_is_kept(served: World) -> None:
    items = pl.read_parquet(served.published("prepared") / "items.parquet")
    assert len(items) == len(TOPICS) * VIDEOS
    assert items.filter(~pl.col("has_metadata"))["item_id"].to_list() == [BARE]
    report = json.loads((served.published("prepared") / "data_report.json").read_text())
    assert report["items_without_metadata"] == 1
    ids = SemanticIds.load(served.published("semantic_ids"))
    assert BARE in ids.item_ids.to_list()
    assert ids.is_unique


@pytest.fixture(scope="module")
def bundle(served: World) -> Path:
    assert served.call("export") == 0
    return served.published("bundle")


def test_unknown_items_in_a_history_are_left_out_and_counted(bundle: Path, tmp_path: Path) -> None:
    """User 7 with two items nobody knows gets the list of user 7 without them; a user of unknown items only is answered."""
    histories = {
        "user_id": ["mixed", "plain", "strange"],
        "item_ids": [[*WATCHED[:2], "ufo 1", *WATCHED[2:], "ufo 2"], WATCHED, ["ufo 1"]],
    }
    frame = pl.DataFrame(histories)
    frame.write_parquet(tmp_path / "users.parquet")
    arguments = ["--model", str(bundle), "--users", str(tmp_path / "users.parquet"), "--out", str(tmp_path / "out")]
    assert call("recommend", *arguments, "--k", "3") == 0
    rows = pl.read_parquet(tmp_path / "out" / "part-*.parquet")
    listed = {user: rows.filter(pl.col("user_id") == user)["item_id"].to_list() for user in histories["user_id"]}
    assert [len(items) for items in listed.values()] == [3, 3, 3]
    assert listed["mixed"] == listed["plain"]
    counted = Scorer.open(bundle).score_frame(frame, 1)
    assert counted[Columns.NUM_UNKNOWN_ITEMS].to_list() == [2, 0, 1]


def test_a_policy_with_other_semantic_ids_is_refused(
    served: World, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody lays a later version of the semantic IDs into a copy of the bundle: the same items, other codes."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    ids = SemanticIds.load(copy)
    younger = SemanticIds(np.roll(ids.codes, 1, axis=0), ids.level_sizes, ids.item_ids, ids.codebooks)
    younger.save(copy)
    arguments = ["--users", str(served.published("prepared")), "--out", str(tmp_path / "out")]
    assert call("recommend", "--model", str(copy), *arguments) == 4
    assert "has changed since it was published" in capsys.readouterr().err
    assert call("recommend", "--model", str(sealed(copy)), *arguments) == 4
    said = capsys.readouterr().err
    assert f"was trained with semantic IDs {ids.digest[:16]}, given are {younger.digest[:16]}" in said
    assert "train again, or use the semantic IDs it was trained with" in said
    assert not list((tmp_path / "out").glob("part-*"))


def test_candidates_into_a_place_that_is_taken(
    served: World, bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("in the way")
    arguments = ["--model", str(bundle), "--users", str(served.published("prepared"))]
    assert call("recommend", *arguments, "--out", str(tmp_path / "file" / "out")) == 4
    assert "cannot write below" in capsys.readouterr().err
    assert call("recommend", *arguments, "--out", str(tmp_path / "out")) == 0
    assert pl.read_parquet(tmp_path / "out" / "part-*.parquet")["user_id"].n_unique() == USERS
