"""Verbs that look at data: the leakage audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import ConfigOption, LogLevel, LogOption, Overrides, load, set_up_logging
from recsys.contracts.errors import DataError


def audit(
    config: ConfigOption,
    overrides: Overrides = None,
    artefact: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder of a further artefact, such as embeddings of another run; may be given several times."
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="End with exit code 3 when a severe leak is found.")] = False,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Look for leaks in the prepared data and in what was fitted on them, each with the hit rate it could buy.

    Example: recsys audit --config pipelines/recipes/movielens.yaml --strict
    """
    from pipelines.audit import audit_run, table_of
    from pipelines.report import rewrite_data_report

    set_up_logging(log_level)
    loaded = load(config, overrides)
    path, result = audit_run(loaded, artefact or [])
    print(f"{table_of(result)}\n{path}\n{rewrite_data_report(loaded)}")
    if strict and result["severe"]:
        worst = [found["code"] for found in result["findings"] if found["severity"] == "severe"]
        raise DataError(f"audit: {len(worst)} severe leaks ({', '.join(dict.fromkeys(worst))}); see '{path}'")
