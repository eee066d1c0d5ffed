"""One run per output folder; the kernel frees the lock however its holder ends."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pipelines.engine.lock import run_lock
from recsys.contracts.errors import ArtifactError, RunLocked

HOLDER = """
import sys, time
from pathlib import Path
from pipelines.engine.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(60)
"""


def hold(folder: Path) -> subprocess.Popen[str]:
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(folder)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_second_run_is_told_who_holds_the_lock(tmp_path: Path) -> None:
    process = hold(tmp_path)
    try:
        with pytest.raises(RunLocked, match=f"process {process.pid} on .* since 20") as refused, run_lock(tmp_path):
            pass
        assert refused.value.exit_code == 75
    finally:
        process.kill()
        process.communicate()


def test_sigkill_frees_the_lock(tmp_path: Path) -> None:
    process = hold(tmp_path)
    process.kill()
    process.communicate()
    with run_lock(tmp_path):
        assert (tmp_path / ".lock").exists()


def test_the_lock_is_freed_at_the_end_and_other_folders_are_free(tmp_path: Path) -> None:
    with run_lock(tmp_path / "a"), run_lock(tmp_path / "b"), pytest.raises(RunLocked), run_lock(tmp_path / "a"):
        pytest.fail("two runs held one lock")
    with run_lock(tmp_path / "a"):
        assert (tmp_path / "a" / ".lock").exists()


def test_a_folder_that_cannot_be_made_is_explained(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(ArtifactError, match="make it writable or choose another output_dir"),
        run_lock(tmp_path / "file" / "out"),
    ):
        pass


def test_the_option_that_names_the_folder_is_the_way_out(tmp_path: Path) -> None:
    """`recsys fetch` and `recsys recommend --model` write where ``--out`` says."""
    (tmp_path / "file").write_text("")
    for folder, words in (
        (tmp_path / "busy", "or choose another --out$"),
        (tmp_path / "file" / "out", "another --out:"),
    ):
        with (
            run_lock(tmp_path / "busy"),
            pytest.raises((RunLocked, ArtifactError), match=words),
            run_lock(folder, "--out"),
        ):
            pass
