"""Whole runs as a scheduler sees them: one at a time, killed at any instant, started again, one key changed.

What a finished run says, that a second one has nothing to do, and that the registered model answers like the batch job in
a process without our command line: ``tests/pipelines/cli/test_cli.py``, class ``TestWholeRun``. ``RECSYS_KILLS=10``
kills more often than the three times of an ordinary test run.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pytest

from pipelines.cli.app import main
from recsys.contracts.manifest import Artifact, open_artifact
from tests.toy import tiny_run

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
HALF_BUILT_BYTES = 250_000
"""Size of MLflow's database somewhere between its first table and its last migration."""
KILLS = int(os.environ.get("RECSYS_KILLS", "3"))
COMPARED = {
    "prepared": ("events.parquet", "history/item.npy", "targets.parquet"),
    "embeddings": ("fused.npy",),
    "semantic_ids": ("codes.npy", "codebooks.safetensors"),
    "policy": ("model/model.safetensors", "model/policy.json", "curves.parquet"),
    "evaluation": ("metrics.parquet", "per_user.parquet", "comparisons.parquet"),
}
"""Files whose bytes must not depend on how often the run was killed; reports with timings in them are left out."""


@dataclass(frozen=True)
class Finished:
    """An undisturbed run: its recipe and folder, how long it took, how a second run ended meanwhile."""

    recipe: Path
    output: Path
    seconds: float
    second_code: int
    second_said: str


def start(recipe: Path, output: Path, log: Path) -> subprocess.Popen[bytes]:
    """Start a run in the background; what it says goes to a file, because a full pipe would stop it."""
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    with log.open("ab") as said:
        return subprocess.Popen(
            tiny_run.command(recipe, output), stdout=said, stderr=said, env=environment | {"OMP_NUM_THREADS": "1"}
        )


def wait_until(text: str, log: Path, process: subprocess.Popen[bytes]) -> None:
    while text not in log.read_text():
        assert process.poll() is None, log.read_text()
        time.sleep(0.02)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(autouse=True)
