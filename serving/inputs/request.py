"""What is asked of a model: users, rules, options and a number of answers, validated here and nowhere else.

Every entrance makes a :class:`Request`, by :meth:`~serving.answers.scorer.Scorer.request`: the batch job, the registered
model, a frame of histories, the gate and the parity check. One that exists can be answered.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import polars as pl

from recsys.contracts.errors import ConfigError
from recsys.data.words import WordList
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules
from serving.bundle.catalogue import Catalogue
from serving.config import AnswerOptions
from serving.inputs.history_frame import MappedHistories
from serving.inputs.objectives import FloatArray, objective_weights, row_objectives
from serving.inputs.sentences import row_words
from serving.inputs.user_histories import UserHistories

MOST_GUIDED_ITEMS: Final = 1 << 16
"""Largest catalogue whose search the reward model may guide."""

UNSEEN_ITEMS: Final = ItemRules(exclude_seen=True)
"""The rules of a request that names none."""


@dataclass(frozen=True)
class ServedModel:
    """What a request has to know of the model that answers it.

    Attributes:
        name: Registered name.
        catalogue: Outside ids of the model's indices, and what it was trained on.
        towers: Names of the objective weights that the policy takes; empty: it cannot be steered.
        has_reward_model: The bundle can select by reward.
        words: What the policy reads of sentences; ``None``: nothing.
    """

    name: str
    catalogue: Catalogue
    towers: tuple[str, ...]
    has_reward_model: bool
    words: WordList | None = None


@dataclass(frozen=True)
class Request:
    """Users with their histories, the rules, how to answer, and how often.

    Attributes:
        model: What answers.
        users: U users.
        rules: Of the same U users, compiled for the model's catalogue.
        options: Items or sessions, and who orders them.
        k: Items or sessions per user.

    Raises:
        ConfigError: Sessions of a model of single items, a second stage or guidance without a reward model, weights that the
            policy does not take, options that contradict each other, or ``k`` below 1 or above the bundle's limit.
        DataError: Texts of the users' rows are no weights, or lack some; they say something that the policy does not read.
    """

    model: ServedModel
    users: UserHistories
    rules: CompiledRules
    options: AnswerOptions
    k: int

    def __post_init__(self) -> None:
        spec = self.model.catalogue.spec
        if self.options.answer == "sessions" and spec.task != "session":
            raise ConfigError(
                f"answer is 'sessions', but model '{self.model.name}' was trained for the task '{spec.task}' and generates "
                "single items; ask for items, or train with the task 'session'"
            )
        if self.options.second_stage == "reward" and not self.model.has_reward_model:
            raise ConfigError(
                f"second_stage is 'reward', but the bundle of '{self.model.name}' has no reward model; export it with "
                "export.reward_model=true, or set second_stage to none"
            )
        if self.options.reward_guidance:
            if not self.model.has_reward_model:
                raise ConfigError(
                    f"reward_guidance is {self.options.reward_guidance:g}, but the bundle of '{self.model.name}' has no "
                    "reward model; export it with export.reward_model=true, or set reward_guidance to 0"
                )
            if spec.num_items > MOST_GUIDED_ITEMS:
                raise ConfigError(
                    f"reward_guidance evaluates every item for every user, and '{self.model.name}' knows {spec.num_items}, "
                    f"at most {MOST_GUIDED_ITEMS} are; use second_stage: reward, which evaluates the beam alone"
                )
        default = self._default_weights()
        if self.users.objectives is not None:
            row_objectives(self.users.objectives.unique(maintain_order=True), self.model.towers, default)
        if self.users.sentences is not None:
            row_words(self.users.sentences.unique(maintain_order=True), self.model.words, reports=True)
        self.options.check(self.k, steered=self.is_steered)
        self.model.catalogue.limits.check_k(self.k, self.model.name)

    @property
    def is_steered(self) -> bool:
        """Whether objective weights are asked for, by the options or by the rows."""
        return self.options.objective is not None or self.users.objectives is not None

    @property
    def rescore(self) -> bool | None:
        """Whether the dense head orders items; ``None``: the bundle's ranker, or what its decode configuration says."""
        return False if self.is_steered or self.options.reward_guidance else self.options.rescore

    def shard(self, first: int, last: int) -> tuple[MappedHistories, CompiledRules]:
        """Users number ``first`` to ``last`` in the model's indices, each with its objective weights, and their rules."""
        asked = self.users.shard(first, last, self.model.catalogue)
        # the form follows from all users: shards in which nobody says anything are asked together with others
        nothing = pl.Series([None] * len(asked.user_ids), dtype=pl.String)
        weights = self._default_weights()
        if self.users.objectives is not None:
            texts = nothing if asked.objectives is None else asked.objectives
            weights = row_objectives(texts, self.model.towers, weights)
        histories = asked.histories.with_objective(weights)
        if self.users.sentences is not None:
            texts = nothing if asked.sentences is None else asked.sentences
            histories = histories.with_words(row_words(texts, self.model.words))
        return replace(asked, histories=histories), self.rules.take(np.arange(first, last))

    def _default_weights(self) -> FloatArray | None:
        asked = self.options.objective
        return None if asked is None else objective_weights(asked, self.model.towers)
