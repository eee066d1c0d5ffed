"""The command line: ``recsys <verb>``. Turns arguments into a configuration, errors into exit codes, results into text.

Exit codes: 0 done, 1 a fault of ours, 2 bad usage or configuration, 3 bad data, 4 missing or mismatched artefact,
5 gate refused or a reproduction outside its expected range, 75 another run holds the lock, 130 and 143 stopped by SIGINT and
SIGTERM, 141 the reader of standard output has gone. Answers go to standard output,
everything else to standard error.

Nothing heavy is imported before a verb runs, so that ``recsys --help`` answers at once.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import io
import logging
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from pipelines.cli.data_tools import audit, check_candidates, check_table
from pipelines.cli.datasets import export_recbole, fetch
from pipelines.cli.explain import explain
from pipelines.cli.log_format import choose, is_json, say
from pipelines.cli.nights import clean, lineage, rollback, status
from pipelines.cli.options import (
    AppendOption,
    AsOfOption,
    ConfigOption,
    DryRun,
    LogLevel,
    LogOption,
    Overrides,
    ProgressOption,
    load,
    locked,
    print_plan,
    refuse_folder_of_nights,
    run_night,
    set_up_logging,
)
from pipelines.cli.reproduce import reproduce
from pipelines.cli.tokens import tokens
from pipelines.cli.tools import doctor, histories, recommend, report, simulate, validate
from pipelines.cli.verb_group import VerbGroup
from pipelines.engine.lean_imports import import_lightning_lean
from pipelines.engine.stop_signals import Stopped, stoppable
from recsys.contracts.errors import ArtifactError, RecsysError
from recsys.runtime import ProgressMode
from serving.registry.masking import remember_all

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.nightly.night import NightReport
    from pipelines.workflow import RunReport

_READER_GONE: Final = 141
"""128 + 13: what a shell tells of a program that SIGPIPE ended, as in ``recsys validate … | head``."""
_UNDELIVERED: Final = (errno.EPIPE, errno.ENOSPC, errno.EDQUOT)
RECIPES = Path(__file__).resolve().parents[1] / "recipes"

app = typer.Typer(
    name="recsys",
    cls=VerbGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A generative recommender, from raw logs to registered model and candidates.\n\n"
    "Start with `recsys demo`, then `recsys run --config my.yaml`.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"recsys {version('recsys-gen')}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version and stop.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Options that stand before the verb."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the exit code."""
    # Idle OpenMP threads sleep instead of spinning: on a shared machine spinning made two threads 2.6 times slower than
    # this, and slower than one. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Looking for plug-ins of pydantic reads the metadata of every installed package; there are none of ours.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    # A search for cycles of dead objects after every 700 new ones was a tenth of the processor time of `prepare`, nearly all
    # of it spent on modules and classes, which stay.
    gc.set_threshold(50_000, 20, 20)
    atexit.register(gc.freeze)  # nor are they searched when the process ends: another tenth
    import_lightning_lean()
    choose(sys.argv[1:] if arguments is None else arguments)
    remember_all([*(sys.argv[1:] if arguments is None else arguments), os.environ.get("MLFLOW_TRACKING_URI", "")])
    if isinstance(sys.stdout, io.TextIOWrapper):  # ids and names hold what a terminal's encoding may lack
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        with stoppable():
            code = app(args=arguments, standalone_mode=False)
            print(end="", flush=True)  # standard output may be none
    except Stopped as stopped:
        say(str(stopped))
        code = stopped.exit_code
    except RecsysError as error:
        say(f"error: {error}")
        code = error.exit_code
    except typer.Exit as request:
        code = request.exit_code
    except typer.Abort as stop:
        # the argument parser takes the end of any file for the end of the terminal; nothing here asks questions
        code = _unexpected(stop.__context__) if isinstance(stop.__context__, EOFError) else 130
    except Exception as error:
        code = _undelivered(error) if getattr(error, "errno", None) in _UNDELIVERED else _unexpected(error)
    except BaseException as error:
        if isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError):
            sys.exit(_READER_GONE)  # the argument parser makes a fault of ours, 1, of it
        if type(error).__name__ != "PanicException":  # of libraries in Rust, which is no Exception
            raise
        code = _unexpected(error)
    sys.exit(code if isinstance(code, int) else 0)


