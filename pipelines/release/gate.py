"""The gate between a new version and the champion: same users, paired comparison, a record of every decision.

Reads per-user results of both versions (or lets the champion answer today's test rows, when it was evaluated on other data);
moves the aliases ``champion`` and ``previous``; appends one JSON file per decision to ``<output_dir>/promotions``.

Order of writes: record, aliases, then the tags that say "evaluated". A kill in between repeats the same moves; a champion
that somebody moved back by hand after a decision stays where it was put.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from recsys.config import FrozenConfig
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, ArtifactStore, write_json
from recsys.device import AUTO, resolve_device

if TYPE_CHECKING:
    import polars as pl

    from serving.registry.model_registry import Registry, Version

logger = logging.getLogger("recsys.pipelines")

Values = npt.NDArray[np.float64]
GATE_AGAINST: Final = "gate_against"


class PromoteConfig(FrozenConfig):
    """When a challenger replaces the champion.

    Attributes:
        metric: Metric of the served ranking with seen items filtered, for example ``ndcg@10``.
        rule: ``not_worse`` passes unless the loss is proven (the whole interval of the difference is below zero) or the
            mean falls by more than ``tolerance``: right for a nightly model, whose gain on one day's rows is mostly
            noise. ``better`` asks for a proven gain (the whole interval above zero).
        tolerance: Share of the champion's mean that ``not_worse`` lets the challenger lose.
        confidence: Of the paired bootstrap interval.
        resamples: Of the bootstrap.
        on_refusal: What `run` does: ``report`` says so and serves the champion, ``fail`` ends with exit code 5. The verb
            `promote` always ends with 5.
    """

    metric: str = Field(default="ndcg@10", pattern=r"^(hr|recall|ndcg|mrr)@\d+$")
    rule: Literal["not_worse", "better"] = "not_worse"
    tolerance: float = Field(default=0.05, ge=0, le=1)
    confidence: float = Field(default=0.95, gt=0.5, lt=1)
    resamples: int = Field(default=1000, ge=100)
    on_refusal: Literal["report", "fail"] = "report"


@dataclass(frozen=True)
class GateDecision:
    """The outcome of one decision.

    Attributes:
        promoted: The challenger is (now) champion.
        reason: One sentence.
        challenger, champion: Version numbers; ``champion`` is the one evaluated against, ``None`` when there was none.
        moved: This call moved aliases.
        numbers: Means, difference and its interval, where there was a comparison.
    """

    promoted: bool
    reason: str
    challenger: str
    champion: str | None
    moved: bool
    numbers: dict[str, float]


def decide(
    challenger: Values, champion: Values, users: npt.NDArray[np.integer], config: PromoteConfig, seed: int
) -> GateDecision:
    """Evaluate two versions on the same rows; version numbers are left empty.

    Args:
        challenger: ``[N]`` metric per row; ``champion`` likewise, same rows in the same order.
        users: ``[N]`` whose row it is.

    Example:
        >>> better, worse = np.ones(50), np.zeros(50)
        >>> decide(better, worse, np.arange(50), PromoteConfig(), seed=1).promoted
        True
        >>> decide(worse, better, np.arange(50), PromoteConfig(), seed=1).promoted
        False
    """
    from recsys.metrics.bootstrap import estimate_means

    (gain,) = estimate_means(
        challenger - champion, users, resamples=config.resamples, seed=seed, confidence=config.confidence
    )
    if config.rule == "better":
        promoted, rule = gain.low > 0, "a proven gain is asked for"
    else:
        limit = -config.tolerance * float(champion.mean())
        promoted, rule = (
            gain.high >= 0 and gain.mean >= limit,
            f"no proven loss, and none beyond {limit:+.4f}, is asked for",
        )
    numbers = {
        "challenger": float(challenger.mean()),
        "champion": float(champion.mean()),
        "difference": gain.mean,
        "low": gain.low,
        "high": gain.high,
    }
    reason = (
        f"{config.metric} {numbers['challenger']:.4f} against {numbers['champion']:.4f}, difference "
        f"{gain.mean:+.4f} [{gain.low:+.4f}, {gain.high:+.4f}] on {len(users)} rows; {rule}"
    )
    return GateDecision(promoted, reason, "", None, moved=False, numbers=numbers)


@dataclass(frozen=True)
class Gate:
    """Evaluates versions of one output folder.

    Attributes:
        registry: Where versions and aliases live.
        store: Where evaluations live.
        output_dir: Gets the audit records.
        config: The rule.
        seed: Of the bootstrap.
        device: Name of the device that a champion answers on, as in a recipe.
    """

    registry: Registry
    store: ArtifactStore
    output_dir: Path
    config: PromoteConfig
    seed: int
    device: str = AUTO

    def decide(self, challenger: Version, evaluation: Artifact, prepared: Artifact) -> GateDecision:
        """Compare a version with the champion and move the aliases when it passes; the first version passes.

        Args:
            evaluation: Evaluation of the challenger.
            prepared: The data it was evaluated on.
        """
        from serving.registry.model_registry import CHAMPION

        champion = self.registry.by_alias(challenger.name, CHAMPION)
        if champion is not None and champion.number == challenger.number:
            return GateDecision(
                True, "it is the champion already", challenger.number, champion.number, moved=False, numbers={}
            )
        if champion is not None and challenger.tags.get(GATE_AGAINST) == champion.number:
            before = challenger.tags.get("gate_verdict", "compared")
            reason = (
                f"compared with version {champion.number} before ({before}): {challenger.tags.get('gate_reason', '')}"
            )
            return GateDecision(False, reason, challenger.number, champion.number, moved=False, numbers={})
        decision = self._compare(challenger, champion, evaluation, prepared)
        self._record(challenger, decision, evaluation)
        self._apply(challenger, champion, decision)
        return decision

    def _compare(
        self, challenger: Version, champion: Version | None, evaluation: Artifact, prepared: Artifact
    ) -> GateDecision:
        if champion is None:
            reason = "there was no champion; the first version becomes it"
            return GateDecision(True, reason, challenger.number, None, moved=True, numbers={})
        ours = served_rows(evaluation.path, self.config.metric)
        users = ours[Columns.USER_ID]
        other = self._evaluation_of(champion, evaluation, prepared)
        if other is not None:
            theirs = served_rows(other.path, self.config.metric)
            if not theirs[Columns.USER_ID].equals(users):
                raise ArtifactError(
                    f"'{other.path}' and '{evaluation.path}' were made from the same data but hold other users; "
                    "delete the older one and run `evaluate` again"
                )
            values = theirs[self.config.metric].to_numpy()
        else:
            logger.info("promote: version %s was evaluated on other data; it answers today's rows now", champion.number)
            values = self._answer_today(champion, evaluation, prepared)
        owner = users.rank("dense").to_numpy().astype(np.int64)
        found = decide(ours[self.config.metric].to_numpy(), values, owner, self.config, self.seed)
        return GateDecision(
            found.promoted, found.reason, challenger.number, champion.number, found.promoted, found.numbers
        )

    def _evaluation_of(self, champion: Version, evaluation: Artifact, prepared: Artifact) -> Artifact | None:
        """The champion's own evaluation, if it is in this store, of the same data and the same split."""
        digest = champion.tags.get("evaluation_digest", "")
        if champion.tags.get("data_digest") != prepared.digest or not digest:
            return None
        found = self.store.find(evaluation.manifest.kind, digest)
        return found if found is not None and split_of(found) == split_of(evaluation) else None

    def _answer_today(self, champion: Version, evaluation: Artifact, prepared: Artifact) -> Values:
        """Let the champion's bundle rank for the rows that the challenger was evaluated on."""
        from recsys.contracts.columns import SPLIT_NAMES
        from recsys.contracts.ranking import RankedItems
        from recsys.metrics.ranking import row_metrics
        from serving.answers.scorer import Scorer
        from serving.bundle.catalogue import index_of
        from serving.inputs.user_histories import MappedUsers, PreparedUsers

        k = int(self.config.metric.rpartition("@")[2])
        # as many places as the challenger was ranked for: they widen the beam, and a narrower one finds less
        places = max(k, *evaluation.manifest.config["evaluate"]["ks"])
        scorer = Scorer.open(self.registry.fetch(champion), resolve_device(self.device))
        users = PreparedUsers(prepared.path, prepared.digest)
        targets = users.prepared.targets(SPLIT_NAMES.index(split_of(evaluation)))
        asked = MappedUsers(users.map_targets(targets, scorer.catalogue))
        ranked = scorer.answer(scorer.request(asked, places)).ranked
        here = index_of(scorer.catalogue.item_ids, users.prepared.items[Columns.ITEM_ID], "the champion's item ids")
        items = np.where(ranked.items >= 0, here[ranked.items], -1).astype(np.int32)
        return row_metrics(RankedItems(items, ranked.scores), targets, [k])[self.config.metric]

    def _record(self, challenger: Version, decision: GateDecision, evaluation: Artifact) -> None:
        folder = self.output_dir / "promotions"
        folder.mkdir(parents=True, exist_ok=True)
        number = len(list(folder.glob("[!.]*.json"))) + 1
        record: dict[str, Any] = {
            **asdict(decision),
            "model": challenger.name,
            "decided_at": datetime.now(UTC).isoformat(timespec="seconds"),
            "evaluation_digest": evaluation.digest,
            "rule": self.config.model_dump(mode="json"),
            "challenger_tags": challenger.tags,
        }
        write_json(folder / f"{number:05d}-{challenger.name}-v{challenger.number}.json", record)

    def _apply(self, challenger: Version, champion: Version | None, decision: GateDecision) -> None:
        from serving.registry.model_registry import CHAMPION, PREVIOUS

        if decision.promoted:
            if champion is not None:
                self.registry.set_alias(champion, PREVIOUS)
            self.registry.set_alias(challenger, CHAMPION)
        against = "none" if champion is None else champion.number
        tags = {
            "gate_verdict": "pass" if decision.promoted else "refused",
            "gate_reason": decision.reason,
            GATE_AGAINST: against,
        }
        self.registry.set_tags(challenger, tags)


