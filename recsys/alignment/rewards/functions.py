"""Rewards of a roll-out group: what each generated item, or session, is worth, as functions with weights.

A reward reads a :class:`RolloutGroup` and returns ``[B, G]``, or ``[B, G, C]`` when it evaluates single codes. Rows that do
not exist get 0. Targets travel inside the group as item_index; ReRe's public code looks them up by the text of the
history, which gives equal histories one target and lets validation targets into training.

Legend: B users, G rollouts per group, M items per session, S target items, L levels, C = M * L codes of a row,
I items, D width.

Source: ReRe (arXiv 2510.12211) and its public code; MiniOneRec (arXiv 2510.24431), section 3.4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F

from recsys.alignment.rewards.names import REWARD_NAMES, is_weight
from recsys.contracts.errors import ConfigError, DataError
from recsys.data.batch import HistoryBatch
from recsys.data.histories import Histories


@dataclass(frozen=True)
class RolloutGroup:
    """G candidates for each of B requests.

    Attributes:
        items: int64 ``[B, G, M]`` item_index, best first, so that a row's place is its rank; -1 in every slot of a row
            that does not exist, and at the end of a session shorter than M.
        target: int64 ``[B, S]`` item_index that the user chose, -1 where there are fewer than S; for next items S = 1.
        codes: int64 ``[B, G, M, L]`` semantic IDs of ``items``; anything where the item is -1.
        target_codes: int64 ``[B, S, L]`` semantic IDs of ``target``.
        scores: float32 ``[B, G]`` log-probability under the policy that made the group.
        history: What the policy read.
        histories: The same before it was collated; rewards that score items for a user need it.
    """

    items: torch.Tensor
    target: torch.Tensor
    codes: torch.Tensor
    target_codes: torch.Tensor
    scores: torch.Tensor
    history: HistoryBatch | None = None
    histories: Histories | None = None

    def __post_init__(self) -> None:
        if self.items.ndim != 3:
            raise DataError(f"rollout group: items has shape {tuple(self.items.shape)}, expected [B, G, M]")
        users, group, _ = self.items.shape
        levels = self.codes.shape[-1]
        expected = {
            "target": (users, self.target.shape[-1]),
            "codes": (*self.items.shape, levels),
            "target_codes": (users, self.target.shape[-1], levels),
            "scores": (users, group),
        }
        for name, shape in expected.items():
            found = tuple(getattr(self, name).shape)
            if found != shape:
                raise DataError(
                    f"rollout group: {name} has shape {found}, expected {shape} beside items {tuple(self.items.shape)}"
                )

    @property
    def valid(self) -> torch.Tensor:
        """Bool ``[B, G]``, rows that exist."""
        return (self.items >= 0).any(-1)

    @property
    def code_mask(self) -> torch.Tensor:
        """Bool ``[B, G, C]``, codes that exist; the mask of the policy-gradient losses."""
        return (self.items >= 0).repeat_interleave(self.codes.shape[-1], dim=-1)


class Reward(Protocol):
    """A group in, float32 ``[B, G]`` or ``[B, G, C]`` out; 0 where a row does not exist, no gradient."""

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Evaluate every row."""
        ...


