"""The final tables of two small data sets: who is ahead, means over seeds, sources, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

from recsys.contracts.columns import TEST
from recsys.contracts.errors import ArtifactError
from recsys.contracts.ranking import RankedItems
from recsys.evaluation.config import EvaluateConfig
from recsys.evaluation.evaluate import evaluate
from tests.benchmarks import final_tables
from tests.toy.dataset import ring_prepared

CONFIG = EvaluateConfig(ks=(1, 10), filter_seen="both", resamples=100)
SYSTEMS = {"generative (served)": 50, "generative (beam)": 20, "sasrec": 30, "markov": 50, "ease": 10}


def ranked(targets: np.ndarray, hits: int, num_items: int) -> RankedItems:
    """The first ``hits`` rows have their target at rank 1, the others nowhere."""
    hit = np.arange(len(targets)) < hits
    first = np.where(hit, targets, (targets + 1) % num_items)
    items = np.full((len(targets), 10), -1, np.int32)
    items[:, 0] = first
    scores = np.full((len(targets), 10), -np.inf, np.float32)
    scores[:, 0] = 0
    return RankedItems(items, scores)


def finished(folder: Path, data: str, seed: int, fusion: str, **hits: int) -> Path:
    """A run folder as `recsys run` leaves it, as far as the tables read it."""
    prepared = ring_prepared(folder / "ring")
    items = prepared.targets(TEST).items
    counts = {**SYSTEMS, f"fusion ({fusion})": 40} | hits
    rankings = {
        name: dict.fromkeys((True, False), ranked(items, count, prepared.spec.num_items))
        for name, count in counts.items()
    }
    out = folder / "artifacts" / "evaluation" / "abc"
    evaluate(prepared, rankings, CONFIG, out, seed)
    (out / "manifest.json").write_text("{}")
    (out / "sources.json").write_text(
        json.dumps({"filtered": {"k": 10, "rows": 60, "hits": 50, "sources": {"beam": {"found": 30, "alone": 5}}}})
    )
    source = {"kind": "table", "path": f"/somewhere/{data}"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"name": "x", "seed": seed, "source": source}))
    return folder


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two seeds whose fusions differ in what they fuse, and another data set where the served list is ahead of all."""
    folder = tmp_path_factory.mktemp("runs")
    return [
        finished(folder / "b2", "amazon14_beauty", 2, "sasrec + ease"),
        finished(folder / "b1", "amazon14_beauty", 1, "sasrec + markov", sasrec=36),
        finished(folder / "shop", "shop", 1, "sasrec + ease", markov=45),
    ]


def test_data_sets_without_a_run_stay_where_they_are(runs: list[Path], tmp_path: Path) -> None:
    """A page written at once and one whose second data set came later, and again: the same but for the command."""

    def written(out: Path) -> str:
        text = out.read_text()
        return text[: text.index("`python")] + text[text.index("| data set") :]

    together, later, readme = tmp_path / "together.md", tmp_path / "later.md", tmp_path / "README.md"
    readme.write_text(f"{final_tables.OPEN}\n{final_tables.CLOSE}\n")
    final_tables.main(["--runs", *map(str, runs), "--out", str(together)])
    final_tables.main(["--runs", *map(str, runs[:2]), "--out", str(later)])
    for _ in range(2):
        final_tables.main(["--keep", "--runs", str(runs[2]), "--out", str(later), "--readme", str(readme)])
        assert written(later) == written(together)
    assert "--keep --runs shop" in later.read_text()
    assert readme.read_text().count("\n| ") == 3, "a head and both data sets"
    ahead = finished(tmp_path / "ahead", "other", 1, "sasrec + ease", sasrec=58, markov=10)
    final_tables.main(["--runs", str(ahead), "--out", str(later)])
    final_tables.main(["--keep", "--runs", str(runs[2]), "--out", str(later)])
    assert "better than every baseline by NDCG@10 on shop; it is not on other (not above sasrec)." in later.read_text()
    later.write_text("# Something else\n")
    with pytest.raises(ArtifactError, match="0 sections and 0 lines of summary; write it without --keep"):
        final_tables.main(["--keep", "--runs", str(runs[2]), "--out", str(later)])


