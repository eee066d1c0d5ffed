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
        PrintedRow("a 3", {"hr@10": 0.15, "ndcg@10": 0.085}, {"hr@10": 0.005, "ndcg@10": 0.0005}),
        PrintedRow("b 4", {"ndcg@10": 0.07}, {"ndcg@10": 0.005}),
    ]


HEAD = "| m | HR@10 | NDCG@10 |\n|:--|--:|:-:|\n"


@pytest.mark.parametrize(
    ("cells", "values", "half_units"),
    [
        (("**.15**", "`.080`"), (0.15, 0.08), (0.005, 0.0005)),
        (("0.15 ± .01", ".0705 [.0678, .0732]"), (0.15, 0.0705), (0.005, 0.00005)),
        (("$0.1500$", "\\textbf{.08}†"), (0.15, 0.08), (0.00005, 0.005)),
        (("15 %", "8.50\\%"), (0.15, 0.085), (0.005, 0.00005)),
        (("1.5e-1", "8.0E-02"), (0.15, 0.08), (0.005, 0.0005)),
        (("1", "1.000"), (1.0, 1.0), (0.5, 0.0005)),
    ],
)
def test_figures_as_people_print_them(
    tmp_path: Path, cells: tuple[str, str], values: tuple[float, float], half_units: tuple[float, float]
) -> None:
    path = tmp_path / "table.md"
    path.write_text(f"{HEAD}| a | {cells[0]} | {cells[1]} |\n")
    (row,) = read_printed(path)
    assert tuple(row.values.values()) == pytest.approx(values)
    assert tuple(row.half_units.values()) == pytest.approx(half_units)


@pytest.mark.parametrize("cell", ["-", "—", "n/a", "", "nan", "*"])
def test_a_cell_without_a_figure_is_none(tmp_path: Path, cell: str) -> None:
    path = tmp_path / "table.md"
    path.write_text(f"{HEAD}| a | {cell} | .08 |\n")
    assert read_printed(path) == [PrintedRow("a", {"ndcg@10": 0.08}, {"ndcg@10": 0.005})]


@pytest.mark.parametrize(
    ("cell", "message"),
    [("-.10", "is -.10: no share"), ("−0.1", "is −0.1: no share"), ("0,10", "is 0,10: write decimals with a point")],
)
def test_a_figure_that_is_no_share_is_refused(tmp_path: Path, cell: str, message: str) -> None:
    path = tmp_path / "table.md"
    path.write_text(f"{HEAD}| a | {cell} | .08 |\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"a, HR@10 {message}"):
        read_printed(path)


def test_every_table_of_a_text_is_read(tmp_path: Path) -> None:
    """One of something else stands between; a bar behind a backslash is part of a name."""
    path = tmp_path / "table.md"
    other = "| data | users |\n|---|---|\n| x | 5 |\n"
    path.write_text(f"{HEAD}| a | .15 | .08 |\n\n{other}\n{HEAD}| b \\| c | .15 | .2 |\n")
    assert [(row.name, row.values["ndcg@10"]) for row in read_printed(path)] == [("a", 0.08), ("b | c", 0.2)]


@pytest.mark.parametrize(
    "name", ["hr@10", "HR @ 10", "Hit Rate@10", "hits@10", "hr_at_10", "Recall at 10", "R@10", "H@10"]
)
def test_names_of_the_hit_rate(tmp_path: Path, name: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text(f"m;{name};N@10\na;.15;.08\n")
    assert read_printed(path)[0].values == {"hr@10": 0.15, "ndcg@10": 0.08}


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_separated_by_what_the_first_line_has_most_of(tmp_path: Path, separator: str) -> None:
    path = tmp_path / "table.csv"
    path.write_text("\ufeff" + separator.join(["m", "HR@10", "NDCG@10"]) + "\n" + separator.join(["a", ".15", ".08"]))
    assert read_printed(path)[0].values == {"hr@10": 0.15, "ndcg@10": 0.08}


def test_refusals(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.write_text("model,HR@10,NDCG@10\na,15,8\n")
    with pytest.raises(DataError, match=r"a, HR@10 is 15: no share; give --percent"):
        read_printed(path)
    for header in ("model,HR@10,H@10,NDCG@10", "model,HR@10,HR@10,NDCG@10"):
        path.write_text(f"{header}\na,.1,.1,.1\n")
        with pytest.raises(DataError, match="two columns of one metric"):
            read_printed(path)
    for cut in ("0", "9" * 20):
        path.write_text(f"model,HR@{cut},NDCG@{cut}\na,.1,.1\n")
        with pytest.raises(DataError, match=f"has a column HR@{cut}: a list has at least one place"):
            read_printed(path)
    path.write_text("model,MRR\na,.1\n")
    with pytest.raises(DataError, match="expected columns such as HR@10 and NDCG@10"):
        read_printed(path)
    (tmp_path / "table.md").write_text("no table")
    with pytest.raises(DataError, match="holds no Markdown table"):
        read_printed(tmp_path / "table.md")
    with pytest.raises(DataError, match="cannot be read"):
        read_printed(tmp_path / "nothing.csv")


def test_rounding_accuses_nobody(tmp_path: Path) -> None:
    """.154 and .086 of three digits can be .1535 and .0865 of four; the same figures with a 0 behind cannot be right.

    From 5 to 10 places 25 of 1,000 rows are hit anew, which adds .0072 to .0089; .010 was printed.
    """
    path = tmp_path / "table.md"
    head = "| m | HR@5 | NDCG@5 | HR@10 | NDCG@10 |\n|---|---|---|---|---|\n"
    path.write_text(f"{head}| a | .129 | .076 | .154 | .086 |\n")
    assert CliRunner().invoke(app, ["check-table", str(path)]).exit_code == 0
    path.write_text(f"{head}| a | .1290 | .0760 | .1540 | .0860 |\n")
    found = CliRunner().invoke(app, ["check-table", str(path)])
    assert "a: ndcg@10 - ndcg@5 is .0100, but hr@10 - hr@5 = .0250 allows .0072 to .0089" in found.stdout
    path.write_text(f"{head}| a | 12.9 | 7.6 | 15.4 | 8.6 |\n")
    assert CliRunner().invoke(app, ["check-table", str(path), "--percent"]).exit_code == 0


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
