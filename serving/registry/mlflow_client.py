"""Reaching MLflow: imported only when it is needed (seconds), quiet, and never waiting minutes for a server that is down."""

from __future__ import annotations

import atexit
import contextlib
import glob
import logging
import os
import socket
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.scratch import scratch_folder
from serving.registry.file_store import (
    ARTIFACTS_NAME,
    DATABASE_NAME,
    database_of,
    engine_uri,
    reroot,
    rerooted_copy,
    sqlite_uri,
)
from serving.registry.masking import masked, remember, shown

if TYPE_CHECKING:
    from mlflow import MlflowClient

logger = logging.getLogger("serving")

_QUIET: Final = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "DO_NOT_TRACK": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
}

_copies: Final = contextlib.ExitStack()
"""Of databases that cannot be written; they go when the process ends."""
atexit.register(_copies.close)


class TrackingUnreachable(ArtifactError):
    """The MLflow server does not answer; nothing is lost, see the message."""


def tracking_uri(configured: str | None, output_dir: Path) -> str:
    """Decide where MLflow is: the configuration, else the environment, else SQLite in the output folder."""
    return configured or os.environ.get("MLFLOW_TRACKING_URI") or sqlite_uri((output_dir / DATABASE_NAME).resolve())


def connect(uri: str, timeout_s: float = 5.0, *, create: bool = True) -> MlflowClient:
    """Point MLflow at ``uri`` and return a client; a database that was moved with its artefacts is told so.

    Args:
        create: Make a database file that is missing. Who only asks says no: a moved database that cannot be written is then
            read from a copy that lives as long as the process.

    Raises:
        ConfigError: The URI names no file, or none that exists while ``create`` is off.
        TrackingUnreachable: Nobody listens there.
        ArtifactError: The database was moved and cannot be written, and somebody wants to write into it.
    """
    remember(uri)
    parts = urlsplit(uri)
    database = database_of(uri)
    if parts.scheme in ("http", "https"):
        _check_listening(parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80), uri, timeout_s)
    elif database is not None:
        if not create and not database.exists():
            raise ConfigError(
                f"tracking URI '{shown(uri)}': there is no '{database}', so that nothing was registered there; "
                f"name the {DATABASE_NAME} of a run, or run first"
            )
        _check_folder(database)
        uri = engine_uri(uri)
    for name, value in {**_QUIET, "MLFLOW_HTTP_REQUEST_TIMEOUT": str(max(int(timeout_s * 4), 1))}.items():
        os.environ.setdefault(name, value)
    os.environ["MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT"] = "true"  # it prints the whole URI, the password in it too
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import mlflow
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # logs whole traces of what it raises as well
    with translated_errors(uri):
        if database is not None:
            uri = _opened(database, uri, create=create)
        with _environment_kept():
            mlflow.set_tracking_uri(uri)
            mlflow.set_registry_uri(uri)
        return mlflow.MlflowClient(tracking_uri=uri, registry_uri=uri)


def _opened(database: Path, uri: str, *, create: bool) -> str:
    """Look whether a database can be used, and tell it where its artefacts lie; the URI to open."""
    _create_database(database)
    _check_database(database)
    try:
        for old in reroot(database):
            logger.info("tracking: '%s' lies beside '%s' now, not in '%s'", ARTIFACTS_NAME, database, old.parent)
    except ArtifactError:
        if create:
            raise
        folder = _copies.enter_context(scratch_folder("tracking"))
        return sqlite_uri(rerooted_copy(database, folder))
    return uri


def _create_database(path: Path) -> None:
    """Let MLflow build its tables in a file of another name, then link it into place.

    MLflow needs seconds for its migrations and cannot go on with half of them: a kill in between would leave a database
    that fails at every later run. The link refuses to replace a database that another process made meanwhile.
    """
    from mlflow import MlflowClient

    _remove_left_over(path)
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.part-{os.getpid()}")
    temporary.unlink(missing_ok=True)
    MlflowClient(tracking_uri=sqlite_uri(temporary)).search_experiments(max_results=1)
    with contextlib.suppress(FileExistsError):
        os.link(temporary, path)
    temporary.unlink()


