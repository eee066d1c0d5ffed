"""One file over HTTP, against a server on loopback: cut and resumed, changed meanwhile, damaged, gone, without ranges."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import shutil
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from pipelines.datasets.transfer import Checksum, Patience, fetch_file
from recsys.contracts.errors import ArtifactError, DataError
from recsys.runtime import SilentProgress

BODY = bytes(range(256)) * 4096 * 3  # 3 MB
MD5 = Checksum("md5", hashlib.md5(BODY, usedforsecurity=False).hexdigest())
QUICK = Patience(connect_s=5, read_s=5, attempts=3, first_wait_s=0)


@dataclass
class Server:
    """What the server does next, and what it was asked."""

    url: str = ""
    body: bytes = BODY
    tag: str | None = '"one"'
    modified: str | None = None
    ranges: bool = True
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the next answers are cut off, one entry per answer."""
    statuses: list[int] = field(default_factory=list)
    """Statuses of the next answers, before the file is given."""
    location: str | None = None
    retry_after: str | None = None
    silent_s: list[float] = field(default_factory=list)
    """Seconds that the next answers keep the client waiting."""
    wrong_range: bool = False
    rest: dict[str, str] = field(default_factory=dict)
    """Headers of answers that go on in the middle, in place of the true ones."""
    length: str | None = None
    """In place of the true one; empty: none is told."""
    asked: list[dict[str, str]] = field(default_factory=list)

    def reply(self, handler: BaseHTTPRequestHandler) -> None:
        self.asked.append(dict(handler.headers.items()))
        if self.silent_s:
            time.sleep(self.silent_s.pop(0))
        if self.statuses:
            handler.send_response(self.statuses.pop(0))
            if self.retry_after is not None:
                handler.send_header("Retry-After", self.retry_after)
            if self.location:
                handler.send_header("Location", self.location)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        wanted, start = handler.headers.get("Range"), 0
        same = handler.headers.get("If-Range") in (self.tag, self.modified)
        if wanted and self.ranges and same:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        if start >= len(self.body):
            handler.send_response(416)
            handler.send_header("Content-Range", f"bytes */{len(self.body)}")
            handler.end_headers()
            return
        handler.send_response(206 if start else 200)
        if start:
            shown = start + 1 if self.wrong_range else start
            total = self.rest.get("total", str(len(self.body)))
            handler.send_header("Content-Range", f"bytes {shown}-{len(self.body) - 1}/{total}")
        if self.tag:
            handler.send_header("ETag", self.rest.get("ETag", self.tag) if start else self.tag)
        if self.modified:
            handler.send_header("Last-Modified", self.modified)
        if self.length != "":
            handler.send_header("Content-Length", self.length or str(len(self.body) - start))
        handler.end_headers()
        rest = self.body[start:]
        handler.wfile.write(rest[: self.cut_after.pop(0)] if self.cut_after else rest)
        handler.close_connection = True


@pytest.fixture
def server() -> Iterator[Server]:
    state = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.reply(self)

        def log_message(self, *arguments: object) -> None:
            del arguments

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are part of the tests
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    state.url = f"http://127.0.0.1:{http.server_address[1]}/files/log.bin"
    yield state
    http.shutdown()
    http.server_close()
    thread.join()


def get(server: Server, folder: Path, checksum: Checksum | None = MD5, **options: object) -> Path:
    target = folder / "log.bin"
    return fetch_file(server.url, target, checksum=checksum, patience=QUICK, sleep=lambda _: None, **options)  # type: ignore[arg-type]


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_file_arrives_whole_and_nothing_is_left_beside_it(server: Server, tmp_path: Path) -> None:
    assert get(server, tmp_path / "new" / "folder").read_bytes() == BODY
    assert left(tmp_path / "new" / "folder") == ["log.bin"]
    assert server.asked[0]["Accept-Encoding"] == "identity"


