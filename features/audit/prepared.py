"""Everything that is found out about a data set when it has been prepared, beside the counts of its data report.

Reads a prepared data set and its report; produces ``data_contract.json``, ``leakage.json``, ``data_facts.json``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from features.audit.contract import write_contract
from features.audit.facts import write_facts
from features.audit.leakage.audit import audit_prepared


def describe_prepared(folder: Path, report: Mapping[str, Any], split_kind: str, source: Mapping[str, Any]) -> None:
    """Write what the data promise, what they are like and what leaks; a second of CPU time at five million events.

    Args:
        folder: The prepared data.
        report: Their data report.
        split_kind: ``features.split.kind``.
        source: The ``source`` section of the configuration, as JSON.
    """
    write_contract(folder, report)
    write_facts(folder, report)
    audit_prepared(folder, split_kind, source)
