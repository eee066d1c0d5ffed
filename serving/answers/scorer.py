"""Answers: opens a bundle and ranks items for histories. The registered model and the batch job both go through here."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.config import validate
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import read_json
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import Recommender
from recsys.decoding.rules import ItemRules, Quotas
from recsys.decoding.shortfall import Shortfall, explain_shortfalls
from recsys.model.checkpoint import load_policy
from recsys.reward.scoring import SessionScorer
from recsys.runtime import SilentProgress
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.second_stage import REWARD_FOLDER, best_items, best_sessions, open_reward_model
from serving.answers.sessions import RankedSessions, SessionShortfall, explain_short_sessions, session_rows
from serving.bundle.layout import BundleInfo, Catalogue, read_catalogue, read_info
from serving.config import AnswerKind, SecondStage
from serving.inputs.history_frame import MappedHistories, index_of, map_frame
from serving.inputs.objectives import objective_weights, row_objectives

logger = logging.getLogger("recsys.serving")

NUM_UNKNOWN_ITEMS: Final = "num_unknown_items"
_SILENT: Final = SilentProgress()
"""A caller that scores in shards shows its own progress."""

BoolMask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Rules:
    """Business rules of one call.

    Attributes:
        exclude_seen: Leave out items of the history.
        allow: ``[I]``, the only items that may come, or ``[S, I]`` for S segments of users; ``None`` allows all.
        deny: Items that must not come, same shapes; ``None`` denies none.
        rescore: Order by the dense head; ``None`` as the bundle's decode configuration says, and not by it where a call is
            steered by objective weights, which it is not conditioned on.
        segments: ``[N]`` segment of each history; needed where a mask has segments.
        quotas: At most so many items of one group per user.
    """

    exclude_seen: bool = True
    allow: BoolMask | None = None
    deny: BoolMask | None = None
    rescore: bool | None = None
    segments: npt.NDArray[np.int64] | None = None
    quotas: Quotas | None = None

    @property
    def of_items(self) -> ItemRules:
        """The part that names items."""
        return ItemRules(self.allow, self.deny, self.segments, self.quotas)


@dataclass(frozen=True)
class AnswerOptions:
    """How a call is answered, beside its rules.

    Attributes:
        answer: Ranked items, or whole sessions.
        second_stage: Who orders what was generated: ``none`` the policy, ``reward`` the bundle's reward model.
        objective: Weights by tower for rows that name none themselves; ``None`` asks for nothing in particular.
    """

    answer: AnswerKind = "items"
    second_stage: SecondStage = "none"
    objective: Mapping[str, float] | None = None


class Scorer:
    """A bundle, opened.

    Attributes:
        info: What the bundle says about itself.
        catalogue: Outside ids of the model's indices.
        recommender: Policy, prefix index and beam search.
        reward_model: Evaluate of the second stage; ``None`` where the bundle has none.
    """

    def __init__(
        self,
        info: BundleInfo,
        catalogue: Catalogue,
        recommender: Recommender,
        reward_model: SessionScorer | None = None,
    ) -> None:
        self.info = info
        self.catalogue = catalogue
        self.recommender = recommender
        self.reward_model = reward_model

    @classmethod
    def open(cls, folder: Path) -> Scorer:
        """Open a bundle folder.

        Raises:
            ArtifactError: The folder is no bundle, is damaged, or mixes a model with other semantic IDs or another reward
                model.
        """
        info = read_info(folder)
        semantic_ids = SemanticIds.load(folder)
        policy = load_policy(folder / "model", semantic_ids.digest)
        decode = validate(
            DecodeConfig, json.loads(json.dumps(read_json(folder / "decode.json"))), str(folder / "decode.json")
        )
        index = PrefixIndex.open(folder / "prefix_index")
        named, found = "reward" in info.digests, (folder / REWARD_FOLDER).exists()
        if named != found:
            says = ("names a", "holds none") if named else ("names no", "holds one")
            raise ArtifactError(
                f"bundle '{folder}' {says[0]} reward model in its digests and {says[1]} in '{REWARD_FOLDER}'; export again"
            )
        reward_model = open_reward_model(folder / REWARD_FOLDER, policy) if found else None
        catalogue = read_catalogue(folder, info, policy.spec.model.unseen_user_rows)
        return cls(info, catalogue, Recommender(policy, semantic_ids, decode, index), reward_model)

    @property
    def session_length(self) -> int:
        """Items of a generated session, M."""
        return self.recommender.policy.spec.dataset.session_length

    @property
    def towers(self) -> tuple[str, ...]:
        """Names of the objective weights that the policy takes; empty: it cannot be steered."""
        return self.recommender.policy.spec.objectives

    def check(self, options: AnswerOptions, objectives: pl.Series | None = None, rescore: bool | None = None) -> None:
        """Refuse what this bundle cannot do, before the first user is scored.

        Args:
            objectives: JSON texts that rows give; each different one is enough.
            rescore: As in :class:`Rules`.

        Raises:
            ConfigError: Sessions of a model of single items, a second stage without a reward model, weights that the
                policy does not take, or the dense head's order, which takes none, of a call with weights.
            DataError: The texts are no weights, or lack some.
        """
        dataset = self.recommender.policy.spec.dataset
        if options.answer == "sessions" and dataset.task != "session":
            raise ConfigError(
                f"answer is 'sessions', but model '{self.info.name}' was trained for the task '{dataset.task}' and "
                "generates single items; ask for items, or train with the task 'session'"
            )
        if options.second_stage == "reward" and self.reward_model is None:
            raise ConfigError(
                f"second_stage is 'reward', but the bundle of '{self.info.name}' has no reward model; export it with "
                "export.reward_model=true, or set second_stage to none"
            )
        default = self._default_weights(options)
        if objectives is not None:
            row_objectives(objectives, self.towers, default)
        if _is_steered(options, objectives):
            self._check_order(rescore)

    def _check_order(self, rescore: bool | None) -> None:
        if rescore:
            raise ConfigError(
                f"rescore is true, but an objective is asked of '{self.info.name}': the dense head takes none and would put "
                "items back into the order that nobody asked for; leave rescore out"
            )

    def answer(
        self, mapped: MappedHistories, k: int, rules: Rules | None = None, options: AnswerOptions | None = None
    ) -> RankedItems | RankedSessions:
        """Answer mapped histories: items or sessions, steered and selected as ``options`` says.

        Raises:
            ConfigError, DataError: As in :meth:`check`.
        """
        rules, options = rules or Rules(), options or AnswerOptions()
        self.check(options)
        histories = self._steered(mapped, options)
        if histories.objective is not None:
            self._check_order(rules.rescore)
        if options.answer == "sessions":
            return self.generate_sessions(histories, k, rules, options.second_stage)
        return self.score_histories(histories, k, rules, options.second_stage)

    def score_histories(
        self, histories: Histories, k: int, rules: Rules | None = None, second_stage: SecondStage = "none"
    ) -> RankedItems:
        """Rank items for histories that are in the model's indices already."""
        rules = rules or Rules()
        if histories.objective is not None:
            self._check_order(rules.rescore)
            rules = replace(rules, rescore=False)
        # the reward model chooses from all that the beam holds, which may have proportionally more of each group
        pool = k if second_stage == "none" else max(self.recommender.config.beam_width, k)
        of_items = rules.of_items
        if rules.quotas is not None:
            of_items = replace(of_items, quotas=rules.quotas.widened(-(-pool // k)))
        ranked = self.recommender.recommend(
            histories,
            pool,
            exclude_seen=rules.exclude_seen,
            rules=of_items,
            rescore=rules.rescore,
            progress=_SILENT,
        )
        if second_stage == "none":
            return ranked
        return best_items(self._reward_model(), histories, ranked, k, rules.quotas)

    def generate_sessions(
        self, histories: Histories, k: int, rules: Rules | None = None, second_stage: SecondStage = "none"
    ) -> RankedSessions:
        """Generate ``k`` whole sessions for histories that are in the model's indices already."""
        rules = rules or Rules()
        pool = k if second_stage == "none" else max(self.recommender.config.beam_width, k)
        items, scores = self.recommender.recommend_sessions(
            histories, pool, exclude_seen=rules.exclude_seen, rules=rules.of_items
        )
        if second_stage == "none":
            return RankedSessions(items, scores)
        return best_sessions(self._reward_model(), histories, items, k)

    def shortfalls(
        self, histories: Histories, ranked: RankedItems | RankedSessions, rules: Rules
    ) -> list[Shortfall] | list[SessionShortfall]:
        """Say for every row of an answer with fewer items or sessions than asked what stood in the way."""
        if isinstance(ranked, RankedSessions):
            num_items = len(self.catalogue.item_ids)
            return explain_short_sessions(histories, ranked, rules.of_items, rules.exclude_seen, num_items)
        if not (ranked.items[:, -1] < 0).any():
            return []
        compiled = self.recommender.compile(rules.of_items, rules.exclude_seen)
        return explain_shortfalls(histories, ranked, compiled)

    def score_frame(
        self, frame: pl.DataFrame, k: int, rules: Rules | None = None, options: AnswerOptions | None = None
    ) -> pl.DataFrame:
        """Answer a frame of histories (columns: :mod:`serving.inputs.history_frame`).

        Returns:
            Rows of :meth:`to_frame`, users in the order given, at most ``k`` items or sessions each.

        Raises:
            ConfigError: The bundle cannot do what ``options`` asks.
            DataError: The frame does not keep the form.
        """
        mapped = map_frame(frame, self.catalogue)
        unknown = int(mapped.num_unknown.sum())
        if unknown:
            logger.warning(
                "%d events of %d users have items that the model does not know; they were left out",
                unknown,
                int((mapped.num_unknown > 0).sum()),
            )
        return self.to_frame(mapped.user_ids, self.answer(mapped, k, rules, options), mapped.num_unknown)

    def to_frame(
        self, user_ids: pl.Series, ranked: RankedItems | RankedSessions, num_unknown: npt.NDArray[np.int32]
    ) -> pl.DataFrame:
        """Turn an answer into rows with outside ids; ranks count from 1.

        Returns:
            ``user_id, item_id, rank, score, num_unknown_items``; of sessions ``user_id, session_rank, place, item_id,
            score, num_unknown_items``, one row per place, where the score is the session's.
        """
        if isinstance(ranked, RankedSessions):
            rows = session_rows(user_ids, ranked, self.catalogue.item_ids)
            return rows.with_columns(pl.Series(NUM_UNKNOWN_ITEMS, num_unknown[rows["row"].to_numpy()])).drop("row")
        row, place = np.nonzero(ranked.items >= 0)
        return pl.DataFrame(
            {
                Columns.USER_ID: user_ids.gather(row),
                Columns.ITEM_ID: self.catalogue.item_ids.gather(ranked.items[row, place]),
                Columns.RANK: (place + 1).astype(np.int32),
                Columns.SCORE: ranked.scores[row, place].astype(np.float32),
                NUM_UNKNOWN_ITEMS: num_unknown[row],
            }
        )

    @property
    def category_index(self) -> npt.NDArray[np.int64]:
        """``[I]`` category of each item as the model was trained with it; 0 is "not known"."""
        category_I: npt.NDArray[np.int64] = self.recommender.policy.item_tower.category_I[1:].cpu().numpy()
        return category_I

    def mask(self, item_ids: pl.Series, what: str = "the item list") -> BoolMask:
        """Return ``[I]``: which items of the catalogue are listed; ids the model does not know are counted in the log."""
        index = self.index_of_items(item_ids, what)
        mask = np.zeros(len(self.catalogue.item_ids), bool)
        mask[index[index >= 0]] = True
        return mask

    def index_of_items(self, item_ids: pl.Series, what: str) -> npt.NDArray[np.int32]:
        """Return item_index of each id, -1 (and a count in the log) for ids that the model does not know."""
        index = index_of(item_ids, self.catalogue.item_ids, what)
        if (index < 0).any():
            logger.warning(
                "%s: %d of %d listed items are not in the model's catalogue", what, int((index < 0).sum()), len(index)
            )
        return index

    def _reward_model(self) -> SessionScorer:
        assert self.reward_model is not None, "check() refuses a second stage without a reward model"
        return self.reward_model

    def _default_weights(self, options: AnswerOptions) -> npt.NDArray[np.float32] | None:
        return None if options.objective is None else objective_weights(options.objective, self.towers)

    def _steered(self, mapped: MappedHistories, options: AnswerOptions) -> Histories:
        default = self._default_weights(options)
        if mapped.objectives is None:
            return mapped.histories.with_objective(default)
        return mapped.histories.with_objective(row_objectives(mapped.objectives, self.towers, default))


def _is_steered(options: AnswerOptions, objectives: pl.Series | None) -> bool:
    return options.objective is not None or (objectives is not None and bool(objectives.fill_null("").ne("").any()))
