"""The command-line reference: the text that ``--help`` prints, of every verb."""

from __future__ import annotations

from collections.abc import Iterator

import typer
from typer.testing import CliRunner

from pipelines.cli.app import app

PAGE = "reference/command-line.md"
_EXIT_CODES = """
| code | meaning |
|---|---|
| 0 | done, or nothing to do |
| 1 | a fault of the program |
| 2 | wrong usage or configuration |
| 3 | bad data |
| 4 | an artefact is missing or does not fit, or the tracking server cannot be reached |
| 5 | the promotion gate refused, or a reproduced figure lies outside its expected range |
| 75 | another run holds the lock |
| 130, 143 | stopped by SIGINT (Ctrl-C), by SIGTERM |
| 141 | the reader of standard output is gone, as in `recsys status --json \\| head` |
"""


def pages() -> dict[str, str]:
    """Return the one page, by its path."""
    lines = ["# Command line", "", "What `recsys <verb> --help` prints, and the exit codes.", "", "## Exit codes"]
    lines += [_EXIT_CODES, "## recsys", "", *printed([])]
    for words in verbs(typer.main.get_command(app)):
        lines += [f"## recsys {' '.join(words)}", "", *printed(words)]
    return {PAGE: "\n".join(lines)}


def verbs(command: object, above: tuple[str, ...] = ()) -> Iterator[list[str]]:
    """Yield the words of every command, in the order of the program; a group comes before what it holds."""
    for name, child in getattr(command, "commands", {}).items():
        if getattr(child, "hidden", False):
            continue
        yield [*above, name]
        yield from verbs(child, (*above, name))


def printed(words: list[str]) -> list[str]:
    """Return the help of one command as a block of text.

    Raises:
        RuntimeError: The command does not print help.
    """
    result = CliRunner().invoke(app, [*words, "--help"], prog_name="recsys", env={"COLUMNS": "100", "TERM": "dumb"})
    if result.exit_code != 0:
        raise RuntimeError(f"recsys {' '.join(words)} --help ended with {result.exit_code}: {result.output}")
    return ["```text", result.output.rstrip(), "```", ""]
