"""What the project does on one GPU, in one command: ``python -m tests.benchmarks.gpu`` (about five minutes, at most six).

Correctness, training, decoding, the recommender end to end, alignment, wide beams: section after section, each in the
process of a worker that is started anew when a section kills it. A section that fails, runs out of memory or out of time is
recorded as that, and the next one goes on. JSON lines go to standard output and to ``build/gpu.jsonl``, the page to
``tests/benchmarks/results/gpu.md``.

``--cpu-smoke`` runs the same code at tiny sizes on a CPU in less than a minute and writes no page. Real histories are read
from ``$RECSYS_DATA/amazon14_beauty`` where it exists; otherwise random ones of the same number and lengths take their place.

It imports ``recsys`` and needs what that imports: no MLflow, no dataframely, no command line of the project. torch 2.13 with
torchrec 1.8 and torch 2.11 with torchrec 1.6 both do; where fbgemm is its CPU build, :mod:`tests.benchmarks.gpu.shim` adds
the one operator it lacks.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from tests.benchmarks.gpu.supervisor import Plan, supervise

SECTIONS = {
    "correctness": 60,
    "training": 75,
    "decoding": 60,
    "transformers": 40,
    "serving": 50,
    "catalogue": 25,
    "waiting": 20,
    "wide_beams": 30,
    "alignment": 45,
    "beauty": 60,
    "processes": 20,
    "compile": 60,
}
"""Sections in the order they run, what counts most first, and the seconds each may take."""


def main() -> int:
    """Run the sections that are asked for; the exit code says whether all ended well."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", help=f"default all: {', '.join(SECTIONS)}")
    parser.add_argument("--cpu-smoke", action="store_true", help="tiny sizes on a CPU; writes no page")
    parser.add_argument("--seconds", type=float, default=330.0, help="for all sections together")
    parser.add_argument("--lines", type=Path, default=Path("build/gpu.jsonl"), help="where the JSON lines go")
    parser.add_argument("--page", type=Path, default=None, help="where the page goes; default results/gpu.md")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    sections = arguments.sections or list(SECTIONS)
    unknown = [name for name in sections if name not in SECTIONS]
    if unknown:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    if arguments.worker:
        from tests.benchmarks.gpu.worker import work

        return work(sections, SECTIONS, smoke=arguments.cpu_smoke)
    command = "python -m tests.benchmarks.gpu" + "".join(f" {part}" for part in sys.argv[1:])
    if arguments.cpu_smoke:
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    if arguments.cpu_smoke:  # measures nothing, on machines that may be busy
        plan = Plan(dict.fromkeys(sections, 600.0), 3600.0, ["--cpu-smoke"])
    else:
        plan = Plan({name: SECTIONS[name] for name in sections}, arguments.seconds)
    rows = supervise(plan, arguments.lines)
    if not arguments.cpu_smoke:
        from tests.benchmarks.gpu.page import write_page

        page = arguments.page or Path(__file__).parents[1] / "results" / "gpu.md"
        print(write_page(rows, command, page), file=sys.stderr)
    failed = [row for row in rows if "error" in row]
    for row in failed:
        print(f"{row.get('section')}, {row.get('cell', 'section')}: {row['error']}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
