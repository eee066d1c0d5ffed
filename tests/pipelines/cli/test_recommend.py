"""`recsys recommend --model --users`: refusals that say what there is and leave nothing behind; users of every form."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest

from pipelines.cli.app import main
from serving.bundle.layout import open_bundle
from serving.registry.aliases import BUNDLE_TAG, CHAMPION
from serving.registry.model_registry import Registry
from tests.toy.batch_world import FIRST_ITEM_ID, FIRST_USER_ID, World, WorldSize, build_world, write_histories

SMALL = WorldSize(
    users=6,
    items=30,
    categories=3,
    max_events=4,
    level_sizes=(6, 6),
    model={"width": 16, "num_heads": 2, "ffn_width": 16, "expert_width": 16, "features": ("item", "codes")},
    beam_width=8,
)


def call(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("world"), SMALL)


@pytest.fixture(scope="module")
def uri(world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A registry with one version of the bundle, which is champion and challenger."""
    folder = tmp_path_factory.mktemp("registry")
    uri = f"sqlite:///{folder}/mlflow.db"
    registry = Registry(uri, folder / "bundles")
    experiment = registry.client.create_experiment("toy", str(folder / "artifacts"))
    run = registry.client.create_run(experiment).info.run_id
    version = registry.register(world.bundle, run, {BUNDLE_TAG: open_bundle(world.bundle).digest})
    registry.point(version.name, CHAMPION, version.number)
    return uri


@pytest.fixture(autouse=True)
def no_uri_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.mark.parametrize(
    ("model", "users", "more", "code", "message"),
    [
        (
            "models:/simulated@nobody",
            "",
            [],
            4,
            "'simulated' has the versions 1, and the aliases challenger (version 1), champ",
        ),
        ("models:/simulated/7", "", [], 4, "'models:/simulated/7' does not exist at"),
        (
            "models:/simulate@champion",
            "",
            [],
            4,
            "no model is called 'simulate'; did you mean 'simulated'? registered are simul",
        ),
        ("models:/other@champion", "", [], 4, "no model is called 'other'; registered are simulated"),
        ("models:/simulated/1", "nobody.parquet", [], 3, "nobody.parquet' cannot be read"),
        (
            "models:/simulated/1",
            "",
            ["--k", "1001"],
            2,
            "k is 1001, the bundle of 'simulated' answers with at most 1000 per user",
        ),
        ("models:/simulated/1", "", ["recommend.k=3"], 2, "'recommend"),
        ("models:/simulated/1", "", ["k=0"], 2, "recommend: k is 0, expected at least 1: the number of items per user"),
        ("models:/simulated/1", "", ["k=1.5"], 2, "key 'k' is 1.5"),
        ("models:/simulated/1", "", ["objective={like: 1}"], 2, "it cannot be steered"),
        ("models:/simulated/1", "", ["--deny", "nothing.txt"], 2, "nothing.txt' does not exist"),
    ],
)
def test_a_refusal_says_what_there_is_and_leaves_nothing(
    world: World,
    uri: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    model: str,
    users: str,
    more: list[str],
    code: int,
    message: str,
) -> None:
    out = tmp_path / "new" / "out"
    people = tmp_path / users if users else world.prepared
    assert (
        call("recommend", "--model", model, "--users", str(people), "--out", str(out), "--tracking-uri", uri, *more)
        == code
    )
    assert message in capsys.readouterr().err
    assert not out.parent.exists()


def rows_of(out: Path) -> pl.DataFrame:
    return pl.read_parquet(out / "part-*.parquet")


def test_the_champion_answers_as_the_bundle_does(world: World, uri: str, tmp_path: Path) -> None:
    users = write_histories(tmp_path / "users.parquet", world)
    common = ["--users", str(users), "--k", "3"]
    assert call("recommend", "--model", str(world.bundle), *common, "--out", str(tmp_path / "a")) == 0
    champion = ["--model", "models:/simulated@champion", "--tracking-uri", uri]
    assert call("recommend", *champion, *common, "--out", str(tmp_path / "b")) == 0
    columns = ["user_id", "item_id", "rank"]
    assert rows_of(tmp_path / "a").select(columns).equals(rows_of(tmp_path / "b").select(columns))
    assert {path.name.partition("-")[0] for path in (tmp_path / "b").iterdir()} == {
        ".lock",
        "job.json",
        "candidates.json",
        "report.json",
        "asked",
        "part",
    }


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_no_users_get_a_table_without_rows(world: World, tmp_path: Path, suffix: str) -> None:
    users = tmp_path / f"users{suffix}"
    if suffix == ".csv":
        users.write_text("user_id,item_ids\n")
    else:
        pl.DataFrame({"user_id": [], "item_ids": []}).write_parquet(users)
    assert call("recommend", "--model", str(world.bundle), "--users", str(users), "--out", str(tmp_path / "out")) == 0
    rows = rows_of(tmp_path / "out")
    assert rows.is_empty()
    assert (rows.schema["user_id"], rows.schema["item_id"]) == (pl.String, pl.Int64)


