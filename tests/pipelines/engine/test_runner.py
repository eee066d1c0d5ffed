"""Stages through the store, with fake stages and real digests: skip, rerun what depends, resume, refuse."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from pipelines.engine.runner import Runner
from pipelines.engine.stage import Inputs, Stage, explain, make_plan, with_ancestors
from recsys.config import FrozenConfig
from recsys.contracts.errors import ArtifactError, CannotExtend
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.runtime import PlainProgress, Progress


class First(FrozenConfig):
    value: int = 2
    threads: int = 1


class Second(FrozenConfig):
    factor: int = 10


class Config(FrozenConfig):
    first: First = First()
    second: Second = Second()
    other: int = 0


def write_value(config: Config, inputs: Inputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
    (out_dir / "value.json").write_text(json.dumps(config.first.value))
    return {"value": config.first.value}


def multiply(config: Config, inputs: Inputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
    value = json.loads((inputs["write"].path / "value.json").read_text()) * config.second.factor
    (out_dir / "value.json").write_text(json.dumps(value))
    return {"value": value}


def count_others(config: Config, inputs: Inputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
    return {"other": config.other}


def is_interrupted_once(config: Config, inputs: Inputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
    done = out_dir / ".scratch"
    if not done.exists():
        done.write_text("half")
        raise KeyboardInterrupt
    (out_dir / "result.txt").write_text(done.read_text() + " and whole")
    return {}


WRITE = Stage("write", "values", write_value, ("first",), ignored=("first.threads",))
MULTIPLY = Stage("multiply", "products", multiply, ("second.factor",), parents=("write",))
OTHERS = Stage("others", "others", count_others, ("other",), parents=("write",))
STAGES = (WRITE, MULTIPLY, OTHERS)


def run(root: Path, config: Config, seed: int = 1, stages: tuple[Stage, ...] = STAGES) -> Runner:
    runner = Runner(config, seed, ArtifactStore(root), PlainProgress())
    runner.run_all(stages)
    return runner


def ran(runner: Runner) -> set[str]:
    return {name for name, outcome in runner.outcomes.items() if outcome.ran}


def test_two_times_ten_is_twenty_and_is_done_once(tmp_path: Path) -> None:
    runner = run(tmp_path, Config())
    assert runner.outcomes["multiply"].artifact.manifest.summary == {"value": 20}
    assert ran(runner) == {"write", "multiply", "others"}
    assert ran(run(tmp_path, Config())) == set()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"second": {"factor": 11}}, {"multiply"}),
        ({"other": 1}, {"others"}),
        ({"first": {"value": 3}}, {"write", "multiply", "others"}),
        ({"first": {"threads": 9}}, set()),
    ],
)
def test_one_key_reruns_only_what_depends_on_it(tmp_path: Path, change: dict[str, Any], expected: set[str]) -> None:
    run(tmp_path, Config())
    assert ran(run(tmp_path, Config.model_validate(change))) == expected


def test_another_seed_reruns_everything_and_going_back_nothing(tmp_path: Path) -> None:
    run(tmp_path, Config())
    assert ran(run(tmp_path, Config(), seed=2)) == {"write", "multiply", "others"}
    assert ran(run(tmp_path, Config(), seed=1)) == set()


def test_changed_raw_content_reruns(tmp_path: Path) -> None:
    raw = tmp_path / "raw.txt"
    raw.write_text("a")
    stage = Stage("write", "values", write_value, ("first",), fingerprints=lambda config: {"raw": raw.read_text()})
    run(tmp_path, Config(), stages=(stage,))
    assert ran(run(tmp_path, Config(), stages=(stage,))) == set()
    raw.write_text("b")
    assert ran(run(tmp_path, Config(), stages=(stage,))) == {"write"}


def test_the_plan_says_why(tmp_path: Path) -> None:
    store = ArtifactStore(tmp_path)
    assert explain(make_plan(STAGES, Config(), 1)[1], store) == "no earlier result"
    run(tmp_path, Config())
    changed = make_plan(STAGES, Config(first=First(value=3), second=Second(factor=5)), 2)
    assert explain(changed[0], store) == "seed 1 -> 2; first.value 2 -> 3"
    assert explain(changed[1], store) == "seed 1 -> 2; 'write' changed; second.factor 10 -> 5"


def test_a_verb_plans_what_it_reads_and_nothing_else() -> None:
    """Of four stages, `multiply` reads `write`; the one beside them and the one after are left out, digests stay."""
    other = Stage("other", "others", count_others, ("other",))
    after = Stage("after", "after", multiply, ("second",), parents=("multiply",))
    stages = (other, *STAGES, after)
    left = with_ancestors(stages, ["multiply"])
    assert [stage.name for stage in left] == ["write", "multiply"]
    whole = {step.stage.name: step.digest for step in make_plan(stages, Config(), 1)}
    assert [step.digest for step in make_plan(left, Config(), 1)] == [whole["write"], whole["multiply"]]


def test_a_missing_parent_is_named(tmp_path: Path) -> None:
    runner = Runner(Config(), 1, ArtifactStore(tmp_path), PlainProgress())
    steps = {step.stage.name: step for step in make_plan(STAGES, Config(), 1)}
    with pytest.raises(ArtifactError, match=r"reads the result of 'write', which has not run.*run `recsys write`"):
        runner.open_parents(MULTIPLY, steps)


@pytest.mark.parametrize("resumable", [True, False])
def test_only_a_resumable_stage_finds_its_scratch(tmp_path: Path, resumable: bool) -> None:
    stage = Stage("slow", "slow", is_interrupted_once, ("other",), resumable=resumable)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Config(), stages=(stage,))
    if not resumable:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path, Config(), stages=(stage,))
        return
    artifact = run(tmp_path, Config(), stages=(stage,)).outcomes["slow"].artifact
    assert (artifact.path / "result.txt").read_text() == "half and whole"
    assert [entry.path for entry in artifact.manifest.files] == ["result.txt"]


def test_a_damaged_artefact_is_refused(tmp_path: Path) -> None:
    artifact = run(tmp_path, Config()).outcomes["write"].artifact
    (artifact.path / "value.json").write_text("77")
    with pytest.raises(ArtifactError, match=r"value.json' has changed since it was published \(2 bytes, manifest says"):
        run(tmp_path, Config())


def test_a_folder_that_cannot_be_written_is_explained(tmp_path: Path) -> None:
    (tmp_path / "store").write_text("a file is in the way")
    with pytest.raises(ArtifactError, match="cannot write below"):
        run(tmp_path / "store", Config())


def test_no_space_is_explained_and_finished_stages_stay(tmp_path: Path) -> None:
    def disk_full(config: Config, inputs: Inputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
        import errno

        raise OSError(errno.ENOSPC, "No space left on device")

    full = Stage("multiply", "products", disk_full, ("second",), parents=("write",))
    with pytest.raises(ArtifactError, match=r"no space left.*finished stages are kept"):
        run(tmp_path, Config(), stages=(WRITE, full))
    assert ran(run(tmp_path, Config(), stages=(WRITE,))) == set()


KILLED = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
import test_runner as fakes
from pipelines.engine.stage import Stage

def slow(config, inputs, out_dir, progress):
    for number in range(40):
        if not (out_dir / f"{number}.txt").exists():
            (out_dir / f".{number}.part").write_text(str(number) * 1000)
            (out_dir / f".{number}.part").rename(out_dir / f"{number}.txt")
            time.sleep(0.01)
    return {"files": 40}

SLOW = Stage("slow", "slow", slow, ("other",), parents=("write",), resumable=True)
print("started", flush=True)
runner = fakes.run(Path(sys.argv[1]), fakes.Config(), stages=(fakes.WRITE, SLOW))
print(runner.outcomes["slow"].artifact.manifest.model_dump_json())
"""


