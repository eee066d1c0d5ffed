"""The command line: ``recsys <verb>``. Turns arguments into a configuration, errors into exit codes, results into text.

Exit codes: 0 done, 1 a fault of ours, 2 bad usage or configuration, 3 bad data, 4 missing or mismatched artefact,
5 gate refused, 75 another run holds the lock. Answers go to standard output, everything else to standard error.

Nothing heavy is imported before a verb runs, so that ``recsys --help`` answers at once.
"""

from __future__ import annotations

import logging
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import LogLevel, set_up_logging
from recsys.contracts.errors import ArtifactError, ConfigError, DataError, RecsysError
from recsys.runtime import ProgressMode, make_progress

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.workflow import RunReport, Workflow

RECIPES = Path(__file__).resolve().parents[1] / "recipes"

app = typer.Typer(
    name="recsys",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A generative recommender, from raw logs to registered model and candidates.\n\n"
    "Start with `recsys demo`, then `recsys run --config my.yaml`.",
)

ConfigOption = Annotated[
    Path, typer.Option("--config", "-c", help="YAML recipe, for example pipelines/recipes/beauty.yaml.", metavar="FILE")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Overrides, for example train.max_epochs=5 seed=7.")
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Print the resolved config and what would run, and why; do nothing.")
]
ProgressOption = Annotated[ProgressMode, typer.Option("--progress", help="auto: bars on a terminal, else plain lines.")]
LogOption = Annotated[LogLevel, typer.Option("--log-level", help="How much is said on standard error.")]


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the console script; ends the process with the exit code."""
    # Idle OpenMP threads sleep instead of spinning: on a shared machine spinning made two threads 2.6 times slower than
    # this, and slower than one. It must be set before torch is imported.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = app(args=arguments, standalone_mode=False)
    except RecsysError as error:
        _say(f"error: {error}")
        code = error.exit_code
    except typer.Exit as request:
        code = request.exit_code
    except typer.Abort:
        code = 130
    except KeyboardInterrupt:
        _say("interrupted; run the same command again to go on")
        code = 130
    except Exception as error:
        code = _unexpected(error)
    sys.exit(code if isinstance(code, int) else 0)


def _unexpected(error: Exception) -> int:
    """Usage errors of the argument parser are the user's (2), anything else is ours (1)."""
    show = getattr(error, "show", None)
    if callable(show) and hasattr(error, "exit_code"):
        show(file=sys.stderr)
        return 2
    traceback.print_exception(error, file=sys.stderr)
    _say("this is a fault of recsys, not of your input; finished stages are kept")
    return 1


