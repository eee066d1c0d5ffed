"""A bundle, opened, and how it answers a request: search, second stage, reasons for what is missing.

The batch job, the registered model, the gate and the parity check all go through here. What may be asked is decided in
:mod:`serving.inputs.request`, what an answer looks like as a table in :mod:`serving.answers.frame`.
"""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Final

import polars as pl
import torch

from recsys.config import validate
from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError
from recsys.contracts.event_times import NumberUnit
from recsys.contracts.manifest import read_json
from recsys.contracts.ranking import RankedItems
from recsys.data.histories import Histories
from recsys.data.words import WordList
from recsys.decoding.answers import refuse_non_finite
from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import ItemScores, Recommender
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules
from recsys.decoding.rules.shortfall import explain_shortfalls
from recsys.model.checkpoint import load_policy
from recsys.reward.scoring import SessionScorer
from recsys.runtime import PlainProgress
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.frame import Answer, answer_frame
from serving.answers.ranker import open_recommender
from serving.answers.second_stage import REWARD_FOLDER, best_items, best_sessions, item_rewards, open_reward_model
from serving.answers.sessions import RankedSessions, explain_short_sessions
from serving.bundle.catalogue import Catalogue, read_catalogue
from serving.bundle.layout import RANKER_FOLDER, BundleInfo, read_info
from serving.config import AnswerOptions
from serving.inputs.history_frame import MappedHistories, map_frame
from serving.inputs.request import UNSEEN_ITEMS, Request, ServedModel
from serving.inputs.rules.personal_items import denied_in_rows
from serving.inputs.user_histories import MappedUsers, UserHistories

logger = logging.getLogger("recsys.serving")

_SILENT: Final = PlainProgress(every_s=float("inf"))
"""A caller that scores in shards shows its own progress."""


