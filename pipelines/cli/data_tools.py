"""Verbs that look at what is there: the leakage audit, and tables of figures that others printed."""

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


def check_table(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="CSV, Parquet, or text with Markdown tables.")],
    percent: Annotated[bool, typer.Option("--percent", help="Its figures are per cent.")] = False,
) -> None:
    """Find cells of a printed table of HR and NDCG that no ranking could give; exit code 3 when there are any.

    Every row asks for one item, as in leave-one-out tables. A hit at rank r adds 1 to HR@k and 1 / log2(r + 1) to NDCG@k, so
    what NDCG can gain between two cut-offs is bounded by what HR gains. A figure is known to half a unit of its last digit.

    Example: recsys check-table table1.csv
    """
    from pipelines.reproduction.arithmetic import impossible_cells
    from pipelines.reproduction.printed_table import read_printed

    rows = read_printed(file, percent=percent)
    found = [(row.name, said) for row in rows for said in impossible_cells(row.values, row.half_units)]
    for name, said in found:
        print(f"{name}: {said}")
    if found:
        raise DataError(f"check-table: {len(found)} contradictions in {len(rows)} rows of '{file}'")
    print(f"{len(rows)} rows, no contradictions")


def check_candidates(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="Candidates that `recsys recommend` wrote.")],
) -> None:
    """Compare every file of a folder of candidates with the hashes that its job left; exit code 4 when one differs.

    Example: recsys check-candidates candidates/
    """
    from serving.batch.ledger import verify_candidates

    counts = verify_candidates(folder)
    print(f"{counts['rows']} rows for {counts['users']} users in {counts['shards']} shards, as they were written")
