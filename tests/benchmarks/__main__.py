"""Run every benchmark that needs nothing but this repository, one after the other: ``python -m tests.benchmarks``.

Result tables go to ``tests/benchmarks/results``. Those that need a trained policy or a data set are run by hand, each by
its own command: ``int8``, ``all_prefixes``, ``alignment_rere``, ``alignment_simulator``,
``guard``.
"""

from __future__ import annotations

import subprocess
import sys

BENCHMARKS = ("presets", "decoder", "training", "moe", "rollouts", "tables", "evaluation_memory", "batch_job")


def main() -> int:
    """Run all, and say which failed."""
    failed = []
    for name in BENCHMARKS:
        print(f"== {name}", flush=True)
        if subprocess.run([sys.executable, "-W", "ignore", "-m", f"tests.benchmarks.{name}"], check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
