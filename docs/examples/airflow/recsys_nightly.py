"""A night of recsys under Airflow 3: one run per day, tried again where waiting helps, days that were missed filled in.

Put this file into the folder of DAGs. The command line does the work; what it says goes to the task's log.

    RECSYS          the command, default: recsys
    RECSYS_CONFIG   the recipe

`catchup` and `depends_on_past` run missed days one after the other, oldest first; for any days
`airflow backfill create --dag-id recsys_nightly --from-date 2026-11-01 --to-date 2026-11-05` does so. A day that is done
already ends at once with 0.
"""

import os
from datetime import datetime, timedelta

from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import BaseOperator, CronDataIntervalTimetable, dag
from airflow.sdk.exceptions import AirflowException, AirflowFailException

FOR_A_PERSON = {2: "the recipe is wrong", 3: "the data are bad", 5: "the gate refused"}
"""Exit codes that another try does not change. 75 (another run is at work), 4 (MLflow is away, or a file is missing), 143
(it was stopped) and faults are tried again; what was finished is kept, and training goes on where it was."""


class Recsys(BaseOperator):
    """Calls the command line; stopping the task stops the command by SIGTERM, and it ends with 143 and its lock free."""

    template_fields = ("arguments",)

    def __init__(self, *, arguments: list[str], **options: object) -> None:
        super().__init__(**options)
        self.arguments = arguments
        self.hook = SubprocessHook()

    def execute(self, context: object) -> None:
        """Run, and turn the exit code into success, another try, or failure."""
        command = [os.environ.get("RECSYS", "recsys"), *self.arguments]
        ended = self.hook.run_command(command, cwd=os.environ.get("RECSYS_FOLDER", os.getcwd()))
        if ended.exit_code in FOR_A_PERSON:
            raise AirflowFailException(f"{FOR_A_PERSON[ended.exit_code]} (exit code {ended.exit_code}): {ended.output}")
        if ended.exit_code:
            raise AirflowException(f"exit code {ended.exit_code}, trying again: {ended.output}")

    def on_kill(self) -> None:
        """Somebody marked the task, or it ran too long."""
        self.hook.send_sigterm()


@dag(
    dag_id="recsys_nightly",
    # the interval of a day begins with that day, so that `ds` is the day whose events are complete
    schedule=CronDataIntervalTimetable("15 2 * * *", timezone="UTC"),
    start_date=datetime(2026, 11, 1),
    catchup=True,
    max_active_runs=1,
    default_args={
        "retries": 5,
        "retry_delay": timedelta(minutes=10),
        "depends_on_past": True,
        "execution_timeout": timedelta(hours=6),
    },
)
def recsys_nightly() -> None:
    """One task: all stages are one command, which skips what is done."""
    Recsys(
        task_id="night",
        arguments=[
            "run",
            "--config",
            os.environ.get("RECSYS_CONFIG", "shop.yaml"),
            "--as-of",
            "{{ ds }}",
            "--progress",
            "off",
        ],
    )


recsys_nightly()
