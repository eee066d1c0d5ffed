"""Code blocks of Markdown files, and the checks that tests apply to them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_PROGRAMS = {"cd", "export", "mlflow", "pip", "source"}
"""Programs of others, whose options are not checked."""


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        path: File that it stands in.
        line: Line of its first row, from 1.
        language: What follows the fence, empty for none.
        text: Without the fences.
    """

    path: Path
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        """For messages."""
        return f"{self.path.name}:{self.line}"

    @property
    def first_line(self) -> str:
        """The first row, which may be a remark for the tests."""
        return self.text.partition("\n")[0]


def blocks_of(path: Path) -> list[Block]:
    """Return the fenced blocks of a file, in order."""
    text = path.read_text(encoding="utf-8")
    return [
        Block(path, text.count("\n", 0, match.start()) + 2, match["language"], match["text"])
        for match in _FENCE.finditer(text)
    ]


def pages() -> list[Path]:
    """Return the pages that people wrote: README and what lies below docs."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of every command of a shell block; remarks and empty lines are none."""
    for line in block.text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True)
        if words:
            yield words


def problem(words: list[str], app: typer.Typer, targets: set[str]) -> str | None:
    """Say what is wrong with a command, ``None`` for nothing.

    Args:
        words: The command, split as a shell does.
        app: The real command line, whose parser decides.
        targets: Names that ``make`` knows.
    """
    words = without_variables(words)
    program, rest = words[0], words[1:]
    if program == "recsys":
        return _parsed(rest, app)
    if program == "make":
        unknown = [word for word in rest if word not in targets and "=" not in word]
        return f"make has no target {unknown[0]}" if unknown else None
    if program == "python":
        return _python(rest)
    return None if program in _PROGRAMS else f"unknown program '{program}'"


def without_variables(words: list[str]) -> list[str]:
    """Drop assignments in front of a command (``A=1 recsys run``)."""
    first = next((place for place, word in enumerate(words) if not re.match(r"^\w+=", word)), 0)
    return words[first:]


def _parsed(words: list[str], app: typer.Typer) -> str | None:
    """Let the parser of the command line read the words; nothing runs."""
    command, name = typer.main.get_command(app), "recsys"
    try:
        while True:
            children: Mapping[str, object] = getattr(command, "commands", {})
            if not children:
                command.make_context(name, list(words))
                return None
            if not words or words[0] not in children:
                return f"{name} has no command '{' '.join(words[:1])}'"
            name, command, words = f"{name} {words[0]}", children[words[0]], words[1:]  # type: ignore[assignment]
    except Exception as error:  # the parser's own errors have no common public class
        say = getattr(error, "format_message", error.__str__)
        return f"{name}: {say()}"


def _python(words: list[str]) -> str | None:
    if not words:
        return None
    target = words[1].replace(".", "/") + ".py" if words[0] == "-m" else words[0]
    there = (ROOT / target).is_file() or (ROOT / target.removesuffix(".py") / "__main__.py").is_file()
    return None if there else f"there is no {target}"


def make_targets() -> set[str]:
    """Return the names that the Makefile declares."""
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    return set(phony[1].split()) if phony else set()
