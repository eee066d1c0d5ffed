"""`recsys reproduce` as a user types it: two seeds of a tiny recipe, their table and page, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import yaml

from pipelines.cli.app import main
from pipelines.reproduction import pack as packs
from pipelines.reproduction import run
from pipelines.reproduction.run import newest_evaluation
from recsys.contracts.errors import ArtifactError, DataError
from recsys.contracts.manifest import read_json, sha256_of_file, write_json
from recsys.runtime import SilentProgress

RECIPE = """
name: tiny
threads: 1
source: {kind: table, path: none, timestamp_unit: none, columns: {position: position}}
features: {task: next_item, split: {kind: leave_last_out}}
embed: {text: {model: null}, attributes: null, collaborative: {dim: 8}, fusion: {dim: 8, attributes: 0.0}}
tokenize: {codebook_size: 4, num_levels: 3}
model: {preset: tiny, width: 16, max_history: 10}
train: {max_epochs: 1, batch_size: 64, validation_users: 20}
decode: {beam_width: 10}
evaluate: {baselines: [popularity, markov], ks: [1, 5, 10], resamples: 100}
"""


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """60 users who walk around a ring of 24 items, a recipe, and a pack that knows the file."""
    random = np.random.default_rng(3)
    start = random.integers(0, 24, 60)
    rows = [(u, int((start[u] + p) % 24), p) for u in range(60) for p in range(8)]
    (tmp_path / "ring").mkdir()
    frame = pl.DataFrame(rows, schema=["user_id", "item_id", "position"], orient="row")
    frame.write_parquet(tmp_path / "ring" / "interactions.parquet")
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    (tmp_path / "packs").mkdir()
    monkeypatch.setattr(packs, "PACKS", tmp_path / "packs")
    monkeypatch.setenv("RECSYS_DATA", str(tmp_path))
    write_pack(tmp_path)
    return tmp_path


def write_pack(folder: Path, **changed: object) -> None:
    digest = sha256_of_file(folder / "ring" / "interactions.parquet")
    values = {
        "title": "A ring",
        "recipe": str(folder / "tiny.yaml"),
        "data": {"folder": "ring", "sha256": {"interactions.parquet": digest}},
        "seeds": [1, 2],
        "metrics": ["hr@10", "ndcg@10"],
        "protocol": ["The last step of every walk."],
        "expected": [{"system": "markov", "metric": "hr@10", "seen": "filtered", "low": 0.9, "high": 1.0}],
        "published": [
            {"method": "WALK", "source": "a paper", "values": {"hr@10": 0.5, "ndcg@10": 0.4}},
            {"method": "KEPT", "source": "a paper", "seen": "kept", "values": {"hr@10": 0.3}},
        ],
    }
    (folder / "packs" / "ring.yaml").write_text(yaml.safe_dump({**values, **changed}))


def reproduce(folder: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", *arguments, "--output-dir", str(folder / "out"), "--progress", "off", "--log-level", "info"])
    return int(ended.value.code or 0)


def test_two_seeds_and_again(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures are the means of the two evaluations; a second call trains nothing and writes the same result."""
    assert reproduce(world, "ring") == 0
    printed = capsys.readouterr().out
    assert "60 test rows of 60 users" in printed
    assert "markov hr@10 (filtered): 1.0000, expected .9000 to 1.0000: as expected" in printed
    filtered, kept = printed.split("seen items kept")
    assert "WALK" in filtered
    assert "KEPT" not in filtered
    assert "KEPT" in kept

    result = read_json(world / "out" / "ring" / "result.json")
    evaluated = [
        read_json(next((world / "out" / "ring" / f"seed-{n}").glob("artifacts/evaluation/*/metrics.json")))
        for n in (1, 2)
    ]
    wanted = [one["systems"]["generative (beam)"]["filtered"]["ndcg@10"]["mean"] for one in evaluated]
    found = next(
        f
        for f in result["figures"]
        if (f["system"], f["seen"], f["metric"]) == ("generative (beam)", "filtered", "ndcg@10")
    )
    assert found["per_seed"] == pytest.approx(wanted, abs=1e-6)
    assert found["mean"] == pytest.approx(sum(wanted) / 2, abs=1e-6)
    page = (world / "out" / "reproduction.md").read_text()
    assert page.startswith("# Published numbers, reproduced\n\n**A ring: served ndcg@10 ")
    assert "| WALK | .5000 | .4000 | item | a paper; filter unknown |" in page
    assert f"`{sha256_of_file(world / 'ring' / 'interactions.parquet')}`" in page

    assert reproduce(world, "ring") == 0
    said = capsys.readouterr()
    assert "train: up to date" in said.err
    assert "train: running" not in said.err
    again = read_json(world / "out" / "ring" / "result.json")
    assert again["figures"] == result["figures"]


