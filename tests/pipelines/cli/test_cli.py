"""The command line: quick help, exit codes, and one whole tiny run with everything that can be asked of it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import polars as pl
import pytest
import yaml

from pipelines.cli.app import main
from pipelines.engine.lock import run_lock

ROOT = Path(__file__).resolve().parents[3]
DEMO = ROOT / "pipelines" / "recipes" / "demo.yaml"
TINY = [
    "source.users=300",
    "source.items=200",
    "source.events=12000",
    "tokenize.codebook_size=16",
    "embed.text.model=null",
    "model.width=16",
    "model.num_heads=2",
    "model.ffn_width=16",
    "model.expert_width=16",
    "train.max_epochs=1",
    "decode.beam_width=20",
    "evaluate.baselines=[popularity, markov]",
    "evaluate.ks=[1, 5, 10]",
    "promote.floor=none",
    "recommend.k=5",
    "recommend.users_per_shard=100",
    "threads=1",
]


def call(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


def script(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        main(["--version"])
    assert (end.value.code, capsys.readouterr().out) == (0, f"recsys {version('recsys-gen')}\n")


def test_help_is_quick_and_imports_nothing_heavy() -> None:
    """Under a second on an idle machine; the imports are what makes it so, and they do not depend on the load."""
    code = (
        "import sys\nfrom pipelines.cli.app import main\n"
        "try:\n    main(['--help'])\nexcept SystemExit as end:\n    assert end.code == 0\n"
        "print([name for name in ('torch', 'mlflow', 'polars', 'lightning') if name in sys.modules])"
    )
    done = script(code)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip().endswith("[]")
    for verb in [
        "prepare",
        "embed",
        "tokenize",
        "train",
        "evaluate",
        "export",
        "promote",
        "recommend",
        "histories",
        "run",
        "demo",
        "report",
        "simulate",
        "validate",
        "doctor",
        "status",
        "rollback",
    ]:
        assert f"  {verb} " in done.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["run"],
        ["run", "--config", str(DEMO), "--progress", "sometimes"],
        ["run", "--config", "/no/such.yaml"],
        ["run", "--config", str(DEMO), "train.max_epoch=1"],
        ["run", "--config", str(DEMO), "train.max_epochs=many"],
        ["recommend", "--model", "somewhere"],
        ["recommend", "--model", "models:/x@champion", "--users", "u.parquet", "--out", "OUT"],
    ],
)
def test_bad_usage_is_2(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    (tmp_path / "u.parquet").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert call(*arguments) == 2


def test_an_unknown_key_is_named_with_the_closest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--config", str(DEMO), "train.max_epoch=1") == 2
    assert "unknown key 'train.max_epoch' (value 1); did you mean 'max_epochs'?" in capsys.readouterr().err


def test_bad_data_are_3(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A truncated Parquet file, found by `validate` and by `prepare` alike."""
    pl.DataFrame({"user_id": [1], "item_id": [2], "position": [0]}).write_parquet(tmp_path / "interactions.parquet")
    whole = (tmp_path / "interactions.parquet").read_bytes()
    (tmp_path / "interactions.parquet").write_bytes(whole[:-30])
    source = {"kind": "table", "path": str(tmp_path), "timestamp_unit": "none", "columns": {"position": "position"}}
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({"source": source, "output_dir": str(tmp_path / "out")}))
    assert call("validate", "--config", str(tmp_path / "r.yaml")) == 3
    assert call("prepare", "--config", str(tmp_path / "r.yaml")) == 3
    assert "interactions.parquet" in capsys.readouterr().err


def test_a_missing_parent_is_4_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("embed", "--config", str(DEMO), f"output_dir={tmp_path}") == 4
    assert "run `recsys prepare` with the same config first" in capsys.readouterr().err


