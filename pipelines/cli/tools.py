"""Verbs beside the stages: histories and candidates, the report, the simulated A/B test, checks of data and machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.cli.options import (
    ConfigOption,
    LogLevel,
    LogOption,
    Overrides,
    ProgressOption,
    load,
    locked,
    print_plan,
    set_up_logging,
)
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.runtime import ProgressMode, make_progress

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from recsys.device import AskedPlacement


def recommend(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Recipe; its champion scores its data.")
    ] = None,
    overrides: Overrides = None,
    model: Annotated[
        str | None, typer.Option(help="models:/name@champion, models:/name/3, or a bundle folder.")
    ] = None,
    users: Annotated[
        Path | None, typer.Option(help="Histories written by `recsys histories`, or a prepared data folder.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the candidates; the same folder continues a killed job.")
    ] = None,
    tracking_uri: Annotated[str | None, typer.Option(help="MLflow of the model; default: MLFLOW_TRACKING_URI.")] = None,
    k: Annotated[int | None, typer.Option(min=1, help="Items per user.")] = None,
    allow: Annotated[Path | None, typer.Option(help="File of the only items that may be recommended.")] = None,
    deny: Annotated[Path | None, typer.Option(help="File of items that must not be recommended.")] = None,
    since: Annotated[
        Path | None,
        typer.Option(help="Folder of earlier candidates: users of whom nothing has changed keep their rows."),
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="local, or ray for the workers of a cluster (recsys-gen[ray]).")
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="auto, cpu, cuda or cuda:N; default: RECSYS_DEVICE, or with --config the recipe's."),
    ] = None,
    precision: Annotated[
        str | None,
        typer.Option(help="Of decoding: float32, bfloat16 or int8; default: RECSYS_PRECISION, or as exported."),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="With --config: print the resolved config, and whether and why it would run. With --model: answer a first "
            "batch, and say how many users, files and rows there will be, and the minutes and memory. Nothing is written.",
        ),
    ] = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Write candidates for all users, in shards, restartable.

    Inside a run: recsys recommend --config my.yaml

    Any model, any users: recsys recommend --model models:/beauty@champion --users histories.parquet --out candidates/
    """
    set_up_logging(log_level)
    settings: dict[str, Any] = {"model": model, "k": k, "allow": allow, "deny": deny, "engine": engine}
    given = {name: value for name, value in settings.items() if value is not None}
    if users is not None or out is not None or config is None:
        from recsys.device import asked_placement

        placed = asked_placement(device, precision)
        job = _Job(users, out, tracking_uri, placed, since)
        _recommend_anything(config, overrides or [], given, job, progress, dry_run=dry_run)
        return
    if since is not None:
        raise ConfigError("recommend: --since belongs to --model; with --config it is the recipe's: recommend.delta")
    if precision is not None:
        raise ConfigError(
            "recommend: --precision belongs to --model; with --config it is the recipe's: decode.precision"
        )
    lines = [*(overrides or []), *(f"recommend.{name}={value}" for name, value in given.items())]
    lines += [] if device is None else [f"device={device}"]
    loaded = load(config, lines)
    if dry_run:
        print_plan(loaded, verb="recommend")
        return
    outcome = locked(loaded, progress, lambda workflow: workflow.run_verb("recommend"))
    if not outcome.ran:
        print(f"recommend: nothing to do, up to date (digest {outcome.artifact.digest[:16]})")
    print(outcome.artifact.path)


@dataclass(frozen=True)
class _Job:
    """A job outside of runs, as it was typed."""

    users: Path | None
    out: Path | None
    tracking_uri: str | None
    placed: AskedPlacement
    since: Path | None


def _recommend_anything(
    config: Path | None,
    overrides: list[str],
    given: dict[str, Any],
    job: _Job,
    progress: ProgressMode,
    *,
    dry_run: bool,
) -> None:
    from pipelines.engine.lock import run_lock
    from pipelines.places import check_output
    from recsys.config import apply_overrides, validate
    from serving.batch.job import plan_with, recommend_with
    from serving.config import RecommendConfig

    if config is not None:
        raise ConfigError(
            "recommend: --users and --out belong to --model; with --config the users and the folder are the run's own"
        )
    users, out = job.users, job.out
    if users is not None and users.suffix.lower() in (".tsv", ".inter", ".txt", ".gz"):
        raise DataError(
            f"recommend: --users '{users}' is a table of interactions; histories are a Parquet file with one row per user, "
            f"written by: recsys histories --config my.yaml --out {users.name.partition('.')[0]}_histories.parquet"
        )
    if given.get("model") is None or users is None or out is None:
        raise ConfigError("recommend: give either --config, or all three of --model, --users and --out")
    check_output(out, "--out")
    settings = validate(RecommendConfig, apply_overrides(given, overrides, RecommendConfig), "recommend")
    if dry_run:
        print(plan_with(settings, users, out, job.tracking_uri, job.placed, job.since).text())
        return
    summary = recommend_with(
        settings,
        users,
        out,
        job.tracking_uri,
        make_progress(progress),
        lambda: run_lock(out, "--out"),
        job.placed,
        job.since,
    )
    print(f"{summary['rows']} rows for {summary['users']} users in {summary['shards']} files\n{out}")


