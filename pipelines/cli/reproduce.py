"""The verb that runs reproduction packs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.cli.options import LogLevel, LogOption, Overrides, ProgressOption, set_up_logging
from recsys.contracts.errors import ConfigError, GateRefused
from recsys.runtime import ProgressMode, make_progress


def reproduce(
    pack: Annotated[str | None, typer.Argument(help="Name of a pack; nothing prints all of them.")] = None,
    overrides: Overrides = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder of its files; default: the pack's folder below $RECSYS_DATA.")
    ] = None,
    seeds: Annotated[str | None, typer.Option(help="In place of the pack's, for example 17 or 17,18.")] = None,
    output_dir: Annotated[Path, typer.Option(help="Holds PACK/seed-N and the results.")] = Path("runs/reproduction"),
    page: Annotated[
        Path | None,
        typer.Option(
            help="Page of all packs; sections of others stay as they are. Default: OUTPUT_DIR/reproduction.md."
        ),
    ] = None,
    other_data: Annotated[
        bool, typer.Option("--other-data", help="Warn, and go on, where the files are not those the pack was made for.")
    ] = False,
    finished: Annotated[
        list[Path] | None,
        typer.Option(help="Output folder of a finished run of the recipe, one per seed: take these, run nothing."),
    ] = None,
    progress: ProgressOption = ProgressMode.AUTO,
    log_level: LogOption = LogLevel.INFO,
) -> None:
    """Run a published protocol under several seeds, and put its rows beside ours.

    Finished stages are kept, so a command that was stopped goes on. Exit code 5: a figure lies outside its expected range.

    Example: recsys reproduce tiger_beauty --data $RECSYS_DATA/amazon14_beauty --seeds 17
    """
    from pipelines.places import check_output
    from pipelines.reproduction.pack import pack_names, read_pack

    set_up_logging(log_level)
    if pack is None:
        for name in pack_names():
            found = read_pack(name)
            print(
                f"{name:24} {found.title}\n{'':24} recipe {found.recipe}, data {found.data.folder}, {len(found.seeds)} seeds"
            )
        return
    wanted = read_pack(pack)
    check_output(output_dir, "--output-dir")

    from pipelines.reproduction.page import text_table, write_page
    from pipelines.reproduction.run import RESULT_FILE, Request, reproduce

    request = Request(pack, output_dir, data, _seeds(seeds), tuple(overrides or ()), other_data, tuple(finished or ()))
    result = reproduce(wanted, request, make_progress(progress))
    print(text_table(wanted, result))
    written = page or output_dir / "reproduction.md"
    write_page(written, output_dir)
    print(f"result      {output_dir / pack / RESULT_FILE}\npage        {written}")
    outside = [bound for bound in result["expected"] if not bound["within"]]
    if outside:
        said = ", ".join(f"{bound['system']} {bound['metric']}" for bound in outside)
        raise GateRefused(
            f"pack '{pack}': {len(outside)} figures outside their expected ranges ({said}), see the table"
        )


def _seeds(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise ConfigError(
            f"--seeds is '{text}', expected whole numbers with commas between them, such as 17,18"
        ) from None
