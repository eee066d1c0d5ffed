"""Archives from the network: what leaves the folder, links, repeats, damage and a full disk are refused."""

from __future__ import annotations

import io
import random
import shutil
import stat
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipelines.datasets.archives import is_archive, unpack
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import explain_write_errors

FILES = {"ml-1m/ratings.dat": b"1::2::3::4\n", "ml-1m/sub/README": b"read me"}


def zipped(path: Path, files: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


def tarred(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


MAKERS = [(zipped, "a.zip"), (tarred, "a.tar.gz")]
both = pytest.mark.parametrize(("make", "name"), MAKERS, ids=["zip", "tar"])


@both
def test_the_enclosing_folder_is_left_out_and_inner_ones_stay(tmp_path: Path, make, name: str) -> None:
    archive = make(tmp_path / name, FILES)
    assert is_archive(archive)
    assert unpack(archive, tmp_path / "out") == ["ratings.dat", "sub/README"]
    assert (tmp_path / "out" / "ratings.dat").read_bytes() == b"1::2::3::4\n"
    assert (tmp_path / "out" / "sub" / "README").read_bytes() == b"read me"


@both
def test_two_folders_at_the_top_stay(tmp_path: Path, make, name: str) -> None:
    assert unpack(make(tmp_path / name, {"a/x": b"1", "b/x": b"2"}), tmp_path / "out") == ["a/x", "b/x"]


@both
@pytest.mark.parametrize("bad", ["../x", "/etc/x", "a/../../x", "..\\x", "C:/x", "a/.."])
def test_a_member_outside_the_folder_is_refused_and_nothing_is_written(
    tmp_path: Path, make, name: str, bad: str
) -> None:
    archive = make(tmp_path / name, {"a/fine": b"1", bad: b"2"})
    with pytest.raises(DataError, match="points outside the folder; nothing was unpacked"):
        unpack(archive, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_refused(tmp_path: Path, kind: bytes) -> None:
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        info = tarfile.TarInfo("link")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match="'link' is a link or a device"):
        unpack(tmp_path / "a.tar", tmp_path / "out")


def test_a_link_in_a_zip_is_refused(tmp_path: Path) -> None:
    info = zipfile.ZipInfo("link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr(info, "/etc/passwd")
    with pytest.raises(DataError, match="is a link or a device"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("x", "1")
        archive.writestr("x", "2")
    with pytest.raises(DataError, match="'x' stands in it twice"):
        unpack(tmp_path / "a.zip", tmp_path / "out")


@both
def test_damage_is_named(tmp_path: Path, make, name: str) -> None:
    archive = make(tmp_path / name, {"a/x": bytes(range(256)) * 400})
    archive.write_bytes(archive.read_bytes()[: archive.stat().st_size // 2])
    with pytest.raises(DataError, match=f"{name}' cannot be unpacked"):
        unpack(archive, tmp_path / "out")


def test_flipped_bytes_in_a_zip_are_found_by_its_checksums(tmp_path: Path) -> None:
    archive = zipped(tmp_path / "a.zip", {"x": b"hello" * 1000})
    content = bytearray(archive.read_bytes())
    content[40] ^= 0xFF
    archive.write_bytes(content)
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(archive, tmp_path / "out")


@both
def test_an_empty_archive_is_not_a_data_set(tmp_path: Path, make, name: str) -> None:
    with pytest.raises(DataError, match="holds no file"):
        unpack(make(tmp_path / name, {}), tmp_path / "out")


@both
def test_no_room_is_said_before_anything_is_written(
    tmp_path: Path, make, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive = make(tmp_path / name, {"a/x": b"0" * 3_000_000})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1_000_000))
    with pytest.raises(ArtifactError, match=r"unpacks to 3\.0 MB and .* has 1\.0 MB left"):
        unpack(archive, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


@both
@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"a": b"1", "a/b": b"2"}, "'a' is a file and a folder"),
        ({"x/a/b/c": b"1", "x/a": b"2"}, "'a' is a file and a folder"),
        ({"a.dat": b"1", "A.DAT": b"2"}, "'A.DAT' stands in it twice"),
        ({"ratings.dat": b"1", ".fetched.json": b"{}"}, r"'.fetched.json' has the name of a file that is not"),
        ({"x/ratings.dat": b"1", "x/.LOCK": b"{}"}, r"'.LOCK' has the name of a file that is not"),
        ({"ratings.dat": b"1", "SELF": b"2"}, "has the name of a file that is not of the data set"),
        ({"a" * 250: b"1", "b": b"2"}, "has a name that no file can have"),
        ({"b": b"2", "\u00e4" * 130 + "/x": b"1"}, "has a name that no file can have"),
    ],
)
def test_members_in_each_others_way_are_refused_and_nothing_is_written(
    tmp_path: Path, make, name: str, files: dict[str, bytes], said: str
) -> None:
    archive = make(tmp_path / name, {name if one == "SELF" else one: content for one, content in files.items()})
    before = archive.read_bytes()
    with pytest.raises(DataError, match=f"{said}.*nothing was unpacked"):
        unpack(archive, tmp_path, reserved=(".fetched.json", ".lock"))
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert archive.read_bytes() == before


@both
def test_a_member_may_end_in_part(tmp_path: Path, make, name: str) -> None:
    """As unfinished files of others do; ours have a name that does not meet it."""
    archive = make(tmp_path / name, {"a.part": b"1", "a": b"2"})
    assert unpack(archive, tmp_path / "out") == ["a.part", "a"]
    assert (tmp_path / "out" / "a.part").read_bytes() == b"1"
    assert (tmp_path / "out" / "a").read_bytes() == b"2"


@pytest.mark.parametrize("ending", ["gz", "bz2", "xz", "zip"])
@pytest.mark.parametrize("damage", ["cut", "bytes"])
def test_damage_of_every_packing_is_named_in_one_line_and_nothing_unfinished_stays(
    tmp_path: Path, ending: str, damage: str
) -> None:
    path = tmp_path / f"a.tar.{ending}"
    noise = random.Random(7).randbytes(400_000)
    if ending == "zip":
        path = zipped(tmp_path / "a.zip", {"a": noise})
    else:
        with tarfile.open(path, f"w:{ending}") as archive:  # type: ignore[call-overload]
            info = tarfile.TarInfo("a")
            info.size = len(noise)
            archive.addfile(info, io.BytesIO(noise))
    content = bytearray(path.read_bytes())
    if damage == "bytes":
        content[200_000:200_200] = bytes(200)
    path.write_bytes(bytes(content[: 300_000 if damage == "cut" else len(content)]))
    with pytest.raises(DataError) as caught:
        unpack(path, tmp_path / "out")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("in_the_way", ["a", "a/b"])
def test_a_folder_in_the_place_of_a_file_is_named(tmp_path: Path, in_the_way: str) -> None:
    archive = zipped(tmp_path / "a.zip", {"x/a": b"1", "x/c": b"2"})
    (tmp_path / "out" / in_the_way).mkdir(parents=True)
    with pytest.raises(ArtifactError, match=r"cannot write below .* Is a directory"), explain_write_errors(tmp_path):
        unpack(archive, tmp_path / "out")
