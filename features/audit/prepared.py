"""Everything that is found out about a data set when it has been prepared, beside the counts of its data report.

Reads a prepared data set, and what of it is still in memory; produces ``data_contract.json``, ``leakage.json`` and
``data_facts.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.audit.contract import write_contract
from features.audit.facts import write_facts
from features.audit.leakage.audit import InMemory, audit_prepared
from features.tables import Prepared


def describe_prepared(folder: Path, prepared: Prepared, split_kind: str, source: Mapping[str, Any]) -> None:
    """Write what the data promise, what they are like and what leaks; a second of CPU time at five million events.

    Args:
        folder: The prepared data.
        prepared: The same, as far as they are still in memory.
        split_kind: ``features.split.kind``.
        source: The ``source`` section of the configuration, as JSON.
    """
    write_contract(folder, prepared.report, prepared.user_ids)
    write_facts(folder, prepared.report, prepared.user_ids)
    targets = {rows.split: rows.as_targets() for rows in prepared.targets}
    audit_prepared(folder, split_kind, source, InMemory(prepared.user_ids, targets))