def test_an_output_folder_that_cannot_be_written_is_4(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert call("prepare", "--config", str(DEMO), f"output_dir={tmp_path / 'file' / 'out'}") == 4
    assert "choose another output_dir" in capsys.readouterr().err


def test_a_second_run_is_75(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with run_lock(tmp_path):
        assert call("run", "--config", str(DEMO), f"output_dir={tmp_path}") == 75
    assert f"process {os.getpid()}" in capsys.readouterr().err


def test_a_dry_run_prints_config_and_plan_and_writes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert call("run", "--config", str(DEMO), f"output_dir={tmp_path / 'out'}", "seed=5", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "seed: 5" in printed
    assert [line.split()[:2] for line in printed.splitlines()[-9:]] == [
        [stage, "run"]
        for stage in ["prepare", "embed", "tokenize", "train", "rank", "baselines", "evaluate", "export", "recommend"]
    ]
    assert not (tmp_path / "out").exists()


def test_a_dry_run_of_a_recipe_that_extends_another_prints_both(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a directory in which neither file stands."""
    (tmp_path / "here").mkdir()
    (tmp_path / "recipes").mkdir()
    shutil.copy(DEMO, tmp_path / "recipes" / "base.yaml")
    (tmp_path / "recipes" / "mine.yaml").write_text("extends: base.yaml\nname: mine\n")
    monkeypatch.chdir(tmp_path / "here")
    assert call("run", "--config", "../recipes/mine.yaml", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "name: mine" in printed
    assert "kind: simulated" in printed
    assert "extends" not in printed


def test_our_own_faults_are_1_with_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pipelines.config

    monkeypatch.setattr(pipelines.config, "load_run_config", lambda path, overrides: 1 / 0)
    assert call("run", "--config", str(DEMO)) == 1
    printed = capsys.readouterr().err
    assert "ZeroDivisionError" in printed
    assert "a fault of recsys" in printed


class PanicException(BaseException):
    """As Polars raises it: no Exception."""


def test_a_panic_of_a_library_is_our_fault_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    import pipelines.config

    def panic(path: object, overrides: object) -> None:
        raise PanicException("out-of-range date")

    monkeypatch.setattr(pipelines.config, "load_run_config", panic)
    assert call("run", "--config", str(DEMO)) == 1
    printed = capsys.readouterr().err
    assert "PanicException: out-of-range date" in printed
    assert "a fault of recsys" in printed


@dataclass(frozen=True)
class TinyRun:
    """A finished run: its folder, how to repeat it, what it printed."""

    folder: Path
    arguments: list[str]
    printed: str

    def artifact(self, kind: str) -> Path:
        (path,) = (self.folder / "artifacts" / kind).glob("[!.]*")
        return path


@pytest.fixture(scope="module")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    folder = tmp_path_factory.mktemp("tiny") / "run"
    arguments = ["run", "--config", str(DEMO), f"output_dir={folder}", *TINY]
    environment = {name: value for name, value in os.environ.items() if name != "MLFLOW_TRACKING_URI"}
    command = [sys.executable, "-m", "pipelines.cli.app", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
    assert done.returncode == 0, done.stderr
    return TinyRun(folder, arguments, done.stdout)


@pytest.mark.slow
class TestWholeRun:
    @pytest.fixture(autouse=True)
    def no_uri_in_the_environment(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)

    def test_it_says_where_to_look(self, tiny_run: TinyRun) -> None:
        for system in ("generative (served) *", "generative (beam)", "popularity", "markov"):
            assert system in tiny_run.printed
        assert "registered  demo version 1 (champion)" in tiny_run.printed
        assert (tiny_run.artifact("evaluation") / "report.html").stat().st_size > 1000
        assert str(tiny_run.artifact("candidates")) in tiny_run.printed

    def test_a_second_run_has_nothing_to_do(self, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str]) -> None:
        before = {path: path.stat().st_mtime_ns for path in (tiny_run.folder / "artifacts").rglob("*")}
        assert call(*tiny_run.arguments) == 0
        assert "Nothing to do: every stage is up to date." in capsys.readouterr().out
        assert before == {path: path.stat().st_mtime_ns for path in (tiny_run.folder / "artifacts").rglob("*")}

    def test_every_user_has_k_candidates(self, tiny_run: TinyRun) -> None:
        rows = pl.read_parquet(tiny_run.artifact("candidates") / "part-*.parquet")
        users = pl.read_parquet(tiny_run.artifact("prepared") / "users.parquet")["user_id"]
        per_user = rows.group_by("user_id").agg(pl.col("rank").sort())
        assert set(per_user["user_id"]) == set(users)
        assert per_user["rank"].list.len().unique().to_list() == [5]
        assert rows["model_version"].unique().to_list() == ["1"]

    def test_the_registered_model_answers_like_the_batch_job_without_our_cli(
        self, tiny_run: TinyRun, tmp_path: Path
    ) -> None:
        code = (
            "import sys, json, mlflow, pandas as pd, polars as pl\n"
            "mlflow.set_tracking_uri(sys.argv[1])\n"
            "model = mlflow.pyfunc.load_model('models:/demo@champion')\n"
            "frame = pd.DataFrame(json.load(open(sys.argv[2])))\n"
            "rows = model.predict(frame, params={'k': 5})\n"
            "assert not [name for name in sys.modules if name.split('.')[0] in ('pipelines', 'features')]\n"
            "rows.to_json(sys.argv[3], orient='records')\n"
        )
        (tmp_path / "frame.json").write_text(json.dumps(frame_of_first_users(tiny_run.artifact("prepared"), 40)))
        uri = f"sqlite:///{tiny_run.folder}/mlflow.db"
        done = script(code, uri, str(tmp_path / "frame.json"), str(tmp_path / "rows.json"))
        assert done.returncode == 0, done.stderr
        found = pl.DataFrame(json.loads((tmp_path / "rows.json").read_text())).select("user_id", "rank", "item_id")
        batch = pl.read_parquet(tiny_run.artifact("candidates") / "part-*.parquet").cast({"rank": pl.Int64})
        expected = batch.filter(pl.col("user_id").is_in(found["user_id"].implode()))
        order = ["user_id", "rank"]
        assert len(found) == 200
        assert found.sort(order).equals(expected.select("user_id", "rank", "item_id").sort(order))

    def test_the_version_says_what_made_it(self, tiny_run: TinyRun) -> None:
        from serving.registry.model_registry import Registry

        registry = Registry(f"sqlite:///{tiny_run.folder}/mlflow.db", tiny_run.folder / "registry")
        version = registry.resolve("models:/demo@champion")
        assert version.number == "1"
        assert version.tags["data_digest"].startswith(tiny_run.artifact("prepared").name)
        assert version.tags["train_digest"].startswith(tiny_run.artifact("policy").name)
        assert version.tags["gate_verdict"] == "pass"
        assert {"git_sha", "semantic_id_digest", "config_hash", "evaluation_digest"} <= version.tags.keys()
        bundle = registry.open_bundle(version)
        assert bundle.manifest.content_digest == version.tags["bundle_content"]
        contract = "data_contract.json"  # what the next night's data are held against
        assert (bundle.path / contract).read_bytes() == (tiny_run.artifact("prepared") / contract).read_bytes()

    def test_recommend_outside_a_run(self, tiny_run: TinyRun, tmp_path: Path) -> None:
        frame = pl.DataFrame(frame_of_first_users(tiny_run.artifact("prepared"), 3)).select("user_id", "item_ids")
        frame.write_parquet(tmp_path / "users.parquet")
        common = ["--users", str(tmp_path / "users.parquet"), "--k", "2"]
        uri = f"sqlite:///{tiny_run.folder}/mlflow.db"
        for name, model in (
            ("a", ["--model", str(tiny_run.artifact("bundle"))]),
            ("b", ["--model", "models:/demo/1", "--tracking-uri", uri]),
        ):
            assert call("recommend", *common, *model, "--out", str(tmp_path / name)) == 0
        rows = [pl.read_parquet(tmp_path / name / "part-*.parquet") for name in "ab"]
        assert len(rows[0]) == 6
        assert rows[0].select("user_id", "item_id", "rank").equals(rows[1].select("user_id", "item_id", "rank"))
        assert [part["model_version"][0][:5] for part in rows] == ["unreg", "1"]

    def test_histories_of_the_same_log_get_the_answers_of_the_batch_job(
        self, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        users = tmp_path / "new" / "histories.parquet"
        assert call("histories", *tiny_run.arguments[1:], "--out", str(users)) == 0
        assert capsys.readouterr().out.startswith("300 users, ")
        model = ["--model", str(tiny_run.artifact("bundle")), "--k", "5"]
        assert call("recommend", *model, "--users", str(users), "--out", str(tmp_path / "out")) == 0
        columns = ["user_id", "rank", "item_id"]
        found, expected = (
            pl.read_parquet(folder / "part-*.parquet").select(columns).sort("user_id", "rank")
            for folder in (tmp_path / "out", tiny_run.artifact("candidates"))
        )
        assert found.equals(expected)

    def test_report_writes_the_file_again(
        self, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert call("report", *tiny_run.arguments[1:], "--out", str(tmp_path / "r.html")) == 0
        assert (tmp_path / "r.html").stat().st_size > 1000
        assert "markov" in capsys.readouterr().out

    def test_a_truncated_artefact_is_refused(
        self, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        copy = tmp_path / "run"
        shutil.copytree(tiny_run.folder / "artifacts", copy / "artifacts")
        (codes,) = copy.glob("artifacts/semantic_ids/*/codes.npy")
        codes.write_bytes(codes.read_bytes()[:-4])
        arguments = [argument.replace(str(tiny_run.folder), str(copy)) for argument in tiny_run.arguments]
        assert call(*arguments) == 4
        assert "codes.npy' has changed since it was published" in capsys.readouterr().err

    def test_without_mlflow_the_results_are_kept_and_logged_later(
        self, tiny_run: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        copy = tmp_path / "run"
        shutil.copytree(tiny_run.folder / "artifacts", copy / "artifacts")
        shutil.rmtree(copy / "artifacts" / "bundle")
        arguments = [argument.replace(str(tiny_run.folder), str(copy)) for argument in tiny_run.arguments]
        started = time.monotonic()
        assert call(*arguments, f"tracking.uri=http://127.0.0.1:{port}") == 4
        assert time.monotonic() - started < 120  # MLflow alone would go on trying for minutes
        assert "run `recsys run` with the same config again" in capsys.readouterr().err
        assert len(list((copy / "tracking" / "pending").glob("*.json"))) == 8
        assert len(list((copy / "artifacts" / "bundle").glob("[!.]*"))) == 1
        assert call(*arguments) == 0
        assert not list((copy / "tracking" / "pending").glob("*.json"))
        assert "registered  demo version 1 (champion)" in capsys.readouterr().out


def frame_of_first_users(prepared: Path, count: int) -> dict[str, list[object]]:
    """Histories of the first users as an outsider would write them, from the events and items tables."""
    events = pl.read_parquet(prepared / "events.parquet").filter(pl.col("positive") & (pl.col("user_index") < count))
    users = pl.read_parquet(prepared / "users.parquet")
    items = pl.read_parquet(prepared / "items.parquet", columns=["item_index", "item_id"])
    rows = (
        events.join(items, on="item_index", how="left", maintain_order="left")
        .join(users, on="user_index", how="left", maintain_order="left")
        .group_by("user_id", maintain_order=True)
        .agg(
            pl.col("item_id").alias("item_ids"),
            pl.col("timestamp").alias("timestamps"),
            pl.col("behaviour").cast(pl.Int64).alias("behaviours"),
            pl.col("watch_ratio").cast(pl.Float64).alias("watch_ratios"),
        )
    )
    return rows.to_dict(as_series=False)
