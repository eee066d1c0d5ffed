"""Artefacts: published whole or not at all, refused when damaged."""

import errno
import hashlib
import os
from pathlib import Path

import pytest

from recsys.contracts import contents, manifest
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import (
    Artifact,
    ArtifactStore,
    append_lines,
    digest_of,
    explain_write_errors,
    open_artifact,
)

DIGEST = digest_of({"stage": "prepare"})


def publish(store: ArtifactStore, text: str = "hello") -> Artifact:
    with store.work_folder("prepared", DIGEST) as work:
        (work / "part.txt").write_text(text)
        (work / ".scratch").mkdir()
        (work / ".scratch" / "big").write_text("not published")
        return store.publish(
            work, kind="prepared", digest=DIGEST, code_version="1", seed=3, parents={}, config={"a": 1}, summary={},
            rows={"part.txt": 1},
        )  # fmt: skip


def test_digest_by_hand() -> None:
    """sha256 of the text {"a":1}, keys sorted and no spaces, starts with 015abd7f5cc57a2d."""
    assert digest_of({"a": 1}).startswith("015abd7f5cc57a2d")


def test_an_artefact_is_found_again_and_scratch_is_gone(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert store.find("prepared", DIGEST) is None
    published = publish(store)
    found = store.find("prepared", DIGEST)
    assert found is not None
    assert found.manifest == published.manifest
    assert [entry.path for entry in found.manifest.files] == ["part.txt"]
    assert found.manifest.files[0].rows == 1
    assert not (published.path / ".scratch").exists()


def test_a_folder_without_manifest_is_no_artefact(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    with store.work_folder("prepared", DIGEST) as work:
        (work / "part.txt").write_text("half")
    assert store.find("prepared", DIGEST) is None
    with pytest.raises(ArtifactError, match="never finished"):
        open_artifact(work)
    with store.work_folder("prepared", DIGEST) as again:  # a stage that cannot resume starts clean
        assert list(again.iterdir()) == []
    with store.work_folder("prepared", DIGEST, resumable=True) as kept:
        (kept / "kept").touch()
    with store.work_folder("prepared", DIGEST, resumable=True) as kept:
        assert (kept / "kept").exists()


@pytest.mark.parametrize("damage", ["truncate", "change", "remove"])
def test_damage_is_refused(tmp_path: Path, damage: str) -> None:
    store = ArtifactStore(tmp_path)
    part = publish(store).path / "part.txt"
    if damage == "remove":
        part.unlink()
    else:
        part.write_text("hell" if damage == "truncate" else "jello")
    with pytest.raises(ArtifactError, match=r"delete .* and run its stage again"):
        store.find("prepared", DIGEST)


def test_another_kind_is_refused(tmp_path: Path) -> None:
    published = publish(ArtifactStore(tmp_path))
    with pytest.raises(ArtifactError, match="of kind 'prepared', expected 'policy'"):
        open_artifact(published.path, "policy")


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "free space"), (errno.EACCES, "make it writable")])
def test_write_errors_name_the_way_out(tmp_path: Path, number: int, words: str) -> None:
    with pytest.raises(ArtifactError, match=words), explain_write_errors(tmp_path):
        raise OSError(number, os.strerror(number))
    with pytest.raises(OSError, match="Interrupted"), explain_write_errors(tmp_path):
        raise OSError(errno.EINTR, os.strerror(errno.EINTR))


def test_raw_files_are_read_once_and_a_rewritten_one_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two files asked for twice are read twice in all; one rewritten in the same size is read again."""
    files = [tmp_path / "a.csv", tmp_path / "b.csv"]
    for path in files:
        path.write_text(path.name)
    read: list[str] = []

    def counting(path: Path) -> str:
        read.append(path.name)
        return hashlib.sha256(path.read_bytes()).hexdigest()

    monkeypatch.setattr(contents, "sha256_of_file", counting)
    first = manifest.content_hashes(files)
    assert first == [hashlib.sha256(name).hexdigest() for name in (b"a.csv", b"b.csv")]
    assert manifest.content_hashes(reversed(files)) == first[::-1]
    assert sorted(read) == ["a.csv", "b.csv"]
    before = files[0].stat().st_mtime_ns
    files[0].write_text("x.csv")
    os.utime(files[0], ns=(before, before + 1))
    assert manifest.content_hashes(files) == [hashlib.sha256(b"x.csv").hexdigest(), first[1]]


def test_lines_are_whole_though_the_disk_takes_a_few_bytes_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a disk does that is nearly full; a line that a killed process left half is ended first."""
    path, real = tmp_path / "log.jsonl", os.write
    path.write_text('{"a":1}\n{"torn')
    monkeypatch.setattr(os, "write", lambda handle, content: real(handle, content[:3]))
    append_lines(path, '{"b":2}\n{"c":3}\n')
    append_lines(path, '{"d":4}\n')
    assert path.read_text() == '{"a":1}\n{"torn\n{"b":2}\n{"c":3}\n{"d":4}\n'
