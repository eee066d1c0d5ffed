"""What a folder of candidates holds: every finished shard with the hashes of its files.

Files:
    job.json          what was asked, and when: written first, so that a restart continues the same job
    shards.jsonl      one line per finished shard, appended as they finish; gone when the job is done
    candidates.json   counts, and every file with rows, bytes and sha256: written last, its presence means "complete"
    report.json       how the last call went: seconds, users per second, by shard

A restart believes no file that is not on the list with its hash: a shard that was changed, cut or lost afterwards is
written again. But for ``report.json``, and for ``run_id`` and ``scored_at``, which name the job, a folder does not tell
how often its job was interrupted.
"""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.contracts.contents import FileEntry, check_files
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import read_json, write_json

logger = logging.getLogger("recsys.serving")

JOB_FILE: Final = "job.json"
LEDGER_FILE: Final = "shards.jsonl"
DONE_FILE: Final = "candidates.json"
REPORT_FILE: Final = "report.json"


class ShardRecord(BaseModel):
    """A finished shard.

    Attributes:
        shard: Name of the part file.
        files: The part and what lies beside it.
        counts: Of users, rows and shortfalls.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    shard: str
    files: tuple[FileEntry, ...]
    counts: dict[str, int]


class Contents(BaseModel):
    """The list of a complete folder: ``candidates.json``."""

    model_config = ConfigDict(frozen=True, extra="allow")

    shard_records: tuple[ShardRecord, ...]


@dataclass(frozen=True)
class Ledger:
    """The list of finished shards of one folder."""

    folder: Path

    @property
    def is_complete(self) -> bool:
        """Whether the job says that it is done."""
        return (self.folder / DONE_FILE).exists()

    def intact(self, names: Sequence[str]) -> dict[str, ShardRecord]:
        """Records of the shards whose files are there as they were written; the others are named in the log.

        Args:
            names: Part files of the job.
        """
        good = {}
        for record in self._records():
            if record.shard not in names:
                continue
            try:
                check_files(self.folder, record.files, whole=False)
            except ArtifactError as error:
                logger.warning("recommend: shard %s is written again: %s", record.shard, _cause(error))
                continue
            good[record.shard] = record
        return good

    def reopen(self, good: Mapping[str, ShardRecord]) -> None:
        """Go on from these shards: the folder is not complete until :meth:`close`."""
        text = "".join(record.model_dump_json() + "\n" for record in good.values())
        temporary = self.folder / f".{LEDGER_FILE}.part"
        with temporary.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(self.folder / LEDGER_FILE)
        (self.folder / DONE_FILE).unlink(missing_ok=True)

    def add(self, record: ShardRecord) -> None:
        """Note a finished shard; a line that a kill cut short counts for nothing."""
        with (self.folder / LEDGER_FILE).open("a", encoding="utf-8") as handle:
            handle.write(record.model_dump_json() + "\n")
            handle.flush()
            os.fsync(handle.fileno())

    def close(self, records: Sequence[ShardRecord]) -> dict[str, Any]:
        """Say that the job is done; returns its counts."""
        counts = total(records)
        lines = [record.model_dump(mode="json") for record in records]
        write_json(self.folder / DONE_FILE, {**counts, "shard_records": lines})
        (self.folder / LEDGER_FILE).unlink(missing_ok=True)
        return counts

    def _records(self) -> list[ShardRecord]:
        if self.is_complete:
            try:
                return list(read_contents(self.folder).shard_records)
            except ArtifactError as error:
                logger.warning("recommend: all shards are written again: %s", error)
                return []
        path = self.folder / LEDGER_FILE
        if not path.exists():
            return []
        found = []
        for line in path.read_bytes().splitlines():
            try:
                found.append(ShardRecord.model_validate_json(line))
            except ValidationError:
                logger.warning("recommend: a line of '%s' is damaged; its shard is written again", path)
        return found


def read_contents(folder: Path) -> Contents:
    """Read the list of a complete folder; no hash is compared.

    Raises:
        ArtifactError: There is none, or it is no such list.
    """
    if not (folder / DONE_FILE).exists():
        raise ArtifactError(
            f"'{folder}' holds no {DONE_FILE}: it is no folder of candidates, or its job has not finished; run the same "
            "`recsys recommend` again, which continues it"
        )
    try:
        return Contents.model_validate(read_json(folder / DONE_FILE))
    except ValidationError as error:
        raise ArtifactError(
            f"'{folder / DONE_FILE}' is no list of candidates with hashes ({error.error_count()} faults, first: "
            f"{error.errors()[0]['msg']}); run the same `recsys recommend` again, or into another folder"
        ) from error


def verify_candidates(folder: Path) -> dict[str, Any]:
    """Compare every file of a complete folder of candidates with its list; whoever reads the table may call it before.

    Returns:
        The counts of the job.

    Raises:
        ArtifactError: The job has not finished, or a file is missing, has changed, or belongs to no shard.
    """
    contents = read_contents(folder)
    entries = [entry for record in contents.shard_records for entry in record.files]
    try:
        check_files(folder, entries, whole=False)
    except ArtifactError as error:
        raise ArtifactError(
            f"candidates: {_cause(error)}; the same `recsys recommend` writes that shard again"
        ) from error
    listed = {entry.path for entry in entries}
    strays = sorted(path.name for path in folder.glob("*.parquet") if path.name not in listed)
    if strays:
        raise ArtifactError(f"candidates: '{folder / strays[0]}' belongs to no shard of this job; take it away")
    return total(contents.shard_records)


def _cause(error: ArtifactError) -> str:
    """What is wrong with a file, without the advice for artefacts of stages."""
    return str(error).partition("; delete")[0]


def total(records: Sequence[ShardRecord]) -> dict[str, Any]:
    """Add up the counts of shards."""
    summed: Counter[str] = Counter()
    for record in records:
        summed.update(record.counts)
    users = summed["users"]
    return {
        **summed,
        "shards": len(records),
        "rows_per_user": float(np.round(summed["rows"] / users, 3)) if users else 0.0,
    }