class Scorer:
    """A bundle, opened.

    Attributes:
        info: What the bundle says about itself.
        catalogue: Outside ids of the model's indices.
        recommender: Policy, prefix index, beam search, and where the bundle has one the ranker of the candidates.
        reward_model: Evaluate of the second stage; ``None`` where the bundle has none.
        model: What a request has to know of all this.
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
        spec = recommender.policy.spec
        words = None if spec.model.words is None else WordList(spec.words, spec.model.words.longest)
        self.model = ServedModel(info.name, catalogue, spec.objectives, reward_model is not None, words)

    @classmethod
    def open(
        cls,
        folder: Path,
        device: torch.device | str = "cpu",
        precision: str | None = None,
        content: str | None = None,
    ) -> Scorer:
        """Open a bundle folder.

        Args:
            device: Where its models go and answer. Away from a GPU a bundle that was exported with ``decode.cuda_graph``
                searches without the record, to the same answers.
            precision: Of decoding; ``None`` takes the bundle's own.
            content: Digest of the content that the folder must have; ``None`` takes any.

        Raises:
            ConfigError: The device cannot do the precision.
            ArtifactError: The folder is no bundle, is damaged, or mixes a model with other semantic IDs or another reward
                model.
        """
        info = read_info(folder, content)
        semantic_ids = SemanticIds.load(folder)
        policy = load_policy(folder / "model", semantic_ids.digest, device)
        values = json.loads(json.dumps(read_json(folder / "decode.json")))
        given = {} if precision is None else {"precision": precision}
        decode = validate(DecodeConfig, {**values, **given}, str(folder / "decode.json"))
        if decode.cuda_graph and torch.device(device).type != "cuda":
            logger.info("%s: recorded searches need a GPU; on %s it searches without the record", info.name, device)
            decode = decode.model_copy(update={"cuda_graph": False})
        index = PrefixIndex.open(folder / "prefix_index")
        reward = _part(folder, info, "reward", REWARD_FOLDER, "reward model")
        reward_model = None if reward is None else open_reward_model(reward, policy)
        ranker = _part(folder, info, "rank", RANKER_FOLDER, "ranker")
        category_I = policy.item_tower.category_I[1:].cpu().numpy()
        catalogue = read_catalogue(folder, info, policy.spec.model.unseen_user_rows, category_I)
        return cls(info, catalogue, open_recommender(policy, semantic_ids, decode, ranker, index), reward_model)

    def request(
        self, users: UserHistories, k: int, rules: ItemRules | None = None, options: AnswerOptions | None = None
    ) -> Request:
        """Ask for ``k`` items or sessions per user; every entrance comes through here.

        Args:
            rules: ``None`` leaves out what a user has seen.

        Raises:
            ConfigError, DataError: As in :class:`~serving.inputs.request.Request`, or a mask or segment does not fit.
        """
        compiled = self.recommender.compile(rules or UNSEEN_ITEMS, len(users))
        return Request(self.model, users, compiled, options or AnswerOptions(), k)

    def answer(self, request: Request, first: int = 0, last: int | None = None) -> Answer:
        """Answer users number ``first`` to ``last`` of a request; without numbers all.

        Raises:
            ArtifactError: The policy or the reward model gives a score that is no finite number.
        """
        asked, rules = request.shard(first, len(request.users) if last is None else last)
        return self.answer_asked(asked, rules, request)

    def answer_asked(self, asked: MappedHistories, rules: CompiledRules, request: Request) -> Answer:
        """Answer any users of a request, in any order.

        Args:
            asked: From :meth:`~serving.inputs.request.Request.shard`, or rows of it.
            rules: Of the same users.

        Raises:
            ArtifactError: As in :meth:`answer`.
        """
        histories, k, options = asked.histories, request.k, request.options
        reward_model = self.reward_model if options.second_stage == "reward" else None
        # the reward model chooses from all that the beam holds
        pool = k if reward_model is None else max(self.recommender.config.beam_width, k)
        guided_by = self.guided_by(options)
        if options.answer == "sessions":
            found, scores = self.recommender.generate(histories, pool, rules, guided_by)
            sessions = RankedSessions(found, scores)
            if reward_model is not None:
                sessions = best_sessions(reward_model, histories, found, k)
                refuse_non_finite(sessions.scores, sessions.items[:, :, 0] >= 0, histories)
            return Answer(asked, sessions, explain_short_sessions(histories, sessions, rules))
        # the pool may have proportionally more of each group than the list that is cut from it
        quotas = rules.quotas.of_pool(k) if rules.quotas is not None else None
        wide = replace(rules, quotas=quotas)
        items = self.recommender.rank(
            histories, pool, wide, rescore=request.rescore, progress=_SILENT, guided_by=guided_by
        )
        if reward_model is not None:
            items = best_items(reward_model, histories, items, k, rules.quotas)
            refuse_non_finite(items.scores, items.items >= 0, histories)
        return Answer(asked, items, explain_shortfalls(histories, items, rules))

    def guided_by(self, options: AnswerOptions) -> ItemScores | None:
        """What guides the search of a request with these options; ``None``: nothing does."""
        if not options.reward_guidance:
            return None
        assert self.reward_model is not None, "a request says so"
        return item_rewards(self.reward_model, len(self.catalogue.item_ids), options.reward_guidance)

    def score_frame(
        self,
        frame: pl.DataFrame,
        k: int,
        rules: ItemRules | None = None,
        options: AnswerOptions | None = None,
        timestamp_unit: NumberUnit = "us",
    ) -> pl.DataFrame:
        """Answer a frame of histories (columns: :mod:`serving.inputs.history_frame`).

        Args:
            timestamp_unit: What numbers in the column ``timestamps`` count.

        Returns:
            Rows of :func:`~serving.answers.frame.answer_frame`, at most ``k`` items or sessions per user.

        Raises:
            ConfigError: The bundle cannot do what is asked.
            DataError: The frame does not keep the form, or has too many rows.
        """
        self.catalogue.limits.check_rows(len(frame), self.info.name)
        reports: set[str] = set()
        if Columns.DENY_ITEM_IDS in frame.columns and len(frame):
            rules = rules or UNSEEN_ITEMS
            own = denied_in_rows(
                frame[Columns.DENY_ITEM_IDS], self.catalogue, frame.get_column(Columns.USER_ID, default=None)
            )
            rules = replace(rules, personal=own.joined(rules.personal))
        mapped = map_frame(frame, self.catalogue, timestamp_unit=timestamp_unit, reports=reports)
        for line in sorted(reports):
            logger.warning("%s", line)
        unknown = int(mapped.num_unknown.sum())
        if unknown:
            logger.warning(
                "%d events of %d users have items that the model does not know; they were left out",
                unknown,
                int((mapped.num_unknown > 0).sum()),
            )
        answer = self.answer(self.request(MappedUsers(mapped), k, rules, options))
        return answer_frame(answer, self.catalogue.item_ids)

    def score_histories(
        self, histories: Histories, k: int, rules: ItemRules | None = None, options: AnswerOptions | None = None
    ) -> RankedItems | RankedSessions:
        """Answer histories that are in the model's indices already.

        Raises:
            ConfigError, DataError: As in :meth:`request`.
        """
        return self.answer(self.request(MappedUsers.from_histories(histories), k, rules, options)).ranked


def _part(folder: Path, info: BundleInfo, digest: str, name: str, what: str) -> Path | None:
    """Folder of a part that a bundle may have; ``None`` where it has none.

    Raises:
        ArtifactError: Its digests name the part and the folder is missing, or the other way round.
    """
    named, found = digest in info.digests, (folder / name).exists()
    if named != found:
        says = ("names a", "holds none") if named else ("names no", "holds one")
        raise ArtifactError(
            f"bundle '{folder}' {says[0]} {what} in its digests and {says[1]} in '{name}'; export again"
        )
    return folder / name if found else None
