"""What was just written is described from memory as it is from the files."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from features.audit.contract import write_contract
from features.audit.facts import write_facts
from features.audit.leakage.audit import AuditInputs, audit
from features.audit.prepared import describe_prepared
from features.build import FeaturesConfig, build
from features.sources import TableSource
from features.tables import Prepared
from recsys.contracts.columns import SPLIT_NAMES
from recsys.contracts.dataset import Dataset
from recsys.contracts.manifest import read_json

START = 1_650_000_000
NAMES = ("data_contract.json", "data_facts.json", "leakage.json")


def made(folder: Path, features: dict[str, Any]) -> Prepared:
    """Forty users of random items, one of whom has the same item twice at the border of the test rows."""
    rng, folder = np.random.default_rng(5), folder / "log"
    folder.mkdir()
    rows = [
        (f"u{user}", f"i{rng.integers(30)}", START + 3600 * step + user) for user in range(40) for step in range(12)
    ]
    rows += [("u0", "i7", START + 3600 * 11 + second) for second in (-1, 1)]
    schema = ["user_id", "item_id", "timestamp"]
    pl.DataFrame(rows, schema=schema, orient="row").write_parquet(folder / "interactions.parquet")
    source = TableSource(path=folder, timestamp_unit="s")
    return build(source, FeaturesConfig(**features), folder.parent / "out", seed=0)


@pytest.mark.parametrize(
    "features",
    [
        {"split": {"valid_share": 0.2, "test_share": 0.2}},
        {"split": {"kind": "leave_last_out"}},
        {"split": {"valid_share": 0.2, "test_share": 0.2}, "task": "session", "session_length": 2},
        {"split": {"valid_share": 0.2, "test_share": 0.2}, "eval_rows": "per_event"},
    ],
)
def test_memory_and_files_say_the_same(tmp_path: Path, features: dict[str, Any]) -> None:
    prepared, out = made(tmp_path, features), tmp_path / "out"
    describe_prepared(out, prepared, features["split"].get("kind", "global_temporal"), {})
    from_memory = {name: read_json(out / name) for name in NAMES}
    write_contract(out, prepared.report)
    write_facts(out, prepared.report)
    found = audit(Dataset.open(out), AuditInputs(features["split"].get("kind", "global_temporal"), {}), quick=True)
    assert from_memory["leakage.json"] == found
    assert {name: read_json(out / name) for name in NAMES} == from_memory
    assert found["rows"]["test"] > 0


def test_the_rows_in_memory_are_those_of_the_file(tmp_path: Path) -> None:
    prepared = made(
        tmp_path, {"split": {"valid_share": 0.2, "test_share": 0.2}, "task": "session", "session_length": 3}
    )
    dataset = Dataset.open(tmp_path / "out")
    assert dataset.users["user_id"].equals(prepared.user_ids)
    assert [rows.split for rows in prepared.targets] == [0, 1, 2]
    for rows in prepared.targets:
        read = dataset.targets(rows.split)
        assert prepared.report["target_rows"][SPLIT_NAMES[rows.split]] == len(read)
        assert len(read) > 0
        for name, array in vars(rows.as_targets()).items():
            np.testing.assert_array_equal(array, getattr(read, name), err_msg=name)


def test_rows_in_memory_that_leak_are_found(tmp_path: Path) -> None:
    """The audit looks at the rows it is given: histories that end behind their target hold it."""
    prepared = made(tmp_path, {"split": {"kind": "leave_last_out"}})
    longer = [replace(rows, history_end=rows.history_end + 1) for rows in prepared.targets]
    describe_prepared(tmp_path / "out", replace(prepared, targets=longer), "leave_last_out", {})
    codes = {finding["code"] for finding in read_json(tmp_path / "out" / "leakage.json")["findings"]}
    assert "future_events" in codes
