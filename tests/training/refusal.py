"""A worker's failure, in a module that imports nothing heavy."""

from recsys.contracts.errors import DataError


def refuse(message: str) -> None:
    """Fail as a user's mistake does."""
    raise DataError(message)
