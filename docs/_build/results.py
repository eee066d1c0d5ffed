"""Pages of results and speed, made of the committed files below ``tests/benchmarks/results``."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "tests" / "benchmarks" / "results"
QUALITY = (
    "demo",
    "offline_evaluation",
    "gate",
    "month",
    "reproduction",
    "alignment",
    "alignment_simulator",
    "alignment_simulator_small",
    "alignment_rere",
    "alignment_successors",
    "guided_rollouts",
    "guard",
    "second_stage",
    "reward_guidance",
    "reward_combinations",
    "worst_group",
    "baselines",
    "policy_ablation",
    "steering",
    "all_prefixes",
    "llm_from_nothing",
    "llm_finetune",
    "llm_rere",
    "llm_costs",
    "words",
)
"""Results about what is recommended, in the order of the site."""
SPEED = (
    *("speed", "prepare", "prepare_script", "prepare_append", "decoder", "constraint", "training"),
    *("batch_job", "batch_faults", "rollouts", "alignment_speed", "moe", "tables"),
    *("int8", "presets", "evaluation_memory", "ranked_serving", "guided_search", "gpu", "language_model"),
    "language_model_real",
)
"""Results about time and memory."""
_LINK = re.compile(r"\]\((?!https?://|#)(?P<target>[^)\s]+)\)")


def pages() -> dict[str, str]:
    """Return page path to Markdown.

    Raises:
        RuntimeError: A result file is in no list, or a list names one that is missing.
    """
    there = {path.stem for path in RESULTS.glob("*.md")}
    listed = {*QUALITY, *SPEED}
    if there != listed:
        raise RuntimeError(
            f"result files and the site's lists differ: {sorted(there ^ listed)}; see docs/_build/results.py"
        )
    found = {
        "results/index.md": index("Results", "What is recommended, and how good it is", QUALITY),
        "speed/index.md": index("Speed", "Time and memory, as ratios measured in one process", SPEED),
    }
    for folder, names in (("results", QUALITY), ("speed", SPEED)):
        found |= {f"{folder}/{name}.md": page(name) for name in names}
    return found


def pictures() -> dict[str, Path]:
    """Return the pictures that pages of results show: page path to file."""
    return {f"results/{path.name}": path for path in RESULTS.glob("*.svg")}


def index(title: str, about: str, names: tuple[str, ...]) -> str:
    """Return a table: page, what was found, command."""
    rows = []
    for name in names:
        heading, finding, command = head(text_of(name))
        rows.append(f"| [{heading}]({name}.md) | {linked(finding, name)} | `{command}` |")
    lead = f"{about}. Each page leads with one finding; each names the command that renews it. The files lie in"
    lines = [
        f"# {title}",
        "",
        f"{lead} `tests/benchmarks/results`.",
        "",
        "| page | finding | command |",
        "|---|---|---|",
    ]
    return "\n".join([*lines, *rows, ""])


def page(name: str) -> str:
    """Return the text of a result file with links that hold on the site."""
    return linked(text_of(name), name)


def text_of(name: str) -> str:
    """Read a result file."""
    return (RESULTS / f"{name}.md").read_text(encoding="utf-8")


def head(text: str) -> tuple[str, str, str]:
    """Return heading, finding and command of a page.

    Example:
        >>> head("# Cake\\n\\n**It is good.** Eat it.\\n\\n`make cake`, on a weekday\\n")
        ('Cake', 'It is good.', 'make cake')

    Raises:
        RuntimeError: One of them is missing.
    """
    heading = re.search(r"^# (.+)$", text, re.MULTILINE)
    finding = re.search(r"^\*\*(.+?)\*\*", text, re.MULTILINE | re.DOTALL)
    command = re.search(r"`((?:python -m|recsys|make) [^`]+)`", text)
    if heading is None or finding is None or command is None:
        raise RuntimeError(
            f"a result page needs a heading, a finding in bold at the beginning of a line, and its command in backticks; it begins {text[:60]!r}"
        )
    return heading[1], " ".join(finding[1].split()), command[1]


def linked(text: str, name: str) -> str:
    """Let links between result files lead to the pages of the site."""
    folder = "results" if name in QUALITY else "speed"

    def place(match: re.Match[str]) -> str:
        target = Path(match["target"])
        if target.suffix != ".md" or target.stem not in {*QUALITY, *SPEED}:
            return match[0]
        there = "results" if target.stem in QUALITY else "speed"
        return f"]({target.stem}.md)" if there == folder else f"](../{there}/{target.stem}.md)"

    return _LINK.sub(place, text)
