"""Roll-outs: the group of candidates that a policy generates for a request, with the request's own target beside it.

Reads a policy, histories and the items that really followed; produces a
:class:`~recsys.alignment.rewards.functions.RolloutGroup`. A group is one constrained beam by default: G distinct legal
candidates, best first, which are at the same time the policy's hardest negatives. Plain and dynamic sampling are there
for comparison. The target travels with its request, row by row; it is never looked up by history, which is ambiguous in
3 to 4 % of the rows of public data.

Legend: B users, G candidates per user, M items per session, L levels.

Source: OneRec (arXiv 2502.18965) Alg. 2; ReRe (arXiv 2510.12211) and its public code for dynamic sampling and the
ground-truth row.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from recsys.alignment.config import RolloutConfig
from recsys.alignment.rewards.functions import RolloutGroup
from recsys.alignment.rollouts.constrained_sampling import ConstrainedSampler
from recsys.alignment.rollouts.log_probs import candidate_log_probs
from recsys.alignment.rollouts.lost_targets import search_for_targets
from recsys.contracts.dataset import Dataset, Targets
from recsys.data.batch import HistoryBatch, collate_histories, pad_ragged
from recsys.data.histories import Histories
from recsys.decoding.beam_search import DenseGuidance, beam_search
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.rules.constraints import CompiledRules
from recsys.decoding.rules.item_rules import ItemRules
from recsys.decoding.search_index import SearchIndex
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.runtime import Progress
from recsys.semantic_ids.versions import SemanticIds

DYNAMIC_DRAWS = 1.5
"""Draws per place of a group in dynamic sampling, as in ReRe's code."""


@dataclass(frozen=True)
class Requests:
    """Histories to answer, and what the users took next.

    Attributes:
        histories: N rows.
        targets_NM: int64 item_index in order of time, -1 where a session is shorter than M.
    """

    histories: Histories
    targets_NM: torch.Tensor

    def __len__(self) -> int:
        return len(self.histories)

    def take(self, rows: npt.NDArray[np.integer]) -> Requests:
        """Return the rows given by number, in that order."""
        return Requests(self.histories.take(rows), self.targets_NM[torch.from_numpy(np.asarray(rows, np.int64))])

    def blocks(self, size: int, max_history: int) -> Iterator[npt.NDArray[np.int64]]:
        """Row numbers in blocks of ``size``, similar history lengths together, because padding is wasted work."""
        order = np.argsort(np.minimum(self.histories.lengths, max_history), kind="stable")
        for start in range(0, len(order), size):
            yield order[start : start + size]

    @classmethod
    def from_targets(cls, prepared: Dataset, targets: Targets) -> Requests:
        """Requests of a prepared data set; sessions longer than ``session_length`` keep their first items."""
        length = prepared.spec.session_length
        starts, ends = targets.item_offsets[:-1], targets.item_offsets[1:]
        rows = pad_ragged(targets.items, starts, ends, length, offset=1) - 1
        return cls(Histories.from_targets(prepared.history, targets), rows)


