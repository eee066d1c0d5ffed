"""A night of recsys under Dagster: one partition per day, tried again where waiting helps, days that were missed filled in.

    dagster dev -f recsys_nightly.py

The command line does the work; the figures of its summary become metadata of the materialisation.

    RECSYS          the command, default: recsys
    RECSYS_CONFIG   the recipe
"""

import json
import os
import subprocess
from pathlib import Path

import dagster as dg

FOR_A_PERSON = {2: "the recipe is wrong", 3: "the data are bad", 5: "the gate refused"}
"""Exit codes that another try does not change. 75 (another run is at work), 4 (MLflow is away, or a file is missing), 143
(it was stopped) and faults are tried again; what was finished is kept, and training goes on where it was."""
DAYS = dg.DailyPartitionsDefinition(start_date="2026-11-01", timezone="UTC")


@dg.asset(partitions_def=DAYS, pool="recsys")
def candidates(context: dg.AssetExecutionContext) -> dg.MaterializeResult:
    """Train on all days up to the partition's, compare, register, recommend."""
    config = os.environ.get("RECSYS_CONFIG", "shop.yaml")
    arguments = [
        "run",
        "--config",
        config,
        "--as-of",
        context.partition_key,
        "--progress",
        "off",
        "--log-format",
        "json",
    ]
    process = subprocess.Popen([os.environ.get("RECSYS", "recsys"), *arguments], stderr=subprocess.PIPE, text=True)
    last = ""
    try:
        for line in process.stderr:
            last = json.loads(line)["message"]
            context.log.info(last)
        code = process.wait()
    except BaseException:  # Dagster interrupts a run that is cancelled
        process.terminate()
        process.wait()
        raise
    if code in FOR_A_PERSON:
        raise dg.Failure(f"{FOR_A_PERSON[code]} (exit code {code}): {last}", allow_retries=False)
    if code:
        wait = float(os.environ.get("RECSYS_WAIT", "600"))
        raise dg.RetryRequested(max_retries=5, seconds_to_wait=wait) from RuntimeError(f"exit code {code}: {last}")
    return dg.MaterializeResult(metadata=figures_of(context.partition_key))


def figures_of(day: str) -> dict[str, object]:
    """Read the summary that the night has left; empty where RECSYS_OUTPUT, the output folder, is not set."""
    folder = os.environ.get("RECSYS_OUTPUT")
    if folder is None:
        return {}
    summary = json.loads((Path(folder) / "summaries" / f"{day}.json").read_text())
    figures = {figure["metric"]: figure["value"] for figure in summary["figures"]}
    return {"state": summary["state"], "champion": str(summary["champion"]), **figures}


nightly = dg.define_asset_job("recsys_nightly", selection=[candidates], partitions_def=DAYS)
schedule = dg.build_schedule_from_partitioned_job(nightly, hour_of_day=2, minute_of_hour=15)
defs = dg.Definitions(assets=[candidates], jobs=[nightly], schedules=[schedule])
