"""What a published folder holds: hashed, on the disk, and nothing but files of its own."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from threading import Event

import pytest

from recsys.contracts import contents
from recsys.contracts.contents import KNOWN, check_files, describe_files, inner_path, read_meanwhile, sha256_of_file
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import MAX_JSON_BYTES, ArtifactStore, open_artifact, read_json

DIGEST = "d" * 64


def publish(root: Path, text: str = "abc", digest: str = DIGEST) -> Path:
    store = ArtifactStore(root)
    with store.work_folder("policy", digest) as work:
        (work / "model").mkdir()
        (work / "model" / "weights.bin").write_text(text)
        (work / "notes.txt").write_text("")
        return store.publish(
            work, kind="policy", digest=digest, code_version="1", seed=1, parents={"a": "b"}, config={}, summary={}
        ).path


def test_files_by_hand(tmp_path: Path) -> None:
    """sha256 of "abc" is ba7816bf…, of nothing e3b0c442…; hidden files and manifests are not listed."""
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x").write_text("abc")
    (tmp_path / "a").write_text("")
    (tmp_path / ".hidden").write_text("y")
    (tmp_path / "b" / "manifest.json").write_text("{}")
    found = [(entry.path, entry.bytes, entry.sha256[:8]) for entry in describe_files(tmp_path)]
    assert found == [("a", 0, "e3b0c442"), ("b/x", 3, "ba7816bf")]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read for their hash, in order."""
    names: list[str] = []

    def noted(path: Path) -> str:
        names.append(path.name)
        return sha256_of_file(path)

    monkeypatch.setattr(contents, "sha256_of_file", noted)
    return names


def test_files_read_meanwhile_are_not_read_again(tmp_path: Path, read: list[str]) -> None:
    """The largest first; one that the block writes is read when it is described, and one that it changes is read again."""
    for name, text in (("small", "abc"), ("large", "x" * 100), ("changed", "y" * 50), (".hidden", "z"), ("gone", "")):
        (tmp_path / name).write_text(text)
    with read_meanwhile(tmp_path):
        while len(read) < 4:
            pass
        (tmp_path / "added").write_text("")
        (tmp_path / "changed").write_text("z" * 50)
        (tmp_path / "gone").unlink()
    assert read == ["large", "changed", "small", "gone"]
    (tmp_path / "changed").write_text("x" * 50)
    with read_meanwhile(tmp_path):
        pass
    assert read[4:] == ["changed", "added"]  # what was read and is as it was is not read twice
    (tmp_path / "changed").write_text("z" * 50)
    (tmp_path / "added").write_text("a")
    del read[4:]
    before = time.time_ns()
    found = {entry.path: entry.sha256 for entry in describe_files(tmp_path)}
    assert read[4:] == ["added", "changed"]
    assert found == {name: sha256_of_file(tmp_path / name) for name in ("added", "changed", "large", "small")}
    assert found["small"].startswith("ba7816bf")
    assert KNOWN.files[str(tmp_path / "small")].read_ns > before  # as if it had been read now
    describe_files(tmp_path)
    assert sorted(read[6:]) == ["added", "changed", "large", "small"]  # it was believed once


def test_reading_meanwhile_ends_with_the_block(
    tmp_path: Path, read: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(50):
        (tmp_path / f"{number:02}").write_text("x" * (100 - number))
    begun, going_on = Event(), Event()

    class Enough(Event):
        def set(self) -> None:
            super().set()
            going_on.set()

    def sync(path: Path) -> None:
        begun.set()
        going_on.wait(10)
        going_on.set()

    monkeypatch.setattr(contents, "Event", Enough)
    monkeypatch.setattr(contents, "sync", sync)

    def stopped() -> None:
        with read_meanwhile(tmp_path):
            assert begun.wait(60)
            raise InterruptedError

    with pytest.raises(InterruptedError):
        stopped()
    assert read == ["00"]


def test_what_cannot_be_read_meanwhile_is_refused_when_it_is_described(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    os.mkfifo(tmp_path / "pipe")
    with read_meanwhile(tmp_path):
        pass
    with pytest.raises(ArtifactError, match=r"'.*(link|pipe)' is a link or no plain file"):
        describe_files(tmp_path)


def test_content_tells_what_the_digest_of_inputs_does_not(tmp_path: Path) -> None:
    """Copies are equal; one letter, another kind of parent or another artefact are not."""
    one, copy = (open_artifact(publish(tmp_path / name)).manifest for name in ("one", "copy"))
    letter = open_artifact(publish(tmp_path / "letter", "abx")).manifest
    other = open_artifact(publish(tmp_path / "other", digest="e" * 64)).manifest
    parents = one.model_copy(update={"parents": {"a": "c"}})
    assert one.content_digest == copy.content_digest
    assert len({each.content_digest for each in (one, letter, other, parents)}) == 4


@pytest.mark.parametrize(
    "path", ["/etc/passwd", "../up", "a/../../up", "a/..", "", ".", "./a", "a//b", "a/", "a\\b", "a\0b"]
)
def test_paths_that_lead_out_or_are_not_plain(path: str) -> None:
    with pytest.raises(ValueError, match="is no path inside the folder"):
        inner_path(path)


@pytest.mark.parametrize("path", ["a", "a/b", "..a", "a..b/c", ".hidden", "a b/ü"])
def test_paths_that_stay(path: str) -> None:
    assert inner_path(path) == path


def with_files(folder: Path, change: Callable[[list[dict[str, object]]], list[dict[str, object]]]) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, "files": change(manifest["files"])}))


