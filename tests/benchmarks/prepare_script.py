"""`recsys prepare` against what research code does in pandas: the same log, the same lines, time and memory.

Run: ``python -m tests.benchmarks.prepare_script [--rows 1000000 5000000]`` (about 8 minutes; 11 GB of memory at 5M rows, as
the script form takes). The forms are described in :mod:`tests.benchmarks.prepare_pandas`. `prepare` runs with rows
asked per event and cuts at the same two instants; then its data set is written out as lines, and every line has to be there.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

import polars as pl

from tests.benchmarks import findings
from tests.benchmarks.child import Cost
from tests.benchmarks.paired import write_table
from tests.benchmarks.prepare import cost_of_prepare, make_log, write_recipe
from tests.benchmarks.prepare_pandas import SPLITS

FORMS = {
    "script": "the public script's way, in pandas and loops",
    "lean": "the same loops, nothing carried along",
    "columns": "pandas, whole columns",
}
HEADER = ["rows", "what", "processor s", "wall s", "peak MiB", "processor s / ours", "memory / ours"]


def pandas_cost(form: str, source: Path, target: Path) -> Cost:
    """Run one form in a process of its own."""
    return Cost.of([sys.executable, "-m", "tests.benchmarks.prepare_pandas", form, str(source), str(target)])


def compare(rows: int, folder: Path, forms: list[str], repeats: int) -> tuple[list[list[str]], str]:
    """Measure one size and check that all lines agree.

    Returns:
        Lines of the table; what was compared.

    Raises:
        RuntimeError: A line is missing or another.
    """
    log = make_log(folder / f"log{rows}.csv", rows)
    costs = {FORMS[form]: pandas_cost(form, log, folder / form) for form in forms}
    cuts = json.loads((folder / forms[0] / "cuts.json").read_text())
    valid_from, test_from = (datetime.fromtimestamp(second, UTC).isoformat() for second in cuts)
    recipe = write_recipe(
        folder,
        log,
        duplicates="keep",
        eval_rows="per_event",
        split={"valid_from": valid_from, "test_from": test_from},
    )
    ours = cost_of_prepare(folder, recipe, repeats)
    prepared = next((folder / "run" / "artifacts" / "prepared").glob("[!.]*"))
    checked = folder / "ours"
    checked.mkdir(exist_ok=True)
    for kind in ("users", "items"):
        (checked / f"{kind}.index").write_bytes((folder / forms[0] / f"{kind}.index").read_bytes())
    written = pandas_cost("expand", prepared, checked)
    said = [_same_lines(checked, folder / form) for form in forms]
    both = Cost(ours.cpu + written.cpu, ours.wall + written.wall, max(ours.megabytes, written.megabytes))
    lines = {"`recsys prepare`": ours, "`recsys prepare`, and its lines written out": both, **costs}
    return [_row(rows, what, cost, ours) for what, cost in lines.items()], f"{rows:,} rows: {said[0]}"


def _same_lines(ours: Path, theirs: Path) -> str:
    """Compare as sets of lines, and their splits; lines of the very second of a cut may fall on either side."""
    left, right = (_lines(folder) for folder in (ours, theirs))
    if not left.drop("split").equals(right.drop("split")):
        raise RuntimeError(f"the lines of '{ours}' and '{theirs}' differ: {len(left)} and {len(right)}")
    moved = int((left["split"] != right["split"]).sum())
    if moved > 10:
        raise RuntimeError(f"{moved} lines of '{ours}' and '{theirs}' are in other files")
    return f"all {len(left):,} lines equal, {moved} of them, from the second of a cut, in the next file"


def _lines(folder: Path) -> pl.DataFrame:
    text = {"user_id": pl.String, "item_id_list": pl.String, "item_id": pl.String}
    parts = [
        pl.read_csv(folder / f"{name}.inter", separator="\t", schema=text).with_columns(split=pl.lit(code, pl.Int8))
        for code, name in enumerate(SPLITS)
    ]
    return pl.concat(parts).sort(*text, "split")


def _row(rows: int, what: str, cost: Cost, ours: Cost) -> list[str]:
    return [
        f"{rows:,}",
        what,
        f"{cost.cpu:.1f}",
        f"{cost.wall:.1f}",
        f"{cost.megabytes:,.0f}",
        f"{cost.cpu / ours.cpu:.1f}",
        f"{cost.megabytes / ours.megabytes:.1f}",
    ]


def main() -> None:
    """Run all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument(
        "--forms",
        nargs="+",
        choices=list(FORMS),
        default=list(FORMS),
        help="at the smallest size; larger ones are measured against the script's way alone",
    )
    parser.add_argument("--repeats", type=int, default=2, help="runs of `prepare`; the forms run once")
    parser.add_argument("--folder", type=Path, default=None)
    arguments = parser.parse_args()
    rows: list[list[str]] = []
    said: list[str] = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        for size in arguments.rows:
            forms = arguments.forms if size == min(arguments.rows) else ["script"]
            lines, checked = compare(size, Path(folder), forms, arguments.repeats)
            rows += lines
            said.append(checked)
            print(write_page(rows, said), flush=True)  # after each size: the next one may not fit into memory


def write_page(rows: list[list[str]], said: list[str]) -> str:
    """Write the table of all sizes so far and return it."""
    notes = [
        *said,
        "the forms write text lines of at most 10 earlier items; `prepare` writes each event once, histories as places in "
        "an array, which is what training reads, and tables, report and hashes",
        "memory is the largest resident memory of the process; each is a process of its own, with the byte code of all "
        "modules kept from an earlier one",
        "where wall seconds are far above processor seconds, other work shared the cores: all lines then take more "
        "processor seconds than on a quiet machine, and their ratios are what compares",
    ]
    title = "Preparing a log against a research script"
    return write_table("prepare_script", title, findings.of_prepare_script(rows), HEADER, rows, notes)


if __name__ == "__main__":
    main()