def test_the_page_and_the_table_of_readme(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Served hits 50 of 60 rows, .8333; SASRec 36 and 30 under two seeds, mean .55; markov ties with served on Beauty."""
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{final_tables.OPEN}\nold\n{final_tables.CLOSE}\nafter\n")
    out = tmp_path / "page.md"
    final_tables.main(["--runs", *map(str, runs), "--out", str(out), "--readme", str(readme)])
    text = out.read_text()
    beauty, shop = text.split("## ")[1:]
    assert "The served list is better than every baseline by NDCG@10 on shop; it is not on Amazon Beauty 2014" in text
    assert "(not above markov)." in text
    assert beauty.startswith("Amazon Beauty 2014")
    assert "seeds 1, 2; 60 rows of 60 users." in beauty
    assert ".5500 [" in beauty
    assert "±.6353 -" in beauty  # t(.975, 1) = 12.706 times the standard error .05 of .6 and .5
    assert "| fusion (best two baselines) | .6667" in beauty
    assert "| markov | +.0000 [+.0000, +.0000] ±.0000 |" in beauty
    assert "| sasrec | +.2833" in beauty
    assert "| beam | 60.0 % | 10.0 % |" in beauty
    assert "±" not in shop.split("Paired")[1]  # one seed
    row = "| Amazon Beauty 2014, 60 users | **.8333** | – | .5500 - | **.8333** = | .1667 (ease) - | .6667 - |"
    assert readme.read_text().startswith(f"before\n{final_tables.OPEN}\n| data set | served |")
    assert row in readme.read_text()
    assert readme.read_text().endswith(f"{final_tables.CLOSE}\nafter\n")
    assert "old" not in readme.read_text()
    assert row in capsys.readouterr().out


def test_seeds_of_an_earlier_page_keep_their_lines(runs: list[Path], tmp_path: Path) -> None:
    """Seed 1 alone, then seed 2, then seed 1 anew beside seed 3: every line is its newest run's, and the mean is theirs."""
    out = tmp_path / "page.md"

    def lines_of(*given: Path) -> tuple[list[list[str]], str]:
        keep = ["--keep"] if out.exists() else []
        final_tables.main([*keep, "--runs", *map(str, given), "--out", str(out)])
        text = out.read_text().split("Seed by seed, seen items filtered:\n\n")
        if len(text) == 1:
            return [], ""
        rows = [line.strip("| ").split(" | ") for line in text[1].split("\n\n")[0].splitlines()]
        return rows[2:], text[1].split("\n\n")[1]

    assert lines_of(runs[1]) == ([], ""), "one seed needs no such table"
    rows, over = lines_of(runs[0])
    assert [row[0] for row in rows] == ["1 (earlier)", "2"]
    assert rows[0][1].startswith(".8333 [")
    assert rows[0][2].startswith(".8333 [")
    assert rows[0][3].startswith(".6667 [")
    assert not rows[0][3].endswith("-")
    assert rows[0][4].startswith("+.1667 [+.")
    assert [cell[:6] for cell in rows[0][1:]] == [cell[:6] for cell in rows[1][1:]], "they hit the same rows"
    assert over.startswith(
        "Over these 2 seeds the served list has +.1667 [+.1667, +.1667] NDCG@10 more than the fusion"
    )
    assert over.strip().endswith("; the earlier ones are of the code of their day.")
    third = finished(tmp_path / "b3", "amazon14_beauty", 3, "sasrec + ease", **{"generative (served)": 56})
    rows, over = lines_of(third, runs[1])
    assert [row[0] for row in rows] == ["1", "2 (earlier)", "3"]
    # +.1667, +.1667, +.2667: mean .2000, t(.975, 2) = 4.3027 times the standard error .0333
    assert "Over these 3 seeds the served list has +.2000 [+.0566, +.3435] NDCG@10" in over
    out.unlink()
    rows, over = lines_of(third, *runs[:2])
    assert [row[0] for row in rows] == ["1", "2", "3"]
    assert over.strip().endswith("by Student's t.")


def test_refusals(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"is no folder of a run: it has no config\.yaml"):
        final_tables.data_sets([tmp_path])
    (tmp_path / "config.yaml").write_text((runs[0] / "config.yaml").read_text())
    with pytest.raises(ArtifactError, match="has no finished evaluation"):
        _ = final_tables.data_sets([tmp_path])[0].evaluations
    with pytest.raises(ArtifactError, match="several runs on amazon14_beauty have one seed"):
        final_tables.data_sets([runs[0], runs[0]])
    (tmp_path / "README.md").write_text("nothing")
    with pytest.raises(ArtifactError, match="has no table between"):
        final_tables.put_into_readme(tmp_path / "README.md", [["a"], ["b"]])
