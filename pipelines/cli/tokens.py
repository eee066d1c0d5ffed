"""Verbs around semantic IDs: the state of a generation, the difference between two versions, the table as a file."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer

from pipelines.cli.options import LogLevel, LogOption, load, set_up_logging
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, explain_write_errors, read_json
from recsys.scratch import scratch_folder

if TYPE_CHECKING:
    from recsys.semantic_ids.versions import SemanticIds

_HEAD: Final = "semantic_ids.json"

tokens = typer.Typer(
    no_args_is_help=True, help="Semantic IDs: how used up a generation is, what moved between two versions, export."
)

_WHERE: Final = "A `tokenize` artefact, a bundle, the output folder of a run (its newest), or models:/name/3."
TableArgument = Annotated[str, typer.Argument(metavar="TABLE", help=_WHERE)]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for machines.")]
UriOption = Annotated[str | None, typer.Option(help="MLflow of a models:/ reference; default: MLFLOW_TRACKING_URI.")]


@tokens.command()
def report(
    table: TableArgument,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", metavar="FILE", help="Recipe whose tokenize.refit are the limits.")
    ] = None,
    as_json: JsonOption = False,
    tracking_uri: UriOption = None,
    log_level: LogOption = LogLevel.WARNING,
) -> None:
    """Say which version a table is, how full its IDs are, and how well codes fit items that came later.

    Example: recsys tokens report runs/demo
    """
    from recsys.semantic_ids.config import RefitConfig
    from recsys.semantic_ids.generations.growth import REPORT_NAME
    from recsys.semantic_ids.generations.summary import summary_text, table_summary

    set_up_logging(log_level)
    folder, ids = open_table(table, tracking_uri)
    written = read_json(folder / REPORT_NAME) if folder is not None and (folder / REPORT_NAME).exists() else {}
    limits = RefitConfig() if config is None else load(config, None).tokenize.refit
    found = table_summary(ids, written.get("figures", {}), limits)
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else summary_text(found))


@tokens.command()
def diff(
    old: Annotated[str, typer.Argument(metavar="A", help=f"The older table. {_WHERE}")],
    new: Annotated[str, typer.Argument(metavar="B", help="The newer table, likewise.")],
    as_json: JsonOption = False,
    tracking_uri: UriOption = None,
    log_level: LogOption = LogLevel.WARNING,
) -> None:
    """Say how many items, and how much traffic, have another ID in B than in A, level by level.

    Example: recsys tokens diff runs/old runs/new
    """
    from recsys.semantic_ids.generations.comparison import compare, comparison_text

    set_up_logging(log_level)
    found = compare(open_table(old, tracking_uri)[1], open_table(new, tracking_uri)[1])
    print(json.dumps(found, indent=2, ensure_ascii=False) if as_json else comparison_text(found))


@tokens.command()
def export(
    table: TableArgument,
    out: Annotated[Path, typer.Option(help="File to write: .parquet or .csv, one row per item.")],
    reserved: Annotated[bool, typer.Option("--reserved", help="Also the items that have left the catalogue.")] = False,
    tracking_uri: UriOption = None,
    log_level: LogOption = LogLevel.WARNING,
) -> None:
    """Write item ids and their semantic IDs: item_id, sid, one column per level (code_1 ...), born, in_catalogue.

    Example: recsys tokens export runs/demo --out ids.parquet
    """
    from recsys.semantic_ids.generations.summary import export_frame

    set_up_logging(log_level)
    if out.suffix not in (".parquet", ".csv") or out.is_dir():
        raise ConfigError(f"--out '{out}' ends in neither .parquet nor .csv; name a file of one of the two kinds")
    frame = export_frame(open_table(table, tracking_uri)[1], with_reserved=reserved)
    part = out.with_name(f".{out.name}.part")
    with explain_write_errors(out, "--out"):
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.suffix == ".csv":
            frame.write_csv(part)
        else:
            frame.write_parquet(part)
        part.replace(out)
    print(f"{len(frame)} items\n{out}")


def open_table(reference: str, tracking_uri: str | None) -> tuple[Path | None, SemanticIds]:
    """Open semantic IDs by any name that people have for them; also the folder, where it lasts.

    Raises:
        ArtifactError: There is no table, or it is damaged.
        ConfigError: A registry reference without a registry.
    """
    from recsys.semantic_ids.versions import SemanticIds

    if not reference.startswith("models:/"):
        folder = _folder_of(Path(reference))
        return folder, SemanticIds.load(folder)
    from serving.registry.model_registry import Registry

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            f"'{reference}' is in a registry; give --tracking-uri, for example sqlite:///runs/demo/mlflow.db"
        )
    with scratch_folder("model") as scratch:
        registry = Registry(uri, scratch, create=False)
        return None, SemanticIds.load(registry.open_bundle(registry.resolve(reference)).path)


def _folder_of(path: Path) -> Path:
    if (path / _HEAD).is_file():
        return path
    made: list[Any] = sorted(
        path.glob(f"artifacts/semantic_ids/[!.]*/{MANIFEST_NAME}"), key=lambda manifest: manifest.stat().st_mtime
    )
    if not made:
        raise ArtifactError(
            f"'{path}' holds no semantic IDs: expected a folder with {_HEAD} (a `tokenize` artefact or a bundle), or the "
            "output folder of a run whose `tokenize` has finished"
        )
    return Path(made[-1]).parent
