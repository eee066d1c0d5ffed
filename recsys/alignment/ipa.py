"""Iterative preference alignment: OneRec's loop of snapshot, pairs and joint training.

A round takes the policy as it is for its snapshot M_t, lets it answer a share of the round's requests with a beam, has the
candidates evaluated, and keeps pairs together with the snapshot's log-probabilities. Then every sample of the round trains
the next-token loss, and those with a pair the preference loss too. The snapshot is sampler and reference of its round, and
is needed no more once the pairs are written.

Source: OneRec (arXiv 2502.18965), Alg. 2, eq. 8-10. beta, lambda, rounds and samples are unpublished. Departures: pairs are
made before the round's updates, not between them, which is the same because M_t is frozen meanwhile; dropout is off; the
next-token loss is the mean over items where eq. 4 sums over a session, unless ``supervised.session_reduction`` is ``sum``:
with the mean, lambda counts as many times more as a session has items.

Legend: B samples of a batch, G candidates, N negatives, Q pairs, M items per session.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.config import IpaConfig
from recsys.alignment.losses.config import CurriculumConfig
from recsys.alignment.losses.curriculum import curriculum_weights, pair_gap
from recsys.alignment.losses.preference import PreferenceLogProbs, preference_loss
from recsys.alignment.losses.preference_pairs import PreferencePairs, choose_pairs, gather_candidates
from recsys.alignment.rewards.functions import RolloutGroup
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.disliked_items import NOTHING, DislikedItems, with_last_item
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.request_stream import RequestStream, seeded
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.alignment.rounds.learner import Learner, TargetPass, supervised_loss
from recsys.alignment.rounds.loop import CarriesNothing, RoundWork
from recsys.alignment.rounds.store import load_tensors, save_tensors
from recsys.contracts.columns import TRAIN
from recsys.contracts.errors import ConfigError
from recsys.data.batch import collate_histories
from recsys.runtime import Progress

PAIRS_NAME: Final = "pairs.safetensors"
REQUESTS_PER_FILE: Final = 2048
"""Requests whose pairs are written together: what a kill can cost while pairs are made."""


@dataclass
class IterativePreferenceAlignment(CarriesNothing):
    """OneRec's loop as a method of :mod:`recsys.alignment.rounds.loop`.

    Attributes:
        stream: Training samples, by step.
        sampler: Generates the candidates.
        reward_set: Evaluates them.
        seed: Of the choice of requests and of random negatives.
    """

    config: IpaConfig
    learner: Learner
    stream: RequestStream
    sampler: RolloutSampler
    reward_set: RewardSet
    seed: int

    @property
    def num_rounds(self) -> int:
        """Rounds at most."""
        return self.config.rounds

    @property
    def steps_per_round(self) -> int:
        """Updates of one round."""
        return self.stream.steps_for(self.config.samples_per_round)

    def train(self, work: RoundWork) -> dict[str, Any]:
        """Make or read the pairs, then train on all samples of the round; without a preference loss on the samples alone."""
        first = (work.number - 1) * self.steps_per_round
        batches = [self.stream.rows(first + step) for step in range(self.steps_per_round)]
        pairs, num_requests = self._pairs(work, np.concatenate(batches))
        starts = np.concatenate([[0], np.cumsum([len(rows) for rows in batches])])
        steps = range(work.first_step, self.steps_per_round)
        for step in work.progress.track(steps, f"round {work.number}", len(steps)):
            weights_Q = pair_weights(pairs, self.config.curriculum, step / self.steps_per_round)
            here = (pairs.position_Q >= starts[step]) & (pairs.position_Q < starts[step + 1])
            self._update(work, batches[step], pairs.take(here), weights_Q[here])
            work.checkpoint(step + 1)
        dislikes = int(pairs.disliked_Q.sum())
        return {
            "requests": num_requests,
            "pairs": len(pairs),
            "dislike_pairs": dislikes,
            "skipped_indistinguishable": num_requests - (len(pairs) - dislikes),
            "reward_gap": float(pairs.reward_gap_Q.mean()) if len(pairs) else 0.0,
            "samples": int(starts[-1]),
        }

    def keep(self, folder: Path, work: RoundWork) -> None:
        """Keep the pairs."""
        shutil.copyfile(work.scratch / PAIRS_NAME, folder / PAIRS_NAME)

    def _update(
        self, work: RoundWork, rows: npt.NDArray[np.int64], pairs: PreferencePairs, weights_Q: torch.Tensor
    ) -> None:
        """One batch: next-token loss of all its samples plus lambda times the preference loss of those with a pair."""
        config, device = self.config, self.learner.device
        terms: list[torch.Tensor] = []
        figures: dict[str, float] = {}
        if config.supervised.weight > 0:
            batch = self.stream.collate(rows).to(device)
            with self.learner.mixed():
                targets = TargetPass.of(self.learner.policy, batch)
                supervised = supervised_loss(self.learner.policy, targets, config.supervised)
            terms.append(config.supervised.weight * supervised)
            figures["supervised"] = supervised.item()
        if len(pairs):
            loss, preference_figures = self._preference(pairs.to(device), weights_Q.to(device), work.smaller_steps.loss)
            share = len(pairs) / len(rows) if config.preference_reduction == "batch" else 1.0
            terms.append(config.preference_weight * work.smaller_steps.weight * share * loss)
            figures |= preference_figures
        if not terms:  # no pair in this batch, and no other loss
            work.curve.count(steps_without_loss=1)
            return
        step, rate = self.learner.step, self.learner.learning_rate
        norm = self.learner.update(torch.stack(terms).sum())
        work.curve.add(step, gradient_norm=norm, learning_rate=rate, **figures)

    def _preference(
        self, pairs: PreferencePairs, weights_Q: torch.Tensor, gentler: float
    ) -> tuple[torch.Tensor, dict[str, float]]:
        """Mean preference loss over the pairs of one batch, weighted by the curriculum, and figures for the curve."""
        policy, loss = self.learner.policy, self.config.loss
        histories = self.stream.samples.histories.take(pairs.row_Q.cpu().numpy())
        if pairs.objective_QO.shape[1]:
            histories = histories.with_objective(pairs.objective_QO.cpu().numpy())
        history = collate_histories(histories, policy.spec.model.max_history).to(self.learner.device)
        with self.learner.mixed():
            scored = candidate_log_probs(policy, history, pairs.candidates_QGM)
        result = preference_loss(
            loss.gentler(gentler),
            _log_probs_of(pairs, scored.sessions, scored.lengths),
        )
        names = ("margin", "accuracy", "chosen_log_ratio", "rejected_log_ratio")
        figures = {"preference": result.loss.item(), **{name: float(getattr(result, name)) for name in names}}
        return (result.per_row * weights_Q).mean(), figures

    def _pairs(self, work: RoundWork, stream_rows: npt.NDArray[np.int64]) -> tuple[PreferencePairs, int]:
        """Make the pairs of a round, or read what an earlier process made; also return how many requests were asked."""
        drawn = np.random.default_rng([self.seed, work.number]).random(len(stream_rows))
        positions = np.flatnonzero(drawn < self.config.preference_share)
        if self.config.preference == "none":
            none = PreferencePairs.empty(self.learner.policy.spec.dataset.session_length)
            save_tensors(work.scratch / PAIRS_NAME, none.tensors())
            return none, 0
        if not len(positions):
            raise ConfigError(
                f"ipa: none of the round's {len(stream_rows)} samples was drawn for a preference pair; raise "
                f"preference_share (now {self.config.preference_share:g}) or samples_per_round"
            )
        whole = load_tensors(work.scratch / PAIRS_NAME)
        if whole is None:
            parts = [
                self._file_of_pairs(work, number, positions[begin : begin + REQUESTS_PER_FILE], stream_rows)
                for number, begin in enumerate(range(0, len(positions), REQUESTS_PER_FILE))
            ]
            whole = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            save_tensors(work.scratch / PAIRS_NAME, whole)
        return PreferencePairs(**whole), len(positions)

    def _file_of_pairs(
        self,
        work: RoundWork,
        number: int,
        positions: npt.NDArray[np.int64],
        stream_rows: npt.NDArray[np.int64],
    ) -> dict[str, torch.Tensor]:
        path = work.scratch / f"pairs-{number:05d}.safetensors"
        tensors = load_tensors(path)
        if tensors is None:
            generator = seeded(self.seed, work.number, number)
            rows = stream_rows[positions]
            requests = self._steered(
                self.stream.requests(rows), np.random.default_rng([self.seed, work.number, number])
            )
            pairs = self.make_pairs(requests, positions, rows, generator, work.progress)
            tensors = pairs.tensors()
            save_tensors(path, tensors)
        return tensors

    def _steered(self, requests: Requests, generator: np.random.Generator) -> Requests:
        """Give every request objective weights of its own, where the policy is to be steered by them."""
        if self.config.objective is None:
            return requests
        towers = self.learner.policy.spec.model.num_objectives
        weights = generator.dirichlet(np.full(towers, self.config.objective.concentration), len(requests))
        return replace(requests, histories=requests.histories.with_objective(weights))

    @torch.no_grad()
    def make_pairs(
        self,
        requests: Requests,
        positions: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        generator: torch.Generator,
        progress: Progress,
    ) -> PreferencePairs:
        """Roll out, score, choose, and score with the snapshot, which is the learner's policy as it is now.

        Args:
            positions, rows: ``[N]`` what the pairs carry as their ``position_Q`` and ``row_Q``, ascending positions.
        """
        policy = self.learner.policy
        parts: list[PreferencePairs] = []
        blocks = list(requests.blocks(self.sampler.requests_per_batch, policy.spec.model.max_history))
        for block in progress.track(blocks, "preference pairs", len(blocks)):
            part = requests.take(block)
            group = self.sampler.roll_out(policy, part, generator)
            total = self.reward_set.reward(group)
            rewards_BG = total.mean(-1) if total.ndim == 3 else total
            is_target_BG = (group.items == group.target[:, None]).all(-1)
            chosen = choose_pairs(
                rewards_BG,
                group.valid,
                rule=self.config.pair_rule,
                num_negatives=self.config.num_negatives,
                epsilon=self.config.min_reward_gap,
                generator=generator,
                is_target_BG=is_target_BG,
            )
            # the target stands behind the candidates, for the rule that prefers it; its reward there is the rule's, 1 to 0
            items = torch.cat([group.items, group.target[:, None]], dim=1)
            rewards = torch.cat([rewards_BG, torch.ones_like(rewards_BG[:, :1])], dim=1)
            if self.config.pair_rule == "target_rest":
                rewards[:, :-1] = 0.0
            places = torch.cat([chosen.chosen_B[:, None], chosen.rejected_BN], dim=1)
            picked = gather_candidates(items, places)
            reference = self._snapshot_log_probs(group, picked, places, chosen.has_pair)
            reward = rewards.gather(1, places.clamp(min=0)).masked_fill(places < 0, 0.0)
            found = PreferencePairs(
                position_Q=torch.from_numpy(positions[block]),
                row_Q=torch.from_numpy(rows[block]),
                chosen_QM=picked[:, 0].cpu(),
                rejected_QNM=picked[:, 1:].cpu(),
                reward_chosen_Q=reward[:, 0].cpu(),
                reward_rejected_QN=reward[:, 1:].cpu(),
                ref_chosen_Q=reference[:, 0].cpu(),
                ref_rejected_QN=reference[:, 1:].cpu(),
                objective_QO=_objectives(part),
                disliked_Q=torch.zeros(len(block), dtype=torch.bool),
            )
            parts.append(found.take(chosen.has_pair.cpu()))
        if self.disliked is not None:
            parts.append(self._dislike_pairs(self.disliked, requests, positions, rows, parts[0].rejected_QNM.shape[1]))
        together = {name: torch.cat([part.tensors()[name] for part in parts]) for name in parts[0].tensors()}
        return PreferencePairs(**together).take(together["position_Q"].argsort())

    @cached_property
    def disliked(self) -> DislikedItems | None:
        """What users disliked in the train split, where pairs are made of it."""
        wanted = self.config.dislikes
        return None if wanted is None else DislikedItems.from_events(self.stream.prepared, wanted.signals, TRAIN)

    def _dislike_pairs(
        self,
        disliked: DislikedItems,
        requests: Requests,
        positions: npt.NDArray[np.int64],
        rows: npt.NDArray[np.int64],
        width: int,
    ) -> PreferencePairs:
        """Pairs of what users took and what they disliked.

        Args:
            width: N that the other pairs have; one of them is used.
        """
        generator = np.random.default_rng([self.seed, int(positions[0]), int(rows[0])])
        drawn = disliked.draw(requests.histories.user_index, generator)
        named = np.flatnonzero(drawn != NOTHING)
        max_history, device = self.learner.policy.spec.model.max_history, self.learner.device
        pairs_Q2M = torch.stack(
            [
                requests.targets_NM[named],
                with_last_item(requests.targets_NM[named], torch.from_numpy(drawn[named])),
            ],
            dim=1,
        )
        scores_Q2 = torch.zeros(len(named), 2)
        for block in requests.take(named).blocks(self.sampler.requests_per_batch, max_history):
            history = collate_histories(requests.histories.take(named[block]), max_history).to(device)
            with self.learner.mixed():
                scored = candidate_log_probs(self.learner.policy, history, pairs_Q2M[block].to(device))
            scores_Q2[block] = scored.sessions.float().cpu()
        pad = (0, width - 1)
        return PreferencePairs(
            position_Q=torch.from_numpy(positions[named]),
            row_Q=torch.from_numpy(rows[named]),
            chosen_QM=pairs_Q2M[:, 0],
            rejected_QNM=torch.nn.functional.pad(pairs_Q2M[:, 1:], (0, 0, *pad), value=-1),
            reward_chosen_Q=torch.ones(len(named)),
            reward_rejected_QN=torch.zeros(len(named), width),
            ref_chosen_Q=scores_Q2[:, 0],
            ref_rejected_QN=torch.nn.functional.pad(scores_Q2[:, 1:], pad),
            objective_QO=_objectives(requests.take(named)),
            disliked_Q=torch.ones(len(named), dtype=torch.bool),
        )

    def _snapshot_log_probs(
        self, group: RolloutGroup, picked_BNM: torch.Tensor, places_BN: torch.Tensor, has_pair_B: torch.Tensor
    ) -> torch.Tensor:
        """What the snapshot gives the picked candidates, ``[B, N]``; 0 where there is none.

        It generated them, so their scores are known. A target that stands behind the group has to be scored, and in mixed
        precision every candidate, because roll-outs are in float32: as the policy will be scored, so that the log-ratio
        begins at zero.
        """
        if self.config.pair_rule != "target_rest" and self.learner.precision == "32-true":
            return group.scores.gather(1, places_BN.clamp(min=0)).masked_fill(places_BN < 0, 0.0)
        assert group.history is not None
        rows = has_pair_B.nonzero()[:, 0]
        found = torch.zeros(places_BN.shape, device=places_BN.device)
        with self.learner.mixed():
            scored = candidate_log_probs(self.learner.policy, group.history.take(rows), picked_BNM[rows])
        found[rows] = scored.sessions
        return found


def _objectives(requests: Requests) -> torch.Tensor:
    weights = requests.histories.objective
    return torch.empty(len(requests), 0) if weights is None else torch.from_numpy(weights)


def pair_weights(pairs: PreferencePairs, config: CurriculumConfig, progress: float) -> torch.Tensor:
    """Weigh all pairs of a round, ``[Q]``.

    Args:
        progress: Share of the round that is done.
    """
    if config.by == "none" or not len(pairs):
        return torch.ones(len(pairs))
    gap = pair_gap(_log_probs_of(pairs, None, None), config.by)
    return curriculum_weights(gap, progress, start_share=config.start_share, softness=config.softness)


def _log_probs_of(
    pairs: PreferencePairs, sessions_QG: torch.Tensor | None, lengths_QG: torch.Tensor | None
) -> PreferenceLogProbs:
    """Join what the pairs carry with the policy's log-probabilities (``None``: the reference's own)."""
    reference = torch.cat([pairs.ref_chosen_Q[:, None], pairs.ref_rejected_QN], dim=1)
    policy = reference if sessions_QG is None else sessions_QG
    return PreferenceLogProbs(
        chosen=policy[:, 0],
        rejected=policy[:, 1:],
        ref_chosen=pairs.ref_chosen_Q,
        ref_rejected=pairs.ref_rejected_QN,
        rejected_mask=pairs.exists_QN,
        chosen_length=None if lengths_QG is None else lengths_QG[:, 0],
        rejected_length=None if lengths_QG is None else lengths_QG[:, 1:],
        chosen_reward=pairs.reward_chosen_Q,
        rejected_reward=pairs.reward_rejected_QN,
    )
