"""One file over HTTP: resumed where it stopped, retried, its length and checksum compared, published by rename.

Reads an address; produces the file. While it is incomplete it is called ``NAME.part``, and ``NAME.part.json`` beside it says
which version of the file on the server its bytes are of, so that the halves of two versions are never joined.
"""

from __future__ import annotations

import errno
import gzip
import hashlib
import logging
import math
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pipelines.datasets.part import Part
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import explain_write_errors
from recsys.runtime import Progress, SilentProgress

if TYPE_CHECKING:
    import requests

logger = logging.getLogger("recsys.pipelines")

_CHUNK: Final = 1 << 20
_RETRIED: Final = (429, 500, 502, 503, 504)
_CONTENT_RANGE: Final = re.compile(r"bytes (?:([0-9]{1,18})-([0-9]{1,18})|\*)/([0-9]{1,18}|\*)")
_MAGIC: Final = {".zip": b"PK", ".gz": b"\x1f\x8b", ".tgz": b"\x1f\x8b"}
_HEX_LENGTH: Final = {"md5": 32, "sha256": 64}


@dataclass(frozen=True)
class Checksum:
    """What a publisher says about the bytes of a file.

    Attributes:
        algorithm: ``md5`` or ``sha256``.
        value: Hexadecimal, lower case.

    Example:
        >>> Checksum.parse("md5:0E33842E24A9C977BE4E0107933C0723").value
        '0e33842e24a9c977be4e0107933c0723'
    """

    algorithm: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Checksum:
        """Read ``md5:…`` or ``sha256:…``.

        Raises:
            ValueError: Another algorithm, or a value of another length.
        """
        algorithm, _, value = text.strip().lower().partition(":")
        if len(value) != _HEX_LENGTH.get(algorithm) or not re.fullmatch(r"[0-9a-f]+", value):
            raise ValueError(f"'{text}' is no checksum; expected md5: and 32 or sha256: and 64 hexadecimal digits")
        return cls(algorithm, value)

    @classmethod
    def in_text(cls, text: str) -> Checksum | None:
        """Find the md5 in a publisher's ``.md5`` file, whichever of the two usual forms it has.

        Example:
            >>> Checksum.in_text("MD5 (a.zip) = 0e33842e24a9c977be4e0107933c0723").algorithm
            'md5'
        """
        found = re.search(r"\b[0-9a-fA-F]{32}\b", text)
        return cls("md5", found.group().lower()) if found else None


@dataclass(frozen=True)
class Patience:
    """How long a transfer waits and how often it tries again.

    Attributes:
        connect_s: Seconds until a connection stands.
        read_s: Seconds without a byte.
        attempts: Failures in a row that end the transfer; one that brought bytes starts the count again.
        first_wait_s: Wait after the first failure; doubled after each further one, at most 60 s.
    """

    connect_s: float = 10.0
    read_s: float = 30.0
    attempts: int = 5
    first_wait_s: float = 1.0


