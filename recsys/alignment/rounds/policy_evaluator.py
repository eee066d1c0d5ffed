"""What a policy is worth before and after every round, measured on one fixed sample of validation rows.

Legend: N validation rows, G candidates per row, M items per session, L levels, K codes, T towers.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.config import GuardConfig, RolloutConfig
from recsys.alignment.rewards.reward_set import RewardSet
from recsys.alignment.rollouts.log_probs import level_distributions
from recsys.alignment.rollouts.sampler import Requests, RolloutSampler
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import read_json, write_json
from recsys.data.batch import TrainingBatch, collate_histories
from recsys.data.datamodule import validation_rows
from recsys.decoding.config import DecodeConfig
from recsys.decoding.recommender import Recommender
from recsys.metrics.ranking import coverage, row_metrics
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.reward.scoring import SessionScorer
from recsys.runtime import Progress
from recsys.semantic_ids.versions import SemanticIds

MEASURES_NAME: Final = "measured.json"
ROWS_NAME: Final = "rows.npz"
HR1: Final = "beam_hr@1"
REWARD: Final = "reward"
HELD_OUT_REWARD: Final = "held_out_reward"
KL_TO_START: Final = "kl_to_start"
COVERAGE_AT: Final = 10
_ROWS_PER_PASS: Final = 512
_TINY: Final = 1e-9

Rows = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True)
class Measurement:
    """A policy, measured.

    Attributes:
        values: By name: ``beam_hr@K``, ``beam_recall@K``, ``beam_ndcg@K`` in path-probability order, ``served_*`` in the
            dense head's order, ``coverage@10``, ``entropy_level_1`` … in nats, ``kl_to_start`` in nats per item,
            ``reward`` and ``held_out_reward`` (see :class:`PolicyEvaluator`), ``reward_best``, ``held_out_reward_best``,
            ``held_out_reward_<tower>``.
        rows: ``[N]`` per validation row, for what the guard compares.
    """

    values: dict[str, float]
    rows: Rows

    def save(self, folder: Path) -> None:
        """Write ``measured.json`` and ``rows.npz``."""
        np.savez(folder / ROWS_NAME, **self.rows)  # type: ignore[arg-type]
        write_json(folder / MEASURES_NAME, self.values)

    @classmethod
    def load(cls, folder: Path) -> Measurement:
        """Read what :meth:`save` wrote."""
        try:
            with np.load(folder / ROWS_NAME, allow_pickle=False) as archive:
                rows = {name: archive[name] for name in archive.files}
        except (OSError, ValueError) as error:
            raise ArtifactError(f"'{folder / ROWS_NAME}' cannot be read: {error}; run `align` again") from error
        return cls(read_json(folder / MEASURES_NAME), rows)

    def headline(self) -> str:
        """The few figures that go into a log line."""
        shown = [HR1, "beam_ndcg@10", *[n for n in self.values if n.startswith("beam_recall")][-1:]]
        shown += [KL_TO_START, REWARD, HELD_OUT_REWARD]
        return ", ".join(f"{name} {self.values[name]:.4f}" for name in shown if name in self.values)


class PolicyEvaluator:
    """Measures policies on one fixed sample of validation rows.

    Rewards are given as levels that mean the same in every round. A learned reward is, per tower, in standard deviations
    above the start: the mean and deviation of the *start's* candidates are kept and every later round is held against
    them; then the towers are weighed. Other rewards enter as they are. ``reward`` is what is trained on,
    ``held_out_reward`` the held-out model alone; both are means over G generated candidates, ``*_best`` of the best one.

    Args:
        decode: The beam is as wide as it says, or as the largest cut-off.
        reward_set: The rewards that are trained on.
        held_out_reward_model: Held-out model; ``None`` where no reward model is used.

    Raises:
        ConfigError: ``recall_at`` is not below the number of items.
        DataError: The validation split is empty.
    """

    def __init__(
        self,
        dataset: Dataset,
        semantic_ids: SemanticIds,
        start_policy: GenerativeRecommender,
        config: GuardConfig,
        decode: DecodeConfig,
        reward_set: RewardSet,
        held_out_reward_model: SessionScorer | None,
        seed: int,
    ) -> None:
        num_items = dataset.spec.num_items
        if config.recall_at >= num_items:
            raise ConfigError(
                f"align.guard.recall_at is {config.recall_at}, the catalogue holds {num_items} items: every list of that "
                "length holds all of them; choose less"
            )
        self.config, self.seed = config, seed
        self.reward_set, self.held_out_reward_model = reward_set, held_out_reward_model
        self.ks = sorted({1, *(k for k in config.ks if k < num_items)})
        self.num_items = num_items
        sample = validation_rows(dataset, config.users, seed)
        self.targets = sample.targets
        self.requests = Requests.from_targets(dataset, sample.targets)
        self.semantic_ids = semantic_ids
        # the first-stage order is the policy's own; the dense order is measured beside it
        self._decode = decode.model_copy(update={"beam_width": max(decode.beam_width, *self.ks), "rescore": "dense"})
        self._rollouts = RolloutSampler(
            semantic_ids,
            RolloutConfig(num_generations=config.num_generations, exclude_seen=config.exclude_seen),
            start_policy.codes.weight.device,
        )
        self._start_policy = copy.deepcopy(start_policy).eval().requires_grad_(False)

    @property
    def users(self) -> npt.NDArray[np.int32]:
        """Whose row it is, ``[N]``: the unit of the bootstrap."""
        return self.targets.user_index

    def measure(self, policy: GenerativeRecommender, start: Measurement | None, progress: Progress) -> Measurement:
        """Measure a policy.

        Args:
            start: What the start measured, for the scale of learned rewards; ``None``: this is the start.
        """
        values, rows = self._rankings(policy, progress)
        values |= self._distributions(policy)
        for part_values, part_rows in self._rewards(policy, {} if start is None else start.values, progress):
            values |= part_values
            rows |= part_rows
        return Measurement(values, rows)

    def _rankings(self, policy: GenerativeRecommender, progress: Progress) -> tuple[dict[str, float], Rows]:
        recommender = Recommender(policy, self.semantic_ids, self._decode)
        beam, served = recommender.both_orders(
            self.requests.histories, self.ks[-1], exclude_seen=self.config.exclude_seen, progress=progress
        )
        values: dict[str, float] = {}
        rows: Rows = {}
        for name, ranked in (("beam", beam), ("served", served)):
            metrics = row_metrics(ranked, self.targets, self.ks)
            kept = {f"{name}_{m}": v for m, v in metrics.items() if not m.startswith("mrr")}
            values |= {metric: float(v.mean()) for metric, v in kept.items()}
            if name == "beam":
                rows |= {m: kept[m] for m in (HR1, f"beam_recall@{self.config.recall_at}")}
        values[f"coverage@{COVERAGE_AT}"] = coverage(beam, COVERAGE_AT, self.num_items)
        return values, rows

    @torch.no_grad()
    def _distributions(self, policy: GenerativeRecommender) -> dict[str, float]:
        """Softmax entropy per level and divergence from the start, along the prefixes of what users really took next."""
        device = policy.codes.weight.device
        entropy, kl = np.zeros(policy.num_levels), 0.0
        for block in self.requests.blocks(_ROWS_PER_PASS, policy.spec.model.max_history):
            part = self.requests.take(block)
            history = collate_histories(part.histories, policy.spec.model.max_history).to(device)
            first_item = part.targets_NM[:, None, :1].to(device) + 1
            batch = TrainingBatch(history, first_item, history.lengths_B[:, None].contiguous())
            now = level_distributions(policy, batch)
            before = level_distributions(self._start_policy, batch)
            for level, (log_p, log_q) in enumerate(zip(now, before, strict=True)):
                p = log_p.exp()
                entropy[level] -= float((p * log_p).sum())
                kl += float((p * (log_p - log_q)).sum())
        values = {f"entropy_level_{level + 1}": float(e) / len(self.requests) for level, e in enumerate(entropy)}
        return {**values, KL_TO_START: kl / len(self.requests)}

    def _rewards(
        self, policy: GenerativeRecommender, start: Mapping[str, float], progress: Progress
    ) -> list[tuple[dict[str, float], Rows]]:
        """Reward of generated candidates, by what is trained on and by the held-out reward model."""
        total = np.zeros((len(self.requests), self._rollouts.config.num_generations))
        generator = torch.Generator().manual_seed(self.seed)
        rules = self.reward_set.without_learned()
        blocks = list(self.requests.blocks(self._rollouts.requests_per_batch, policy.spec.model.max_history))
        items = torch.full((*total.shape, policy.spec.dataset.session_length), -1)
        for block in progress.track(blocks, "rewards", len(blocks)):
            part = self.requests.take(block)
            group = self._rollouts.roll_out(policy, part, generator)
            items[torch.from_numpy(block)] = group.items.cpu()
            if rules is not None:
                value = rules.for_histories(part.histories)(group)
                total[block] = (value.mean(-1) if value.ndim == 3 else value).cpu().numpy()
        exists = (items >= 0).any(-1).numpy()
        measured: list[tuple[dict[str, float], Rows]] = []
        values: dict[str, float] = {}
        if self.reward_set.learned is not None and "learned" in self.reward_set.weights:
            level, values = self._level(self.reward_set.learned, REWARD, items, exists, start)
            total += self.reward_set.weights["learned"] * level
        measured.append(_summary(REWARD, total, exists, values))
        if self.held_out_reward_model is not None:
            level, values = self._level(self.held_out_reward_model, HELD_OUT_REWARD, items, exists, start)
            measured.append(_summary(HELD_OUT_REWARD, level, exists, values))
        return measured

    def _level(
        self,
        scorer: SessionScorer,
        name: str,
        items_NGM: torch.Tensor,
        exists_NG: npt.NDArray[np.bool_],
        start: Mapping[str, float],
    ) -> tuple[npt.NDArray[np.float64], dict[str, float]]:
        """Weighted sum of towers in standard deviations above the start, ``[N, G]``, and the towers' own means."""
        towers = scorer.values(self.requests.histories, items_NGM).double().numpy()
        level = np.zeros(exists_NG.shape)
        values: dict[str, float] = {}
        for place, (tower, weight) in enumerate(zip(scorer.towers, scorer.weights.tolist(), strict=True)):
            column = towers[..., place]
            here = column[exists_NG]
            mean = start.get(f"{name}_{tower}", float(here.mean()))
            deviation = start.get(f"{name}_{tower}_deviation", float(here.std()))
            values |= {f"{name}_{tower}": float(here.mean()), f"{name}_{tower}_deviation": float(here.std())}
            level += weight * np.where(exists_NG, (column - mean) / max(deviation, _TINY), 0.0)
        return level, values


def _summary(
    name: str, level_NG: npt.NDArray[np.float64], exists_NG: npt.NDArray[np.bool_], values: dict[str, float]
) -> tuple[dict[str, float], Rows]:
    count = exists_NG.sum(1)
    per_row = np.where(exists_NG, level_NG, 0.0).sum(1) / np.maximum(count, 1)
    best = np.where(count > 0, np.where(exists_NG, level_NG, -np.inf).max(1), 0.0)
    return {name: float(per_row.mean()), f"{name}_best": float(best.mean()), **values}, {name: per_row}
