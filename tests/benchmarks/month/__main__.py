"""A simulated month of 30 nights, as a scheduler would run it: ``python -m tests.benchmarks.month``.

Writes ``tests/benchmarks/results/month.md`` and ``month.svg``, and ends with 1 where a check does not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from recsys.runtime import set_threads
from tests.benchmarks.month.checks import checks
from tests.benchmarks.month.nights import MONTH, run_month
from tests.benchmarks.month.page import write_page
from tests.benchmarks.month.world import Size
from tests.benchmarks.paired import RESULTS


def main() -> int:
    """Run the month, ask the checks, write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nights", type=int, default=Size.nights)
    parser.add_argument("--minutes", type=float, default=float("inf"), help="No night is begun after so many.")
    parser.add_argument("--folder", type=Path, help="Work here and keep it; default: a temporary folder.")
    parser.add_argument("--seed", type=int, default=Size.world_seed, help="Of the world.")
    parser.add_argument("--page", type=Path, default=RESULTS, help="Folder of the page.")
    options = parser.parse_args()
    set_threads(1)
    size = Size.of_seed(options.seed, options.nights)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        month = run_month(options.folder or Path(temporary), size, MONTH, options.minutes)
        found = checks(month)
    print(write_page(month, size, found, (time.monotonic() - started) / 60, options.page))
    return int(not all(check.passed for check in found))


if __name__ == "__main__":
    sys.exit(main())
