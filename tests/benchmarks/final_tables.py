"""The tables of README and of ``offline_evaluation.md`` from finished runs.

Reads folders of finished runs (``recsys run`` or ``recsys reproduce``), groups them by data set, and writes for each the
table of all systems, the paired gaps to the served list, and which source found its hits. Several seeds of one data set are
put together: means over seeds, 95 % bootstrap intervals over users, and ± half the 95 % interval over seeds.

    python -m tests.benchmarks.final_tables --runs runs/beauty runs/toys-17 runs/toys-18 --readme README.md

With ``--keep`` the data sets of the present page that no run is given for stay as they are, and so do, seed by seed, the
figures of a given data set under other seeds: runs are large and short-lived, what they said is a line each.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pipelines.reproduction.figures import FUSION, Evaluations, SeedEstimate, seed_margin
from pipelines.reproduction.page import short
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json
from recsys.evaluation.rankings import SERVED
from tests.benchmarks.finished_runs import HEADLINE, DataSet, data_sets
from tests.benchmarks.paired import RESULTS, machine

SUMMARY_HEAD: Final = [
    "data set",
    "served",
    "guided",
    "SASRec",
    "Markov",
    "best other baseline",
    "fusion of the best two",
]
SEED_HEAD: Final = ["seed", "served, hr@10", "served, ndcg@10", "fusion, ndcg@10", "served minus fusion, ndcg@10"]
EARLIER: Final = " (earlier)"
METRICS: Final = ("hr@10", "ndcg@10")
GENERATIVE: Final = (SERVED, "generative (guided)", "generative (beam)", "dense head")
OPEN, CLOSE = "<!-- results table -->", "<!-- end results table -->"


@dataclass(frozen=True)
class Section:
    """One data set on the page.

    Attributes:
        title: What tables call it.
        summary: Its line of the first table.
        rivals: Systems that the served list is not above.
        text: Everything below its heading.
    """

    title: str
    summary: str
    rivals: tuple[str, ...]
    text: str

    @classmethod
    def of(cls, one: DataSet, before: Section | None = None) -> Section:
        """From finished runs.

        Args:
            before: The same data set on an earlier page; its other seeds keep their lines.
        """
        names = [name for name in one.order("filtered") if is_rival(name)]
        gaps = {name: one.evaluations.gap(SERVED, name, "filtered", HEADLINE) for name in names}
        rivals = tuple(name for name, gap in gaps.items() if gap.low <= 0)
        earlier = {} if before is None else before.by_seed()
        return cls(one.title, _line(summary_rows([one])[1]), rivals, section_text(one, earlier))

    def by_seed(self) -> dict[int, list[str]]:
        """What :func:`seed_rows` says of each seed; of a section of one seed, from its other tables."""
        tables = [
            [line.strip("| ").split(" | ") for line in part.splitlines()]
            for part in self.text.split("\n\n")
            if part.startswith("| ")
        ]
        for head, _, *rows in tables:
            if head == SEED_HEAD:
                return {int(row[0].removesuffix(EARLIER)): row[1:] for row in rows}
        seed = re.search(r", seed (\d+);", self.text)
        if seed is None or len(tables) < 2:
            return {}
        systems, gaps = ({row[0]: row for row in rows} for _, _, *rows in tables[:2])
        if SERVED not in systems or FUSION not in systems:
            return {}
        return {int(seed[1]): [*systems[SERVED][1:3], systems[FUSION][2].rstrip(" +-="), gaps[FUSION][2]]}


def is_rival(system: str) -> bool:
    """Whether a system is a baseline, or a sum of them."""
    return system not in GENERATIVE and "alignment" not in system


def sections_of(text: str) -> list[Section]:
    """The data sets of a page that :func:`page` wrote.

    Raises:
        ArtifactError: It is no such page.
    """
    head, *parts = re.split(r"^## ", text, flags=re.MULTILINE)
    lines = [line for line in head.splitlines() if line.startswith("| ")][1:]
    found = []
    for part, summary in zip(parts, lines, strict=False):
        title, _, body = part.partition("\n")
        # the second column of figures is the headline's, seen items filtered; no mark or '-': the served list is above
        rows = [line.strip("| ").split(" | ") for line in body.split("\n\n")[1].splitlines()[2:]]
        rivals = tuple(row[0] for row in rows if is_rival(row[0]) and row[2].endswith((" =", " +")))
        found.append(Section(title, summary, rivals, body.strip("\n")))
    if not found or len(lines) != len(parts):
        raise ArtifactError(
            f"the page has {len(parts)} sections and {len(lines)} lines of summary; write it without --keep"
        )
    return found


def summary_rows(found: Sequence[DataSet]) -> list[list[str]]:
    """The table of README: a line per data set, its best figure in bold, and how each stands against the served list."""
    rows = [SUMMARY_HEAD]
    for one in found:
        names = {name: one.evaluations.figure(name, "filtered", HEADLINE).mean for name in one.evaluations.systems}
        others = [
            name for name in names if name not in (*GENERATIVE, "sasrec", "markov", FUSION) and "alignment" not in name
        ]
        best_other = max(others, key=names.__getitem__, default=None)
        shown = [SERVED, "generative (guided)", "sasrec", "markov", best_other, FUSION]
        best = max(names[name] for name in shown if name in names)
        cells = []
        for name in shown:
            if name not in names:
                cells.append("–")
                continue
            text = f"**{short(names[name])}**" if names[name] == best else short(names[name])
            label = f" ({name})" if name == best_other else ""
            cells.append(
                text + label + ("" if name == SERVED else mark(one.evaluations.gap(SERVED, name, "filtered", HEADLINE)))
            )
        rows.append([f"{one.title}, {one.users:,} users", *cells])
    return rows


def mark(gap: SeedEstimate) -> str:
    """Say how a system stands against the served list: ``+`` better, ``-`` worse, ``=`` the interval holds 0.

    Args:
        gap: The served list minus the system.
    """
    return " -" if gap.low > 0 else " +" if gap.high < 0 else " ="


def system_rows(one: DataSet) -> list[list[str]]:
    """All systems with both filters."""
    kinds = [kind for kind in ("filtered", "kept") if kind in one.evaluations.seen_kinds()]
    heads = [
        f"{metric}, {'seen filtered' if kind == 'filtered' else 'seen kept'}" for kind in kinds for metric in METRICS
    ]
    rows = [["system", *heads]]
    for system in one.order(kinds[0]):
        cells = []
        for kind in kinds:
            for metric in METRICS:
                text = interval(one.evaluations.figure(system, kind, metric))
                against = "" if system == SERVED else mark(one.evaluations.gap(SERVED, system, kind, metric))
                cells.append(text + against)
        rows.append([system, *cells])
    return rows


def gap_rows(one: DataSet) -> list[list[str]]:
    """The served list minus every other system, on the same rows of the same seeds."""
    rows = [["served minus", *METRICS]]
    for system in one.order("filtered"):
        if system != SERVED:
            gaps = [one.evaluations.gap(SERVED, system, "filtered", metric) for metric in METRICS]
            rows.append([system, *[interval(gap, signed=True) for gap in gaps]])
    return rows


def seed_rows(one: DataSet, earlier: Mapping[int, list[str]]) -> list[list[str]]:
    """The served list and the fusion under every seed, seen items filtered; empty for one seed, or without a fusion.

    Args:
        earlier: Lines of seeds on an earlier page; of a seed that is run now, the run's counts.
    """
    rows = {seed: [f"{seed}{EARLIER}", *cells] for seed, cells in earlier.items()}
    if not {SERVED, FUSION} <= set(one.evaluations.systems):
        return []
    for run in one.runs:
        alone = Evaluations((run.evaluation,), (run.seed,))
        figures = [(SERVED, metric) for metric in METRICS] + [(FUSION, HEADLINE)]
        cells = [interval(alone.figure(system, "filtered", metric)) for system, metric in figures]
        gap = interval(alone.gap(SERVED, FUSION, "filtered", HEADLINE), signed=True)
        rows[run.seed] = [str(run.seed), *cells, gap]
    return [SEED_HEAD, *(rows[seed] for seed in sorted(rows))] if len(rows) > 1 else []


def over_seeds(rows: Sequence[Sequence[str]]) -> str:
    """The gap over all seeds of :func:`seed_rows`, as printed, and its 95 % interval by Student's t."""
    gaps = [float(row[-1].split()[0]) for row in rows[1:]]
    mean, margin = sum(gaps) / len(gaps), seed_margin(gaps)
    assert margin is not None
    said = "; the earlier ones are of the code of their day" if any(row[0].endswith(EARLIER) for row in rows) else ""
    shown = interval(SeedEstimate(mean, mean - margin, mean + margin, tuple(gaps), None), signed=True)
    return (
        f"Over these {len(gaps)} seeds the served list has {shown} NDCG@10 more than the fusion, by Student's t{said}."
    )


