"""KuaiRand in its original files: names of the three versions, parts, the random log, feedback and watch time."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from features.sources.base import REFUSED, ROW
from features.sources.formats.kuairand import KuaiRandSource
from recsys.contracts.errors import DataError

HEADER = (
    "user_id,video_id,date,hourmin,time_ms,is_click,is_like,is_follow,is_comment,is_forward,is_hate,long_view,play_time_ms,"
    "duration_ms,profile_stay_time,comment_stay_time,is_profile_enter,is_rand,tab\n"
)
VIDEOS = (
    "video_id,author_id,video_type,upload_dt,upload_type,visible_status,video_duration,server_width,server_height,music_id,"
    'music_type,tag\n7,441,NORMAL,2020-07-08,ShortImport,1,17200.0,720,1280,989206467,4,"12,65"\n'
    "8,442,AD,2020-07-09,,1,,720,1280,989206468,4,\n"
)
USERS = "user_id,user_active_degree,is_lowactive_period,follow_user_num\n1,full_active,0,5\n"


def row(video: int, time: int, *, like: int = 0, long_view: int = 0, rand: int = 0, play: int = 0) -> str:
    return f"1,{video},20220421,400,{time},1,{like},0,0,0,0,{long_view},{play},17200,0,0,0,{rand},1\n"


def write(folder: Path, version: str = "pure", *, parts: int = 1, packed: bool = False) -> Path:
    """Two standard logs, the earlier one in parts, and a random one."""
    folder.mkdir(parents=True, exist_ok=True)
    tails = [f"_part{number}" for number in range(1, parts + 1)] if parts > 1 else [""]
    texts = {
        f"log_standard_4_08_to_4_21_{version}{tail}.csv": HEADER + row(7, 1_650_000_000_000 + place, like=1, play=8600)
        for place, tail in enumerate(tails)
    }
    texts[f"log_standard_4_22_to_5_08_{version}.csv"] = HEADER + row(8, 1_651_000_000_000, long_view=1)
    texts[f"log_random_4_22_to_5_08_{version}.csv"] = HEADER + row(9, 1_651_000_000_001, rand=1)
    texts[f"video_features_basic_{version}.csv"] = VIDEOS
    texts[f"video_features_statistic_{version}.csv"] = "video_id,counts\n7,66\n"
    texts[f"user_features_{version}.csv"] = USERS
    for name, text in texts.items():
        content = gzip.compress(text.encode()) if packed else text.encode()
        (folder / (f"{name}.gz" if packed else name)).write_bytes(content)
    return folder


@pytest.mark.parametrize("version", ["pure", "1k", "27k"])
@pytest.mark.parametrize("packed", [False, True], ids=["plain", "gz"])
def test_exposures_in_order_of_the_files_with_watch_time_and_feedback(
    tmp_path: Path, version: str, packed: bool
) -> None:
    """8.6 s of 17.2 s watched and liked, then a long view; the random log is left out."""
    raw = KuaiRandSource(path=write(tmp_path, version, packed=packed)).read(0)
    found = raw.interactions.collect()
    columns = ["user_id", "item_id", "timestamp", "watch_time_ms", "duration_ms", "like", "long_view", "dislike"]
    assert found.select(columns).rows() == [
        (1, 7, 1_650_000_000_000_000, 8600.0, 17200.0, True, False, False),
        (1, 8, 1_651_000_000_000_000, 0.0, 17200.0, False, True, False),
    ]
    assert raw.signals == ("long_view", "like", "follow", "comment", "share", "dislike")
    assert raw.positive == ("long_view", "like")
    assert raw.notes["layout"] == f"kuairand {version}"


def test_the_parts_of_27k_are_one_log_in_their_order(tmp_path: Path) -> None:
    raw = KuaiRandSource(path=write(tmp_path, "27k", parts=11)).read(0)
    found = raw.interactions.collect()
    assert found["timestamp"].to_list() == sorted(found["timestamp"].to_list())
    assert raw.interactions.files[1:3] == (
        "log_standard_4_08_to_4_21_27k_part2.csv",
        "log_standard_4_08_to_4_21_27k_part3.csv",
    )
    assert len(found) == 12


def test_random_exposures_are_read_and_marked_where_that_is_asked_for(tmp_path: Path) -> None:
    raw = KuaiRandSource(path=write(tmp_path), random_log="signal").read(0)
    found = raw.interactions.collect()
    assert found["item_id"].to_list() == [7, 8, 9]
    assert found["random_exposure"].to_list() == [False, False, True]
    assert raw.signals[-1] == "random_exposure"


def test_the_random_log_must_be_there_when_it_is_asked_for(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "log_random_4_22_to_5_08_pure.csv").unlink()
    assert len(KuaiRandSource(path=tmp_path).read(0).interactions.collect()) == 2
    with pytest.raises(DataError, match=r"no log_random_\*_pure\.csv"):
        KuaiRandSource(path=tmp_path, random_log="signal").read(0)


def test_videos_and_users(tmp_path: Path) -> None:
    raw = KuaiRandSource(path=write(tmp_path), user_columns=["user_active_degree"]).read(0)
    assert raw.items is not None
    assert raw.items.select("item_id", "text", "categories", "author_id").rows() == [
        (7, "NORMAL. ShortImport", ["12", "65"], "441"),
        (8, "AD", None, "442"),
    ]
    assert raw.users is not None
    assert raw.users.rows() == [(1, "full_active")]


def test_a_feature_of_videos_that_is_missing_is_named_in_the_notes(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "video_features_basic_pure.csv").write_text("video_id,author_id\n7,441\n")
    raw = KuaiRandSource(path=tmp_path).read(0)
    assert raw.items is not None
    assert raw.items.select("item_id", "author_id", "categories").row(0) == (7, "441", None)
    assert raw.notes["absent_item_columns"] == ["tag", "upload_type", "video_type"]


@pytest.mark.parametrize("name", ["video_features_basic_pure.csv", "user_features_pure.csv"])
def test_features_may_be_missing(tmp_path: Path, name: str) -> None:
    write(tmp_path)
    (tmp_path / name).unlink()
    raw = KuaiRandSource(path=tmp_path).read(0)
    assert (raw.items is None) == name.startswith("video")
    assert (raw.users is None) == name.startswith("user")
    assert name not in raw.notes["files_read"]  # type: ignore[operator]


def test_the_place_in_the_app_and_other_columns_may_be_signals(tmp_path: Path) -> None:
    signals = [{"name": "main_feed", "column": "tab", "equals": 1}, {"name": "click", "column": "is_click"}]
    raw = KuaiRandSource(path=write(tmp_path), signals=signals, positive=["click"]).read(0)
    assert raw.interactions.collect().select("main_feed", "click").row(0) == (True, True)
    assert raw.signals == ("main_feed", "click")


def test_the_data_folder_of_the_archive_is_found(tmp_path: Path) -> None:
    write(tmp_path / "data")
    assert len(KuaiRandSource(path=tmp_path).read(0).interactions.collect()) == 2


def test_two_versions_in_a_folder_are_refused_and_one_may_be_named(tmp_path: Path) -> None:
    write(tmp_path, "pure")
    write(tmp_path, "1k")
    with pytest.raises(DataError, match=r"several versions: 1k, pure; set source\.version"):
        KuaiRandSource(path=tmp_path).read(0)
    assert KuaiRandSource(path=tmp_path, version="1k").read(0).notes["layout"] == "kuairand 1k"
    with pytest.raises(DataError, match=r"no log_standard_\*_27k\.csv"):
        KuaiRandSource(path=tmp_path, version="27k").read(0)


def test_packed_and_unpacked_beside_each_other_are_refused(tmp_path: Path) -> None:
    write(tmp_path)
    write(tmp_path, packed=True)
    with pytest.raises(DataError, match="their events would count twice; delete one of them"):
        KuaiRandSource(path=tmp_path).read(0)


def test_a_folder_without_logs_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("x\n")
    with pytest.raises(DataError, match=r"no KuaiRand files: .*there are: log\.csv"):
        KuaiRandSource(path=tmp_path).read(0)
    with pytest.raises(DataError, match="is no folder"):
        KuaiRandSource(path=tmp_path / "away").read(0)


def test_malformed_lines_and_unknown_columns(tmp_path: Path) -> None:
    write(tmp_path)
    path = tmp_path / "log_standard_4_22_to_5_08_pure.csv"
    lines = [*path.read_text().splitlines(), "1,8,20220430", row(8, 0).strip().replace("1,8", "one,8")]
    path.write_text("\n".join(f"{line},new" if line.count(",") == 18 else line for line in lines) + "\n")
    found = KuaiRandSource(path=tmp_path).read(0).interactions.collect()
    assert found[ROW].to_list() == [1, 1, 2, 3]
    assert found[REFUSED].is_null().to_list() == [True, True, False, False]
