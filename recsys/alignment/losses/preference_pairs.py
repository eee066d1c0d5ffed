"""Preference pairs: which candidate of a group is preferred to which others.

Reads the rewards of a group (a reward model's, or a rule's); produces numbers of candidates. The paper's choice is best
against worst of the beam, a "self-hard" negative (OneRec, arXiv 2502.18965, section 3.3.2); the others are variants to
compare with. A request whose candidates cannot be told apart gives no pair, and is counted.

Legend: B users, G candidates per user, N negatives, Q pairs, M items per session.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from recsys.alignment.losses.config import PairRule
from recsys.contracts.errors import ConfigError, DataError

NO_CANDIDATE = -1


@dataclass(frozen=True)
class ChosenPairs:
    """Places inside the groups.

    Attributes:
        chosen_B: int64 place of the preferred candidate; :data:`NO_CANDIDATE` for a group without a pair. G stands for the
            target itself (rule ``target_rest``), which need not be in the group.
        rejected_BN: int64 places of the negatives, the least preferred first; :data:`NO_CANDIDATE` where fewer
            than N exist.
    """

    chosen_B: torch.Tensor
    rejected_BN: torch.Tensor

    @property
    def has_pair(self) -> torch.Tensor:
        """Which groups gave a pair, ``[B]``."""
        return self.chosen_B != NO_CANDIDATE


def choose_pairs(
    rewards_BG: torch.Tensor,
    exists_BG: torch.Tensor,
    *,
    rule: PairRule = "best_worst",
    num_negatives: int = 1,
    epsilon: float = 0.0,
    generator: torch.Generator | None = None,
    is_target_BG: torch.Tensor | None = None,
) -> ChosenPairs:
    """Choose one preferred candidate and up to N negatives per group.

    Rules:
        ``best_worst``: highest reward against the N lowest.
        ``best_random``: highest reward against N others at random, without replacement.
        ``rank_spaced``: highest reward against N others at evenly spaced ranks of the reward order, the lowest included:
            for n others and ``i = 1..N``, rank ``ceil(i * n / N)``.
        ``best_all``: highest reward against all others (listwise losses).
        ``target_rest``: what the user really took against the first N candidates that are something else; rewards play no
            part. The same roll-outs and negatives as ReRe, for a loss that is no policy gradient.

    A negative needs a reward that is lower by more than ``epsilon``; ties in reward go to the earlier candidate.

    Args:
        exists_BG: False for candidates that do not exist.
        generator: For ``best_random``.
        is_target_BG: Which candidates are the target; for ``target_rest``.

    Raises:
        ConfigError: ``best_random`` without a generator.
        DataError: A candidate that exists has a reward that is not finite.

    Example:
        >>> rewards = torch.tensor([[0.1, 0.9, 0.5, 0.2], [0.3, 0.3, 0.3, 0.3]])
        >>> pairs = choose_pairs(rewards, torch.ones(2, 4, dtype=torch.bool), num_negatives=2)
        >>> pairs.chosen_B.tolist(), pairs.rejected_BN.tolist()
        ([1, -1], [[0, 3], [-1, -1]])
    """
    users, size = rewards_BG.shape
    if rule == "target_rest":
        assert is_target_BG is not None
        return _target_against_rest(exists_BG & ~is_target_BG, num_negatives)
    sick = exists_BG & ~torch.isfinite(rewards_BG)
    if sick.any():
        raise DataError(
            f"preference pairs: {int(sick.sum())} of {int(exists_BG.sum())} candidates have a reward that is NaN or "
            "infinite, expected finite rewards; such a candidate is neither better nor worse than another"
        )
    rewards = rewards_BG.float().masked_fill(~exists_BG, -torch.inf)
    best_reward, best = rewards.max(dim=1)
    allowed = exists_BG & (rewards < best_reward[:, None] - epsilon)
    allowed.scatter_(1, best[:, None], False)
    if rule == "best_all":
        num_negatives = size - 1
    num_negatives = min(num_negatives, size - 1)
    if rule == "best_random":
        if generator is None:
            raise ConfigError("pair rule 'best_random' draws negatives and needs a generator")
        noise = torch.rand(users, size, generator=generator).to(rewards.device)
        order = noise.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True)
    else:  # from the lowest reward up
        order = rewards.masked_fill(~allowed, torch.inf).argsort(dim=1, stable=True)
    count = allowed.sum(1, keepdim=True)
    step = torch.arange(num_negatives, device=rewards.device)[None].expand(users, -1)
    place = step
    if rule == "rank_spaced":
        # rank r of the n others from the best down is place n - r from the lowest up; the last step is the lowest
        rank = -(-(num_negatives - step) * count // num_negatives)
        place = (count - rank).clamp(min=0)
        repeated = torch.zeros_like(place, dtype=torch.bool)
        repeated[:, 1:] = place[:, 1:] == place[:, :-1]
        rejected = order.gather(1, place).masked_fill(repeated | (count == 0), NO_CANDIDATE)
    else:
        rejected = order.gather(1, place).masked_fill(step >= count, NO_CANDIDATE)
    return ChosenPairs(best.masked_fill(count[:, 0] == 0, NO_CANDIDATE), rejected)


def _target_against_rest(others_BG: torch.Tensor, num_negatives: int) -> ChosenPairs:
    users, size = others_BG.shape
    num_negatives = min(num_negatives, size)
    order = (~others_BG).int().argsort(dim=1, stable=True)[:, :num_negatives]  # earlier candidates first
    count = others_BG.sum(1, keepdim=True)
    step = torch.arange(num_negatives, device=others_BG.device)
    chosen = torch.full((users,), size, device=others_BG.device).masked_fill(count[:, 0] == 0, NO_CANDIDATE)
    return ChosenPairs(chosen, order.masked_fill(step >= count, NO_CANDIDATE))


@dataclass(frozen=True)
class PreferencePairs:
    """Pairs of one round, with what the reference thought of them; the snapshot itself is needed no more.

    Attributes:
        position_Q: int64 place of the pair's request in the round's stream of samples, ascending.
        row_Q: int64 number of that sample in the train split.
        chosen_QM: int64 item_index, -1 where a session is shorter.
        rejected_QNM: int64 item_index, -1 for an absent negative.
        reward_chosen_Q, reward_rejected_QN: float32; 0 for an absent negative.
        ref_chosen_Q, ref_rejected_QN: float32 log-probabilities under the snapshot; 0 for an absent negative.
        objective_QO: float32 objective weights of the request; O = 0 without steering.
        disliked_Q: Whether the pair is an explicit dislike, and no choice of the reward.
    """

    position_Q: torch.Tensor
    row_Q: torch.Tensor
    chosen_QM: torch.Tensor
    rejected_QNM: torch.Tensor
    reward_chosen_Q: torch.Tensor
    reward_rejected_QN: torch.Tensor
    ref_chosen_Q: torch.Tensor
    ref_rejected_QN: torch.Tensor
    objective_QO: torch.Tensor
    disliked_Q: torch.Tensor

    def __len__(self) -> int:
        return len(self.position_Q)

    @classmethod
    def empty(cls, session_length: int) -> PreferencePairs:
        """No pairs at all."""
        return cls(
            position_Q=torch.empty(0, dtype=torch.int64),
            row_Q=torch.empty(0, dtype=torch.int64),
            chosen_QM=torch.empty(0, session_length, dtype=torch.int64),
            rejected_QNM=torch.empty(0, 1, session_length, dtype=torch.int64),
            reward_chosen_Q=torch.empty(0),
            reward_rejected_QN=torch.empty(0, 1),
            ref_chosen_Q=torch.empty(0),
            ref_rejected_QN=torch.empty(0, 1),
            objective_QO=torch.empty(0, 0),
            disliked_Q=torch.empty(0, dtype=torch.bool),
        )

    @property
    def exists_QN(self) -> torch.Tensor:
        """Which negatives there are, bool ``[Q, N]``."""
        return (self.rejected_QNM >= 0).any(-1)

    @property
    def candidates_QGM(self) -> torch.Tensor:
        """Chosen and rejected side by side, ``[Q, 1 + N, M]``: one encoder pass scores them all."""
        return torch.cat([self.chosen_QM[:, None], self.rejected_QNM], dim=1)

    @property
    def reward_gap_Q(self) -> torch.Tensor:
        """Chosen reward minus the mean reward of the negatives."""
        count = self.exists_QN.sum(1).clamp(min=1)
        return self.reward_chosen_Q - self.reward_rejected_QN.sum(1) / count

    def take(self, rows: torch.Tensor) -> PreferencePairs:
        """Return the pairs given by number."""
        return PreferencePairs(**{name: tensor[rows] for name, tensor in self.tensors().items()})

    def to(self, device: torch.device | str) -> PreferencePairs:
        """Move all tensors."""
        return PreferencePairs(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, torch.Tensor]:
        """All fields by name, for saving."""
        return dict(vars(self))


def gather_candidates(items_BGM: torch.Tensor, places_BN: torch.Tensor) -> torch.Tensor:
    """Items at the given places, ``[B, N, M]``; -1 where the place is :data:`NO_CANDIDATE`."""
    index = places_BN.clamp(min=0)[..., None].expand(-1, -1, items_BGM.shape[2])
    return items_BGM.gather(1, index).masked_fill((places_BN == NO_CANDIDATE)[..., None], -1)
