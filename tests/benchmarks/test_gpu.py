"""The benchmark of one GPU at tiny sizes on a CPU, its supervisor with workers that die, and its page from given rows."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.benchmarks.gpu import __main__ as command
from tests.benchmarks.gpu import page, shim, supervisor
from tests.benchmarks.gpu.bench import Bench, OutOfTime, Poisoned, is_out_of_memory
from tests.benchmarks.gpu.supervisor import Plan, supervise
from tests.benchmarks.gpu.worker import MODULES


@pytest.mark.slow
def test_the_smoke_form_runs_every_section_without_an_error(tmp_path: Path) -> None:
    """The command a user types; what a GPU alone can do says so."""
    lines = tmp_path / "gpu.jsonl"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", "tests.benchmarks.gpu", "--cpu-smoke", "--lines", str(lines)],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [json.loads(line) for line in lines.read_text().splitlines()]
    assert [row for row in rows if "error" in row] == []
    assert done.returncode == 0, done.stderr[-2000:]
    ended = [row["section"] for row in rows if row.get("event") == "end"]
    assert ended == list(command.SECTIONS) == list(dict.fromkeys(ended))
    cells = {(row["section"], row["cell"]): row for row in rows if "cell" in row}
    assert cells["correctness", "cpu_tiny"]["same_items"] == 1.0
    assert cells["correctness", "bfloat16_tiny"]["recall"] > 0.5
    assert cells["processes", "group"]["largest_difference"] == 0.0
    assert cells["alignment", "ipa"]["pairs"] > 0
    assert cells["transformers", "batch_2"]["ranks_with_another_item"] == 0


def test_sections_have_modules() -> None:
    assert set(MODULES) == set(command.SECTIONS)
    assert sum(command.SECTIONS.values()) < 2 * 330  # few sections take all they may


def fake_plan(monkeypatch: pytest.MonkeyPatch, body: str, **seconds: float) -> Plan:
    """A plan whose workers run ``body`` with ``sections`` and ``say`` defined."""
    head = (
        "import json, os, sys, time\nsections = sys.argv[1:]\nsay = lambda **row: print(json.dumps(row), flush=True)\n"
    )
    monkeypatch.setattr(Plan, "command", lambda self, sections: [sys.executable, "-c", head + body, *sections])
    return Plan(seconds, total=60.0)


def test_a_worker_that_dies_costs_one_section(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    body = """
for name in sections:
    say(event="begin", section=name)
    if name == "b":
        print("last words", flush=True)
        os.abort()
    say(section=name, cell="c", value=1)
    say(event="end", section=name)
"""
    rows = supervise(fake_plan(monkeypatch, body, a=5, b=5, c=5), tmp_path / "lines")
    assert [row["section"] for row in rows if row.get("cell") == "c"] == ["a", "c"]
    (failed,) = [row for row in rows if "error" in row]
    assert failed["section"] == "b"
    assert "code -6" in failed["error"]
    assert "last words" in failed["error"]
    assert [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()] == rows


def test_a_worker_that_lost_its_gpu_is_followed_by_another(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It has said what went wrong, so its exit code alone is no second failure."""
    body = """
for name in sections:
    say(event="begin", section=name)
    if name == "a":
        say(section=name, cell="c", error="CUDA error: an illegal memory access")
        say(event="end", section=name)
        sys.exit(75)
    say(section=name, cell="c", value=os.getpid())
    say(event="end", section=name)
"""
    rows = supervise(fake_plan(monkeypatch, body, a=5, b=5, c=5), tmp_path / "lines")
    assert [(row["section"], "error" in row) for row in rows if "cell" in row] == [
        ("a", True),
        ("b", False),
        ("c", False),
    ]
    assert len([row for row in rows if "error" in row]) == 1