def _undelivered(error: Exception) -> int:
    """The reader of standard output is gone, which is no news, or the disk is full where no command has explained it."""
    with contextlib.suppress(OSError):  # Python is not to try again when the process ends
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    if isinstance(error, BrokenPipeError):
        return _READER_GONE
    say(f"error: no space left ({error}); free space and run again: finished stages are kept")
    return ArtifactError.exit_code


def _unexpected(error: BaseException) -> int:
    """Usage errors of the argument parser are the user's (2), anything else is ours (1)."""
    show = getattr(error, "show", None)
    if callable(show) and hasattr(error, "exit_code"):
        if is_json():
            say(f"error: {error.format_message()}")  # type: ignore[attr-defined]  # of the argument parser's errors
        else:
            shown = io.StringIO()  # the parser quotes what it was given
            show(file=shown)
            say(shown.getvalue().rstrip())
        return 2
    advice = "this is a fault of recsys, not of your input; finished stages are kept"
    if is_json():
        say(f"{type(error).__name__}: {error}; {advice}", error)
    else:
        say("".join(traceback.format_exception(error)).rstrip())
        say(advice)
    return 1


@app.command()
def run(
    config: ConfigOption,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
    append: AppendOption = False,
    as_of: AsOfOption = None,
) -> None:
    """Run all stages in order, register, promote, recommend; skip what exists.

    With --as-of it is a night: it sees the events up to the end of that day and starts from the champion. A day runs once,
    a failed one is taken up where it was, and missed ones are caught up in order.

    Example: recsys run --config pipelines/recipes/beauty.yaml source.path=$RECSYS_DATA/amazon14_beauty
    Example: recsys run --config shop.yaml --as-of 2026-11-05
    """
    set_up_logging(log_level)
    loaded = load(config, overrides)
    if as_of is None:
        refuse_folder_of_nights(loaded)
    if dry_run:
        print_plan(loaded, day=as_of)
    elif as_of is not None:
        _print_night(loaded, run_night(loaded, progress, as_of))
    else:
        _print_report(loaded, locked(loaded, progress, lambda workflow: workflow.run(append)))


