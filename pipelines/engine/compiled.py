"""Byte code and source facts of all modules, made when the project is installed: ``python -m pipelines.engine.compiled``.

Reads the project's source and writes into its ``__pycache__`` folders. Without it every command compiles two hundred modules
and parses those that its stages reach wherever it may not keep them itself: in a container whose user does not own the code,
or with ``PYTHONDONTWRITEBYTECODE``.
"""

from __future__ import annotations

import compileall
import sys
from pathlib import Path

from pipelines.engine.code_version import PROJECT_PACKAGES, PROJECT_ROOT, keep_facts


def compile_project(root: Path = PROJECT_ROOT) -> int:
    """Compile every module, and keep what :mod:`pipelines.engine.source_facts` says of it.

    Args:
        root: Folder that holds the project's packages.

    Returns:
        The number of modules.

    Raises:
        OSError: A folder cannot be written, or a module is no Python.
    """
    for name in PROJECT_PACKAGES:
        if (root / name).is_dir() and not compileall.compile_dir(root / name, quiet=1):
            raise OSError(
                f"'{root / name}' could not be compiled: a module is no Python, or the folder cannot be written"
            )
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, False  # whoever calls this asks for it
    try:
        return keep_facts(root)
    finally:
        sys.dont_write_bytecode = before


if __name__ == "__main__":
    print(f"compiled {compile_project()} modules")