def source_rows(one: DataSet) -> list[list[str]]:
    """Which source brought the items that the served list hit with, summed over seeds; empty where nothing is recorded."""
    found: dict[str, list[int]] = {}
    hits = 0
    for run in one.runs:
        path = run.evaluation / "sources.json"
        if not path.is_file():
            return []
        counted = read_json(path).get("filtered", {})
        hits += int(counted.get("hits", 0))
        for name, count in counted.get("sources", {}).items():
            both = found.setdefault(name, [0, 0])
            both[0] += int(count["found"])
            both[1] += int(count["alone"])
    if not hits:
        return []
    rows = [["source", "share of the hits at 10 that it brought", "that it alone brought"]]
    ordered = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
    return rows + [
        [name, f"{100 * there / hits:.1f} %", f"{100 * alone / hits:.1f} %"] for name, (there, alone) in ordered
    ]


def interval(figure: SeedEstimate, signed: bool = False) -> str:
    """``.1004 [.0970, .1040] ±.0021``; the part behind ± is missing for one seed."""
    form = (lambda value: f"{'-' if value < 0 else '+'}{short(abs(value))}") if signed else short
    margin = "" if figure.seed_margin is None else f" ±{short(figure.seed_margin)}"
    return f"{form(figure.mean)} [{form(figure.low)}, {form(figure.high)}]{margin}"


