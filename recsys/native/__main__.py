"""Compile the kernels: ``python -m recsys.native``."""

from __future__ import annotations

import sys

from recsys.native import compile_kernels

if __name__ == "__main__":
    try:
        print(f"compiled {compile_kernels().name}")
    except RuntimeError as error:
        print(f"native kernels: {error}", file=sys.stderr)
