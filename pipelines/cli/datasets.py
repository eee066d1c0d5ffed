"""Verbs about data sets as files: fetch a public one from its publisher, hand a prepared one to RecBole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from pipelines.cli.options import (
    ConfigOption,
    LogLevel,
    LogOption,
    Overrides,
    ProgressOption,
    load,
    locked,
    set_up_logging,
)
from recsys.contracts.errors import ConfigError
from recsys.runtime import ProgressMode, make_progress

_LIST: Final = "list"
_BENCHMARKS: Final = ("none", "events", "histories")
_REVIEWS: Final = ("5core", "all", "ratings")


def fetch(
    dataset: Annotated[str, typer.Argument(help="Name of a data set; `list`, or nothing, prints all names.")] = _LIST,
    out: Annotated[Path | None, typer.Option(help="Folder for the files; default: data/NAME.")] = None,
    reviews: Annotated[
        str | None, typer.Option(help="Amazon only: 5core, all, or ratings (no texts). Default: 5core; 2023: all.")
    ] = None,
    url: Annotated[
        list[str] | None, typer.Option(help="Another address; once per file, in the order in which `list` has them.")
    ] = None,
    checksum: Annotated[
        str | None, typer.Option(help="md5:… or sha256:… of the file, in place of the published one.")
    ] = None,
    keep_archives: Annotated[bool, typer.Option("--keep-archives", help="Leave archives beside their files.")] = False,
    again: Annotated[bool, typer.Option("--again", help="Fetch even what is there.")] = False,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Download a public data set from its publisher, and print the recipe that reads it.

    A transfer that was cut goes on where it stopped; checksums are compared where they are published.

    Examples: recsys fetch list; recsys fetch movielens-1m; recsys fetch amazon-2018/Video_Games --out data/games
    """
    from pipelines.datasets.catalogue import find
    from pipelines.datasets.fetch import fetch as fetch_dataset
    from pipelines.datasets.fetch import listing, recipe_snippet, with_addresses
    from pipelines.datasets.transfer import Checksum
    from pipelines.engine.lock import run_lock

    set_up_logging(log_level)
    if dataset == _LIST:
        print(listing())
        return
    if reviews is not None and reviews not in _REVIEWS:
        raise ConfigError(f"--reviews is '{reviews}', expected one of {', '.join(_REVIEWS)}")
    try:
        given = Checksum.parse(checksum) if checksum is not None else None
    except ValueError as error:
        raise ConfigError(f"--checksum: {error}") from error
    wanted = with_addresses(find(dataset, reviews), url or [], given)  # type: ignore[arg-type]
    folder = out if out is not None else Path("data") / dataset.lower().replace("/", "-")
    with run_lock(folder, "--out"):
        fetched = fetch_dataset(wanted, folder, make_progress(progress), keep_archives=keep_archives, again=again)
    state = "fetched" if fetched.new else "nothing to do, all files are there"
    print(f"{wanted.name}: {state}\n{folder}: {len(fetched.files)} data files, terms: {wanted.terms} ({wanted.page})\n")
    print(f"A recipe reads it with:\n\n{recipe_snippet(wanted, folder)}")


def export_recbole(
    config: ConfigOption,
    out: Annotated[Path, typer.Option(help="Folder to write; its last part becomes the name of the RecBole data set.")],
    overrides: Overrides = None,
    benchmark: Annotated[
        str,
        typer.Option(
            help="none: one .inter file. events: train, valid and test files of positive events. histories: the same of "
            "items with the items before them, for sequential models."
        ),
    ] = "none",
    max_history: Annotated[int, typer.Option(min=1, help="Items before a target in a row of histories.")] = 50,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Write the prepared data set as RecBole's atomic files, with the settings RecBole needs.

    Prepares the data set first where that has not been done. What is written is read back by `kind: recbole`.

    Example: recsys export-recbole --config pipelines/recipes/movielens.yaml --out recbole/ml-100k --benchmark events
    """
    from pipelines.datasets.recbole import export_recbole as write_atomic_files
    from recsys.contracts.dataset import Dataset

    set_up_logging(log_level)
    if benchmark not in _BENCHMARKS:
        raise ConfigError(f"--benchmark is '{benchmark}', expected one of {', '.join(_BENCHMARKS)}")
    loaded = load(config, overrides)
    prepared = locked(loaded, progress, lambda workflow: workflow.run_verb("prepare"))
    written = write_atomic_files(
        Dataset.open(prepared.artifact.path),
        out,
        benchmark=benchmark,  # type: ignore[arg-type]
        max_history=max_history,
        leave_last_out=loaded.features.split.kind == "leave_last_out",
    )
    for file, rows in written.rows.items():
        print(f"{written.folder / file}: {rows} rows")
    facts = {
        "texts in which tabs, line breaks or double quotes were replaced": written.texts_changed,
        f"words of lists that stand for several names{_example(written.names_made_one)}": len(written.names_made_one),
        "events that have an order and no time": written.without_time,
        "rows left out because nothing comes before them": written.without_history,
        "ids that RecBole takes for missing, such as 'NA'": len(written.ids_read_as_missing),
    }
    print("".join(f"{what}: {count}\n" for what, count in facts.items() if count), end="")


def _example(names_made_one: Mapping[str, Sequence[str]]) -> str:
    """Phrase the first word and its names; nothing where there is none."""
    return next((f", such as '{word}' for {', '.join(map(repr, names))}" for word, names in names_made_one.items()), "")