def table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as Markdown, the first being the head."""
    head, *body = rows
    return [_line(head), "|" + "---|" * len(head), *(_line(row) for row in body)]


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def page(found: Sequence[Section], command: str) -> str:
    """Return the page."""
    lines = ["# Offline evaluation beside baselines", "", f"**{finding(found)}**", "", f"`{command}`; {machine()}", ""]
    lines += [*table([SUMMARY_HEAD]), *(one.summary for one in found)]
    lines += [
        "",
        "NDCG@10 above. Item level, full catalogue, no sampled negatives. Baselines, scorers and policy are fitted on train "
        "events only, weights and the ranker on validation rows; at test time the history holds the validation event. Means "
        "over seeds, 95 % bootstrap intervals over users (a user's rows under all seeds are drawn together), ± half the "
        "95 % interval over seeds by Student's t. `+`, `-`, `=`: better than, worse than, not distinguishable from the "
        "served list on the same rows.",
    ]
    for one in found:
        lines += ["", f"## {one.title}", "", one.text]
    return "\n".join([*lines, ""])


def section_text(one: DataSet, earlier: Mapping[int, list[str]]) -> str:
    """What stands below a data set's heading; ``earlier`` as for :func:`seed_rows`."""
    seeds = ", ".join(str(run.seed) for run in one.runs)
    lines = [f"Recipe `{one.runs[0].config['name']}`, {'seeds' if len(one.runs) > 1 else 'seed'} {seeds}; "]
    lines[-1] += f"{one.evaluations.summaries[0]['rows']:,} rows of {one.users:,} users."
    lines += ["", *table(system_rows(one)), "", "Paired, seen items filtered:", "", *table(gap_rows(one))]
    by_seed, sources = seed_rows(one, earlier), source_rows(one)
    lines += ["", "Seed by seed, seen items filtered:", "", *table(by_seed), "", over_seeds(by_seed)] if by_seed else []
    return "\n".join([*lines, *(["", *table(sources)] if sources else [])])


def finding(found: Sequence[Section]) -> str:
    """One sentence: on which data sets the served list is better than every baseline, and where not."""
    ahead, behind = [], []
    for one in found:
        if one.rivals:
            behind.append(f"{one.title} (not above {', '.join(one.rivals)})")
        else:
            ahead.append(one.title)
    parts = [f"The served list is better than every baseline by NDCG@10 on {', '.join(ahead)}"] if ahead else []
    parts += [f"it is not on {'; '.join(behind)}"] if behind else []
    return "; ".join(parts)[:1].upper() + "; ".join(parts)[1:] + "."


def put_into_readme(path: Path, rows: Sequence[str]) -> None:
    """Replace the table between the two marks.

    Raises:
        ArtifactError: The marks are not there.
    """
    text = path.read_text(encoding="utf-8")
    pattern = re.compile(f"{re.escape(OPEN)}\n.*?{re.escape(CLOSE)}", re.DOTALL)
    if not pattern.search(text):
        raise ArtifactError(f"'{path}' has no table between '{OPEN}' and '{CLOSE}'")
    replacement = "\n".join([OPEN, *table([SUMMARY_HEAD]), *rows, CLOSE])
    path.write_text(pattern.sub(lambda _: replacement, text), encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> Mapping[str, Path]:
    """Write the page, and the table of README where one is named."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=Path, nargs="+", required=True, help="output folders of finished runs")
    parser.add_argument("--out", type=Path, default=RESULTS / "offline_evaluation.md")
    parser.add_argument("--readme", type=Path, help="file whose table of results is replaced")
    parser.add_argument("--keep", action="store_true", help="data sets of the page without a run here stay")
    asked = parser.parse_args(arguments)
    data = data_sets(asked.runs)
    before = sections_of(asked.out.read_text(encoding="utf-8")) if asked.keep else []
    earlier = {one.title: one for one in before}
    new = {one.title: Section.of(one, earlier.get(one.title)) for one in data}
    found = [new.pop(one.title, one) for one in before] + list(new.values())
    names = " ".join(run.folder.name for one in data for run in one.runs)
    command = f"python -m tests.benchmarks.final_tables {'--keep ' if asked.keep else ''}--runs {names}"
    asked.out.write_text(page(found, command), encoding="utf-8")
    if asked.readme is not None:
        put_into_readme(asked.readme, [one.summary for one in found])
    print("\n".join([*table([SUMMARY_HEAD]), *(one.summary for one in found)]))
    return {"page": asked.out}


if __name__ == "__main__":
    main()
