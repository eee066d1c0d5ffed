"""A recipe's own simulated A/B test: its policies, trained if they are not there yet, and the marks beside them.

Reads a run configuration; produces arms for :func:`~pipelines.simulation.ab_test.run_test`, and what the recipe's reward
models say of the same sessions.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from pipelines.config import RunConfig
from pipelines.engine.runner import Runner
from pipelines.placement import check_placements, say_placement
from pipelines.simulation.reward_agreement import is_gamed, reward_agreement
from pipelines.simulation.users import Sessions, SimulatedUsers, best_by
from pipelines.stages import ALIGN, PREPARE, REWARD, TOKENIZE, TRAIN, stages_of
from recsys.alignment.config import RolloutConfig
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import ArtifactStore
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.device import resolve_device
from recsys.model.checkpoint import load_policy
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.reward.checkpoint import load_reward_model
from recsys.reward.scoring import ModelScorer
from recsys.runtime import PlainProgress, Progress, set_threads
from recsys.semantic_ids.versions import SemanticIds

UNALIGNED: Final = "next-token policy"
ALIGNED: Final = "aligned policy"
LOGGING: Final = "logging policy"
RANDOM_SESSIONS: Final = 4
"""Sessions per user of the arms that draw."""


@dataclass(frozen=True)
class Trial:
    """Policies and reward models of a recipe, and the users who will meet them.

    Attributes:
        policies: By the name of their arm; :data:`UNALIGNED` is always there.
        scorers: ``reward`` and ``held_out``; empty when the recipe trains none.
    """

    users: SimulatedUsers
    semantic_ids: SemanticIds
    policies: Mapping[str, GenerativeRecommender]
    scorers: Mapping[str, ModelScorer]
    decode: DecodeConfig
    seed: int
    progress: Progress

    @classmethod
    def open(cls, config: RunConfig, further: Sequence[str], num_users: int, progress: Progress) -> Trial:
        """Run the recipe's stages up to alignment where they have not run, and open what they made.

        Args:
            further: More policies, ``NAME=FOLDER`` each.
            num_users: Users to take, spread over all of them.

        Raises:
            ConfigError: The source is not the simulator, the task is not sessions, or a name is taken.
            ArtifactError: A folder is missing, or holds a policy of other semantic IDs.
        """
        if config.source.kind != "simulated":
            raise ConfigError(
                f"source.kind is '{config.source.kind}', and only the users of source.kind 'simulated' know what they like; "
                "use a recipe of the simulator, for example pipelines/recipes/simulated_sessions.yaml"
            )
        if config.features.task != "session":
            raise ConfigError(
                f"features.task is '{config.features.task}', and only policies that generate sessions are rolled out "
                "here; use features.task: session"
            )
        stages = stages_of(config)
        aligns = any(stage.name == ALIGN.name for stage in stages)
        more = _further_policies(further, (UNALIGNED, ALIGNED) if aligns else (UNALIGNED,))
        device = resolve_device(config.device)
        set_threads(config.num_threads)
        store = ArtifactStore(config.output_dir / "artifacts")
        runner = Runner(config, config.seed, store, progress, where=say_placement)
        last = max(place for place, stage in enumerate(stages) if stage.name in (TRAIN.name, ALIGN.name))
        check_placements((stage.name for stage in stages[: last + 1]), config)
        runner.run_all(stages[: last + 1])
        folder = {name: outcome.artifact.path for name, outcome in runner.outcomes.items()}
        semantic_ids = SemanticIds.load(folder[TOKENIZE.name])
        users = SimulatedUsers.open(config.source, Dataset.open(folder[PREPARE.name]), config.seed)
        models = {UNALIGNED: folder[TRAIN.name] / "model"}
        if ALIGN.name in folder:
            models[ALIGNED] = folder[ALIGN.name] / "model"
        models |= more
        scorers = {}
        if REWARD.name in folder:
            for name in ("reward", "held_out"):
                scorers[name] = ModelScorer(load_reward_model(folder[REWARD.name] / name, semantic_ids.digest, device))
        return cls(
            users=users.take(np.unique(np.linspace(0, len(users) - 1, num_users).astype(np.int64))),
            semantic_ids=semantic_ids,
            policies={name: load_policy(path, semantic_ids.digest, device) for name, path in models.items()},
            scorers=scorers,
            decode=config.decode,
            seed=config.seed,
            progress=progress,
        )

    @cached_property
    def best_sessions(self) -> dict[str, Sessions]:
        """The session that each policy would serve, ``[N, 1, M]``."""
        return {
            name: self.users.policy_sessions(self._recommender(policy), progress=self.progress)
            for name, policy in self.policies.items()
        }

    def arms(self, beams: int) -> dict[str, Sessions]:
        """All policies, and what they can be held against.

        Args:
            beams: Candidates of the un-aligned policy of which the truth picks one; what picking alone could gain.
        """
        users, seed = self.users, self.seed
        wide = self._recommender(self.policies[UNALIGNED], max(beams, self.decode.beam_width))
        candidates = users.policy_sessions(wide, beams, self.progress)
        # picked by other draws than it is evaluated by, or the luckiest would seem the best
        picked_by = users.truth(candidates, seed=seed + 1).utility
        return {
            **self.best_sessions,
            f"truly best of {beams} beams": best_by(picked_by, candidates),
            LOGGING: users.logging_sessions(RANDOM_SESSIONS, seed),
            "greedy on the truth": users.greedy_sessions(),
            "popularity": users.popular_sessions(seed),
            "random": users.random_sessions(RANDOM_SESSIONS, seed),
        }

    def reward_lines(self, candidates: int) -> list[str]:
        """Say whether the learned rewards agree with the truth, and whether alignment gamed them; empty without them.

        Args:
            candidates: Sessions drawn from the un-aligned policy per user, for the order inside a group.
        """
        if not self.scorers:
            return []
        drawn = self.drawn_sessions(candidates)
        truth = self.users.truth(drawn, seed=self.seed).utility
        exists: npt.NDArray[np.bool_] = np.any(drawn >= 0, axis=2)
        lines = []
        for name, scorer in self.scorers.items():
            group_reward = scorer.reward(self.users.histories, torch.from_numpy(drawn)).numpy()
            lines.append(f"{name}: {reward_agreement(group_reward, truth, exists, seed=self.seed)}")
        before = self.best_sessions[UNALIGNED]
        for arm, after in self.best_sessions.items():
            if arm == UNALIGNED:
                continue
            utility = [self.users.truth(sessions, seed=self.seed).utility[:, 0] for sessions in (before, after)]
            for name, scorer in self.scorers.items():
                level = [self._level(scorer, sessions) for sessions in (before, after)]
                lines.append(f"{arm}, by {name}: {is_gamed(*level, *utility, seed=self.seed)}")
        return lines

    def _level(self, scorer: ModelScorer, sessions: Sessions) -> npt.NDArray[np.float64]:
        """Weighted probabilities of the towers, which mean the same for every policy; 0 for a missing session, ``[N]``."""
        towers = scorer.values(self.users.histories, torch.from_numpy(sessions))[:, 0].nan_to_num(0.0)
        level: npt.NDArray[np.float64] = (towers * scorer.weights).sum(-1).double().numpy()
        return level

    def drawn_sessions(self, count: int) -> Sessions:
        """Draw ``count`` sessions per user from the un-aligned policy, ``[N, count, M]``."""
        policy = self.policies[UNALIGNED]
        sampler = RolloutSampler(
            self.semantic_ids,
            RolloutConfig(strategy="sampling", num_generations=count, exclude_seen=True),
            policy.codes.weight.device,
        )
        nothing = torch.full((len(self.users), self.users.session_length), -1)
        requests = Requests(self.users.histories, nothing)
        generator = torch.Generator().manual_seed(self.seed)
        return sampler.all_items(policy, requests, generator, PlainProgress())[0].cpu().numpy()

    def _recommender(self, policy: GenerativeRecommender, beam_width: int | None = None) -> Recommender:
        decode = self.decode if beam_width is None else self.decode.model_copy(update={"beam_width": beam_width})
        return Recommender(policy, self.semantic_ids, decode)


def _further_policies(texts: Sequence[str], taken: Collection[str]) -> dict[str, Path]:
    """Read ``NAME=FOLDER``."""
    found: dict[str, Path] = {}
    for text in texts:
        name, separator, where = text.partition("=")
        if not separator or not name or name in taken or name in found:
            raise ConfigError(f"--policy '{text}' must be NAME=FOLDER with a new name, for example mine=runs/a/model")
        if not Path(where).is_dir():
            raise ArtifactError(f"--policy {name}: there is no folder '{where}'; give a folder with policy.json")
        found[name] = Path(where)
    return found