def test_a_worker_that_hangs_is_ended(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(supervisor, "SPARE_SECONDS", 0.2)
    body = """
for name in sections:
    say(event="begin", section=name)
    if name == "a":
        time.sleep(60)
    say(event="end", section=name)
"""
    start = time.monotonic()
    rows = supervise(fake_plan(monkeypatch, body, a=0.2, b=30), tmp_path / "lines")
    assert time.monotonic() - start < 20
    assert [row["section"] for row in rows if "error" in row] == ["a"]
    assert "no time left" in next(row["error"] for row in rows if "error" in row)
    assert {"event": "end", "section": "b"} in rows


def test_a_worker_that_cannot_begin_is_not_started_for_ever(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    rows = supervise(fake_plan(monkeypatch, "import no_such_package", a=5, b=5), tmp_path / "lines")
    assert len(rows) == 1
    assert "no_such_package" in rows[0]["error"]


def test_a_cell_records_what_went_wrong_and_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(torch.device("cpu"), smoke=True)
    bench.begin("section", 100)
    with bench.cell("bad"):
        raise ValueError("no such thing")
    with pytest.raises(OutOfTime), bench.cell("late", needs=1000):
        raise AssertionError("must not be begun")
    with bench.cell("outer"), bench.cell("late", needs=1000):
        raise AssertionError("must not be begun")
    bad, late, _ = (json.loads(line) for line in capsys.readouterr().out.splitlines())
    assert bad["error"] == "ValueError: no such thing"
    assert bad["place"].startswith("tests/benchmarks/test_gpu.py:") or "test_gpu.py" in bad["place"]
    assert "no time" in late["error"]


def test_a_lost_gpu_asks_for_a_new_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Bench, "is_gpu", True)
    monkeypatch.setattr(Bench, "free", lambda self: None)
    bench = Bench(torch.device("cpu"), smoke=True)
    bench.begin("section", 100)
    with pytest.raises(Poisoned), bench.cell("bad"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(Poisoned), bench.cell("outer"), bench.cell("bad"):
        raise RuntimeError("CUDA error: unspecified launch failure")
    with bench.cell("full"):  # memory comes back, the process stays
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
    with bench.cell("plain"):
        raise RuntimeError("shapes do not fit")


def test_memory_halves_the_batch_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    bench = Bench(torch.device("cpu"), smoke=True)
    bench.begin("section", 100)

    def fits(batch: int) -> str:
        if batch > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return "done"

    assert bench.largest("cell", 512, fits) == (64, "done")
    said = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["batch"] for row in said] == [512, 256, 128]
    with pytest.raises(torch.OutOfMemoryError):
        bench.largest("cell", 512, fits, smallest=200)
    with pytest.raises(ZeroDivisionError):
        bench.largest("cell", 4, lambda batch: 1 // 0)
    assert is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"))
    assert not is_out_of_memory(RuntimeError("CUDA error: unspecified launch failure"))


def test_the_page_compares_with_the_gates() -> None:
    """MFU .41 passes the gate of .40, .10 fails that of .20, a halved batch counts for nothing, 1.5 ms is under 2 ms."""
    rows = [
        {"section": "environment", "cell": "machine", "card": "a card", "torch": "2"},
        {"section": "training", "cell": "paper_v1_512", "batch": 512, "mfu": 0.38},
        {"section": "compile", "cell": "paper_v1_512_compiled", "batch": 512, "mfu": 0.41},
        {"section": "training", "cell": "small_512", "batch": 512, "mfu": 0.1},
        {"section": "decoding", "cell": "paper_v1_512", "batch": 256, "mfu": 0.9},
        {"section": "serving", "cell": "one_user", "longest_ms": 7.0},
        {"section": "serving", "cell": "one_user_graph", "longest_ms": 1.5},
        {"section": "wide_beams", "cell": "x", "error": "a | b"},
    ]
    text = page.page(rows, "command")
    by_goal = {line.split("|")[1].strip(): line for line in text.splitlines() if line.startswith("| ")}
    assert "| 41.0% | yes |" in by_goal["training `paper_v1`, batch 512, MFU of the measured roof"]
    assert "| 10.0% | **no** |" in by_goal["training `small`, all prefixes, batch 512 × 100, MFU"]
    assert "| not measured | open |" in by_goal["decoding `paper_v1`, batch 512, beam 50, MFU"]
    assert "| 1.5 ms | yes, and the stretch |" in by_goal["one user, `small`, beam 50, median latency"]
    assert "**2 of 10 gates are met on a card.**" in text
    assert "| wide_beams | x | a / b |  |" in text
    assert "**No GPU has run this benchmark yet: all 10 gates are open.**" in page.page([], "command")


def test_the_shim_computes_what_fbgemm_does() -> None:
    import fbgemm_gpu  # noqa: F401  # registers the operators

    for lengths in (torch.tensor([2, 0, 3]), torch.tensor([[1, 2], [0, 4]], dtype=torch.int32)):
        expected = torch.ops.fbgemm.asynchronous_complete_cumsum(lengths)
        found = shim.complete_cumsum(lengths)
        assert found.dtype == expected.dtype
        assert torch.equal(found, expected)
    assert shim.has_kernel("CPU")
    assert shim.install() is False or torch.cuda.is_available()
