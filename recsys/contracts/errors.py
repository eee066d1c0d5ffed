"""The errors a user can cause, each with the exit code that a scheduler sees.

Every message says what is wrong, the value, what was expected, where, and the way out.
"""


class RecsysError(Exception):
    """Base of all errors that are the user's to mend; ``exit_code`` is what the command line returns."""

    exit_code = 1


class ConfigError(RecsysError):
    """Bad usage or configuration: an unknown key, a wrong type, an option that cannot be honoured."""

    exit_code = 2


class DataError(RecsysError):
    """The data do not keep the contract: a missing column, a wrong unit, too many bad rows, an empty split."""

    exit_code = 3


class ArtifactError(RecsysError):
    """An artefact is missing, damaged, or belongs to other parents than the ones given."""

    exit_code = 4


class CannotGrow(ArtifactError):
    """An earlier result is no start for this one: the vector space or the IDs of its generation do not fit or are used up.

    The message says why; the way out is a new generation.
    """


class GateRefused(RecsysError):
    """A promotion gate said no; nothing was moved."""

    exit_code = 5


class RunLocked(RecsysError):
    """Another run holds the lock of this output folder (75 is ``EX_TEMPFAIL``: try again later)."""

    exit_code = 75


class CannotExtend(Exception):
    """An earlier result is no start for this one; the stage does its whole work instead. Nobody outside sees it."""
