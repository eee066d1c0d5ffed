"""Hashes of files are kept from run to run; whatever happens to a file or to what was kept, the right hash is found."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from features.reading.files import fingerprint
from pipelines.config import RunConfig
from pipelines.engine import kept_hashes as module
from pipelines.engine.kept_hashes import NAME, kept_hashes
from recsys.contracts import contents
from recsys.contracts.contents import KNOWN
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import ArtifactStore, read_json, verify_files
from tests.pipelines.test_appended_days import config_of, write_parquet_days


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read; a file counts as old enough however young it is."""
    found: list[str] = []
    read = contents.sha256_of_file

    def noting(path: Path) -> str:
        found.append(path.name)
        return read(path)

    monkeypatch.setattr(contents, "sha256_of_file", noting)
    monkeypatch.setattr(module, "MARGIN_NS", -(10**9))
    return found


@pytest.fixture
def raw(tmp_path: Path) -> Path:
    folder = tmp_path / "raw"
    folder.mkdir()
    for name in ("a", "b"):
        (folder / f"{name}.csv").write_text(name)
    return folder


def ask(raw: Path, output: Path, *, trust: bool = True) -> dict[str, str]:
    """What one run asks for: the hashes of all raw files, twice."""
    output.mkdir(exist_ok=True)
    with kept_hashes(output, trust=trust):
        first = fingerprint(sorted(raw.glob("*.csv")), raw)
        assert fingerprint(sorted(raw.glob("*.csv")), raw) == first
        return first


def read_everything(raw: Path, tmp_path: Path) -> dict[str, str]:
    return ask(raw, tmp_path / "somewhere else", trust=False)


def test_the_second_run_reads_nothing(raw: Path, tmp_path: Path, reads: list[str]) -> None:
    first = ask(raw, tmp_path / "run")
    assert sorted(reads) == ["a.csv", "b.csv"]
    reads.clear()
    assert ask(raw, tmp_path / "run") == first
    assert reads == []
    assert ask(raw, tmp_path / "run", trust=False) == first
    assert sorted(reads) == ["a.csv", "b.csv"]
    assert len(read_json(tmp_path / "run" / NAME)["files"]) == 2


def rewrite(raw: Path) -> None:
    (raw / "a.csv").write_text("x")


