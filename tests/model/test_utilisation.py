"""Share of the device's arithmetic: by hand."""

import pytest
import torch

from recsys.model import utilisation
from recsys.model.utilisation import Peak, describe, peak_of


def test_share_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """2000 users of 30 MFLOP in 4 s are 15 GFLOP/s, a quarter of a peak of 60 GFLOP/s."""
    monkeypatch.setattr(utilisation, "peak_of", lambda device, precision: Peak(60e9, "H200 data sheet"))
    line = describe(2000, "users", 30.0, 4.0, torch.device("cuda"), "bfloat16")
    assert line == "500 users/s, 30.0 MFLOP each: 15.0 GFLOP/s, 25.0% of H200 data sheet (MFU)"


def test_a_cpu_is_measured() -> None:
    peak = peak_of(torch.device("cpu"))
    assert peak.source == "measured matmul"
    assert peak.flops > 1e8
