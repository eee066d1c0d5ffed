"""Names that were given up, so that they do not come back: each stands here with the one that is used now.

Searched are code, configuration, documents, notebooks and result pages; CHANGELOG tells what was, and is not searched.
Two places may say an old name: a ``renamed_keys`` mapping, which refuses an old configuration key by its new name, and a
line of a test that ends with ``# old name``, which shows that it is refused.
"""

from __future__ import annotations

import ast
import json
import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SEARCHED = ("recsys", "features", "serving", "pipelines", "tests", "docs", "notebooks")
FILES = ("README.md", "DECISIONS.md", "Makefile", "pyproject.toml", "mkdocs.yml")
SUFFIXES = (".py", ".md", ".yaml", ".yml", ".ipynb", ".svg", ".html", ".css", ".js")
MARK = "# old name"


@dataclass(frozen=True)
class OldName:
    """A pattern and what to write in its place."""

    pattern: re.Pattern[str]
    now: str


def _names(*pairs: tuple[str, str]) -> tuple[OldName, ...]:
    return tuple(OldName(re.compile(pattern), now) for pattern, now in pairs)


OLD_NAMES = _names(
    (
        r"(?i)judg(?!e?men)",
        "held_out_reward_model; compare_systems, decide, check_round, eval_rows; evaluated, measured",
    ),
    (r'(?i)gauge(?!")', "PolicyEvaluator"),  # before a closing quote it is Prometheus' word for a kind of metric
    (r"(?i)\breward_?plugs?\b|\bplugs?\b(?!-)", "RewardSet"),
    (r"(?i)\bmanners?\b", "AnswerOptions"),
    (r"\bPreparedData\b", "Dataset"),
    (r"\bFeedbackRows\b", "FeedbackDataset"),
    (r"\bSampleStream\b", "RequestStream"),
    (r"\bdead_nodes\b", "closed_nodes"),
    (r"\b(?:Histories|Quotas)\.of\b", "from_targets, from_config: from_ and what is read"),
    (r"\bsemantic_ids[./]generation\b", "semantic_ids.versions"),
    (r"(?i)\bwish(?:es|ed|ing)?\b", "objective weights"),
    (r"(?i)\bhear(?:s|d|ing)?\b", "condition on"),
)
"""Anywhere in a text, comments and prose included."""

OLD_CLASSES = {
    "Points": "PredictionPoints",
    "Step": "PlannedStage",
    "Figure": "MetricEstimate",
    "Vocabulary": "DatasetSpec",
    "Verdict": "GateDecision, GuardResult",
}
"""Words that are good words elsewhere: no class of the project may be called so, and no document may name one."""


def violations(root: Path = ROOT) -> list[str]:
    """Return one line per old name below ``root``, sorted by file."""
    paths = [path for folder in SEARCHED for path in sorted((root / folder).rglob("*")) if path.suffix in SUFFIXES]
    paths += [root / name for name in FILES if (root / name).exists()]
    found = []
    for path in paths:
        if path != Path(__file__).resolve() and ".ipynb_checkpoints" not in path.parts:
            found += file_violations(path.relative_to(root), path.read_text(encoding="utf-8"))
    return found


def file_violations(path: Path, text: str) -> list[str]:
    """Search the text of one file; of a notebook the cells and what they printed, of a figure what it says."""
    if path.name == "test_names.py" and "architecture" in path.parts:  # the test of this file is made of old names
        return []
    found = [f"{path}: a module of this name was given up: versions"] if path.name == "generation.py" else []
    exempt = _exempt(path, text)
    lines = enumerate(_readable(path, text).splitlines(), start=1)
    for number, line in ((number, line) for number, line in lines if number not in exempt):
        for old in OLD_NAMES:
            found += [f"{path}:{number}: '{hit.group()}', now {old.now}" for hit in old.pattern.finditer(line)]
        for name in re.findall(rf"^\s*class ({'|'.join(OLD_CLASSES)})\b|`({'|'.join(OLD_CLASSES)})`", line):
            word = "".join(name)
            found.append(f"{path}:{number}: class '{word}', now {OLD_CLASSES[word]}")
    return found


def _readable(path: Path, text: str) -> str:
    """The part of a file that people read, line numbers kept where that is possible."""
    if path.suffix == ".svg":  # paths are long strings of letters
        return "\n".join(re.sub(r"\s[\w:-]+=\"[^\"]*\"", "", line) for line in text.splitlines())
    if path.suffix != ".ipynb":
        return text
    said: list[str] = []
    for cell in json.loads(text)["cells"]:
        said += cell["source"]
        for output in cell.get("outputs", []):
            said += output.get("text", []) + output.get("data", {}).get("text/plain", [])
    return "\n".join(line.rstrip("\n") for line in said)


def _exempt(path: Path, text: str) -> set[int]:
    """Numbers of the lines that may say an old name."""
    if path.suffix != ".py":
        return set()
    marked = path.parts[0] == "tests"
    exempt = {n for n, line in enumerate(text.splitlines(), start=1) if marked and line.rstrip().endswith(MARK)}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.target.id == "renamed_keys":
            exempt.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return exempt
