"""What `prepare` says about the data beside the counts: contract, facts, quick leaks, and the page of all of it.

And what it will say of data that nobody has prepared yet, for `recsys validate`.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

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