@app.command()
def demo(
    overrides: Overrides = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Run everything on the embedded simulator, in ./runs/demo; needs no data.

    Example: recsys demo
    """
    run(RECIPES / "demo.yaml", overrides, dry_run, progress, log_level)


@app.command()
def prepare(
    config: ConfigOption,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
    append: AppendOption = False,
) -> None:
    """Turn raw logs into the prepared data set.

    With --append a new day is sorted into the newest earlier result of the same code and configuration whose files are all
    there, unchanged; the result is the same as without, byte for byte. Where none fits, it says why and prepares everything.

    Example: recsys prepare --config pipelines/recipes/beauty.yaml
    """
    set_up_logging(log_level)
    _run_stage("prepare", load(config, overrides), dry_run, progress, append)


def _add_stage_verb(name: str, summary: str, recipe: str = "beauty.yaml") -> None:
    def verb(
        config: ConfigOption,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        progress: ProgressOption = ProgressMode.AUTO,
        log_level: LogOption = LogLevel.INFO,
    ) -> None:
        set_up_logging(log_level)
        _run_stage(name, load(config, overrides), dry_run, progress)

    verb.__doc__ = f"{summary}\n\nExample: recsys {name} --config pipelines/recipes/{recipe}"
    app.command(name=name)(verb)


def _run_stage(name: str, config: RunConfig, dry_run: bool, progress: ProgressMode, append: bool = False) -> None:
    if name == "align":
        _ = config.align.active  # refuses a recipe without a method, before it asks for results that nobody needs
    if dry_run:
        print_plan(config, verb=name)
        return
    outcome = locked(config, progress, lambda workflow: workflow.run_verb(name, append))
    if not outcome.ran:
        print(f"{name}: nothing to do, up to date (digest {outcome.artifact.digest[:16]})")
    if name == "evaluate":
        from recsys.evaluation.table import format_table

        print(format_table(outcome.artifact.manifest.summary))
    print(outcome.artifact.path)


for _stage_verb in (
    ("embed", "Give every item a vector (reads the result of prepare)."),
    ("tokenize", "Give every item a semantic ID (reads the result of embed)."),
    ("train", "Train the policy (reads the result of tokenize); goes on after a kill."),
    (
        "reward",
        "Train the session reward model and a held-out reward model (reads the result of tokenize); goes on after a kill.",
        "kuairand_ipa.yaml",
    ),
    (
        "align",
        "Align the policy by ipa, rere or feedback (reads train, and reward where needed); goes on after a kill.",
        "beauty_rere.yaml",
    ),
    (
        "rank",
        "Fit item scorers and the ranker of the candidates on validation rows (reads the result of train or align).",
    ),
    (
        "evaluate",
        "Fit the baselines, and evaluate the policy beside them (reads the results of train, align and rank).",
    ),
):
    _add_stage_verb(*_stage_verb)


@app.command()
def export(
    config: ConfigOption,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Build the serving bundle, log what is pending in MLflow, register a version.

    Example: recsys export --config pipelines/recipes/beauty.yaml
    """
    set_up_logging(log_level)
    loaded = load(config, overrides)
    if dry_run:
        print_plan(loaded, verb="export")
        return
    outcome, version = locked(loaded, progress, lambda workflow: workflow.export())
    print(
        f"bundle      {outcome.artifact.path}\nregistered  {version.name} version {version.number} ({version.reference})"
    )


@app.command()
def promote(
    config: ConfigOption,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Compare this configuration's version with the champion; exit code 5 when it is refused.

    Example: recsys promote --config pipelines/recipes/beauty.yaml
    """
    set_up_logging(log_level)
    loaded = load(config, overrides)
    if dry_run:
        print_plan(loaded)
        return
    version, decision = locked(loaded, progress, lambda workflow: workflow.promote())
    print(f"{version.name} version {version.number} is champion: {decision.reason}")


for _verb in (
    status,
    lineage,
    rollback,
    clean,
    recommend,
    histories,
    report,
    simulate,
    fetch,
    validate,
    audit,
    reproduce,
    doctor,
):
    app.command()(_verb)
app.add_typer(tokens, name="tokens")
app.command(name="export-recbole")(export_recbole)
app.command(name="check-table")(check_table)
app.command(name="check-candidates")(check_candidates)
app.command()(explain)


def _print_night(config: RunConfig, done: NightReport) -> None:
    from pipelines.nightly.journal import describe

    if not done.ran:
        print(f"Nothing to do: the night of {done.night.day} is done.")
    if done.report is not None:
        _print_report(config, done.report)
    print(f"night       {describe(done.night)}")


def _print_report(config: RunConfig, report: RunReport) -> None:
    from recsys.evaluation.table import format_table

    if not report.worked:
        print("Nothing to do: every stage is up to date.")
    evaluation = report.outcomes["evaluate"].artifact
    print(format_table(evaluation.manifest.summary))
    champion = (
        "champion" if report.decision.promoted else f"not promoted, champion stays version {report.decision.champion}"
    )
    print(f"registered  {report.version.name} version {report.version.number} ({champion})")
    if report.decision.numbers or not report.decision.promoted:
        print(f"gate        {report.decision.reason}")
    print(f"candidates  {report.candidates} (by {report.served_by})")
    print(f"data        {report.outcomes['prepare'].artifact.path / 'data_report.html'}")
    print(f"report      {evaluation.path / 'report.html'}")


if __name__ == "__main__":
    logging.captureWarnings(True)
    main()
