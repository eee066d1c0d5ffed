"""The examples for schedulers: what they call exists, and every exit code becomes what docs/examples/README.md says.

Airflow and Dagster are not installed beside the project: `make examples` gives each an environment of its own below
``build/examples`` and runs the tests that need them, which are left out where these environments are missing.
"""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from docs._build.blocks import problem
from pipelines.cli.app import app

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"
ENVIRONMENTS = ROOT / "build" / "examples"
CRON = EXAMPLES / "cron" / "recsys_night.sh"
FAKE = """#!/bin/sh
# ends with the next of the exit codes in the file $CODES, and writes down what it was called with
echo "$*" >> "$CODES.calls"
echo '{"message": "the last words"}' >&2
code=$(head -n 1 "$CODES")
sed -i 1d "$CODES"
exit "$code"
"""
LOAD = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("recsys_nightly", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules["recsys_nightly"] = module
spec.loader.exec_module(module)
"""
AIRFLOW = (
    LOAD
    + """
from datetime import datetime, timedelta, timezone
dag = module.recsys_nightly()
dag.task_dict["night"].retry_delay = timedelta(seconds=0.1)
run = dag.test(logical_date=datetime(2026, 11, 5, 2, 15, tzinfo=timezone.utc))
print("ENDED", str(run.state).rpartition(".")[2], flush=True)
"""
)
DAGSTER = (
    LOAD
    + """
import dagster
with dagster.DagsterInstance.ephemeral() as instance:
    job = module.defs.resolve_job_def("recsys_nightly")
    run = job.execute_in_process(partition_key="2026-11-05", instance=instance, raise_on_error=False)
    print("ENDED", "success" if run.success else "failed", flush=True)
    for event in run.get_asset_materialization_events():
        print({name: value.value for name, value in event.materialization.metadata.items()}, flush=True)
"""
)


def python_of(name: str) -> Path:
    """The interpreter of a scheduler's environment."""
    path = ENVIRONMENTS / name / "bin" / "python"
    if not path.exists():
        pytest.skip(f"`make examples` installs {name}")
    return path


def environment(folder: Path, codes: list[int]) -> dict[str, str]:
    """What a scheduler runs with: a command that ends with these codes."""
    fake = folder / "recsys"
    fake.write_text(FAKE)
    fake.chmod(0o755)
    (folder / "codes").write_text("".join(f"{code}\n" for code in codes))
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return plain | {
        "RECSYS": str(fake),
        "RECSYS_CONFIG": "shop.yaml",
        "CODES": str(folder / "codes"),
        "WAIT": "0",
        "RECSYS_WAIT": "0",
        "AIRFLOW_HOME": str(folder),
        "AIRFLOW__CORE__DAGS_FOLDER": str(EXAMPLES / "airflow"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{folder / 'airflow.db'}",
    }


def calls(folder: Path) -> list[str]:
    return (folder / "codes.calls").read_text().splitlines()


def strings(path: Path) -> list[list[str]]:
    """Every list of a Python file that begins with a verb, as the words of a command; what is computed is a day."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.List) and node.elts and isinstance(node.elts[0], ast.Constant):
            words = [str(part.value) if isinstance(part, ast.Constant) else "2026-11-05" for part in node.elts]
            if "--config" in words:
                found.append(["recsys", *words])
    return found


def printed_commands(path: Path) -> list[list[str]]:
    """Every call of recsys in a shell script or a remark of the Dockerfile."""
    text = path.read_text(encoding="utf-8").replace('"${RECSYS:-recsys}" run', "recsys run")
    lines = re.findall(r"^.*?(recsys (?:run|prepare) --config .*)$", text, re.MULTILINE)
    return [shlex.split(line.replace('"$day"', "2026-11-05")) for line in lines]


@pytest.mark.parametrize("name", ["airflow", "dagster"])
def test_what_the_python_examples_call_exists(name: str) -> None:
    (command,) = strings(EXAMPLES / name / "recsys_nightly.py")
    assert problem([word.replace("{{ ds }}", "2026-11-05") for word in command], app, set()) is None
    assert "--as-of" in command


@pytest.mark.parametrize("path", [CRON, EXAMPLES / "container" / "Dockerfile"], ids=lambda path: str(path.name))
def test_what_the_other_examples_call_exists(path: Path) -> None:
    (command,) = printed_commands(path)
    assert problem(command, app, set()) is None
    assert "--as-of" in command


def test_an_option_that_is_gone_would_be_noticed() -> None:
    assert problem(["recsys", "run", "--config", "c", "--no-such", "x"], app, set()) is not None


@pytest.mark.parametrize(
    ("codes", "ends", "times"),
    [
        ([0], 0, 1),
        ([75, 75, 0], 0, 3),
        ([4, 0], 0, 2),
        ([2, 0], 2, 1),
        ([3, 0], 3, 1),
        ([5, 0], 5, 1),
        ([143, 0], 143, 1),
        ([75, 75, 75, 0], 75, 3),
    ],
)
def test_cron_waits_where_waiting_helps(tmp_path: Path, codes: list[int], ends: int, times: int) -> None:
    """Two retries; the last case has used them up."""
    settings = environment(tmp_path, codes) | {"RETRIES": "2"}
    done = subprocess.run(["sh", str(CRON), "2026-11-05"], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode == ends, done.stderr
    assert calls(tmp_path) == ["run --config shop.yaml --as-of 2026-11-05 --progress off --log-format json"] * times


def test_cron_runs_yesterday_and_needs_a_recipe(tmp_path: Path) -> None:
    settings = environment(tmp_path, [0])
    subprocess.run(["sh", str(CRON)], env=settings, check=True)
    yesterday = subprocess.run(["date", "-u", "-d", "yesterday", "+%F"], capture_output=True, text=True, check=True)
    assert f"--as-of {yesterday.stdout.strip()}" in calls(tmp_path)[0]
    del settings["RECSYS_CONFIG"]
    done = subprocess.run(["sh", str(CRON)], env=settings, capture_output=True, text=True, check=False)
    assert done.returncode not in (0, 75)
    assert "RECSYS_CONFIG" in done.stderr


def test_the_crontab_calls_the_script_and_sets_what_it_needs() -> None:
    text = (EXAMPLES / "cron" / "recsys.crontab").read_text()
    (job,) = [line for line in text.splitlines() if re.match(r"^[\d*]", line)]
    assert CRON.name in job
    assert len(job.split(None, 5)) == 6
    assert re.search(r"^RECSYS_CONFIG=", text, re.MULTILINE)


def test_the_dockerfile_copies_what_is_there() -> None:
    """Instructions of known names, files that exist, an installation bound by the lock; nobody has built it here."""
    text = (EXAMPLES / "container" / "Dockerfile").read_text().replace("\\\n", " ")
    steps = [line.split(None, 1) for line in text.splitlines() if line and not line.startswith("#")]
    assert {step[0] for step in steps} <= {"FROM", "RUN", "WORKDIR", "COPY", "ENV", "USER", "ENTRYPOINT", "CMD"}
    assert steps[0][0] == "FROM"
    for keyword, rest in steps:
        if keyword == "COPY" and not rest.startswith("--from"):
            for name in rest.split()[:-1]:
                assert (ROOT / name).exists(), name
    built = " ".join(rest for keyword, rest in steps if keyword == "RUN")
    assert "requirements/cpu.txt" in built
    assert "-c lock.txt" in (ROOT / "requirements" / "cpu.txt").read_text()
    assert ["ENTRYPOINT", '["recsys"]'] in steps  # no shell between the signal and the command


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "ends", "times"), [([0], "success", 1), ([75, 143, 0], "success", 3), ([3, 0], "failed", 1)]
)
def test_airflow(tmp_path: Path, codes: list[int], ends: str, times: int) -> None:
    """The day of the interval is the day that is run; 75 and 143 are tried again, 3 is not."""
    python = python_of("airflow")
    settings = environment(tmp_path, codes)
    migrated = subprocess.run(
        [python.with_name("airflow"), "db", "migrate"], env=settings, capture_output=True, text=True, check=False
    )
    assert migrated.returncode == 0, migrated.stderr
    script = [python, "-c", AIRFLOW, EXAMPLES / "airflow" / "recsys_nightly.py"]
    done = subprocess.run(script, env=settings, capture_output=True, text=True, check=False, timeout=300)
    assert f"ENDED {ends}" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    assert calls(tmp_path) == ["run --config shop.yaml --as-of 2026-11-05 --progress off"] * times


@pytest.mark.slow
@pytest.mark.parametrize(
    ("codes", "ends", "times"),
    [([0], "success", 1), ([75, 4, 143, 0], "success", 4), ([3, 0], "failed", 1), ([5, 0], "failed", 1)],
)
def test_dagster(tmp_path: Path, codes: list[int], ends: str, times: int) -> None:
    """The partition is the day; its materialisation carries the figures of the summary."""
    python = python_of("dagster")
    (tmp_path / "summaries").mkdir()
    (tmp_path / "summaries" / "2026-11-05.json").write_text(
        '{"state": "registered", "champion": 7, "figures": [{"metric": "ndcg@10", "value": 0.25}]}'
    )
    settings = environment(tmp_path, codes) | {"RECSYS_OUTPUT": str(tmp_path)}
    script = [python, "-c", DAGSTER, EXAMPLES / "dagster" / "recsys_nightly.py"]
    done = subprocess.run(script, env=settings, capture_output=True, text=True, check=False, timeout=300)
    assert f"ENDED {ends}" in done.stdout, done.stdout[-3000:] + done.stderr[-3000:]
    expected = "run --config shop.yaml --as-of 2026-11-05 --progress off --log-format json"
    assert calls(tmp_path) == [expected] * times
    found = "{'state': 'registered', 'champion': '7', 'ndcg@10': 0.25}"
    assert (found in done.stdout) == (ends == "success")