def _remove_left_over(path: Path) -> None:
    """Remove what processes left that were killed while they built a database."""
    for part in path.parent.glob(f".{glob.escape(path.name)}.part-*"):
        number = part.name.rpartition(".part-")[2].partition("-")[0]
        try:
            os.kill(int(number), 0)  # sends nothing, and fails where nobody has that number
        except (ProcessLookupError, ValueError):
            with contextlib.suppress(OSError):
                part.unlink()
        except PermissionError:
            continue


def _check_database(path: Path) -> None:
    """Read a line, so that a damaged or locked file is named before MLflow or we write into it.

    Raises:
        sqlite3.Error: It is no database of MLflow, is damaged or locked.
    """
    with contextlib.closing(sqlite3.connect(path, timeout=5)) as store:
        store.execute("SELECT experiment_id FROM experiments LIMIT 1").fetchall()


@contextmanager
def translated_errors(uri: str) -> Iterator[None]:
    """Turn what MLflow, its HTTP client and its database raise into :class:`TrackingUnreachable`."""
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        yield
    except (SQLAlchemyError, sqlite3.Error) as error:
        raise TrackingUnreachable(_database_words(uri, error)) from error
    except ModuleNotFoundError as error:
        raise TrackingUnreachable(
            f"MLflow at '{shown(uri)}' needs the Python package '{error.name}', which is not installed; install it, or set "
            "tracking.uri to another place: the artefacts of the run are kept"
        ) from error
    except (MlflowException, RequestException, ConnectionError, TimeoutError) as error:
        if isinstance(error.__cause__, SQLAlchemyError) or "sqlite3." in str(error) or "sqlalchemy" in str(error):
            raise TrackingUnreachable(_database_words(uri, error)) from error
        raise TrackingUnreachable(
            f"MLflow at '{shown(uri)}' refused or did not answer: {masked(str(error))}; the artefacts of the run are kept, "
            "run `recsys run` with the same config again when it does"
        ) from error


def _database_words(uri: str, error: Exception) -> str:
    """What is wrong with a database, in one line, and the way out."""
    said = masked(str(error)).strip().splitlines() or [type(error).__name__]
    first = next(
        (line for line in said if line.startswith("(sqlite3.")), said[0]
    )  # SQLAlchemy may put a hint before it
    words = f"the database of MLflow at '{shown(uri)}' cannot be used: {first}; the artefacts of the run are kept. "
    if "locked" in first:
        return words + "Another program writes into it: end that program, or run again when it has finished"
    if "disk is full" in first:
        return words + "Free space, for example with `recsys clean`, and run again"
    database = database_of(uri)
    if database is None:
        return words + "See whether it runs and takes the user and password of tracking.uri, then run again"
    return words + (
        f"Restore '{database}' from a copy; or move it and '{database.parent / 'tracking' / 'logged'}' away, and the next "
        "run makes a new one and logs everything again"
    )


@contextmanager
def _environment_kept() -> Iterator[None]:
    """Keep MLflow from writing the URI into the environment, where the next run in this process would take it as asked."""
    names = ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")
    before = {name: os.environ.get(name) for name in names}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def _check_listening(host: str, port: int, uri: str, timeout_s: float) -> None:
    try:
        socket.create_connection((host, port), timeout=timeout_s).close()
    except OSError as error:
        raise TrackingUnreachable(
            f"MLflow at '{shown(uri)}' cannot be reached ({error}); the artefacts of the run are kept, nothing is lost: "
            "start the server or set tracking.uri, then run `recsys run` with the same config again: it logs what is pending"
        ) from error


def _check_folder(database: Path) -> None:
    try:
        database.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrackingUnreachable(f"'{database}': its folder cannot be created ({error}); set tracking.uri") from error