def rewrite_and_set_the_time_back(raw: Path) -> None:
    before = (raw / "a.csv").stat()
    (raw / "a.csv").write_text("x")
    os.utime(raw / "a.csv", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (raw / "a.csv").stat().st_mtime_ns == before.st_mtime_ns


def put_another_in_its_place(raw: Path) -> None:
    before = (raw / "a.csv").stat()
    (raw / "new").write_text("x")
    os.utime(raw / "new", ns=(before.st_atime_ns, before.st_mtime_ns))
    (raw / "new").replace(raw / "a.csv")


def add(raw: Path) -> None:
    (raw / "c.csv").write_text("c")


def remove(raw: Path) -> None:
    (raw / "a.csv").unlink()


def rename(raw: Path) -> None:
    (raw / "a.csv").rename(raw / "c.csv")


def swap(raw: Path) -> None:
    (raw / "a.csv").rename(raw / "other")
    (raw / "b.csv").rename(raw / "a.csv")
    (raw / "other").rename(raw / "b.csv")


def copy_the_folder(raw: Path) -> None:
    raw.rename(raw.with_name("old"))
    shutil.copytree(raw.with_name("old"), raw)  # with the times of the old files
    assert raw.stat().st_mtime_ns == raw.with_name("old").stat().st_mtime_ns


@pytest.mark.parametrize(
    ("change", "read_again"),
    [
        (rewrite, {"a.csv"}),
        (rewrite_and_set_the_time_back, {"a.csv"}),
        (put_another_in_its_place, {"a.csv"}),
        (add, {"c.csv"}),
        (remove, set()),
        (rename, {"c.csv"}),
        (swap, {"a.csv", "b.csv"}),
        (copy_the_folder, {"a.csv", "b.csv"}),
    ],
)
def test_every_change_is_noticed(
    change: Callable[[Path], None], read_again: set[str], raw: Path, tmp_path: Path, reads: list[str]
) -> None:
    before = ask(raw, tmp_path / "run")
    reads.clear()
    change(raw)
    now = ask(raw, tmp_path / "run")
    assert set(reads) == read_again
    assert now == read_everything(raw, tmp_path)
    assert (now == before) == (change is copy_the_folder)


def test_a_file_changed_just_before_it_was_read_is_read_again(
    raw: Path, tmp_path: Path, reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`a` has been as it is for an hour by its own times, `b` for a second: only `a` is kept."""
    identity = contents.Identity.of

    def aged(path: Path) -> contents.Identity:
        found, age = identity(path), 3600 * 10**9 if path.name == "a.csv" else 10**9
        return contents.Identity(found.device, found.inode, found.size, found.mtime_ns - age, found.ctime_ns - age)

    monkeypatch.setattr(contents.Identity, "of", aged)
    monkeypatch.setattr(module, "MARGIN_NS", 2 * 10**9)
    ask(raw, tmp_path / "run")
    reads.clear()
    ask(raw, tmp_path / "run")
    assert reads == ["b.csv"]


@pytest.mark.parametrize("which", ["mtime_ns", "ctime_ns"])
def test_either_time_makes_a_file_young(which: str) -> None:
    old = {"device": 1, "inode": 1, "size": 1, "mtime_ns": 0, "ctime_ns": 0}
    assert module.is_sure(contents.KnownHash(contents.Identity(**old), 10**10, ""))
    assert not module.is_sure(contents.KnownHash(contents.Identity(**old | {which: 8 * 10**9}), 10**10, ""))
    assert not module.is_sure(contents.KnownHash(contents.Identity(**old | {"inode": 0}), 10**10, ""))


def no_json(path: Path) -> None:
    path.write_text("{")


def no_table(path: Path) -> None:
    path.write_text("[]")


def another_version(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 0}))


def another_hash(path: Path) -> None:
    text = path.read_text()
    (sha256,) = {values[-1] for name, values in json.loads(text)["files"].items() if name.endswith("a.csv")}
    path.write_text(text.replace(sha256, "0" * 64))


def no_text(path: Path) -> None:
    path.write_bytes(b"\xff\xfe\x00")


def too_few_values(path: Path) -> None:
    files = {"/a": [1, 2]}
    path.write_text(json.dumps({"version": 1, "files": files, "digest": module.digest_of(files)}))


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


@pytest.mark.parametrize(
    "damage", [no_json, no_table, another_version, another_hash, no_text, too_few_values, a_folder]
)
def test_what_is_damaged_is_not_used(
    damage: Callable[[Path], None], raw: Path, tmp_path: Path, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    first = ask(raw, tmp_path / "run")
    reads.clear()
    damage(tmp_path / "run" / NAME)
    with caplog.at_level(logging.WARNING):
        assert ask(raw, tmp_path / "run") == first
    assert sorted(reads) == ["a.csv", "b.csv"]
    assert sum("all files are read" in line for line in caplog.messages) == 1
    if damage is a_folder:
        assert any("cannot be written" in line for line in caplog.messages)
        assert not list((tmp_path / "run").glob("*.tmp-*"))
        return
    reads.clear()
    ask(raw, tmp_path / "run")
    assert reads == []


def test_what_is_gone_is_forgotten_and_an_error_loses_nothing(raw: Path, tmp_path: Path, reads: list[str]) -> None:
    ask(raw, tmp_path / "run")
    (raw / "a.csv").unlink()
    (raw / "c.csv").write_text("c")
    files = iter([raw / "c.csv", tmp_path / "not there"])
    with pytest.raises(FileNotFoundError), kept_hashes(tmp_path / "run", trust=True):
        contents.content_hashes(files)
    assert {Path(name).name for name in read_json(tmp_path / "run" / NAME)["files"]} == {"b.csv", "c.csv"}


def test_published_files_are_known_under_the_name_that_they_got(tmp_path: Path, reads: list[str]) -> None:
    """Each is read once, to describe it; a later change of one is noticed."""
    store = ArtifactStore(tmp_path / "run" / "artifacts")
    with kept_hashes(tmp_path, trust=True), store.work_folder("prepared", "d" * 64) as work:
        (work / "log").mkdir()
        (work / "log" / "item.npy").write_bytes(b"1234")
        described = {"code_version": "", "seed": 1, "parents": {}, "config": {}, "summary": {}}
        artifact = store.publish(work, kind="prepared", digest="d" * 64, **described)  # type: ignore[arg-type]
    assert reads == ["item.npy"]
    with kept_hashes(tmp_path, trust=True):
        verify_files(artifact, "log/")
        assert reads == ["item.npy"]
        assert {str(Path(name).parent.parent) for name in KNOWN.files} == {str(artifact.path)}
        (artifact.path / "log" / "item.npy").write_bytes(b"1235")
        with pytest.raises(ArtifactError, match="has changed since it was published"):
            verify_files(artifact, "log/")


@pytest.mark.parametrize("trust", [True, False])
def test_a_day_is_appended_without_reading_the_days_before(
    trust: bool, tmp_path: Path, reads: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    """Through what the commands use; with `trust_file_times: false` everything is read, and the result is the same."""
    from pipelines.cli.options import ProgressMode, locked

    log, output = tmp_path / "log", tmp_path / "run"
    write_parquet_days(log, 0, 1, 2, 3)

    def prepare(append: bool) -> Path:
        values = config_of(log, "parquet", output).model_dump(mode="json") | {"trust_file_times": trust}
        config = RunConfig.model_validate(values)
        outcome = locked(config, ProgressMode.OFF, lambda workflow: workflow.run_verb("prepare", append=append))
        return Path(outcome.artifact.path)

    prepare(append=False)
    write_parquet_days(log, 4)
    reads.clear()
    with caplog.at_level(logging.INFO):
        appended = prepare(append=True)
    assert any("1 new files" in line for line in caplog.messages)
    assert reads.count("part-0.parquet") == (1 if trust else 5)
    assert reads.count("item_ids.parquet") == (1 if trust else 2)  # once, as it is published
    whole = {path.relative_to(appended): path.read_bytes() for path in appended.rglob("*") if path.is_file()}
    shutil.rmtree(appended)
    again = prepare(append=False)
    assert whole == {path.relative_to(again): path.read_bytes() for path in again.rglob("*") if path.is_file()}


def test_what_one_folder_knows_stays_in_its_block(raw: Path, tmp_path: Path, reads: list[str]) -> None:
    before = dict(KNOWN.files)
    ask(raw, tmp_path / "run")
    assert KNOWN.files == before


def test_what_is_published_is_read_whatever_is_known_of_it(raw: Path, reads: list[str]) -> None:
    contents.content_hashes([raw / "a.csv", raw / "b.csv"])
    reads.clear()
    assert [entry.path for entry in contents.describe_files(raw)] == reads == ["a.csv", "b.csv"]
