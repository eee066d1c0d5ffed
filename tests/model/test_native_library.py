"""The library of kernels belongs to the processor it was compiled for; on another one nothing of it is loaded."""

from __future__ import annotations

import ctypes
import logging
import math
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from recsys import native

CPU = """processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Xeon
flags\t\t: sse2 avx2{more}
cpu MHz\t\t: {mhz}

"""


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine whose processor is told, with the sources in a folder of its own; yields the file about the processor."""
    for source in native.sources():
        (tmp_path / source.name).write_bytes(source.read_bytes())
    about = tmp_path / "cpuinfo"
    about.write_text(CPU.format(more=" avx512f", mhz=2000) * 2)
    monkeypatch.setattr(native, "FOLDER", tmp_path)
    monkeypatch.setattr(native, "CPU_INFO", about)
    native._library.cache_clear()
    yield about
    native._library.cache_clear()


def test_a_library_of_another_processor_is_not_loaded(
    machine: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A registered model carries the folder with the library to a machine whose processor lacks avx512f."""
    compiled = native.library_path()
    compiled.write_bytes(b"instructions that the other machine does not have")
    machine.write_text(CPU.format(more="", mhz=2000))
    monkeypatch.setattr(ctypes, "CDLL", lambda path: pytest.fail(f"loaded {path}"))
    with caplog.at_level(logging.WARNING, "recsys.native"):
        assert not native.available()
    assert "compiled for another processor" in caplog.text
    assert native.library_path().name != compiled.name


def test_the_name_follows_what_a_processor_can_do_and_not_its_clock(machine: Path) -> None:
    name = native.library_path().name
    machine.write_text(CPU.format(more=" avx512f", mhz=3100))
    assert native.library_path().name == name
    machine.write_text(CPU.format(more=" avx512f", mhz=3100).replace("Xeon", "EPYC"))
    assert native.library_path().name != name


def test_a_machine_without_the_file_has_a_name_too(machine: Path) -> None:
    machine.unlink()
    assert native.library_path().suffix == ".so"


def test_compiling_leaves_the_library_of_another_processor(machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two kinds of machines may share a folder; what is of no use any more goes."""
    folder = native.FOLDER
    others = [folder / "_kernels_0123456789ab_ffffffff.so", folder / "_kernels_0123456789ab.so"]
    stale = folder / f"_kernels_0123456789ab_{native.processor()}.so"
    for path in (*others, stale):
        path.write_bytes(b"old")

    class Done:
        returncode = 0

    def compiler(command: list[str], **_: object) -> Done:
        Path(command[-1]).write_bytes(b"new")
        return Done()

    monkeypatch.setattr(native.subprocess, "run", compiler)
    made = native.compile_kernels("g++")
    assert sorted(folder.glob("_kernels_*")) == sorted([others[0], made])


def test_a_tensor_of_another_device_never_reaches_a_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_library", lambda: object())
    with pytest.raises(AssertionError, match="memory of the CPU"):
        native.quantise_rows(torch.ones(2, 3, device="meta"))
    with pytest.raises(AssertionError, match="memory of the CPU"):
        native.prefix_attention([torch.ones(1, 1, 12, device="meta")], [], 2, 1.0)


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
@pytest.mark.parametrize("channels", [1, 5, 16, 37, 128])
def test_rows_are_gated_and_normed_as_torch_does(channels: int) -> None:
    """Near 0, where silu is x / 2, far out, where it is x or 0, and among many rows on two threads."""
    generator = torch.Generator().manual_seed(0)
    up = torch.randn(3, 700, 2 * channels, generator=generator) * 10 ** torch.linspace(-4, 2, 700)[:, None]
    gate, value = up.chunk(2, dim=-1)
    torch.testing.assert_close(native.gate_rows(up), torch.nn.functional.silu(gate) * value, rtol=1e-6, atol=1e-30)
    weight = torch.randn(channels, generator=generator)
    normed = torch.nn.functional.rms_norm(gate, (channels,), weight, 1e-6)
    torch.testing.assert_close(native.norm_rows(gate.contiguous(), weight, 1e-6), normed, rtol=2e-6, atol=1e-6)


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
def test_what_is_no_number_stays_none() -> None:
    """Whoever serves an answer must see that the policy is damaged."""
    row = torch.tensor([[torch.nan, 1.0, 1.0, 1.0], [1.0, 1.0, torch.nan, 1.0], [-1e4, -1e3, 1.0, 1.0]])
    assert native.gate_rows(row).isnan().tolist() == [[True, False], [True, False], [False, False]]
    assert native.norm_rows(row, torch.ones(4), 1e-6).isnan().all(1).tolist() == [True, True, False]


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
def test_kernels_refuse_what_they_cannot_read() -> None:
    with pytest.raises(AssertionError):
        native.gate_rows(torch.ones(2, 4, dtype=torch.float64))
    with pytest.raises(AssertionError):
        native.norm_rows(torch.ones(4, 2).T, torch.ones(4), 1e-6)


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
def test_sums_of_neighbours_by_hand() -> None:
    """Best 2; 1 + 1/2 + 0 for the first three, whose last is forbidden, and 1/4 for the last; NaN stays visible."""
    row = [2.0, 2.0 + math.log(0.5), -math.inf, 2.0 + math.log(0.25)]
    scores = torch.tensor([row, [0.0, 0.0, math.nan, -1000.0], [-math.inf] * 4])
    sums, best = native.exp_sums(scores, torch.tensor([5, 8, 9]))
    torch.testing.assert_close(sums, torch.tensor([[1.5, 0.25], [math.nan, 0.0], [0.0, 0.0]]), equal_nan=True)
    assert best[:2].tolist() == [2.0, 0.0]
    assert best.isfinite().all()


@pytest.mark.skipif(not native.available(), reason="kernels are not compiled")
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 200])
def test_the_best_of_a_row_is_found_wherever_it_stands(columns: int) -> None:
    """Row n has its best in column n, and NaN before it in the second half of the rows."""
    scores = torch.full((2 * columns, columns), -3.0)
    place = torch.arange(2 * columns) % columns
    scores[torch.arange(2 * columns), place] = 5.0 + place
    scores[columns:, 0][place[columns:] > 0] = torch.nan
    sums, best = native.exp_sums(scores, torch.tensor([0, columns]))
    assert best.tolist() == (5.0 + place).tolist()
    expected = 1.0 + (columns - 1) * torch.exp(-8.0 - place[:columns])
    torch.testing.assert_close(sums[:columns, 0], expected)