@pytest.mark.parametrize(
    ("tag", "modified"),
    [('"one"', None), (None, "Wed, 21 Oct 2015 07:28:00 GMT"), ('W/"one"', "Wed, 21 Oct 2015 07:28:00 GMT")],
)
def test_a_cut_transfer_goes_on_where_it_stopped(
    server: Server, tmp_path: Path, tag: str | None, modified: str | None
) -> None:
    """1 MB of 3, cut; 1 MB more, cut; the rest. A weak tag names no bytes, so the time of modification is sent instead."""
    server.tag, server.modified, server.cut_after = tag, modified, [1 << 20, 1 << 20]
    assert get(server, tmp_path).read_bytes() == BODY
    assert [asked.get("Range") for asked in server.asked] == [None, "bytes=1048576-", "bytes=2097152-"]
    assert server.asked[1]["If-Range"] == (modified if tag is None or tag.startswith("W/") else tag)


def test_a_killed_process_is_followed_by_one_that_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1 << 20] * 3
    server.statuses = []
    with pytest.raises(DataError, match="what arrived is kept"):
        fetch_file(server.url, tmp_path / "log.bin", patience=Patience(5, 5, 1, 0), sleep=lambda _: None)
    assert left(tmp_path) == ["log.bin.part", "log.bin.part.json"]
    server.cut_after = []
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked[-1]["Range"] == "bytes=1048576-"
    assert left(tmp_path) == ["log.bin"]


def test_another_version_on_the_server_starts_again_and_never_joins_two(server: Server, tmp_path: Path) -> None:
    server.cut_after = [1 << 20]
    with pytest.raises(DataError):
        fetch_file(server.url, tmp_path / "log.bin", patience=Patience(5, 5, 1, 0), sleep=lambda _: None)
    server.body, server.tag = BODY[::-1], '"two"'
    assert get(server, tmp_path, checksum=None).read_bytes() == BODY[::-1]


def test_a_server_without_ranges_starts_again(server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server.ranges, server.cut_after = False, [1 << 20]
    assert get(server, tmp_path).read_bytes() == BODY
    assert "does not go on in the middle; starting again" in caplog.text


def test_a_server_that_names_no_version_is_not_resumed(server: Server, tmp_path: Path) -> None:
    """Without ETag and Last-Modified nobody knows whether the rest is of the same file."""
    server.tag, server.cut_after = None, [1 << 20]
    assert get(server, tmp_path).read_bytes() == BODY
    assert all("Range" not in asked for asked in server.asked)


def test_an_answer_for_another_range_is_not_appended(server: Server, tmp_path: Path) -> None:
    server.cut_after, server.wrong_range = [1 << 20], True
    assert get(server, tmp_path).read_bytes() == BODY


@pytest.mark.parametrize("damage", ["no json", "other address", "no record"])
def test_a_part_of_unknown_origin_is_thrown_away(server: Server, tmp_path: Path, damage: str) -> None:
    (tmp_path / "log.bin.part").write_bytes(b"something else")
    record = {"url": "http://127.0.0.1:1/other", "validator": '"one"', "total": len(BODY)}
    if damage != "no record":
        (tmp_path / "log.bin.part.json").write_text("{" if damage == "no json" else json.dumps(record))
    assert get(server, tmp_path).read_bytes() == BODY
    assert "Range" not in server.asked[0]


def test_a_part_that_is_complete_is_checked_and_published(server: Server, tmp_path: Path) -> None:
    (tmp_path / "log.bin.part").write_bytes(BODY)
    record = {"url": server.url, "validator": '"one"', "total": len(BODY)}
    (tmp_path / "log.bin.part.json").write_text(json.dumps(record))
    assert get(server, tmp_path).read_bytes() == BODY


def test_a_wrong_checksum_deletes_the_file_and_says_both(server: Server, tmp_path: Path) -> None:
    server.body = BODY[:-1] + b"x"
    with pytest.raises(DataError, match=rf"published is {MD5.value}; the file was damaged") as refused:
        get(server, tmp_path)
    assert server.url in str(refused.value)
    assert left(tmp_path) == []


def test_a_finished_file_of_the_right_checksum_is_not_fetched_again(server: Server, tmp_path: Path) -> None:
    (tmp_path / "log.bin").write_bytes(BODY)
    get(server, tmp_path)
    assert server.asked == []


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (404, "404 Not Found: it is not there any more"),
        (410, "410 Gone"),
        (403, "not given to everybody"),
        (401, "a password"),
    ],
)
def test_a_refusal_is_final_and_names_the_address(server: Server, tmp_path: Path, status: int, said: str) -> None:
    server.statuses = [status]
    with pytest.raises(DataError, match=said) as refused:
        get(server, tmp_path)
    assert server.url in str(refused.value)
    assert "--url" in str(refused.value)
    assert len(server.asked) == 1


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(server: Server, tmp_path: Path, status: int) -> None:
    server.statuses = [status, status]
    waits: list[float] = []
    fetch_file(server.url, tmp_path / "log.bin", patience=Patience(5, 5, 3, 2.0), sleep=waits.append)
    assert waits == [2.0, 4.0]


