"""``recsys fetch`` from end to end on loopback: names, mirrors, records, and the recipe it prints."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import zipfile
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
import yaml
from pydantic import TypeAdapter

from features.sources import SourceConfig
from pipelines.cli.app import main
from pipelines.datasets.catalogue import catalogue, find
from pipelines.datasets.fetch import RECORD, file_name, recipe_snippet, with_addresses
from pipelines.datasets.transfer import Checksum
from pipelines.engine.lock import run_lock
from recsys.contracts.errors import ConfigError

RATINGS = b"1::1193::5::978300760\n1::661::3::978302109\n"


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


KUAIRAND = {
    "log_standard_4_08_to_4_21_pure.csv": "user_id,video_id,time_ms,is_like,is_follow,is_comment,is_forward,is_hate,"
    "long_view,play_time_ms,duration_ms\n1,7,1650000000000,1,0,0,0,0,1,900,1000\n",
    "video_features_basic_pure.csv": "video_id,author_id,video_type,upload_type,tag\n7,441,NORMAL,ShortImport,12\n",
}


class Quiet(SimpleHTTPRequestHandler):
    """Serves a folder, without ranges, as Python's own server does."""

    asked: list[str] = []  # noqa: RUF012

    def do_GET(self) -> None:
        Quiet.asked.append(self.path)
        super().do_GET()

    def log_message(self, *arguments: object) -> None:
        del arguments


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[str]:
    """A folder with ml-1m.zip and two Amazon files, served on loopback; yields its address."""
    served = tmp_path / "served"
    served.mkdir()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("ml-1m/ratings.dat", RATINGS)
        archive.writestr("ml-1m/movies.dat", "1193::One Flew Over the Cuckoo's Nest (1975)::Drama\n")
    (served / "ml-1m.zip").write_bytes(buffer.getvalue())
    review = {"reviewerID": "A1", "asin": "B1", "overall": 5.0, "unixReviewTime": 1514764800}
    (served / "Video_Games_5.json").write_text(json.dumps(review) + "\n")
    (served / "meta_Video_Games.json").write_text(json.dumps({"asin": "B1", "title": "A game"}) + "\n")
    with tarfile.open(served / "KuaiRand-Tiny.tar.gz", "w:gz") as tar:
        for name, text in KUAIRAND.items():
            info = tarfile.TarInfo(f"KuaiRand-Tiny/data/{name}")
            info.size = len(text)
            tar.addfile(info, io.BytesIO(text.encode()))
    Quiet.asked = []
    http = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(served)))
    http.daemon_threads = True
    thread = Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{http.server_address[1]}"
    http.shutdown()
    http.server_close()
    thread.join()


def md5(path: Path) -> str:
    return "md5:" + hashlib.md5(path.read_bytes(), usedforsecurity=False).hexdigest()


def fetch_1m(mirror: str, tmp_path: Path, *more: str) -> int:
    checksum = md5(tmp_path / "served" / "ml-1m.zip")
    out = ["--out", str(tmp_path / "ml"), "--url", f"{mirror}/ml-1m.zip", "--checksum", checksum, "--progress", "off"]
    return call("fetch", "movielens-1m", *out, *more)


def test_fetched_unpacked_recorded_and_the_recipe_printed(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fetch_1m(mirror, tmp_path) == 0
    assert (tmp_path / "ml" / "ratings.dat").read_bytes() == RATINGS
    assert not (tmp_path / "ml" / "ml-1m.zip").exists()
    printed = capsys.readouterr().out
    recipe = yaml.safe_load(printed[printed.index("source:") :])
    assert recipe == {"source": {"kind": "movielens", "path": str(tmp_path / "ml")}}


def test_the_second_time_nothing_is_asked_of_the_server(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fetch_1m(mirror, tmp_path)
    asked = len(Quiet.asked)
    assert fetch_1m(mirror, tmp_path) == 0
    assert len(Quiet.asked) == asked
    assert "nothing to do" in capsys.readouterr().out
    assert fetch_1m(mirror, tmp_path, "--again", "--keep-archives") == 0
    assert len(Quiet.asked) == asked + 1
    assert (tmp_path / "ml" / "ml-1m.zip").is_file()


@pytest.mark.parametrize("damage", ["deleted", "cut"])
def test_a_file_that_went_is_fetched_again(mirror: str, tmp_path: Path, damage: str) -> None:
    fetch_1m(mirror, tmp_path)
    file = tmp_path / "ml" / "ratings.dat"
    file.unlink() if damage == "deleted" else file.write_bytes(b"1::")
    assert fetch_1m(mirror, tmp_path) == 0
    assert file.read_bytes() == RATINGS


def test_the_publishers_checksum_holds_for_a_mirror(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The small file is not the real ml-1m.zip, and the mirror's word is not enough."""
    code = call(
        "fetch", "movielens-1m", "--out", str(tmp_path / "ml"), "--url", f"{mirror}/ml-1m.zip", "--progress", "off"
    )
    assert code == 3
    assert "published is c4d9eecfca2ab87c1945afe126590906" in capsys.readouterr().err
    assert not (tmp_path / "ml" / "ratings.dat").exists()


def test_several_files_take_one_address_each(mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = ["--out", str(tmp_path / "am"), "--progress", "off"]
    urls = ["--url", f"{mirror}/Video_Games_5.json", "--url", f"{mirror}/meta_Video_Games.json"]
    assert call("fetch", "amazon-2018/Video_Games", *out, *urls) == 0
    assert {"Video_Games_5.json", "meta_Video_Games.json", RECORD} <= {
        path.name for path in (tmp_path / "am").iterdir()
    }
    assert call("fetch", "amazon-2018/Video_Games", *out, *urls[:2]) == 2
    assert "has 2 files: Video_Games_5.json.gz, meta_Video_Games.json.gz" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "files", "item"),
    [
        ("movielens-1m", ["ml-1m.zip"], 1193),
        ("kuairand-pure", ["KuaiRand-Tiny.tar.gz"], 7),
        ("amazon-2018/Video_Games", ["Video_Games_5.json", "meta_Video_Games.json"], "B1"),
    ],
)
def test_the_printed_recipe_reads_what_was_fetched(
    mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, files: list[str], item: object
) -> None:
    options = [option for file in files for option in ("--url", f"{mirror}/{file}")]
    if name == "movielens-1m":
        options += ["--checksum", md5(tmp_path / "served" / files[0])]
    assert call("fetch", name, "--out", str(tmp_path / "got"), "--progress", "off", *options) == 0
    printed = capsys.readouterr().out
    recipe = yaml.safe_load(printed[printed.index("source:") :])
    source = TypeAdapter(SourceConfig).validate_python(recipe["source"])
    raw = source.read(0)
    assert raw.interactions.collect()["item_id"].to_list()[0] == item
    assert raw.items is not None


def test_gone_is_exit_3(mirror: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = call("fetch", "kuairand-pure", "--out", str(tmp_path / "k"), "--url", f"{mirror}/KuaiRand-Pure.tar.gz")
    assert code == 3
    assert "404" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["fetch"], ["fetch", "list"]])
def test_the_list_names_size_terms_and_address(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert call(*arguments) == 0
    printed = capsys.readouterr().out
    for dataset in catalogue():
        assert {dataset.name, dataset.files[0].url} <= set(printed.split())
    assert "CC BY-SA 4.0" in printed


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("movielens-1M", "did you mean 'movielens-1m'?"),
        ("movielens", "there are: movielens-100k"),
        ("amazon-2018", "needs one of its categories"),
        ("amazon-2018/Videogames", "did you mean 'Video_Games'?"),
        ("amazon-2014/All_Beauty", "did you mean 'Beauty'?"),
        ("amazon-2019/Books", "no data set is called"),
        ("amazon-2018/../x", "needs one of its categories"),
    ],
)
def test_unknown_names_are_answered_with_the_closest(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said.replace("?", r"\?")):
        find(name)


