"""Verbs around nightly runs: what stands where, what was made from what, going back, and what is needed no more."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.cli.options import ConfigOption, LogLevel, LogOption, Overrides, load, locked, set_up_logging
from recsys.runtime import ProgressMode

if TYPE_CHECKING:
    from pipelines.workflow import Workflow

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]


def status(
    config: ConfigOption,
    overrides: Overrides = None,
    as_json: JsonOption = False,
    log_level: LogOption = LogLevel.WARNING,
) -> None:
    """Say what is champion since when, how the last night ended, what was decided last, what waits and the disk used.

    Example: recsys status --config pipelines/recipes/demo.yaml
    """
    from pipelines.history.cleaning import registry_of
    from pipelines.nightly.journal import Journal, night_status, status_lines
    from pipelines.release.status import status_of, status_text

    set_up_logging(log_level)
    loaded = load(config, overrides)
    found = status_of(loaded.output_dir, loaded.registered_name, lambda: registry_of(loaded))
    found |= night_status(Journal(loaded.output_dir, loaded.registered_name))
    if as_json:
        print(json.dumps(found, indent=2, sort_keys=True))
    else:
        print("\n".join([status_text(found), *status_lines(found)]))


def rollback(
    config: ConfigOption,
    overrides: Overrides = None,
    to: Annotated[
        int | None, typer.Option(min=1, metavar="VERSION", help="Version to serve; default: the champion before.")
    ] = None,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Make the champion before, or another version, champion again; the next run does not undo it.

    Example: recsys rollback --config pipelines/recipes/demo.yaml --to 1
    """
    from pipelines.release.rollback import roll_back

    set_up_logging(log_level)
    loaded = load(config, overrides)
    target = None if to is None else str(to)

    def go_back(workflow: Workflow) -> str:
        # no database is made: in an empty one nothing has an alias, so that `clean` would take all
        workflow.registry(create=False)
        return roll_back(workflow.registry(), loaded.registered_name, loaded.output_dir, target)

    words = locked(loaded, ProgressMode.OFF, go_back)
    print(words)
    print(f"`recsys recommend --config {config}` writes its candidates")


def lineage(
    what: Annotated[
        str,
        typer.Argument(
            metavar="WHAT",
            help="3, models:/name/3, models:/name@champion, @champion, an artefact's folder or a file in it, candidates or "
            "one shard, or the first digits of a digest.",
        ),
    ],
    config: ConfigOption,
    overrides: Overrides = None,
    as_json: JsonOption = False,
    log_level: LogOption = LogLevel.WARNING,
) -> None:
    """Say what something was made from, and what was made from it: data, semantic IDs, policy, version, candidates.

    Example: recsys lineage @champion --config pipelines/recipes/demo.yaml
    """
    from pipelines.history.cleaning import inventory_of
    from pipelines.history.lineage import lineage_of

    set_up_logging(log_level)
    loaded = load(config, overrides)
    found = lineage_of(what, inventory_of(loaded), loaded.registered_name)
    print(json.dumps(found.to_json(), indent=2, sort_keys=True, default=str) if as_json else found.to_text())


def clean(
    config: ConfigOption,
    overrides: Overrides = None,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="NIGHTS", help="Newest results and versions that stay; default: nights.keep_nights."
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted; delete nothing.")] = False,
    as_json: JsonOption = False,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Delete what no alias, no newest night and no lineage of these needs.

    Example: recsys clean --config pipelines/recipes/demo.yaml --keep 3 --dry-run
    """
    from pipelines.history.cleaning import clean as clean_folder
    from pipelines.history.cleaning import plan_cleaning

    set_up_logging(log_level)
    loaded = load(config, overrides)
    nights = keep or loaded.nights.keep_nights
    if dry_run:
        planned = plan_cleaning(loaded, nights)
    else:
        planned = locked(loaded, ProgressMode.OFF, lambda workflow: clean_folder(loaded, nights))
    print(json.dumps(planned.to_json(), indent=2) if as_json else planned.to_text(done=not dry_run))