def test_tries_end(server: Server, tmp_path: Path) -> None:
    server.statuses = [503] * 3
    with pytest.raises(DataError, match="after 3 tries: the server answered 503"):
        get(server, tmp_path)


def test_redirects_are_followed_and_their_circle_is_not(server: Server, tmp_path: Path) -> None:
    server.statuses, server.location = [302], server.url + "?again"
    assert get(server, tmp_path).read_bytes() == BODY
    server.statuses = [302] * 50
    with pytest.raises(DataError, match="redirects for ever"):
        get(server, tmp_path / "other")


def test_a_server_that_falls_silent_is_asked_again(server: Server, tmp_path: Path) -> None:
    server.silent_s = [1.0]
    patience = Patience(connect_s=5, read_s=0.2, attempts=2, first_wait_s=0)
    waits: list[float] = []
    assert fetch_file(server.url, tmp_path / "log.bin", patience=patience, sleep=waits.append).read_bytes() == BODY
    assert len(waits) == 1


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"after 3 tries.*refused.*--url"):
        fetch_file("http://127.0.0.1:9/log.bin", tmp_path / "log.bin", patience=QUICK, sleep=lambda _: None)


@pytest.mark.parametrize("url", ["ftp://127.0.0.1/log.bin", "log.bin", "http://", "http:///x"])
def test_an_address_that_is_none(tmp_path: Path, url: str) -> None:
    with pytest.raises(DataError, match="--url"):
        fetch_file(url, tmp_path / "log.bin", patience=QUICK, sleep=lambda _: None)


def test_a_page_in_place_of_an_archive_is_refused(server: Server, tmp_path: Path) -> None:
    server.body = b"<html>log in, please</html>"
    for name in ("log.json.gz", "log.zip", "log.tar.gz"):
        with pytest.raises(DataError, match="perhaps a page that asks for a"):
            fetch_file(server.url, tmp_path / name, patience=QUICK, sleep=lambda _: None)
    server.body = gzip.compress(b"{}")
    fetch_file(server.url, tmp_path / "log.json.gz", patience=QUICK, sleep=lambda _: None)


def test_no_room_on_the_disk_is_said_before_anything_is_written(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1 << 20))
    with pytest.raises(ArtifactError, match=r"needs 3\.\d MB and .* has 1\.0 MB left"):
        get(server, tmp_path)


class FullDisk(SilentProgress):
    """The write after the first megabyte fails as on a full disk."""

    def track(self, items: Iterable[Any], label: str, total: int | None = None) -> Iterator[Any]:
        for count, item in enumerate(items):
            if count:
                raise OSError(errno.ENOSPC, "No space left on device")
            yield item


def test_a_disk_that_fills_up_meanwhile_keeps_what_arrived(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"no space left .* after 1 MB .*what arrived is kept"):
        get(server, tmp_path, progress=FullDisk())
    assert get(server, tmp_path).read_bytes() == BODY
    assert server.asked[-1]["Range"] == "bytes=1048576-"


@pytest.mark.parametrize("text", ["md5:abc", "sha1:" + "0" * 40, "0" * 32, "sha256:" + "g" * 64])
def test_checksums_that_are_none(text: str) -> None:
    with pytest.raises(ValueError, match="is no checksum"):
        Checksum.parse(text)


@pytest.mark.parametrize(
    "text", ["MD5 (a.zip) = 0E33842E24A9C977BE4E0107933C0723\n", "0e33842e24a9c977be4e0107933c0723  a.zip\n"]
)
def test_both_forms_of_a_published_md5(text: str) -> None:
    assert Checksum.in_text(text) == Checksum("md5", "0e33842e24a9c977be4e0107933c0723")
    assert Checksum.in_text("<html>not found</html>") is None


