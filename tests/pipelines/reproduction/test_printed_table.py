"""Tables of others: columns by any usual name, and the cells that cannot stand together."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from typer.testing import CliRunner

from pipelines.cli.app import app
from pipelines.reproduction.printed_table import PrintedRow, read_printed
from recsys.contracts.errors import DataError

INDUSTRIAL = """Table 1 of arXiv 2510.24431, two rows.

| method | HR@3 | N@3 | HR@5 | N@5 | HR@10 | N@10 |
| --- | --- | --- | --- | --- | --- | --- |
| D3 | .1024 | .0991 (sic) | .1213 | .0989 | .1500 | .1082 |
| **S-DPO** | .1032 | .0906 | .1238 | .0991 | .1524 | .1082 |

Text behind it.
"""


def test_a_markdown_table(tmp_path: Path) -> None:
    path = tmp_path / "table.md"
    path.write_text(INDUSTRIAL)
    rows = read_printed(path)
    assert [row.name for row in rows] == ["D3", "S-DPO"]
    assert rows[0].values == {
        "hr@3": 0.1024, "ndcg@3": 0.0991, "hr@5": 0.1213, "ndcg@5": 0.0989, "hr@10": 0.15, "ndcg@10": 0.1082
    }  # fmt: skip


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_other_forms_and_names(tmp_path: Path, suffix: str) -> None:
    """Recall is hit rate where one item is asked for; figures in per cent; a dash is no figure."""
    frame = pl.DataFrame(
        {"model": ["a", "b"], "Recall@10": ["15", "-"], "NDCG @ 10": ["8.5", "7"], "epochs": ["3", "4"]}
    )
    path = tmp_path / f"table{suffix}"
    if suffix == ".parquet":
        frame.write_parquet(path)
    else:
        frame.write_csv(path, separator="\t" if suffix == ".tsv" else ",")
    assert read_printed(path, percent=True) == [
        PrintedRow("a 3", {"hr@10": 0.15, "ndcg@10": 0.085}),
        PrintedRow("b 4", {"ndcg@10": 0.07}),
    ]


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("model,HR@10,NDCG@10\na,15,8\n")
    with pytest.raises(DataError, match=r"a, HR@10 is 15: no share; give --percent"):
        read_printed(path)
    path.write_text("model,HR@10,H@10,NDCG@10\na,.1,.1,.1\n")
    with pytest.raises(DataError, match="two columns of one metric"):
        read_printed(path)
    path.write_text("model,MRR\na,.1\n")
    with pytest.raises(DataError, match="expected columns such as HR@10 and NDCG@10"):
        read_printed(path)
    (tmp_path / "table.md").write_text("no table")
    with pytest.raises(DataError, match="holds no Markdown table"):
        read_printed(tmp_path / "table.md")
    with pytest.raises(DataError, match="cannot be read"):
        read_printed(tmp_path / "nothing.csv")


def test_the_command_names_the_cells(tmp_path: Path) -> None:
    """D3's NDCG falls from 3 to 5 places, which no ranking can; S-DPO's figures can be right."""
    path = tmp_path / "table.md"
    path.write_text(INDUSTRIAL)
    found = CliRunner().invoke(app, ["check-table", str(path)])
    assert "D3: ndcg@5 - ndcg@3 is -.0002" in found.stdout
    assert "S-DPO" not in found.stdout
    assert found.exit_code != 0
    path.write_text(INDUSTRIAL.replace(".0991 (sic)", ".0912"))
    found = CliRunner().invoke(app, ["check-table", str(path)])
    assert found.exit_code == 0
    assert "2 rows, no contradictions" in found.stdout
