"""What all verbs have in common: the form of their log, and the call that a summary tells of."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from pipelines.cli.log_format import OPTION, LogFormat, use
from pipelines.run_summary.record import Call

_call = Call("unknown")


def current_call() -> Call:
    """The verb that this process was called with, its arguments, and when."""
    return _call


def _option_holder(
    log_format: Annotated[
        LogFormat,
        typer.Option(
            OPTION,
            help="json: every line on standard error is one object (time, level, logger, message).",
            callback=use,
            expose_value=False,
            is_eager=True,
        ),
    ] = LogFormat.TEXT,
) -> None:
    """Lend its one option to the verbs."""


def _leaves(commands: Iterable[Any]) -> Iterator[Any]:
    """Verbs, and those below a group such as `tokens`."""
    for command in commands:
        yield from _leaves(command.commands.values()) if hasattr(command, "commands") else (command,)


class VerbGroup(TyperGroup):
    """The verbs; those with a ``--log-level`` have a ``--log-format`` too, and the one that is called is remembered."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        lender = typer.Typer(add_completion=False)
        lender.command()(_option_holder)
        (option,) = typer.main.get_command(lender).params
        for command in _leaves(self.commands.values()):
            names = [parameter.name for parameter in command.params]
            if "log_level" in names:
                command.params.insert(names.index("log_level") + 1, option)

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """Find the verb, and remember the call."""
        global _call
        _call = Call(args[0], tuple(args[1:]))
        return super().resolve_command(ctx, args)