@pytest.mark.parametrize("rest", [{"ETag": '"two"'}, {"total": str(len(BODY) + 7)}, {"ETag": '"two"', "total": "9"}])
def test_a_rest_of_another_version_is_not_joined(server: Server, tmp_path: Path, rest: dict[str, str]) -> None:
    """A server that does not look at If-Range: what says so is its own ETag or length, and no checksum would."""
    server.cut_after, server.rest = [1000], rest
    assert get(server, tmp_path, checksum=None).read_bytes() == BODY
    assert ["Range" in asked for asked in server.asked] == [False, True, False]


@pytest.mark.parametrize("rest", [{}, {"ETag": "W/odd"}, {"total": "*"}])
@pytest.mark.parametrize("modified", [None, "Sat, 28 Nov 2026 20:00:00 GMT"])
def test_a_rest_that_names_no_other_version_is_joined(
    server: Server, tmp_path: Path, rest: dict[str, str], modified: str | None
) -> None:
    """A time of modification is no other ETag."""
    server.cut_after, server.rest, server.modified = [1000], rest, modified
    assert get(server, tmp_path).read_bytes() == BODY
    assert ["Range" in asked for asked in server.asked] == [False, True]


@pytest.mark.parametrize(("rest", "wrong_range"), [({"ETag": '"two"'}, False), ({}, True)])
def test_a_server_that_cuts_and_never_goes_on_ends_the_tries(
    server: Server, tmp_path: Path, rest: dict[str, str], wrong_range: bool
) -> None:
    """Every second answer brings bytes, the same ones again: no progress, so that the tries come to an end."""
    server.cut_after, server.rest, server.wrong_range = [1000] * 50, rest, wrong_range
    with pytest.raises(DataError, match="could not be fetched after 3 tries"):
        get(server, tmp_path)
    assert len(server.asked) < 8


@pytest.mark.parametrize("cut", [0, 100, -9])
def test_a_packed_file_without_a_length_is_read_to_its_end(server: Server, tmp_path: Path, cut: int) -> None:
    """Nothing else says that the connection ended too early where a publisher gives no checksum."""
    whole = gzip.compress(BODY)
    server.body, server.length = whole[: cut or len(whole)], ""
    server.url = server.url.replace("log.bin", "log.json.gz")
    target = tmp_path / "log.json.gz"
    if cut:
        with pytest.raises(DataError, match=r"cut off or damaged .* the server tells no length"):
            fetch_file(server.url, target, patience=QUICK)
        assert left(tmp_path) == []
    else:
        assert fetch_file(server.url, target, patience=QUICK).read_bytes() == whole


def test_a_plain_file_without_a_length_is_warned_of(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server.length = ""
    assert get(server, tmp_path, checksum=None).read_bytes() == BODY
    assert "the server tells no length" in caplog.text


def test_more_bytes_than_announced_say_how_many(server: Server, tmp_path: Path) -> None:
    """1000 bytes, cut; then the rest and 4 more under a range that is right."""
    server.cut_after = [1000]

    def longer(_: float) -> None:
        server.body += b"junk"
        server.rest = {"total": str(len(BODY))}

    with pytest.raises(DataError, match=f"{len(BODY) + 4} bytes arrived, the server announced {len(BODY)};"):
        fetch_file(server.url, tmp_path / "log.bin", patience=QUICK, sleep=longer)


@pytest.mark.parametrize(
    "location", ["http://[::1/log", "http://127.0.0.1:99999/log", "file:///etc/passwd", "ftp://x/y"]
)
def test_a_redirect_to_what_is_no_address(server: Server, tmp_path: Path, location: str) -> None:
    server.statuses, server.location = [302], location
    with pytest.raises(DataError, match="address"):
        get(server, tmp_path)
    assert left(tmp_path) == []


@pytest.mark.parametrize("after", ["\xb2", "soon", "-1", "9" * 5000, ""])
def test_a_wait_that_is_no_number_is_our_own(server: Server, tmp_path: Path, after: str) -> None:
    server.statuses, server.retry_after = [503], after
    assert get(server, tmp_path).read_bytes() == BODY
