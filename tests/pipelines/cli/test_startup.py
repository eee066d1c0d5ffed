"""What the command line imports before it works: the seconds that a person waits for an answer are mostly imports."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest

from tests.toy.tiny_run import write_small_log

ROOT = Path(__file__).resolve().parents[3]
HEAVY = ("torch", "torchrec", "lightning", "mlflow", "transformers", "matplotlib", "scipy", "pandas")
CALL = """
import sys
from pipelines.cli.app import main
try:
    main(sys.argv[2:])
except SystemExit as end:
    assert end.code == 0, end.code
loaded = [name for name in sys.argv[1].split(",") if name in sys.modules]
assert not loaded, loaded
"""


def assert_imports_none_of(names: tuple[str, ...], *arguments: str) -> str:
    """Run the command line in a fresh process and return what it printed."""
    command = [sys.executable, "-c", CALL, ",".join(names), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six users with four events each, as a file; MLflow is the file in the output folder."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return write_small_log(tmp_path)


def test_reading_parquet_imports_no_second_library_of_arithmetic(recipe: Path) -> None:
    """Polars takes Arrow's values by the C interface, and lists of targets too."""
    pl.read_csv(recipe.parent / "events.csv").write_parquet(recipe.parent / "events.parquet")
    values = ["source.interactions=events.parquet", f"output_dir={recipe.parent / 'other'}"]
    unwanted = (*HEAVY, "pyarrow.compute", "dataframely")
    folder = assert_imports_none_of(unwanted, "prepare", "--config", str(recipe), *values).strip()
    assert (Path(folder) / "targets.parquet").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["prepare", "--help"],
        ["recommend", "--help"],
        ["simulate", "--help"],
        ["fetch", "--help"],
        ["export-recbole", "--help"],
    ],
)
def test_help_imports_no_library_of_data_or_models(arguments: list[str]) -> None:
    assert "Usage" in assert_imports_none_of((*HEAVY, "polars", "pyarrow", "numpy", "yaml"), *arguments)


def test_validate_and_the_plan_import_nothing_that_trains(recipe: Path) -> None:
    assert "no problems found" in assert_imports_none_of(HEAVY, "validate", "--config", str(recipe))
    assert "prepare    run" in assert_imports_none_of(HEAVY, "run", "--dry-run", "--config", str(recipe))


def test_prepare_imports_nothing_that_trains_and_leaves_its_record(recipe: Path) -> None:
    """MLflow is a file that does not exist yet: the record waits. A second call has nothing to do, and the record stays."""
    pending = recipe.parent / "out" / "tracking" / "pending"
    unwanted = (*HEAVY, "pyarrow.compute", "dataframely")
    folder = assert_imports_none_of(unwanted, "prepare", "--config", str(recipe)).strip()
    assert (Path(folder) / "events.parquet").exists()
    (record,) = pending.glob("*.json")
    assert "up to date" in assert_imports_none_of(HEAVY, "prepare", "--config", str(recipe))
    assert list(pending.glob("*.json")) == [record]
    assert not (recipe.parent / "out" / "mlflow.db").exists()


def test_dead_cycles_are_looked_for_seldom_and_not_at_the_end() -> None:
    """Hardly any object of a short process dies in a cycle; what is there at its end is not searched through."""
    call = CALL + "import gc, atexit; assert gc.get_threshold()[0] >= 10_000; gc.collect(); "
    call += "frozen = gc.get_freeze_count(); atexit._run_exitfuncs(); print(frozen, gc.get_freeze_count() > 10_000)"
    command = [sys.executable, "-c", call, "torch", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "0 True", done.stderr


@pytest.mark.slow
def test_the_next_verb_logs_what_prepare_left(recipe: Path) -> None:
    from serving.registry.mlflow_client import connect

    command = [sys.executable, "-m", "pipelines.cli.app"]
    common = ["--config", str(recipe), "embed.text.model=null", "embed.collaborative.dim=2", "embed.fusion.dim=2"]
    for verb in ("prepare", "embed"):
        done = subprocess.run([*command, verb, *common], capture_output=True, text=True, check=False, cwd=ROOT)
        assert done.returncode == 0, done.stderr
    output = recipe.parent / "out"
    assert not list((output / "tracking" / "pending").glob("*.json"))
    client = connect(f"sqlite:///{output}/mlflow.db")
    experiment = client.get_experiment_by_name("recsys")
    assert experiment is not None
    stages = [run.data.tags.get("stage") for run in client.search_runs([experiment.experiment_id])]
    assert sorted(stage for stage in stages if stage) == ["embed", "prepare"]