def _elsewhere(folder: Path) -> Path:
    outside = folder.parents[1] / "outside"
    outside.mkdir()
    (outside / "weights.bin").write_text("abc")
    return outside


def no_list(folder: Path) -> None:
    with_files(folder, lambda files: [])


def way_out(folder: Path) -> None:
    with_files(folder, lambda files: [{**files[0], "path": "../../../etc/passwd"}])


def absolute(folder: Path) -> None:
    with_files(folder, lambda files: [{**files[0], "path": "/etc/passwd"}])


def negative_size(folder: Path) -> None:
    with_files(folder, lambda files: [{**files[0], "bytes": -1}])


def linked_file(folder: Path) -> None:
    outside = _elsewhere(folder)
    (folder / "model" / "weights.bin").unlink()
    (folder / "model" / "weights.bin").symlink_to(outside / "weights.bin")


def linked_folder(folder: Path) -> None:
    outside = _elsewhere(folder)
    (folder / "model" / "weights.bin").unlink()
    (folder / "model").rmdir()
    (folder / "model").symlink_to(outside)


def linked_manifest(folder: Path) -> None:
    (folder / "manifest.json").rename(folder.parent / "kept.json")
    (folder / "manifest.json").symlink_to(folder.parent / "kept.json")


def extra_file(folder: Path) -> None:
    (folder / "model" / "more.bin").write_text("x")


def extra_link(folder: Path) -> None:
    (folder / "more").symlink_to(_elsewhere(folder))


def flipped_bit(folder: Path) -> None:
    (folder / "model" / "weights.bin").write_text("abb")


def a_folder_for_a_file(folder: Path) -> None:
    (folder / "notes.txt").unlink()
    (folder / "notes.txt").mkdir()


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (no_list, "is not listed in the manifest of"),
        (way_out, "is no path inside the folder"),
        (absolute, "is no path inside the folder"),
        (negative_size, "greater than or equal to 0"),
        (linked_file, "is a link, and a published folder holds files only"),
        (linked_folder, "is a link, and a published folder holds files only"),
        (linked_manifest, "is a link, expected a file"),
        (extra_file, "is not listed in the manifest of"),
        (extra_link, "is not listed in the manifest of"),
        (flipped_bit, r"has changed since it was published \(as long as it was, with another hash\)"),
        (a_folder_for_a_file, "is listed in the manifest but missing"),
    ],
)
def test_a_harmed_folder_is_refused(tmp_path: Path, harm: Callable[[Path], None], message: str) -> None:
    folder = publish(tmp_path / "store")
    open_artifact(folder)
    harm(folder)
    with pytest.raises(ArtifactError, match=message):
        open_artifact(folder)


def test_hidden_files_of_the_machine_are_nobodys_business(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    digest = open_artifact(folder).digest
    (folder / ".DS_Store").write_text("x")
    assert open_artifact(folder).digest == digest
    os.link(folder / "notes.txt", tmp_path / "second name")  # a hard link is the file itself
    assert open_artifact(folder).digest == digest


def test_some_files_are_checked_without_the_others(tmp_path: Path) -> None:
    folder = publish(tmp_path)
    entries = open_artifact(folder).manifest.files
    extra_file(folder)
    check_files(folder, entries, whole=False)
    flipped_bit(folder)
    with pytest.raises(ArtifactError, match="has changed"):
        check_files(folder, entries, whole=False)


def test_links_are_not_published(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("abc")
    store = ArtifactStore(tmp_path / "store")
    with store.work_folder("policy", DIGEST) as work:
        (work / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ArtifactError, match="which cannot be published"):
        store.publish(work, kind="policy", digest=DIGEST, code_version="1", seed=1, parents={}, config={}, summary={})


def test_everything_is_on_the_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file, the manifest and every folder are synced before the rename, and the folder of the new name after it."""
    done: list[str] = []
    real_sync, real_rename = os.fsync, Path.rename

    def sync(handle: int) -> None:
        done.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        real_sync(handle)

    def rename(self: Path, target: Path) -> Path:
        done.append("renamed")
        return real_rename(self, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(Path, "rename", rename)
    publish(tmp_path)
    before, after = done[: done.index("renamed")], done[done.index("renamed") + 1 :]
    work = f".work-{DIGEST[:16]}"
    assert {"weights.bin", "notes.txt", "model", work} < set(before)
    assert any(name.startswith(".manifest.json") for name in before)
    assert before[-1] == work
    assert after == ["policy"]


def test_json_of_any_size_or_depth_is_refused_in_words(tmp_path: Path) -> None:
    deep = tmp_path / "deep.json"
    deep.write_text("[" * 200_000 + "]" * 200_000)
    with pytest.raises(ArtifactError, match="cannot be read as JSON"):
        read_json(deep)
    with (tmp_path / "long.json").open("wb") as handle:
        handle.truncate(MAX_JSON_BYTES + 1)
    with pytest.raises(ArtifactError, match="at most 268435456 are read"):
        read_json(tmp_path / "long.json")