def test_histories_as_csv(world: World, tmp_path: Path) -> None:
    """Lists are JSON, ids of users are text with their zeros, an empty cell is an empty history."""
    known = FIRST_ITEM_ID
    users = tmp_path / "users.csv"
    users.write_text(f'user_id,item_ids\n007,"[{known}, {known + 1}]"\n 7 ,"[{known}]"\n8,\n', encoding="utf-8-sig")
    frame = pl.DataFrame({"user_id": ["007", "7", "8"], "item_ids": [[known, known + 1], [known], []]})
    frame.write_parquet(tmp_path / "same.parquet")
    answers = []
    for name in ("users.csv", "same.parquet"):
        out = tmp_path / f"out-{name}"
        assert (
            call(
                "recommend",
                "--model",
                str(world.bundle),
                "--users",
                str(tmp_path / name),
                "--out",
                str(out),
                "--k",
                "2",
            )
            == 0
        )
        answers.append(rows_of(out).select("user_id", "item_id", "rank"))
    assert answers[0].equals(answers[1])
    assert answers[0]["user_id"].unique(maintain_order=True).to_list() == ["007", "7", "8"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "user_id,item_id,timestamp\n7,1,2\n",
            "of a table of interactions `recsys histories --config my.yaml --out histories",
        ),
        ("customer,sku,bought_at\nc7,a,2\n", "lack the column 'item_ids'; they have ['customer', 'sku', 'bought_at']"),
        (
            "customer,sku,bought_at\nc7,a,2\n",
            "of a table of interactions `recsys histories --config my.yaml --out histories",
        ),
        ('user_id,item_idz\n7,"[1]"\n', "lack the column 'item_ids'; they have ['user_id', 'item_idz'], expected"),
        ('user_id,item_idz\n7,"[1]"\n', "is 'item_idz' meant?"),
        ('user_id,item_ids\n7,"[1, 2"\n', "column 'item_ids' is '[1, 2' in row 0, expected a JSON list such as [3, 7]"),
        ("user_id,item_ids\n7,1 2\n", "expected a JSON list"),
        ('user_id,item_ids\n7,"{}"\n', "column 'item_ids' is {} in row 0, expected a list per user"),
        ("user_id,item_ids\nNULL,\n", "user_id is null in 1 of 1 rows"),
        ("user_id,item_ids\n7,\n7 ,\n", "user_id '7' occurs more than once"),
        ("", "is empty; its first line is to name the columns user_id and item_ids"),
        ('user_id,item_ids,timestamps\n7,"[1]","[1700000000]"\n', "trained on data without; leave the column out"),
    ],
)
def test_csv_files_that_are_no_histories(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    users = tmp_path / "users.csv"
    users.write_text(text)
    assert call("recommend", "--model", str(world.bundle), "--users", str(users), "--out", str(tmp_path / "out")) == 3
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_bad_row_late_in_the_file_is_found_before_the_first_user_is_scored(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    users = tmp_path / "users.parquet"
    items = [[FIRST_ITEM_ID]] * 5 + [[FIRST_ITEM_ID] * 10_001]
    pl.DataFrame({"user_id": [FIRST_USER_ID + user for user in range(6)], "item_ids": items}).write_parquet(users)
    arguments = [
        "--model",
        str(world.bundle),
        "--users",
        str(users),
        "--out",
        str(tmp_path / "out"),
        "users_per_shard=1",
    ]
    assert call("recommend", *arguments) == 3
    assert "5000005 has 10001 item_ids, at most 10000 are read" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("names", [["a"], ["a", "b", "c"]])
def test_a_folder_of_files_is_no_prepared_data_set(
    names: list[str], world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Spark writes them; to run a stage again, as is said of a prepared data set that is not whole, would not help."""
    users = tmp_path / "users"
    users.mkdir()
    for name in names:
        write_histories(users / f"{name}.parquet", world)
    asked = ["--model", str(world.bundle), "--users", str(users), "--out", str(tmp_path / "out")]
    assert call("recommend", *asked) == 4
    said = capsys.readouterr().err
    assert "is no prepared data set (it has no dataset.json) but holds 'a.parquet'" in said
    assert ("and 2 more such files" in said) == (len(names) == 3)
    assert not (tmp_path / "out").exists()
