"""What `prepare` says about the data beside the counts: contract, facts, quick leaks, and the page of all of it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from features.tables import Prepared
    from pipelines.config import RunConfig


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