def test_usage_errors(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("fetch", "movielens-1m", "--checksum", "md5:1") == 2
    assert "--checksum: 'md5:1' is no checksum" in capsys.readouterr().err
    assert call("fetch", "amazon-2018/Books", "--reviews", "10core") == 2
    assert "expected one of 5core, all, ratings" in capsys.readouterr().err
    assert call("fetch", "movielens-1m", "--reviews", "all") == 2
    with pytest.raises(ConfigError, match="is of one file"):
        with_addresses(find("amazon-2018/Books"), [], Checksum("md5", "0" * 32))
    with pytest.raises(ConfigError, match="ends in no file name"):
        file_name("https://example.org/")


def test_the_way_out_of_a_folder_is_the_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert call("fetch", "movielens-1m", "--out", str(tmp_path / "file" / "out")) == 4
    assert "make it writable or choose another --out" in capsys.readouterr().err
    with run_lock(tmp_path / "busy"):
        assert call("fetch", "movielens-1m", "--out", str(tmp_path / "busy")) == 75
    assert "wait for it, or choose another --out" in capsys.readouterr().err


def test_the_forms_of_amazons_reviews() -> None:
    assert file_name(find("amazon-2014/Beauty").files[0].url) == "reviews_Beauty_5.json.gz"
    assert file_name(find("amazon-2018/Books", "ratings").files[0].url) == "Books.csv"
    assert file_name(find("amazon-2023/Books").files[0].url) == "Books.jsonl.gz"
    assert yaml.safe_load(recipe_snippet(find("amazon-2023/Books"), Path("d")))["source"]["version"] == 2023


@pytest.mark.parametrize(
    "url",
    [
        "http://[::1/ml-1m.zip",
        "http://host/",
        "http://host/..",
        "http://host/.lock",
        "http://host/a/.fetched.json",
        "http://host/a%00.zip",
        "http://host/a%0a.zip",
        "http://host/" + "a" * 250 + ".zip",
        "http://host/" + "%c3%a4" * 130,
    ],
)
def test_an_address_that_ends_in_no_name_of_a_file(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A name that is not of a data file would take the place of the lock or of the record."""
    assert call("fetch", "movielens-1m", "--out", str(tmp_path / "ml"), "--url", url) == 2
    assert "Traceback" not in capsys.readouterr().err
    assert not (tmp_path / "ml").exists()


def test_two_files_of_one_name_would_overwrite_each_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    urls = ["--url", "http://one/X.json.gz", "--url", "http://two/X.json.gz"]
    assert call("fetch", "amazon-2018/Video_Games", "--out", str(tmp_path / "games"), *urls) == 2
    assert "two files the name 'X.json.gz'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "entry", ["x", {}, {"files": "x"}, {"files": [{"name": 7, "size": 1}]}, {"files": [{"name": "a"}]}]
)
def test_a_record_of_another_form_counts_for_nothing(mirror: str, tmp_path: Path, entry: object) -> None:
    assert fetch_1m(mirror, tmp_path) == 0
    path = tmp_path / "ml" / RECORD
    path.write_text(json.dumps(dict.fromkeys(json.loads(path.read_text()), entry)))
    assert fetch_1m(mirror, tmp_path) == 0
    assert len(Quiet.asked) == 2
