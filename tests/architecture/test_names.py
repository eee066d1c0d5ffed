"""Names that were given up are not used, and the checker would notice if one came back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.architecture import name_rules


def said(path: str, text: str) -> list[str]:
    return name_rules.file_violations(Path(path), text)


def test_no_old_name_is_used() -> None:
    assert name_rules.violations() == []


@pytest.mark.parametrize(
    ("text", "now"),
    [
        ("def judge_round(): ...", "check_round"),
        ("judged_rows: int = 3", "eval_rows"),
        ("x = JudgeModel()", "held_out_reward_model"),
        ("class Gauge: ...", "PolicyEvaluator"),
        ("from a import RewardPlugs", "RewardSet"),
        ("manner = 1", "AnswerOptions"),
        ("class Points: ...", "PredictionPoints"),
        ("class Step(Base): ...", "PlannedStage"),
        ("class Figure: ...", "MetricEstimate"),
        ("class Vocabulary: ...", "DatasetSpec"),
        ("class Verdict: ...", "GateDecision"),
        ("x: PreparedData", "Dataset"),
        ("rows = FeedbackRows()", "FeedbackDataset"),
        ("SampleStream(3)", "RequestStream"),
        ("dead_nodes(index)", "closed_nodes"),
        ("Histories.of(data)", "from_"),
        ("Quotas.of(config)", "from_"),
        ("from recsys.semantic_ids.generation import x", "semantic_ids.versions"),
        ("'a wish for more likes'", "objective weights"),
        ("'so that the decoder hears it'", "condition on"),
    ],
)
def test_an_old_name_is_found_in_code(text: str, now: str) -> None:
    found = said("recsys/data/batch.py", f"import x\n{text}\n")
    assert len(found) == 1, found
    assert found[0].startswith("recsys/data/batch.py:2: ")
    assert now in found[0]


@pytest.mark.parametrize(
    "text",
    [
        "text generation, a plug-in, a plugin, plugging",
        "matplotlib's Figure; Step 3 of 5; Points to note",
        "what we hearken to, at heart, near here, a shear",
        "judgement, judgment: the word for an assessment of relevance",
        "Histories.of_targets, closed_nodes, num_generations",
        "the vocabulary of a language model; a verdict",
    ],
)
def test_good_words_pass(text: str) -> None:
    assert said("README.md", text) == []
    assert said("recsys/x.py", f'"""{text}"""\n') == []


def test_a_document_must_not_name_an_old_class() -> None:
    assert (
        len(said("docs/concepts.md", "The `Vocabulary` says how many items there are; a [Figure](x.svg) shows it."))
        == 1
    )


def test_a_module_of_an_old_name_is_found() -> None:
    assert len(said("recsys/semantic_ids/generation.py", "")) == 1


def test_a_refused_key_may_be_named_where_it_is_refused() -> None:
    refusal = 'class A:\n    renamed_keys: ClassVar[Mapping[str, str]] = {\n        "judge": "held_out_model",\n    }\n'
    assert said("recsys/reward/config.py", refusal) == []
    assert len(said("recsys/reward/config.py", refusal + "    judge: int = 0\n")) == 1
    shown = 'validate(A, {"judge": 1})  # old name\n'
    assert said("tests/reward/test_config.py", shown) == []
    assert len(said("recsys/reward/config.py", shown)) == 1, "only a test may show a refusal"


def test_cells_and_what_they_printed_are_read_and_pictures_are_not() -> None:
    cell = {
        "source": ["a = 1\n", "judge = 2"],
        "outputs": [
            {"text": ["gauge 3\n"]},
            {"data": {"text/plain": ["'wish'"], "image/png": "iVBORjudgeGaugeAAAA"}},
        ],
    }
    assert len(said("notebooks/01.ipynb", json.dumps({"cells": [cell]}))) == 3


def test_a_figure_is_read_without_its_paths() -> None:
    assert (
        len(said("tests/benchmarks/results/a.svg", '<path d="M judge 1" id="gauge"/>\n<text x="1">judge</text>\n')) == 1
    )


def test_the_whole_tree_is_walked_and_the_changelog_is_not(tmp_path: Path) -> None:
    for name in (
        "recsys/a.py",
        "docs/deep/b.md",
        "README.md",
        "CHANGELOG.md",
        "tests/results/c.md",
        "pipelines/r.yaml",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("# judge\n")
    found = {line.partition(":")[0] for line in name_rules.violations(tmp_path)}
    assert found == {"recsys/a.py", "docs/deep/b.md", "README.md", "tests/results/c.md", "pipelines/r.yaml"}