@app.command()
def run(
    config: ConfigOption,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Run all stages in order, register, promote, recommend; skip what exists.

    Example: recsys run --config pipelines/recipes/beauty.yaml source.path=$RECSYS_DATA/amazon14_beauty
    """
    set_up_logging(log_level)
    loaded = _load(config, overrides)
    if dry_run:
        _print_plan(loaded)
    else:
        _print_report(loaded, _locked(loaded, progress, lambda workflow: workflow.run()))


@app.command()
def demo(
    overrides: Overrides = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Run everything on the embedded simulator, in ./runs/demo; needs no data."""
    run(RECIPES / "demo.yaml", overrides, dry_run, progress, log_level)


def _add_stage_verb(name: str, summary: str) -> None:
    def verb(
        config: ConfigOption,
        overrides: Overrides = None,
        dry_run: DryRun = False,
        progress: ProgressOption = ProgressMode.AUTO,
        log_level: LogOption = LogLevel.INFO,
    ) -> None:
        set_up_logging(log_level)
        loaded = _load(config, overrides)
        if dry_run:
            _print_plan(loaded, verb=name)
            return
        outcome = _locked(loaded, progress, lambda workflow: workflow.run_verb(name))
        if not outcome.ran:
            print(f"{name}: nothing to do, up to date (digest {outcome.artifact.digest[:16]})")
        if name == "evaluate":
            from recsys.evaluation.table import format_table

            print(format_table(outcome.artifact.manifest.summary))
        print(outcome.artifact.path)

    verb.__doc__ = f"{summary}\n\nExample: recsys {name} --config pipelines/recipes/beauty.yaml"
    app.command(name=name)(verb)


for _name, _summary in (
    ("prepare", "Turn raw logs into the prepared data set."),
    ("embed", "Give every item a vector (reads the result of prepare)."),
    ("tokenize", "Give every item a semantic ID (reads the result of embed)."),
    ("train", "Train the policy (reads the result of tokenize); goes on after a kill."),
    (
        "reward",
        "Train the session reward model and a held-out reward model (reads the result of tokenize); goes on after a kill.",
    ),
    (
        "align",
        "Align the policy by align.method, ipa or rere (reads train, and reward where needed); goes on after a kill.",
    ),
    ("evaluate", "Evaluate the policy beside all baselines (reads the result of train)."),
):
    _add_stage_verb(_name, _summary)


@app.command()
def export(
    config: ConfigOption,
    overrides: Overrides = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Build the serving bundle, log what is pending in MLflow, register a version."""
    set_up_logging(log_level)
    loaded = _load(config, overrides)
    if dry_run:
        _print_plan(loaded, verb="export")
        return
    outcome, version = _locked(loaded, progress, lambda workflow: workflow.export())
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
    """Compare this configuration's version with the champion; exit code 5 when it is refused."""
    set_up_logging(log_level)
    loaded = _load(config, overrides)
    if dry_run:
        _print_plan(loaded)
        return
    version, verdict = _locked(loaded, progress, lambda workflow: workflow.promote())
    print(f"{version.name} version {version.number} is champion: {verdict.reason}")


@app.command()
def recommend(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Recipe; its champion scores its data.")
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="models:/name@champion, models:/name/3, or a bundle folder.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="Parquet of histories (user_id, item_ids, …) or a prepared data folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the candidates; the same folder continues a killed job.")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow of the model; default: MLFLOW_TRACKING_URI.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Items per user.")] = None,
    allow: Annotated[Path | None, typer.Option(help="File of the only items that may be recommended.")] = None,
    deny: Annotated[Path | None, typer.Option(help="File of items that must not be recommended.")] = None,
    dry_run: DryRun = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Write candidates for all users, in shards, restartable.

    Inside a run: recsys recommend --config my.yaml

    Any model, any users: recsys recommend --model models:/beauty@champion --users histories.parquet --out candidates/
    """
    set_up_logging(log_level)
    settings: dict[str, Any] = {"model": model, "k": k, "allow": allow, "deny": deny}
    given = {name: value for name, value in settings.items() if value is not None}
    if users is not None or out is not None or config is None:
        _recommend_anything(config, overrides or [], given, users, out, tracking_uri, progress)
        return
    lines = [*(overrides or []), *(f"recommend.{name}={value}" for name, value in given.items())]
    loaded = _load(config, lines)
    if dry_run:
        _print_plan(loaded, verb="recommend")
        return
    outcome = _locked(loaded, progress, lambda workflow: workflow.run_verb("recommend"))
    if not outcome.ran:
        print(f"recommend: nothing to do, up to date (digest {outcome.artifact.digest[:16]})")
    print(outcome.artifact.path)


def _recommend_anything(
    config: Path | None,
    overrides: list[str],
    given: dict[str, Any],
    users: Path | None,
    out: Path | None,
    tracking_uri: str | None,
    progress: ProgressMode,
) -> None:
    from pipelines.engine.lock import run_lock
    from recsys.config import apply_overrides, validate
    from serving.batch.job import recommend_with
    from serving.config import RecommendConfig

    if config is not None:
        raise ConfigError(
            "recommend: --users and --out belong to --model; with --config the users and the folder are the run's own"
        )
    if given.get("model") is None or users is None or out is None:
        raise ConfigError("recommend: give either --config, or all three of --model, --users and --out")
    settings = validate(RecommendConfig, apply_overrides(given, overrides), "recommend")
    with run_lock(out):
        summary = recommend_with(settings, users, out, tracking_uri, make_progress(progress))
    print(f"{summary['rows']} rows for {summary['users']} users in {summary['shards']} files\n{out}")


@app.command()
def report(
    config: ConfigOption,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="HTML file; default: report.html in the output folder.")] = None,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Write the HTML report of an evaluation that has run, and print its table."""
    from pipelines.report import rewrite_report

    set_up_logging(log_level)
    loaded = _load(config, overrides)
    path, table = rewrite_report(loaded, out or loaded.output_dir / "report.html")
    print(f"{table}\n{path}")


@app.command()
def simulate(
    config: ConfigOption,
    overrides: Overrides = None,
    policy: Annotated[
        list[str] | None, typer.Option(help="A further policy; may be given several times.", metavar="NAME=FOLDER")
    ] = None,
    users: Annotated[int, typer.Option(min=1, help="Users to show sessions to, spread over all of them.")] = 1000,
    beams: Annotated[int, typer.Option(min=1, help="Candidates that the truth picks the best of.")] = 32,
    out: Annotated[Path | None, typer.Option(help="Folder for simulated_ab.json and .parquet.")] = None,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Compare a recipe's policies on the simulator's users, who know what they truly like; runs the stages it needs.

    The recipe has source.kind: simulated and features.task: session.

    Example: recsys simulate --config pipelines/recipes/simulated_sessions.yaml
    """
    from pipelines.engine.lock import run_lock
    from pipelines.simulation.ab_test import simulate as simulated_test

    set_up_logging(log_level)
    loaded = _load(config, overrides)
    with run_lock(loaded.output_dir):
        result, lines = simulated_test(loaded, policy or [], users, beams, make_progress(progress))
    print("\n".join([result.table(), *lines]))
    if out is not None:
        result.write(out)


@app.command()
def validate(config: ConfigOption, overrides: Overrides = None, log_level: LogOption = LogLevel.INFO) -> None:
    """Check recipe and raw data without writing anything; exit code 3 when `prepare` would refuse."""
    import json

    set_up_logging(log_level)
    loaded = _load(config, overrides)
    from features.build import validate_source

    found = validate_source(loaded.source, loaded.features, loaded.seed)
    if found["report"] is not None:
        print(json.dumps(found["report"], indent=2, ensure_ascii=False, default=str))
    if found["problems"]:
        raise DataError("\n".join(found["problems"]))
    print("no problems found")


@app.command()
def doctor(
    output_dir: Annotated[Path, typer.Option(help="Folder whose disk is looked at.")] = Path("runs"),
) -> None:
    """Say what is installed, what does not fit together, what the machine offers; exit code 4 when something is wrong."""
    from pipelines.cli.doctor import examine

    findings = examine(output_dir)
    for finding in findings:
        print(f"{finding.level:8}{finding.subject:14}{finding.text}")
    problems = [finding for finding in findings if finding.level == "problem"]
    if problems:
        raise ArtifactError(f"{len(problems)} problems found: {problems[0].text}")
    print("everything that is needed is there and fits")


def _load(path: Path, overrides: list[str] | None) -> RunConfig:
    from pipelines.config import load_run_config

    return load_run_config(path, overrides or [])


def _locked(config: RunConfig, mode: ProgressMode, work: Callable[[Workflow], Any]) -> Any:
    """Do work while holding the lock of the output folder."""
    from pipelines.engine.lock import run_lock
    from pipelines.workflow import Workflow

    with run_lock(config.output_dir):
        return work(Workflow(config, make_progress(mode)))


def _print_plan(config: RunConfig, verb: str | None = None) -> None:
    from pipelines.config import to_yaml
    from pipelines.workflow import describe_plan

    print(to_yaml(config))
    for row in describe_plan(config, verb):
        print(f"{row['stage']:10} {row['action']:5} {row['digest']}  {row['why']}")


def _print_report(config: RunConfig, report: RunReport) -> None:
    from recsys.evaluation.table import format_table

    if not report.worked:
        print("Nothing to do: every stage is up to date.")
    evaluation = report.outcomes["evaluate"].artifact
    print(format_table(evaluation.manifest.summary))
    champion = (
        "champion" if report.verdict.promoted else f"not promoted, champion stays version {report.verdict.champion}"
    )
    print(f"registered  {report.version.name} version {report.version.number} ({champion})")
    if report.verdict.numbers or not report.verdict.promoted:
        print(f"gate        {report.verdict.reason}")
    print(f"candidates  {report.candidates} (by {report.served_by})")
    print(f"report      {evaluation.path / 'report.html'}")


def _say(text: str) -> None:
    print(text, file=sys.stderr)


if __name__ == "__main__":
    logging.captureWarnings(True)
    main()