def test_finished_runs_are_taken_as_they_are(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The figures of a run made by itself; one with other settings, or none at all, is refused."""
    run = [f"source.path={world / 'ring'}", "seed=4", f"output_dir={world / 'own'}", "--progress", "off"]
    for verb in ("prepare", "embed", "tokenize", "train", "rank", "evaluate"):
        with pytest.raises(SystemExit) as ended:
            main([verb, "--config", str(world / "tiny.yaml"), *run])
        assert not ended.value.code, verb
    assert reproduce(world, "ring", "--finished", str(world / "own")) == 0
    assert "seed 4" in capsys.readouterr().out
    result = read_json(world / "out" / "ring" / "result.json")
    evaluated = read_json(next((world / "own").glob("artifacts/evaluation/*/metrics.json")))
    markov = next(f for f in result["figures"] if f["system"] == "markov" and f["seen"] == "kept")
    assert markov["mean"] == pytest.approx(evaluated["systems"]["markov"]["unfiltered"]["hr@10"]["mean"], abs=1e-6)
    assert not (world / "out" / "ring" / "seed-4").exists()
    assert reproduce(world, "ring", "decode.beam_width=9", "--finished", str(world / "own")) == 4
    assert "was run with other settings than pack 'ring': decode.beam_width" in capsys.readouterr().err
    assert reproduce(world, "ring", "--finished", str(world / "ring")) == 4
    assert "it has no config.yaml" in capsys.readouterr().err
    twice = ["--finished", str(world / "own"), "--finished", str(world / "own")]
    assert reproduce(world, "ring", *twice) == 2
    assert "--finished names runs of seeds 4,4, one of them twice" in capsys.readouterr().err
    assert reproduce(world, "ring", "--seeds", "5", *twice[:2]) == 2
    assert "finished runs have seeds of their own" in capsys.readouterr().err


def published(root: Path, kind: str, name: str, config: object, parents: dict[str, str], seed: int = 1) -> Path:
    """A result as far as its manifest tells what it was made with."""
    folder = root / "artifacts" / kind / name
    folder.mkdir(parents=True)
    write_json(folder / "manifest.json", {"seed": seed, "config": config, "parents": parents})
    return folder


def test_of_several_evaluations_that_of_the_configuration_counts(tmp_path: Path) -> None:
    """An experiment in the same folder, of the search or of the policy below it, is newer and is passed over."""
    small, wide = ({"model": {"width": width, "dropout": 0.1}} for width in (16, 32))
    narrow, broad = ({"decode": {"beam_width": beams}, "evaluate": {"ks": [1, 10]}} for beams in (10, 99))
    published(tmp_path, "policy", "a" * 16, small, {})
    published(tmp_path, "policy", "b" * 16, wide, {})
    own = published(tmp_path, "evaluation", "1" * 16, narrow, {"train": "a" * 64})
    with pytest.raises(FileNotFoundError):
        (tmp_path / "config.yaml").read_text()
    assert newest_evaluation(tmp_path) == own  # the only one
    published(tmp_path, "evaluation", "2" * 16, broad, {"train": "a" * 64})
    published(tmp_path, "evaluation", "3" * 16, narrow, {"train": "b" * 64})
    published(tmp_path, "evaluation", "4" * 16, narrow, {"train": "a" * 64}, seed=2)
    for number, name in enumerate("1234"):
        manifest = tmp_path / "artifacts" / "evaluation" / (name * 16) / "manifest.json"
        os.utime(manifest, ns=(number, number))
    settings: dict[str, object] = {"seed": 1, "name": "x", "tracking": {"uri": None}, **small, **narrow}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(settings))
    assert newest_evaluation(tmp_path) == own
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({**settings, **broad, **wide}))
    with pytest.raises(ArtifactError, match=r"has 4 evaluations, none with the settings of its config\.yaml"):
        newest_evaluation(tmp_path)


def test_files_of_every_finished_run_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first run read the pack's files, the second read others."""
    pack = SimpleNamespace(data=SimpleNamespace(sha256={"a": "0" * 64}), seeds=(1,))
    configs = {
        Path(name): SimpleNamespace(
            seed=seed, source=SimpleNamespace(path=name, fingerprint=lambda digit=digit: {"a": digit * 64})
        )
        for name, seed, digit in (("right", 1, "0"), ("wrong", 2, "1"))
    }
    monkeypatch.setattr(run, "_finished_config", lambda pack, request, folder: configs[folder])
    request = run.Request("ring", tmp_path, finished=tuple(configs))
    with pytest.raises(DataError, match=r"the files in 'wrong' are not those of pack 'ring': a is another file"):
        run.reproduce(pack, request, SilentProgress())  # type: ignore[arg-type]


def test_a_figure_outside_its_range_ends_with_5(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bound = {"system": "popularity", "metric": "hr@10", "seen": "filtered", "low": 0.99, "high": 1.0}
    gone = {"system": "sasrec", "metric": "hr@10", "seen": "filtered", "low": 0.0, "high": 1.0}
    write_pack(world, expected=[bound, gone])
    assert reproduce(world, "ring", "--seeds", "1") == 5
    said = capsys.readouterr()
    assert "OUTSIDE" in said.out
    assert "sasrec hr@10 (filtered): not measured" in said.out
    assert "2 figures outside their expected ranges (popularity hr@10, sasrec hr@10)" in said.err
    # other settings are not held against the range
    assert reproduce(world, "ring", "decode.beam_width=11", "--seeds", "1") == 0
    assert "other settings than the pack's" in capsys.readouterr().out


def test_other_files_are_refused_or_said(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = world / "ring" / "interactions.parquet"
    pl.read_parquet(path).head(400).write_parquet(path)
    assert reproduce(world, "ring", "--seeds", "1") == 3
    said = capsys.readouterr().err
    assert "are not those of pack 'ring': interactions.parquet is another file (sha256 " in said
    assert "--other-data" in said
    assert not (world / "out").exists()
    assert reproduce(world, "ring", "--seeds", "1", "--other-data") == 0
    said = capsys.readouterr()
    assert "its figures cannot be held against the pack's" in said.err
    assert "other data: interactions.parquet is another file" in said.out


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["rink"], 2, "there is no reproduction pack 'rink'; there are ring"),
        (["ring", "--seeds", "1,x"], 2, "--seeds is '1,x', expected whole numbers"),
        (["ring", "--seeds", "1,1"], 2, "--seeds names 1,1, one of them twice"),
        (["ring", "seed=4"], 2, "'seed=4': seed is set by `recsys reproduce` itself; give --seeds"),
        (["ring", "train.epochs=4"], 2, "unknown key 'train.epochs'"),
        (["ring", "--data", "nowhere"], 3, "nowhere'; give that of the files with --data"),
    ],
)
def test_refusals(
    world: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, message: str
) -> None:
    assert reproduce(world, *arguments) == code
    assert message in capsys.readouterr().err
    assert not (world / "out").exists()


def test_no_data_folder_is_named(
    world: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RECSYS_DATA")
    assert reproduce(world, "ring") == 3
    assert "give their folder with --data, or set RECSYS_DATA" in capsys.readouterr().err


def test_without_a_name_the_packs_are_listed(world: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert reproduce(world) == 0
    assert "ring" in capsys.readouterr().out