@dataclass(frozen=True)
class Rule:
    """1 for the target, else 0; for sessions, the share of the target items that the row holds, in any order.

    Source: ReRe, rule reward. Sessions are ours: ReRe generates single items.
    """

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Return ``[B, G]`` in [0, 1]."""
        return target_share(group)


@dataclass(frozen=True)
class Ranking:
    """Penalise a wrong item more, the higher the policy ranked it.

    With ``w_k = 1 / log2(k + 1)`` at rank k, and e* the target:

    - ``code`` (ReRe's released code): 0 for e*, else ``-w_k / sum_j w_j`` over all ranks j; all 0 when no row is e*.
    - ``paper`` (as printed in MiniOneRec, section 3.4.2): the sum leaves out e*, and a group without e* is penalised as
      well. Its rewards then differ, so advantages push the best-ranked items down with nothing to raise.

    A row of a session counts as e* when it holds any target item.

    Example:
        >>> hits, exist = torch.tensor([[True, False, False]]), torch.ones(1, 3, dtype=torch.bool)
        >>> [round(value, 4) for value in ranking_penalty(hits, exist, "code")[0].tolist()]  # 0.6309 / 2.1309, 0.5 / 2.1309
        [0.0, -0.2961, -0.2346]
    """

    form: Literal["code", "paper"] = "code"

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Return ``[B, G]`` in [-1, 0]."""
        return ranking_penalty(target_share(group) > 0, group.valid, self.form)


@dataclass(frozen=True)
class Semantic:
    """Cosine between item embeddings; for sessions, every item against the closest target item, mean over items.

    Attributes:
        item_vectors: float ``[I, D]`` by item_index; a row of zeros has cosine 0 with everything.
    """

    item_vectors: torch.Tensor

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Return ``[B, G]`` in [-1, 1]."""
        vectors_ID = self.item_vectors.detach()
        item_BGMD = F.normalize(vectors_ID[group.items.clamp(min=0)].float(), dim=-1)
        target_BSD = F.normalize(vectors_ID[group.target.clamp(min=0)].float(), dim=-1)
        cosine_BGMS = torch.einsum("bgmd,bsd->bgms", item_BGMD, target_BSD)
        closest_BGM = cosine_BGMS.masked_fill(_no_target(group), -torch.inf).amax(-1)
        return _item_mean(closest_BGM, group)


@dataclass(frozen=True)
class Collaborative:
    """Logit of another recommender, z-scored over each user's catalogue; mean over a session's items.

    ReRe takes SASRec's raw logit; its scale differs between users and recommenders, so that a weight would mean nothing.
    MiniOneRec reports that this reward keeps rising while accuracy falls: weigh it lightly and watch the guard.

    Attributes:
        scorer: Group to finite logits ``[B, I]`` by item_index.
    """

    scorer: Callable[[RolloutGroup], torch.Tensor]

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Return ``[B, G]`` in standard deviations; 0 for a user whose logits are all equal."""
        logits_BI = self.scorer(group).detach().float()
        users, group_size, length = group.items.shape
        if logits_BI.ndim != 2 or len(logits_BI) != users or not torch.isfinite(logits_BI).all():
            raise DataError(
                f"collaborative reward: the scorer returned shape {tuple(logits_BI.shape)}, expected finite logits "
                f"[{users}, items]; give one row per user, without -inf for seen items"
            )
        centred_BI = logits_BI - logits_BI.mean(1, keepdim=True)
        z_BI = centred_BI / logits_BI.std(1, keepdim=True, correction=0).clamp(min=torch.finfo(torch.float32).tiny)
        picked = z_BI.gather(1, group.items.clamp(min=0).flatten(1)).view(users, group_size, length)
        return _item_mean(picked, group)


@dataclass(frozen=True)
class PrefixMatch:
    """Share of an item's leading codes that are right; for sessions against the closest target item, mean over items."""

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Return ``[B, G]`` in [0, 1], a multiple of 1 / L for single items."""
        return _item_mean(leading_matches(group) / group.codes.shape[-1], group)


@dataclass(frozen=True)
class FirstDifference:
    """Reward codes: +1 for each right leading code, -1 for the first wrong one, 0 after it.

    What follows the first wrong code tells nothing about the target; leave it out of the advantages with
    :func:`first_difference_mask`. An item of a session is held against the target item with the longest common prefix.
    """

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Return ``[B, G, C]`` in {-1, 0, 1}."""
        depth_BGM1 = leading_matches(group)[..., None]
        level = torch.arange(group.codes.shape[-1], device=group.codes.device)
        reward = (level < depth_BGM1).float() - (level == depth_BGM1).float()
        return reward.flatten(2).masked_fill(~group.code_mask, 0.0)


@dataclass(frozen=True)
class Learned:
    """The value that a reward model gives.

    Attributes:
        model: Group to ``[B, G]``; finite where the row exists.
    """

    model: Callable[[RolloutGroup], torch.Tensor]

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Return ``[B, G]``, the model's own scale."""
        reward = self.model(group).detach().float()
        if reward.shape != group.valid.shape:
            raise DataError(
                f"learned reward: the model returned shape {tuple(reward.shape)}, expected {tuple(group.valid.shape)}, "
                "one number per row of the group"
            )
        return reward.masked_fill(~group.valid, 0.0)


@dataclass(frozen=True)
class WeightedSum:
    """Weighted sum of rewards; a reward per row counts for each of its codes when another one gives a value per code.

    Attributes:
        parts: Reward and weight by name.
    """

    parts: Mapping[str, tuple[Reward, float]]

    def __call__(self, group: RolloutGroup) -> torch.Tensor:
        """Return ``[B, G]``, or ``[B, G, C]`` if any part gives a value per code."""
        return self.total(self.components(group), group)

    def components(self, group: RolloutGroup) -> dict[str, torch.Tensor]:
        """Return each part's own reward, unweighted, for the log.

        Raises:
            DataError: A row that exists got NaN or infinity: it could neither be preferred nor rejected.
        """
        parts = {name: reward(group) for name, (reward, _) in self.parts.items()}
        for name, values in parts.items():
            exists = group.valid if values.ndim == 2 else group.code_mask
            sick = exists & ~torch.isfinite(values)
            if sick.any():
                raise DataError(
                    f"reward '{name}': {int(sick.sum())} of {int(exists.sum())} candidates got NaN or infinity, expected "
                    "finite rewards; look at what it reads (item vectors, reward model), or leave it out"
                )
        return parts

    def total(self, components: Mapping[str, torch.Tensor], group: RolloutGroup) -> torch.Tensor:
        """Add up what :meth:`components` returned, so that a part is computed once."""
        weighted = [weight * components[name] for name, (_, weight) in self.parts.items()]
        if any(part.ndim == 3 for part in weighted):
            weighted = [part if part.ndim == 3 else part[..., None] * group.code_mask for part in weighted]
        return torch.stack(torch.broadcast_tensors(*weighted)).sum(0)


def build_reward(
    weights: Mapping[str, float],
    *,
    item_vectors: torch.Tensor | None = None,
    scorer: Callable[[RolloutGroup], torch.Tensor] | None = None,
    learned: Callable[[RolloutGroup], torch.Tensor] | None = None,
) -> WeightedSum:
    """Turn names and weights into a reward. ReRe's own is ``{"rule": 1, "ranking": 1}``.

    Args:
        item_vectors: ``[I, D]``, for ``semantic``.
        scorer: For ``collaborative``.
        learned: For ``learned``.

    Raises:
        ConfigError: No name, an unknown one, a weight that is 0 or not finite, or a reward without what it needs.
    """
    if not weights:
        raise ConfigError(f"rewards: none is given; name at least one of {', '.join(REWARD_NAMES)}")
    parts: dict[str, tuple[Reward, float]] = {}
    for name, weight in weights.items():
        if not is_weight(float(weight)):
            raise ConfigError(f"reward '{name}' has weight {weight}, expected a finite number other than 0")
        parts[name] = (_named_reward(name, item_vectors, scorer, learned), float(weight))
    return WeightedSum(parts)


def _named_reward(
    name: str,
    item_vectors: torch.Tensor | None,
    scorer: Callable[[RolloutGroup], torch.Tensor] | None,
    learned: Callable[[RolloutGroup], torch.Tensor] | None,
) -> Reward:
    plain: dict[str, Reward] = {
        "rule": Rule(),
        "ranking": Ranking("code"),
        "ranking_paper": Ranking("paper"),
        "prefix_match": PrefixMatch(),
        "first_difference": FirstDifference(),
    }
    if name in plain:
        return plain[name]
    if name == "semantic":
        if item_vectors is None:
            raise ConfigError("reward 'semantic' compares item embeddings and got none; run embed, or leave it out")
        return Semantic(item_vectors)
    if name == "collaborative":
        if scorer is None:
            raise ConfigError("reward 'collaborative' needs another recommender's scorer and got none; leave it out")
        return Collaborative(scorer)
    if name == "learned":
        if learned is None:
            raise ConfigError("reward 'learned' needs a reward model and got none; train one, or leave it out")
        return Learned(learned)
    raise ConfigError(f"unknown reward '{name}'; expected one of {', '.join(REWARD_NAMES)}")


def target_share(group: RolloutGroup) -> torch.Tensor:
    """Share of the target items that each row holds, ``[B, G]``; 0 or 1 for single items."""
    same_BGMS = (group.items[..., None] == group.target[:, None, None]) & ~_no_target(group)
    found_BG = same_BGMS.any(2).sum(-1)
    return (found_BG / (group.target >= 0).sum(-1, keepdim=True)).float()


def ranking_penalty(hits_BG: torch.Tensor, valid_BG: torch.Tensor, form: Literal["code", "paper"]) -> torch.Tensor:
    """Ranking reward from hits; see :class:`Ranking`.

    Args:
        hits_BG: Bool, row is the target.
        valid_BG: Bool, row exists; others take no rank weight.
    """
    rank = torch.arange(1, hits_BG.shape[1] + 1, device=hits_BG.device)
    weight_BG = valid_BG / torch.log2(rank + 1.0)
    wrong_BG = valid_BG & ~hits_BG
    counted_BG = weight_BG if form == "code" else weight_BG * wrong_BG
    share_BG = weight_BG / counted_BG.sum(1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
    penalised_BG = wrong_BG if form == "paper" else wrong_BG & (hits_BG & valid_BG).any(1, keepdim=True)
    return torch.where(penalised_BG, -share_BG, 0.0)


def leading_matches(group: RolloutGroup) -> torch.Tensor:
    """Length of the longest prefix that each item shares with a target item, int64 ``[B, G, M]``; 0 where no item is."""
    right_BGMSL = group.codes[:, :, :, None] == group.target_codes[:, None, None]
    right_BGMSL = right_BGMSL & ~_no_target(group)[..., None]
    depth_BGM = right_BGMSL.long().cumprod(-1).sum(-1).amax(-1)
    return depth_BGM.masked_fill(group.items < 0, 0)


def first_difference_mask(group: RolloutGroup) -> torch.Tensor:
    """Bool ``[B, G, C]``, codes up to and including the first wrong one; see :class:`FirstDifference`."""
    level = torch.arange(group.codes.shape[-1], device=group.codes.device)
    return (level <= leading_matches(group)[..., None]).flatten(2) & group.code_mask


def _item_mean(values_BGM: torch.Tensor, group: RolloutGroup) -> torch.Tensor:
    """Mean over the items of each row that exist, ``[B, G]``; 0 for a row without any."""
    exists_BGM = group.items >= 0
    return values_BGM.masked_fill(~exists_BGM, 0.0).sum(-1) / exists_BGM.sum(-1).clamp(min=1)


def _no_target(group: RolloutGroup) -> torch.Tensor:
    """Bool ``[B, 1, 1, S]``, target slots that hold no item.

    Raises:
        DataError: A request has no target at all: it cannot be evaluated by one.
    """
    missing_BS = group.target < 0
    without = missing_BS.all(1)
    if without.any():
        row = int(without.nonzero()[0, 0])
        raise DataError(
            f"rollout group: request {row} has no target item; rewards that compare with a target need one, "
            "leave such requests out or use a learned reward alone"
        )
    return missing_BS[:, None, None]
