"""What `prepare` says about the data beside the counts: contract, facts, quick leaks, and the page of all of it.

And what it will say of data that nobody has prepared yet, for `recsys validate`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from features.audit.changes import Change
    from features.build import Assembled
    from features.tables import Prepared
    from pipelines.config import RunConfig
    from pipelines.release.nights import NightCheck


def describe(config: RunConfig, folder: Path, prepared: Prepared) -> None:
    """Describe prepared data by files and a page beside them; the same data give the same bytes.

    Args:
        folder: The prepared data.
        prepared: The same, as far as they are still in memory.
    """
    from features.audit.prepared import describe_prepared
    from recsys.reports.data.page import write_data_page

    describe_prepared(folder, prepared, config.features.split.kind, config.source.model_dump(mode="json"))
    write_data_page(folder, folder / "data_report.html")


def night_check(config: RunConfig) -> NightCheck:
    """Return what holds a run's data against earlier ones."""
    from pipelines.release.nights import NightCheck

    def where(change: Change) -> str | None:
        from features.audit.locate import where_from

        return where_from(config.source, config.seed, change)

    return NightCheck(config.output_dir, config.registered_name, config.changes, where)


def compare_with_accepted(config: RunConfig, data: Assembled) -> None:
    """Hold data that are not written against those that this output folder accepted last, as `prepare` will; writes nothing.

    Raises:
        DataError: They changed in a way that nobody accepted.
        ArtifactError: What was accepted cannot be read.
    """
    from features.audit.contract import contract_of
    from features.tables import watched_times
    from recsys.contracts.columns import Columns

    users, watched = data.users[Columns.USER_ID], watched_times(data.events.log)
    night_check(config).foresee(contract_of(data.spec, data.report, users, data.items.table, watched))


def report_text(report: Mapping[str, Any]) -> str:
    """Return a data report as lines for people: one per fact, and under a list one per entry.

    Example:
        >>> print(report_text({"kept": 9, "split": {"kind": "none", "leaks": False}, "warnings": ["few users"]}))
        kept: 9
        split: kind none, leaks no
        warnings:
          few users
    """
    lines = []
    for name, value in report.items():
        if isinstance(value, list) and value:
            lines += [f"{_words(name)}:", *(f"  {_said(entry)}" for entry in value)]
        else:
            lines.append(f"{_words(name)}: {_said(value)}")
    return "\n".join(lines)


def _words(name: str) -> str:
    return name.replace("_", " ")


def _said(value: Any) -> str:
    """One value, on one line."""
    if isinstance(value, Mapping):
        return ", ".join(f"{_words(str(key))} {_said(inner)}" for key, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        pairs = (" ".join(map(_said, one)) if isinstance(one, list | tuple) else _said(one) for one in value)
        return ", ".join(pairs) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "unknown"}[value]
    return str(value)
