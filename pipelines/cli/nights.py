"""Verbs around nightly runs: what stands where, and going back."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from pipelines.cli.options import ConfigOption, LogLevel, LogOption, Overrides, load, locked, set_up_logging
from recsys.runtime import ProgressMode


def status(
    config: ConfigOption,
    overrides: Overrides = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON for machines.")] = False,
    log_level: LogOption = LogLevel.WARNING,
) -> None:
    """Say what is champion since when, what was decided last, what waits and how much disk is used.

    Example: recsys status --config pipelines/recipes/demo.yaml
    """
    from pipelines.release.status import status_of, status_text
    from serving.registry.mlflow_client import tracking_uri
    from serving.registry.model_registry import Registry

    set_up_logging(log_level)
    loaded = load(config, overrides)
    uri = tracking_uri(loaded.tracking.uri, loaded.output_dir)
    found = status_of(
        loaded.output_dir,
        loaded.registered_name,
        lambda: Registry(uri, loaded.output_dir / "registry", loaded.tracking.timeout_s, create=False),
    )
    print(json.dumps(found, indent=2, sort_keys=True) if as_json else status_text(found))


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
    words = locked(
        loaded,
        ProgressMode.OFF,
        lambda workflow: roll_back(workflow.registry(), loaded.registered_name, loaded.output_dir, target),
    )
    print(words)
    print(f"`recsys recommend --config {config}` writes its candidates")