class _Retry(Exception):
    """Something that may pass: the reason, and how long the server asks us to wait."""

    def __init__(self, reason: str, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


def fetch_file(
    url: str,
    target: Path,
    *,
    checksum: Checksum | None = None,
    progress: Progress | None = None,
    patience: Patience | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Download one file, from where an earlier try stopped.

    Args:
        url: ``http`` or ``https``.
        target: Where the complete file is to be; its folder is made.
        checksum: Compared at the end; ``None`` leaves the length alone to be compared.
        progress: Shows megabytes.
        patience: Time limits and tries.
        sleep: Waits between tries.

    Returns:
        ``target``.

    Raises:
        DataError: The address does not exist, the server cannot be reached or refuses, or the bytes are not
            the published ones.
        ArtifactError: The disk is full or the folder is not writable.
    """
    import requests

    patience = patience or Patience()
    part = Part(target.with_name(f"{target.name}.part"), url)
    with explain_write_errors(target.parent, "--out"), requests.Session() as session:
        target.parent.mkdir(parents=True, exist_ok=True)
        if checksum is not None and target.is_file() and _digest(target, checksum) == checksum.value:
            return target  # an earlier process was stopped between this and what it did next
        part.recall()
        if part.size:
            logger.info("%s: going on after %.1f MB of an earlier try", target.name, part.size / 1e6)
        failures, most = 0, part.size
        while True:
            try:
                _transfer(session, part, progress or SilentProgress(), patience)
                break
            except _Retry as error:
                # only what was never reached counts: a server that cuts and then sends another file would go on for ever
                failures = 1 if part.size > most else failures + 1
                most = max(most, part.size)
                if failures >= patience.attempts:
                    raise DataError(
                        f"'{url}' could not be fetched after {failures} tries: {error}; what arrived is kept, run the same "
                        "command again to go on, or give another address with --url"
                    ) from error
                wait = min(
                    60.0, error.wait_s if error.wait_s is not None else patience.first_wait_s * 2 ** (failures - 1)
                )
                logger.warning("%s: %s; trying again in %.0f s", target.name, error, wait)
                sleep(wait)
        _check(part, checksum)
        part.path.replace(target)
        part.state.unlink(missing_ok=True)
    return target


def fetch_text(url: str, patience: Patience | None = None) -> str | None:
    """Return a small text, or ``None`` where it cannot be had: a published checksum file that is not there is no error."""
    import requests

    patience = patience or Patience()
    try:
        answer = requests.get(url, timeout=(patience.connect_s, patience.read_s))
    except requests.RequestException:
        return None
    return answer.text[:10_000] if answer.ok else None


def _transfer(session: requests.Session, part: Part, progress: Progress, patience: Patience) -> None:
    """Ask once and write what comes; raises ``_Retry`` for what may pass."""
    import requests

    headers = {"Accept-Encoding": "identity"}  # the bytes of the file, which the checksum is of
    have = part.size
    if have and part.validator is not None:
        headers |= {"Range": f"bytes={have}-", "If-Range": part.validator}
    try:
        with session.get(
            part.url, headers=headers, stream=True, timeout=(patience.connect_s, patience.read_s)
        ) as answer:
            if answer.status_code == 416 and have:
                _range_refused(answer, part, have)
                return
            start = _start(answer, part, have)
            _write(answer, part, start, progress)
    except requests.exceptions.InvalidURL as error:
        raise DataError(f"'{part.url}' is no address: {error}; give an http or https address with --url") from error
    except (requests.exceptions.InvalidSchema, requests.exceptions.MissingSchema) as error:
        raise DataError(f"'{part.url}' is no http or https address; give one with --url") from error
    except requests.exceptions.SSLError as error:
        raise DataError(
            f"'{part.url}': the server's certificate is not accepted ({_root(error)}); set REQUESTS_CA_BUNDLE to the "
            "certificates of your network, or give another address with --url"
        ) from error
    except requests.exceptions.TooManyRedirects as error:
        raise DataError(f"'{part.url}' redirects for ever; give another address with --url") from error
    except requests.exceptions.ConnectTimeout as error:
        raise _Retry(f"no connection within {patience.connect_s:.0f} s") from error
    except requests.exceptions.Timeout as error:
        raise _Retry(f"no byte for {patience.read_s:.0f} s") from error
    except requests.exceptions.RequestException as error:
        raise _Retry(f"the server cannot be reached or the connection broke ({_root(error)})") from error
    except ValueError as error:  # of the address that a redirect leads to
        raise DataError(f"'{part.url}' leads to what is no address: {error}; give another one with --url") from error


def _start(answer: requests.Response, part: Part, have: int) -> int:
    """Return at which byte the answer begins; the part is thrown away where it begins at 0."""
    status = answer.status_code
    if status == 206 and have:
        found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or found.group(1) is None or int(found.group(1)) != have:
            part.discard()
            raise _Retry(f"the server sent another range than byte {have} on; starting again")
        _go_on(part, _whole(found.group(3)), _validator(answer))
        return have
    if status in _RETRIED:
        raise _Retry(f"the server answered {status} {answer.reason}", _whole(answer.headers.get("Retry-After")))
    if status != 200:
        advice = {
            401: "it wants a password",
            403: "it is not given to everybody",
            404: "it is not there any more",
            410: "it is not there any more",
        }.get(status, "that cannot be used")
        raise DataError(
            f"'{part.url}': the server answered {status} {answer.reason}: {advice}; look the address up on the data set's "
            "page and give it with --url"
        )
    if have:
        same = part.validator is not None and part.validator == _validator(answer)
        why = "the server does not go on in the middle" if same else "the file on the server is another one now"
        logger.warning("%s: %s; starting again", part.path.name.removesuffix(".part"), why)
    part.discard()
    part.remember(_validator(answer), _whole(answer.headers.get("Content-Length")))
    return 0


def _go_on(part: Part, total: int | None, validator: str | None) -> None:
    """Refuse a rest that is of another version of the file than what is there: halves of two would be joined.

    Raises:
        _Retry: The name of the version, or the length of the whole, is another one; the part is thrown away.
    """
    known = part.validator or ""
    renamed = validator is not None and validator[0] == known[:1] == '"' and validator != known  # ETags both
    if renamed or (total is not None and part.total not in (None, total)):
        part.discard()
        raise _Retry("the file on the server is another one now; starting again")
    if part.total is None and total is not None:
        part.remember(part.validator, total)


def _whole(text: str | None) -> int | None:
    """Return the whole number that a header holds, if it holds one."""
    return int(text) if text is not None and re.fullmatch("[0-9]{1,18}", text) else None


def _range_refused(answer: requests.Response, part: Part, have: int) -> None:
    """416: nothing comes after our bytes. Either they are all, or they are of another file."""
    found = _CONTENT_RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    total = _whole(found.group(3)) if found else None
    if have == (part.total if total is None else total):
        return
    part.discard()
    raise _Retry(f"the server has no bytes after {have}; starting again")


def _validator(answer: requests.Response) -> str | None:
    """What names the version of a file: a strong ETag, else the time of modification (RFC 9110, If-Range)."""
    tag = answer.headers.get("ETag")
    if tag and not tag.startswith("W/"):
        return tag
    return answer.headers.get("Last-Modified")


def _write(answer: requests.Response, part: Part, start: int, progress: Progress) -> None:
    total = part.total
    free = shutil.disk_usage(part.path.parent).free
    if total is not None and total - start > free:
        raise ArtifactError(
            f"'{part.url}' needs {(total - start) / 1e6:.1f} MB and '{part.path.parent}' has {free / 1e6:.1f} MB left; free "
            "space and run the same command again, or choose another folder with --out"
        )
    megabytes = math.ceil((total - start) / _CHUNK) if total is not None else None
    label = f"{part.path.name.removesuffix('.part')}, MB"
    try:
        with part.path.open("ab" if start else "wb") as file:
            for chunk in progress.track(_chunks(answer), label, megabytes):
                file.write(chunk)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        raise ArtifactError(
            f"no space left in '{part.path.parent}' after {part.size / 1e6:.0f} MB of '{part.url}'; free space and run the "
            "same command again: what arrived is kept"
        ) from error
    if total is not None and part.size < total:
        raise _Retry(f"the connection ended after {part.size} of {total} bytes")


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    """The body as it travels: ``iter_content`` would unpack what a server declares as gzip."""
    import requests
    import urllib3

    try:
        yield from answer.raw.stream(_CHUNK, decode_content=False)
    except urllib3.exceptions.ReadTimeoutError as error:
        raise requests.exceptions.ReadTimeout(error) from error
    except urllib3.exceptions.HTTPError as error:
        raise requests.exceptions.ConnectionError(error) from error


def _check(part: Part, checksum: Checksum | None) -> None:
    size = part.size
    announced = part.total
    if announced is not None and size != announced:
        part.discard()
        raise DataError(f"'{part.url}': {size} bytes arrived, the server announced {announced}; run the command again")
    with part.path.open("rb") as file:
        head = file.read(16)
    magic = next(
        (magic for suffix, magic in _MAGIC.items() if part.path.name.removesuffix(".part").endswith(suffix)), b""
    )
    if not head.startswith(magic):
        part.discard()
        raise DataError(
            f"'{part.url}' sent something that begins with {head!r} and is no such file, perhaps a page that asks for a "
            "login; open the address in a browser, or give another one with --url"
        )
    if checksum is None:
        if announced is None:
            _check_end(part)
        return
    found = _digest(part.path, checksum)
    if found != checksum.value:
        part.discard()
        raise DataError(
            f"'{part.url}': {checksum.algorithm} of the {size} bytes is {found}, published is {checksum.value}; "
            "the file was damaged on its way or is another version. It was deleted: run the command again, or give the "
            "checksum of the version you want with --checksum"
        )


def _check_end(part: Part) -> None:
    """Read a packed file to its end, where neither a length nor a checksum says whether it is whole."""
    name = part.path.name.removesuffix(".part")
    if not name.endswith((".gz", ".tgz")):
        logger.warning("%s: the server tells no length, so that a cut file could not be told from a whole one", name)
        return
    try:
        with gzip.open(part.path, "rb") as file:
            while file.read(_CHUNK):
                pass
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        part.discard()
        raise DataError(
            f"'{part.url}': the file is cut off or damaged ({error}), and the server tells no length; run the command again"
        ) from error


def _digest(path: Path, checksum: Checksum) -> str:
    digest = hashlib.new(checksum.algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()


def _root(error: BaseException) -> str:
    """The innermost reason of a chain of wrapped errors, in one line."""
    seen: set[int] = set()
    while id(error) not in seen:
        seen.add(id(error))
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None) or getattr(
            error, "reason", None
        )
        if not isinstance(inner, BaseException):
            break
        error = inner
    return (str(error).splitlines() or [type(error).__name__])[0].rpartition(">: ")[2]
