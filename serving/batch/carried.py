"""Delta jobs: users of whom nothing has changed keep their rows of an earlier job, the others are answered.

Reads a complete folder of candidates; gives rows and shortfalls of its users. A user is carried over when the number of all
that is asked (:mod:`serving.batch.asked`) is the same: no new event, the same rules for the segment, the same limits. What
has to be the same for all users is the basis (:func:`basis_of`): the bundle, the options, the code that answers, and the
numbers it computes in. Where it is not, nothing is carried over and the reason is said. So the result is that of a full
job, row by row; carried rows keep ``run_id``, ``scored_at`` and ``model_version`` of the job that made them.

A rule that forbids an item changes the search of everybody under that rule, whether the item was listed or not: a beam that
is set free finds another prefix. Such users are all answered; a user of another segment is not.

Legend: N users of a shard, U of the job.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import polars as pl
import torch

from recsys import native
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import digest_of, read_json, sha256_of_file
from serving.answers.scorer import Scorer
from serving.batch.asked import Numbers
from serving.batch.ledger import DONE_FILE, JOB_FILE, read_contents, verify_candidates
from serving.batch.rows import CandidateRows
from serving.batch.shards import ASKED, ShardTables, asked_name, shortfall_name
from serving.bundle.catalogue import index_of
from serving.config import RecommendConfig

HELD: Final = 3
"""Earlier shards kept in memory; users are mostly in the same order as before."""

OPTIONS: Final = {"k", "answer", "second_stage", "objective", "exclude_seen", "rescore", "reward_guidance"}
_WORDS: Final = {
    "bundle": "another model version",
    "decode": "another decode configuration",
    "options": "other options",
    "code": "other code",
    "numbers": "other number formats, threads, libraries or hardware",
}


def basis_of(bundle: Path, scorer: Scorer, config: RecommendConfig) -> dict[str, Any]:
    """What two jobs must share so that a user with the same history and rules has the same answer in both."""
    decode = scorer.recommender.config
    return {
        "bundle": scorer.info.digests,
        "decode": sha256_of_file(bundle / "decode.json"),
        "options": config.model_dump(mode="json", include=OPTIONS),
        "code": code_digest(),
        "numbers": {
            "device": str(scorer.recommender.device.type),
            "precision": decode.precision,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "processor": native.processor(),
            "kernels": native.available(),
        },
    }


@cache
def code_digest() -> str:
    """Hash of the sources that answer: the packages ``recsys`` and ``serving``."""
    roots = [native.FOLDER.parent, Path(__file__).resolve().parents[1]]
    files = [(root, path) for root in roots for path in sorted(root.rglob("*")) if path.suffix in (".py", ".cpp", ".h")]
    return digest_of({f"{root.name}/{path.relative_to(root)}": sha256_of_file(path) for root, path in files})


def newest_candidates(folder: Path) -> Path | None:
    """The complete folder of candidates below ``folder`` that was begun last; ``None``: there is none."""
    complete = [path.parent for path in folder.glob(f"*/{DONE_FILE}") if not path.parent.name.startswith(".")]
    found = [(str(read_json(path / JOB_FILE).get(Columns.SCORED_AT)), path) for path in complete]
    return max(found)[1] if found else None


@dataclass
class EarlierCandidates:
    """An earlier job's folder, opened and verified.

    Attributes:
        folder: Where it is.
        names: Part files.
        user_ids: ``[E]`` its users.
        asked_E: Their numbers.
        shard_E: Which part each is in.
    """

    folder: Path
    names: list[str]
    user_ids: pl.Series
    asked_E: Numbers
    shard_E: npt.NDArray[np.int64]
    _held: OrderedDict[int, tuple[CandidateRows, pl.DataFrame | None]] = field(default_factory=OrderedDict)

    @classmethod
    def open(cls, folder: Path, basis: dict[str, Any]) -> EarlierCandidates | str:
        """Open a folder, or say why nothing can be carried over from it.

        Raises:
            ArtifactError: It is damaged, or no complete folder of candidates.
        """
        contents = read_contents(folder)
        job = read_json(folder / JOB_FILE)
        theirs = job.get("basis", {}) if isinstance(job, dict) else {}
        for key, word in _WORDS.items():
            if theirs.get(key) != basis[key]:
                return f"'{folder}' was made with {word}"
        verify_candidates(folder)
        names = [record.shard for record in contents.shard_records]
        parts = [pl.read_parquet(folder / asked_name(name)) for name in names]
        if not any(map(len, parts)):
            return f"'{folder}' is of no users"
        users = pl.concat(parts)
        shard_E = np.repeat(np.arange(len(parts)), [len(part) for part in parts])
        return cls(folder, names, users[Columns.USER_ID], users[ASKED].to_numpy(), shard_E)

    def places(self, user_ids: pl.Series) -> npt.NDArray[np.int64]:
        """Where users stand here, -1 where they do not."""
        if user_ids.dtype != self.user_ids.dtype:
            return np.full(len(user_ids), -1, np.int64)
        return np.asarray(index_of(user_ids, self.user_ids, "user ids of the earlier job"), np.int64)

    def rows_of(
        self, user_ids: pl.Series, place_N: npt.NDArray[np.int64]
    ) -> tuple[list[CandidateRows], pl.DataFrame | None]:
        """Rows that hold the candidates of some users, others beside them, and these users' shortfalls.

        A part most of whose users are asked for is given as it is, without a copy; of others their rows alone, so that users
        in another order than before do not hold many parts at once.

        Args:
            place_N: Of these users, none of them -1.
        """
        rows, short = [], []
        shard_N = self.shard_E[place_N]
        for shard in np.unique(shard_N).tolist():
            part, lacking = self._shard(shard)
            mine = user_ids.filter(pl.Series(shard_N == shard))
            most = 2 * len(mine) >= np.count_nonzero(self.shard_E == shard)
            rows.append(part if most else part.take(np.flatnonzero(part.user_ids.is_in(mine.implode()))))
            if lacking is not None:
                short.append(lacking.filter(pl.col(Columns.USER_ID).is_in(mine.implode())))
        return rows, pl.concat(short) if short else None

    def _shard(self, number: int) -> tuple[CandidateRows, pl.DataFrame | None]:
        if number not in self._held:
            name = self.names[number]
            lacking = self.folder / shortfall_name(name)
            try:
                part = CandidateRows.from_frame(pl.read_parquet(self.folder / name))
                self._held[number] = (part, pl.read_parquet(lacking) if lacking.exists() else None)
            except (OSError, pl.exceptions.PolarsError) as error:
                raise ArtifactError(
                    f"earlier candidates '{self.folder / name}' cannot be read ({error}); run without --since"
                ) from error
            while len(self._held) > HELD:
                self._held.popitem(last=False)
        self._held.move_to_end(number)
        return self._held[number]


def merged(
    fresh: ShardTables,
    user_ids: pl.Series,
    asked_N: Numbers,
    same_N: npt.NDArray[np.bool_],
    rows: list[CandidateRows],
    short: pl.DataFrame | None,
) -> ShardTables:
    """Put answered and carried users into the order of the shard.

    Args:
        fresh: Tables of the users that were answered.
        user_ids, asked_N: Of all N users of the shard, in order.
        same_N: Who is carried over.
        rows, short: Of these users, from :meth:`EarlierCandidates.rows_of`; others' rows are left out.
    """
    every = [fresh.short] if short is None else [fresh.short, short]
    order = pl.DataFrame({Columns.USER_ID: user_ids})
    return ShardTables(
        rows=_in_order(user_ids, same_N, fresh.rows, rows),
        short=order.join(pl.concat(every), on=Columns.USER_ID, how="inner", maintain_order="left_right").select(
            fresh.short.columns
        ),
        asked=pl.DataFrame({Columns.USER_ID: user_ids, ASKED: asked_N}),
    )


def _in_order(
    user_ids: pl.Series, same_N: npt.NDArray[np.bool_], fresh: CandidateRows, carried: list[CandidateRows]
) -> CandidateRows:
    """Rows of users in the order of ``user_ids``, from ``carried`` where ``same_N`` and else from ``fresh``."""
    every = CandidateRows.joined([fresh, *carried])
    theirs = every.user_ids[len(fresh.user_ids) :]
    run_N = np.empty(len(user_ids), np.int64)
    run_N[~same_N] = index_of(user_ids.filter(pl.Series(~same_N)), fresh.user_ids, "user ids")
    if theirs.equals(user_ids):  # nobody is new, gone or elsewhere, as on most nights
        carried_M = np.flatnonzero(same_N)
    else:
        found_M = index_of(user_ids.filter(pl.Series(same_N)), theirs, "user ids of the earlier job")
        carried_M = found_M.astype(np.int64)
    run_N[same_N] = np.where(carried_M >= 0, carried_M + len(fresh.user_ids), -1)
    return every.take(run_N[run_N >= 0])  # a user without items has no rows