class RolloutSampler:
    """Generates groups with whatever policy it is handed: a snapshot, or the policy in training.

    Args:
        semantic_ids: Those that the policies were trained with.
        config: Strategy and size of a group.
        device: Where the policies live.
    """

    def __init__(self, semantic_ids: SemanticIds, config: RolloutConfig, device: torch.device | str = "cpu") -> None:
        self.semantic_ids, self.config, self.device = semantic_ids, config, device
        self._index = PrefixIndex.build(semantic_ids.codes, semantic_ids.level_sizes)
        self._search_index = SearchIndex.from_index(self._index, device)
        self._rules = CompiledRules.compile(self._index, ItemRules(), exclude_seen=config.exclude_seen, device=device)
        self._sampler = ConstrainedSampler(self._index, device)

    @property
    def requests_per_batch(self) -> int:
        """Requests answered together: ``rows_per_batch`` bounds the memory."""
        return max(1, self.config.rows_per_batch // self.config.num_generations)

    def roll_out(self, policy: GenerativeRecommender, requests: Requests, generator: torch.Generator) -> RolloutGroup:
        """Generate one group per request, all in one batch.

        Args:
            policy: In evaluation mode; dropout would make a group something else than the policy's best.
            generator: For the sampling strategies; beam search draws nothing.

        Returns:
            The groups, best candidate first; ``history`` holds the collated histories they were generated from.

        Raises:
            ArtifactError: The policy was trained with other semantic IDs.
        """
        history, targets = self._inputs(policy, requests)
        if self.config.strategy == "beam":
            items, scores = self._beam(policy, requests.histories, history)
        else:
            items, scores = self._draws(policy, requests.histories, history, targets, generator)
        if self.config.add_ground_truth:
            items, scores = _with_ground_truth(policy, history, items, scores, targets)
        return _group(policy, history, targets, items, scores, requests.histories)

    def finds_targets(self, policy: GenerativeRecommender) -> bool:
        """Whether :meth:`roll_out_where_found` can be asked for: a plain beam of single items without personal rules."""
        config = self.config
        plain = config.strategy == "beam" and not (config.guided or config.exclude_seen or config.add_ground_truth)
        return plain and policy.spec.dataset.session_length == 1

    def roll_out_where_found(
        self, policy: GenerativeRecommender, requests: Requests
    ) -> tuple[RolloutGroup, torch.Tensor]:
        """Generate the groups that hold their request's target, without finishing the others.

        Returns:
            ``(groups, rows)``: N groups as of :meth:`roll_out`, and the numbers of their requests, int64 ``[N]`` ascending.
        """
        assert self.finds_targets(policy)
        history, targets = self._inputs(policy, requests)
        width = self.config.num_generations
        beams, row_N = search_for_targets(policy, history, self._search_index, width, targets[:, 0])
        row_N = row_N.clone()
        items, scores = _pad_group(beams.items.clone(), beams.scores.clone(), width)
        histories = requests.histories.take(row_N.cpu().numpy())
        return _group(policy, history.take(row_N), targets[row_N], items, scores, histories), row_N

    def _inputs(self, policy: GenerativeRecommender, requests: Requests) -> tuple[HistoryBatch, torch.Tensor]:
        """Collated histories and the targets, on the device."""
        self.semantic_ids.check_same(policy.spec.semantic_id_digest)
        assert not policy.training
        history = collate_histories(requests.histories, policy.spec.model.max_history).to(self.device)
        return history, requests.targets_NM.to(self.device)

    def all_items(
        self, policy: GenerativeRecommender, requests: Requests, generator: torch.Generator, progress: Progress
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Generate groups for any number of requests in bounded memory: ``(items [N, G, M], scores [N, G])`` on the CPU."""
        count, length = self.config.num_generations, policy.spec.dataset.session_length
        items = torch.full((len(requests), count, length), -1)
        scores = torch.full((len(requests), count), -torch.inf)
        blocks = list(requests.blocks(self.requests_per_batch, policy.spec.model.max_history))
        for block in progress.track(blocks, "roll-outs", len(blocks)):
            group = self.roll_out(policy, requests.take(block), generator)
            items[torch.from_numpy(block)] = group.items.cpu()
            scores[torch.from_numpy(block)] = group.scores.cpu()
        return items, scores

    def _beam(
        self, policy: GenerativeRecommender, histories: Histories, history: HistoryBatch
    ) -> tuple[torch.Tensor, torch.Tensor]:
        width, length = self.config.num_generations, policy.spec.dataset.session_length
        guidance = None
        if self.config.guided:
            with torch.no_grad():  # the policy may be in training: its vectors change from step to step
                by_leaf = policy.item_vectors()[1:][self._search_index.item_of_leaf]
            guidance = DenseGuidance(by_leaf, self.config.guidance)
        beams = beam_search(
            policy,
            history,
            self._search_index,
            width,
            rules=self._rules.for_batch(histories, num_items=length),
            num_items=length,
            guidance=guidance,
        )
        # the search runs in inference mode, whose tensors autograd refuses: copies do not
        return _pad_group(beams.items.clone(), beams.log_probs.clone(), width)

    def _draws(
        self,
        policy: GenerativeRecommender,
        histories: Histories,
        history: HistoryBatch,
        targets: torch.Tensor,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size, dynamic = self.config.num_generations, self.config.strategy == "dynamic"
        items, scores = self._sampler.sample(
            policy,
            history,
            int(size * DYNAMIC_DRAWS) if dynamic else size,
            temperature=self.config.temperature,
            generator=generator,
            num_items=policy.spec.dataset.session_length,
            denied=histories.seen_items() if self.config.exclude_seen else None,
        )
        if dynamic:
            picked = torch.stack(
                [_fill_group(row, s, t, size) for row, s, t in zip(items, scores, targets, strict=True)]
            )
            items = items.gather(1, picked[..., None].expand(-1, -1, items.shape[2]))
            scores = scores.gather(1, picked)
        order = scores.argsort(dim=1, descending=True, stable=True)  # rank rewards read a group from best to worst
        return items.gather(1, order[..., None].expand(-1, -1, items.shape[2])), scores.gather(1, order)


def _group(
    policy: GenerativeRecommender,
    history: HistoryBatch,
    targets: torch.Tensor,
    items: torch.Tensor,
    scores: torch.Tensor,
    histories: Histories,
) -> RolloutGroup:
    """Look up the codes."""
    codes_IL = policy.item_tower.codes_IL
    return RolloutGroup(
        items=items,
        target=targets,
        codes=codes_IL[items + 1].masked_fill((items < 0)[..., None], -1),
        target_codes=codes_IL[targets + 1].masked_fill((targets < 0)[..., None], -1),
        scores=scores,
        history=history,
        histories=histories,
    )


def _fill_group(items_DM: torch.Tensor, scores_D: torch.Tensor, target_M: torch.Tensor, size: int) -> torch.Tensor:
    """Choose ``size`` of D draws for one request.

    All copies of the target, then every other candidate once, most frequent first, again and again until the group is full
    (ReRe's dynamic sampling).

    Returns:
        int64 ``[size]`` numbers of draws, repeats possible.

    Example:
        >>> draws = torch.tensor([[4], [2], [4], [9], [7], [7]])  # 7 is the target, 4 came up twice
        >>> _fill_group(draws, torch.zeros(6), torch.tensor([7]), 4).tolist()
        [4, 5, 0, 1]
    """
    draws = [tuple(row) for row in items_DM.tolist()]
    target = tuple(target_M.tolist())
    hits = [number for number, draw in enumerate(draws) if draw == target][:size]
    first: dict[tuple[int, ...], int] = {}
    for number, draw in enumerate(draws):
        first.setdefault(draw, number)
    counts = Counter(draw for draw in draws if draw != target)
    others = [first[d] for d in sorted(counts, key=lambda d: (-counts[d], -float(scores_D[first[d]]), first[d]))]
    fill = others or hits
    repeated = [fill[place % len(fill)] for place in range(size - len(hits))]
    return torch.tensor(hits + repeated, device=items_DM.device)


def _pad_group(items: torch.Tensor, scores: torch.Tensor, size: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Append candidates that do not exist, for a catalogue with fewer than ``size`` of them."""
    missing = size - items.shape[1]
    if missing <= 0:
        return items, scores
    return (
        torch.nn.functional.pad(items, (0, 0, 0, missing), value=-1),
        torch.nn.functional.pad(scores, (0, missing), value=-torch.inf),
    )


@torch.no_grad()
def _with_ground_truth(
    policy: GenerativeRecommender,
    history: HistoryBatch,
    items_BGM: torch.Tensor,
    scores_BG: torch.Tensor,
    targets_BM: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Put the target into the last place of every group that lacks it (the first free place, if there is one)."""
    lacking = ~(items_BGM == targets_BM[:, None]).all(-1).any(1)
    exists = (items_BGM >= 0).any(-1)
    place = torch.where(exists.all(1), items_BGM.shape[1] - 1, (~exists).int().argmax(1))
    here = torch.nn.functional.one_hot(place, items_BGM.shape[1]).bool() & lacking[:, None]
    own_score = candidate_log_probs(policy, history, targets_BM[:, None]).sessions
    return torch.where(here[..., None], targets_BM[:, None], items_BGM), torch.where(here, own_score, scores_BG)
