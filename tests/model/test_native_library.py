"""The library of kernels belongs to the processor it was compiled for; on another one nothing of it is loaded."""

from __future__ import annotations

import ctypes
import logging
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
    source = tmp_path / "kernels.cpp"
    source.write_bytes(native.SOURCE.read_bytes())
    about = tmp_path / "cpuinfo"
    about.write_text(CPU.format(more=" avx512f", mhz=2000) * 2)
    monkeypatch.setattr(native, "SOURCE", source)
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
    folder = native.SOURCE.parent
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
