"""Share of the device's arithmetic: by hand, and never above what the device did."""

import pytest
import torch

from recsys.model import utilisation
from recsys.model.utilisation import DATA_SHEETS, Roof, data_sheet, describe, measured_roof

CPU = torch.device("cpu")


def roofs(monkeypatch: pytest.MonkeyPatch, measured: float, sheet: float | None) -> None:
    monkeypatch.setattr(utilisation, "measured_roof", lambda device, precision: Roof(measured, "float32, 8 x 8 x 8"))
    known = None if sheet is None else Roof(sheet, "H200 SXM, bfloat16")
    monkeypatch.setattr(utilisation, "data_sheet_roof", lambda device, precision: known)


def test_shares_of_both_roofs_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """60 GFLOP in 4 s are 15 GFLOP/s: a quarter of 60 measured, and 1.5 % of a sheet's 1000 GFLOP/s."""
    roofs(monkeypatch, 60e9, 1e12)
    line = describe(2000, "users", 60e9, 4.0, CPU)
    assert line == (
        "500 users/s, 30.0 MFLOP each: 15.0 GFLOP/s, 25.0% of 60.0 GFLOP/s measured here (float32, 8 x 8 x 8); "
        "1.5% of the data sheet's 1 TFLOP/s (H200 SXM, bfloat16)"
    )


def test_no_share_is_above_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run at 15 GFLOP/s against products measured at 10, in a busier moment: its own rate is the roof, and is named so."""
    roofs(monkeypatch, 10e9, None)
    line = describe(2000, "users", 60e9, 4.0, CPU)
    assert "15.0 GFLOP/s, 100.0% of this run's own rate, above the 10.0 GFLOP/s measured here" in line
    assert line.endswith("no data sheet of this processor is known here")


def test_a_cpu_is_measured_once_with_its_threads() -> None:
    roof = measured_roof(CPU)
    assert measured_roof(CPU) is roof
    assert roof.flops > 1e8
    assert roof.source.startswith("float32, ")
    assert roof.source.endswith(f"{torch.get_num_threads()} threads")


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H200", "H200 SXM"),
        ("NVIDIA H100 80GB HBM3", "H100 SXM"),
        ("NVIDIA H100 PCIe", "H100 PCIe"),
        ("NVIDIA A100-SXM4-80GB", "A100"),
        ("NVIDIA L4", "L4"),
        ("NVIDIA L40S", "L40S"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
    ],
)
def test_cards_are_known_by_torchs_name(name: str, card: str) -> None:
    sheet = data_sheet(name)
    assert sheet is not None
    assert sheet.card == card
    assert sheet.bfloat16 > sheet.tf32 >= sheet.float32 * 0.9


def test_an_unknown_card_has_no_sheet() -> None:
    assert data_sheet("NVIDIA A10G") is None
    assert data_sheet("AMD Instinct MI300X") is None
    assert len({sheet.card for sheet in DATA_SHEETS.values()}) == len(DATA_SHEETS)