def served_rows(folder: Path, metric: str) -> pl.DataFrame:
    """Read ``user_id`` and one metric of the served ranking, seen items filtered, in the order of the test rows.

    Raises:
        ArtifactError: The table is missing or damaged, or the evaluation has no such system or metric.
    """
    import polars as pl

    from recsys.contracts.table_checks import check_file_types, check_table
    from recsys.contracts.tables import PerUserTable
    from recsys.evaluation.rankings import SERVED

    path = folder / "per_user.parquet"
    remedy = "run `evaluate` again"
    check_file_types(path, PerUserTable, remedy)
    table = pl.scan_parquet(path, glob=False)
    if metric not in table.collect_schema().names():
        raise ArtifactError(
            f"'{folder}' was evaluated without '{metric}'; set promote.metric or evaluate.ks so that they fit"
        )
    served = table.filter((pl.col(Columns.SYSTEM) == SERVED) & pl.col(Columns.EXCLUDE_SEEN)).collect()
    check_table(served, PerUserTable, path, remedy)
    rows = served.select(Columns.USER_ID, metric)
    if not len(rows):
        raise ArtifactError(f"'{folder}' holds no rows of '{SERVED}'; run `evaluate` again")
    return rows


def split_of(evaluation: Artifact) -> str:
    """Name of the split that an evaluation evaluated."""
    return str(evaluation.manifest.config["evaluate"]["split"])