@pytest.mark.slow
def test_killed_at_several_instants_it_ends_with_the_same_manifest(tmp_path: Path) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    here = str(Path(__file__).parent)

    def start(root: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen([sys.executable, str(script), str(root), here], stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "started\n"
        return process

    expected = start(tmp_path / "undisturbed").communicate()[0]
    for delay in (0.05, 0.15, 0.3):
        process = start(tmp_path / "killed")
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert start(tmp_path / "killed").communicate()[0] == expected


def lines_of(config: Config, inputs: Inputs, out_dir: Path, progress: Progress) -> dict[str, Any]:
    lines = sorted(path.read_text() for path in RAW.values())
    (out_dir / "lines.json").write_text(json.dumps(lines))
    return {"lines": len(lines)}


def more_lines(config: Config, earlier: Sequence[Artifact], out_dir: Path, progress: Progress) -> dict[str, Any]:
    """Take over the newest earlier lines and add what is not among them, unless one of them is gone."""
    known = json.loads((earlier[0].path / "lines.json").read_text())
    now = [path.read_text() for path in RAW.values()]
    (out_dir / "half").write_text("of what a refusal leaves behind nothing is published")
    if not set(known) <= set(now):
        raise CannotExtend("a line is gone")
    (out_dir / "half").unlink()
    READ.append([line for line in now if line not in known])
    (out_dir / "lines.json").write_text(json.dumps(sorted(known + READ[-1])))
    return {"lines": len(known) + len(READ[-1])}


RAW: dict[str, Path] = {}
READ: list[list[str]] = []
LINES = Stage(
    "lines",
    "lines",
    lines_of,
    ("other",),
    fingerprints=lambda config: {name: path.read_text() for name, path in RAW.items()},
    extend=more_lines,
)


def extended(root: Path, config: Config | None = None) -> Runner:
    runner = Runner(config or Config(), 1, ArtifactStore(root), PlainProgress(), extend=True)
    runner.run_all([LINES])
    return runner


def test_extending_gives_the_same_artifact_or_does_everything(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """a, then a and b from it; with a rewritten everything is done; another configuration has nothing to start from."""
    monkeypatch.setattr(sys.modules[__name__], "RAW", {})
    monkeypatch.setattr(sys.modules[__name__], "READ", [])
    for name in "ab":
        RAW[name] = tmp_path / name
        RAW[name].write_text(name)
        artifact = extended(tmp_path / "daily").outcomes["lines"].artifact
    whole = run(tmp_path / "whole", Config(), stages=(LINES,)).outcomes["lines"].artifact
    assert READ == [["b"]]
    assert "no earlier result of this code and configuration" in caplog.text
    assert artifact.manifest == whole.manifest
    RAW["a"].write_text("c")
    artifact = extended(tmp_path / "daily").outcomes["lines"].artifact
    assert "lines: nothing to append to (a line is gone); doing everything anew" in caplog.text
    assert [entry.path for entry in artifact.manifest.files] == ["lines.json"]
    caplog.clear()
    extended(tmp_path / "daily", Config(other=1))
    assert "no earlier result of this code and configuration" in caplog.text