def no_uri_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Run once to the end; while it trains, a second run tries the same folder."""
    folder = tmp_path_factory.mktemp("whole")
    recipe, output, log = tiny_run.write_recipe(folder), folder / "run", folder / "log.txt"
    log.touch()
    started = time.monotonic()
    process = start(recipe, output, log)
    wait_until("train: running", log, process)
    second = subprocess.run(tiny_run.command(recipe, output), capture_output=True, text=True, check=False, timeout=120)
    assert process.poll() is None or second.returncode == 75, "the first run ended before the second began"
    assert process.wait(timeout=300) == 0, log.read_text()
    return Finished(recipe, output, time.monotonic() - started, second.returncode, second.stderr)


def artifacts(output: Path) -> dict[str, Artifact]:
    """Open everything below ``output`` that calls itself finished; each must be whole.

    A folder whose name begins with a dot is work in progress, and one without a manifest was never an artefact.
    No run here may leave two of a kind: which one a name means would depend on their digests.
    """
    found = [open_artifact(path.parent) for path in (output / "artifacts").glob("*/[!.]*/manifest.json")]
    of_kind = {artifact.manifest.kind: artifact for artifact in found}
    assert len(of_kind) == len(found), sorted(str(artifact.path) for artifact in found)
    return of_kind


def compared_bytes(output: Path) -> dict[str, str]:
    """Digest of each artefact and hash of each compared file, as the manifests record them (and were verified)."""
    found = {}
    for kind, artifact in artifacts(output).items():
        found[kind] = artifact.digest
        found |= {
            f"{kind}/{entry.path}": entry.sha256
            for entry in artifact.manifest.files
            if entry.path in COMPARED.get(kind, ())
        }
    return found


def candidates(output: Path) -> pl.DataFrame:
    rows = pl.read_parquet(artifacts(output)["candidates"].path / "part-*.parquet")
    return rows.drop("run_id", "scored_at").sort("user_id", "rank")


def test_a_second_run_ends_with_75_while_the_first_goes_on(finished: Finished) -> None:
    assert finished.second_code == 75
    assert "another run works in" in finished.second_said
    assert "wait for it, or choose another output_dir" in finished.second_said


def test_killed_at_random_instants_it_ends_like_an_undisturbed_run(finished: Finished, tmp_path: Path) -> None:
    """Kill, look at what lies there, start again; a run that ends before its kill is compared, and another one begins.

    Before the first start, a folder without a manifest lies where the evaluation will go: it must not be read.
    """
    expected = compared_bytes(finished.output)
    assert {f"{kind}/{name}" for kind, names in COMPARED.items() for name in names} < expected.keys()
    evaluation = artifacts(finished.output)["evaluation"].path.relative_to(finished.output)
    instants = random.Random(20)
    outputs, kills = [tmp_path / "run-0"], 0
    (outputs[0] / evaluation).mkdir(parents=True)
    (outputs[0] / evaluation / "metrics.parquet").write_bytes(b"half a file")
    while kills < KILLS:
        process = start(finished.recipe, outputs[-1], tmp_path / "log.txt")
        try:
            code = process.wait(timeout=instants.uniform(0.1, 0.8) * finished.seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            code = process.wait()  # 0 if it ended between the time-out and the signal
        published = artifacts(outputs[-1])
        assert all(published[kind].digest == expected[kind] for kind in published)
        if code == 0:
            outputs.append(tmp_path / f"run-{len(outputs)}")
        else:
            assert code == -signal.SIGKILL, (tmp_path / "log.txt").read_text()
            kills += 1
    last = start(finished.recipe, outputs[-1], tmp_path / "log.txt")
    assert last.wait(timeout=300) == 0, (tmp_path / "log.txt").read_text()
    for output in outputs:
        assert compared_bytes(output) == expected
        assert candidates(output).equals(candidates(finished.output))


CONNECT = """
import sys
from serving.registry.mlflow_client import connect
print(len(connect(sys.argv[1]).search_experiments()))
"""


def test_killed_while_mlflow_builds_its_tables_the_next_run_can_log(tmp_path: Path) -> None:
    """MLflow cannot go on with half of its migrations, so a kill in between must not leave them where it looks."""
    command = [sys.executable, "-c", CONNECT, f"sqlite:///{tmp_path}/mlflow.db"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not [
        path for path in tmp_path.iterdir() if "journal" not in path.name and path.stat().st_size > HALF_BUILT_BYTES
    ]:
        assert process.poll() is None, "MLflow was quicker than this test"
        time.sleep(0.01)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (tmp_path / "mlflow.db").exists()
    again = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert again.stdout == "1\n"


@pytest.mark.parametrize(
    ("override", "dependants"),
    [
        ("recommend.k=4", set()),
        ("tokenize.codebook_size=8", {"tokenize", "train", "rank", "evaluate", "export"}),
    ],
)
def test_one_key_changed_runs_only_what_depends_on_it(
    finished: Finished, tmp_path: Path, override: str, dependants: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Candidates follow the champion: they are new when k is, or when the challenger has won, as a plan says it will."""
    output = tmp_path / "run"
    shutil.copytree(finished.output, output)
    before = {path: path.stat().st_mtime_ns for path in (output / "artifacts").rglob("*") if path.is_file()}
    asked = ("run", "--config", str(finished.recipe), f"output_dir={output}", override)
    assert call(*asked, "--dry-run") == 0
    plan = capsys.readouterr().out
    planned = set(re.findall(r"^(\w+) +run ", plan, re.MULTILINE))
    assert "recommend.model" not in plan  # a run names the champion's version there, and a recipe does not
    assert planned == dependants | {"recommend"}
    assert call(*asked) == 0
    printed = capsys.readouterr()
    ran = set(re.findall(r"INFO +(\w+): running", printed.err))
    won = "(champion)" in printed.out
    assert ran == dependants | ({"recommend"} if won else set())
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_other_systems_stand_in_the_table(
    finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The run's own version and bundle answer the served list to the last digit; lists of a file are one more row."""
    output = tmp_path / "run"
    shutil.copytree(finished.output, output)
    own = artifacts(output)
    others = {
        "rankings.shop": own["candidates"].path,
        "models.version": "models:/tiny/1",
        "models.bundle": own["bundle"].path,
    }
    arguments = ["--config", str(finished.recipe), f"output_dir={output}", "evaluate.baselines=[popularity, markov]"]
    evaluate = ["evaluate", *arguments, *(f"evaluate.{key}={value}" for key, value in others.items())]
    assert call(*evaluate) == 0
    said = capsys.readouterr().out
    figures = {line[:28].strip(" *"): line[28:].replace("=", " ").split() for line in said.splitlines()}
    served = figures["generative (served)"]
    assert figures["version"] == figures["bundle"] == served
    assert "shop: lists of" in said  # users without a row in the split
    assert call(*evaluate) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert call("evaluate", *arguments, "evaluate.models.other=models:/tiny/9") == 4
    assert "'tiny' has the versions 1" in capsys.readouterr().err