def histories(
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="Parquet file to write: one row per user.")],
    overrides: Overrides = None,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Write one row per user, the histories that `recommend --users` reads.

    They are read from the recipe's source by its column map; another file of the same form is given as an override.

    Example: recsys histories --config shop.yaml --out histories.parquet source.interactions=today.csv
    """
    from features.user_histories import user_histories
    from recsys.contracts.manifest import explain_write_errors

    set_up_logging(log_level)
    loaded = load(config, overrides)
    _check_histories_file(out, loaded)
    table = user_histories(loaded.source, loaded.features, loaded.seed)
    with explain_write_errors(out, "--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        part = out.with_name(f".{out.name}.part")
        table.write_parquet(part)
        part.replace(out)
    print(f"{len(table)} users, {table['item_ids'].list.len().sum()} events\n{out}")


def _check_histories_file(out: Path, config: RunConfig) -> None:
    """Refuse a file that could not be read back, and one of the source's own.

    Raises:
        ConfigError: The name does not end in .parquet, is a folder, or is where the raw log lies.
    """
    if out.suffix != ".parquet" or out.is_dir():
        what = "a folder" if out.is_dir() else f"'{out.suffix or 'nothing'}' at its end"
        raise ConfigError(f"--out '{out}' is {what}; histories are one Parquet file, for example histories.parquet")
    folder = getattr(config.source, "path", None)
    for key in ("interactions", "items", "histories"):
        pattern = getattr(config.source, key, None)
        if folder is None or not isinstance(pattern, str):
            continue
        own = [Path(pattern)] if Path(pattern).is_absolute() else Path(folder).glob(pattern)
        if out.resolve() in {path.resolve() for path in own}:
            raise ConfigError(f"--out '{out}' is a file of the source (source.{key}); choose another name")


def report(
    config: ConfigOption,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="HTML file; default: report.html in the output folder.")] = None,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Write the HTML report of an evaluation that has run, and print its table; and the page of its data.

    Example: recsys report --config pipelines/recipes/beauty.yaml --out report.html
    """
    from pipelines.report import rewrite_data_report, rewrite_report

    set_up_logging(log_level)
    loaded = load(config, overrides)
    if (data := rewrite_data_report(loaded)) is not None:
        print(data)
    path, table = rewrite_report(loaded, out or loaded.output_dir / "report.html")
    print(f"{table}\n{path}")


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
    loaded = load(config, overrides)
    with run_lock(loaded.output_dir):
        result, lines = simulated_test(loaded, policy or [], users, beams, make_progress(progress))
    print("\n".join([result.table(), *lines]))
    if out is not None:
        result.write(out)


def validate(
    config: ConfigOption,
    overrides: Overrides = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the report as JSON, as `prepare` would write it, and nothing else.")
    ] = False,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Check recipe and raw data without writing anything; exit code 3 when `prepare` would refuse.

    Prints the data report that `prepare` would write. It is compared with the data that the output folder accepted last.

    Example: recsys validate --config pipelines/recipes/beauty.yaml
    """
    import json
    import logging

    set_up_logging(log_level)
    loaded = load(config, overrides)
    from features.build import foresee
    from pipelines.described import compare_with_accepted, report_text
    from pipelines.nightly.footing import footing_of
    from recsys.evaluation.baselines.config import left_out

    footing = footing_of(loaded)
    data = foresee(loaded.source, loaded.features, loaded.seed)
    if as_json:
        print(json.dumps(data.report, indent=2, ensure_ascii=False, default=str))
    else:
        print(report_text(data.report))
    compare_with_accepted(loaded, data)
    notes = list(left_out(loaded.evaluate.baselines, loaded.evaluate.baseline_settings, data.report["items"]).values())
    if footing.pinned:
        notes.append(
            f"`prepare` keeps the data of the night of {footing.day} in '{loaded.output_dir}'; these are the files as they "
            "are now, features.as_of=DATE shows those of a later night"
        )
    for note in notes:
        if as_json:
            logging.getLogger(__name__).info("validate: %s", note)
        else:
            print(f"note: {note}")
    if as_json:
        return
    warned = len(data.report.get("warnings", ()))
    print(f"no problems found, {warned} warnings" if warned else "no problems found")


def doctor(
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Recipe: say of its stages where each runs.")
    ] = None,
    overrides: Overrides = None,
    output_dir: Annotated[Path, typer.Option(help="Folder whose disk is looked at.")] = Path("runs"),
) -> None:
    """Say what is installed, what does not fit together, what the machine offers, and where the stages of a recipe run.

    Exit code 4 when something is wrong.

    Example: recsys doctor --config pipelines/recipes/beauty.yaml device=cuda
    """
    from pipelines.cli.doctor import examine
    from pipelines.config import load_run_config

    if config is None and overrides:
        raise ConfigError(f"doctor: '{overrides[0]}' is of a recipe; give the recipe too, with --config")
    findings = examine(output_dir, None if config is None else load_run_config(config, overrides or []))
    for finding in findings:
        print(f"{finding.level:8}{finding.subject:14}{finding.text}")
    problems = [finding for finding in findings if finding.level == "problem"]
    if problems:
        raise ArtifactError(f"{len(problems)} problems found: {problems[0].text}")
    print("everything that is needed is there and fits")
