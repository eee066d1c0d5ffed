"""What the command line says to a newcomer: an example for every verb, and the way out of a refusal."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.cli.app import RECIPES, main

DEMO = RECIPES / "demo.yaml"
STAGE_VERBS = ("prepare", "embed", "tokenize", "train", "reward", "align", "evaluate")


def call(*arguments: str) -> int:
    """Run the command line in this process and return its exit code."""
    with pytest.raises(SystemExit) as end:
        main(list(arguments))
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.mark.parametrize("name", ["log.txt", "log.tsv", "log.inter"])
def test_interactions_are_no_histories(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / name).write_text("user_id,item_id,timestamp\n7,3,1700000000\n")
    arguments = ["--model", "somewhere", "--users", str(tmp_path / name), "--out", str(tmp_path / "out")]
    assert call("recommend", *arguments) == 3
    assert "recsys histories --config my.yaml --out log_histories.parquet" in capsys.readouterr().err


def test_a_csv_file_of_histories_is_asked_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "h.csv").write_text('user_id,item_ids\n7,"[3, 4]"\n')
    arguments = ["--model", "somewhere", "--users", str(tmp_path / "h.csv"), "--out", str(tmp_path / "out")]
    assert call("recommend", *arguments) == 4
    assert "model 'somewhere' is neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("h.csv", "is '.csv' at its end; histories are one Parquet file"),
        ("h", "is 'nothing' at its end"),
        ("folder.parquet", "is a folder"),
        ("log.parquet", "is a file of the source (source.interactions)"),
    ],
)
def test_histories_go_to_a_file_that_can_be_read_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, message: str
) -> None:
    (tmp_path / "folder.parquet").mkdir()
    (tmp_path / "log.parquet").write_bytes(b"the raw log")
    (tmp_path / "shop.yaml").write_text(
        f"source: {{kind: table, path: {tmp_path}, interactions: 'log*.parquet', timestamp_unit: s}}\n"
    )
    assert call("histories", "--config", str(tmp_path / "shop.yaml"), "--out", str(tmp_path / name)) == 2
    assert message in capsys.readouterr().err
    assert (tmp_path / "log.parquet").read_bytes() == b"the raw log"


def test_a_missing_key_says_what_it_takes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "shop.yaml").write_text("source: {kind: table, path: .}\n")
    assert call("run", "--config", str(tmp_path / "shop.yaml")) == 2
    said = capsys.readouterr().err
    assert (
        "key 'source.timestamp_unit' is missing; it has no default: give one of s, ms, us, ns, datetime, none" in said
    )


@pytest.mark.parametrize(
    "verb",
    [
        *STAGE_VERBS,
        "run",
        "demo",
        "export",
        "promote",
        "recommend",
        "histories",
        "report",
        "simulate",
        "validate",
        "doctor",
        "status",
        "rollback",
    ],
)
def test_the_help_of_every_verb_has_an_example(verb: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call(verb, "--help") == 0
    assert f"recsys {verb}" in capsys.readouterr().out.replace("\n", " ").split("Options:")[0].partition("[OPTIONS]")[2]


def test_the_end_of_a_file_is_no_end_of_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The argument parser makes an EOFError a silent "stopped", code 130: a cut file somewhere would say nothing."""
    import pipelines.config

    def ended(path: object, overrides: object) -> None:
        raise EOFError("Compressed file ended")

    monkeypatch.setattr(pipelines.config, "load_run_config", ended)
    assert call("validate", "--config", "shop.yaml") == 1
    printed = capsys.readouterr().err
    assert "EOFError: Compressed file ended" in printed
    assert "a fault of recsys" in printed


@pytest.mark.parametrize("asked", ["tomorrow", "", "05.11.2026", "2026-11-05T00:00", "20261105", "٢٠٢٦-11-05"])
def test_a_day_that_is_none_is_refused_with_one_as_an_example(asked: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--config", str(DEMO), "--as-of", asked) == 2
    said = capsys.readouterr().err
    assert f"'--as-of': '{asked}' is no day; expected year-month-day, for example 2026-11-05" in said
    assert "%" not in said


def test_a_day_that_no_calendar_has_is_called_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("run", "--config", str(DEMO), "--as-of", "2026-02-30") == 2
    assert "'2026-02-30' is no day of the calendar; expected" in capsys.readouterr().err


def test_a_day_may_leave_out_the_noughts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The night of 5 January would run first."""
    assert call("run", "-c", str(DEMO), "--as-of", "2026-1-5", "--dry-run", f"output_dir={tmp_path}/out") == 0
    assert "2026-01-05" in capsys.readouterr().out
