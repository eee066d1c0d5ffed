"""Temporary folders: gone after the block, gone after a kill, and nobody else's touched."""

from __future__ import annotations

import ast
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recsys.scratch import scratch_folder

ROOT = Path(__file__).resolve().parents[1]
HOLDER = """
import sys
from recsys.scratch import scratch_folder
with scratch_folder("test") as folder:
    (folder / "model.bin").write_bytes(bytes(1000))
    print(folder, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    return tmp_path


@pytest.fixture
def holder() -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """Another process that holds a folder until its input ends."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER], stdin=-1, stdout=-1, text=True)
    assert process.stdout is not None
    yield process, Path(process.stdout.readline().strip())
    process.kill()
    process.communicate()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_is_empty_and_goes_with_its_block(temporary: Path) -> None:
    with scratch_folder("test") as folder:
        assert not list(folder.iterdir())
        assert folder.is_relative_to(temporary)
        assert folder.parent.name.startswith("recsys-test-")
        (folder / "below").mkdir()
        (folder / "below" / "file").write_text("x")
    assert names(temporary) == []


def test_goes_when_the_block_fails(temporary: Path) -> None:
    with pytest.raises(ValueError, match="inside"), scratch_folder("test"):
        raise ValueError("inside")
    assert names(temporary) == []


def test_what_a_killed_process_left_goes_with_the_next(
    temporary: Path, holder: tuple[subprocess.Popen[str], Path]
) -> None:
    process, folder = holder
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "model.bin").exists()
    with scratch_folder("other"):
        assert folder.exists()  # another purpose
    with scratch_folder("test") as mine:
        assert names(temporary) == [mine.parent.name]


def test_a_folder_in_use_stays(temporary: Path, holder: tuple[subprocess.Popen[str], Path]) -> None:
    process, folder = holder
    with scratch_folder("test") as mine, scratch_folder("test") as second:
        assert (folder / "model.bin").exists()
        assert mine.exists()
        assert second != mine
    process.communicate("")  # ends by itself
    assert names(temporary) == []


def test_what_is_not_ours_stays(temporary: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    (temporary / "recsys-test-being-made").mkdir()  # no lock yet
    (temporary / "recsys-test-file").write_text("a file")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    (elsewhere / ".lock").write_text("")
    (temporary / "recsys-test-link").symlink_to(elsewhere)
    linked = temporary / "recsys-test-linked-lock"
    linked.mkdir()
    (linked / ".lock").symlink_to(elsewhere / ".lock")
    before = names(temporary)
    with scratch_folder("test"):
        pass
    assert names(temporary) == before
    assert (elsewhere / ".lock").exists()


@pytest.mark.parametrize("package", ["features", "pipelines", "recsys", "serving"])
def test_every_temporary_folder_is_made_here(package: str) -> None:
    """One way, or a killed process leaves its copies behind again."""
    makers = {"TemporaryDirectory", "mkdtemp"}
    found = []
    for path in sorted((ROOT / package).rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        used = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        used |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if used & makers and path.name != "scratch.py":
            found.append(str(path.relative_to(ROOT)))
    assert not found
