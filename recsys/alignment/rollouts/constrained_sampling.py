"""Independent samples from the policy that are always items of the catalogue: the alternative to one beam per user.

The prefix index limits every draw to codes that lead to an item which is still possible, so no sample is wasted on an
illegal ID or on a dead end. Probabilities are renormalised over those codes *for drawing only*; scores are the
unconstrained log-probabilities, as in :mod:`recsys.decoding.beam_search`.

Legend: B users, G samples per user, C children of a node, R denied items per user, M items per session, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from recsys.data.batch import HistoryBatch
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.search_index import SearchIndex
from recsys.model.generative_recommender import GenerativeRecommender


class ConstrainedSampler:
    """Draws items, or sessions of different items, level by level.

    Args:
        index: The catalogue.
        device: Of the policy.
    """

    def __init__(self, index: PrefixIndex, device: torch.device | str = "cpu") -> None:
        self._index = SearchIndex.from_index(index, device)
        self._nodes_of_item = [torch.from_numpy(nodes[index.leaf_of_item]).to(device) for nodes in index.ancestors]
        self._items_below = [
            torch.from_numpy(counts).to(device) for counts in index.leaf_counts(np.ones(index.num_items, bool))
        ]

    @torch.no_grad()
    def sample(
        self,
        policy: GenerativeRecommender,
        history: HistoryBatch,
        num_samples: int,
        *,
        temperature: float,
        generator: torch.Generator,
        num_items: int = 1,
        denied: Sequence[npt.NDArray[np.integer]] | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw ``num_samples`` per user, with replacement.

        Args:
            temperature: Divides the log-probabilities before drawing; below 1 sharpens.
            generator: On the CPU, so that a seed means the same draws on every device.
            num_items: M; an item already in the session is not drawn again.
            denied: Per user, item_index that must not be drawn.

        Returns:
            ``(items int64 [B, G, M] item_index, scores float32 [B, G])`` in the order of the draws; a user without enough
            possible items gets -1 and ``-inf``.
        """
        state = policy.start(history)
        users, device = len(history), state.visible.device
        left = self._possible_below(denied, users, device)
        items = torch.empty(users, num_samples, 0, dtype=torch.int64, device=device)
        score = torch.zeros(users, num_samples, device=device)
        for place in range(num_items):
            node = torch.zeros(users, num_samples, dtype=torch.int64, device=device)
            codes: torch.Tensor | None = None
            for level in range(self._index.num_levels):
                log_probs = policy.next_codes(state, codes)
                assert log_probs is not None
                if place == 0 and level == 0:  # one BOS per user so far; from here on every sample has its own prefix
                    state.cache.reorder(torch.zeros(users, num_samples, dtype=torch.int64, device=device))
                    log_probs = log_probs.expand(-1, num_samples, -1)
                node, codes, score = self._draw(
                    log_probs,
                    node,
                    level,
                    items_BGm=items,
                    left=left,
                    score_BG=score,
                    temperature=temperature,
                    generator=generator,
                )
            assert codes is not None
            found = self._index.leaf_item[node].masked_fill(score == -torch.inf, -1)
            items = torch.cat([items, found[..., None]], dim=2)
            if place < num_items - 1:
                policy.next_codes(state, codes)
        return items.masked_fill((score == -torch.inf)[..., None], -1), score

    def _draw(
        self,
        log_probs_BGK: torch.Tensor,
        node_BG: torch.Tensor,
        level: int,
        *,
        items_BGm: torch.Tensor,
        left: list[torch.Tensor],
        score_BG: torch.Tensor,
        temperature: float,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Choose one child per sample; return ``(nodes, codes, scores)``, each ``[B, G]``."""
        child, exists = self._index.children(node_BG, level)
        # what is possible below a node: its items, less the denied ones, less those already in this session
        possible = left[level].expand(len(node_BG), -1).gather(1, child.flatten(1)).view(child.shape)
        if items_BGm.shape[2]:
            chosen_nodes = self._nodes_of_item[level][items_BGm.clamp(min=0)]
            possible = possible - (chosen_nodes[:, :, None] == child[..., None]).sum(-1)
        code = self._index.codes[level][child]
        log_prob = log_probs_BGK.gather(2, code).masked_fill(~exists | (possible <= 0), -torch.inf)
        stuck = (log_prob == -torch.inf).all(-1)
        weights = (log_prob / temperature).masked_fill(stuck[..., None], 0.0).softmax(-1)
        flat = weights.flatten(0, 1).cpu()
        picked = torch.multinomial(flat, 1, generator=generator).view(*node_BG.shape, 1).to(child.device)
        gained = log_prob.gather(2, picked)[..., 0]
        return child.gather(2, picked)[..., 0], code.gather(2, picked)[..., 0], score_BG + gained

    def _possible_below(
        self, denied: Sequence[npt.NDArray[np.integer]] | None, users: int, device: torch.device
    ) -> list[torch.Tensor]:
        """Per level, how many items a user may still get below each node: ``[1 or B, nodes]``."""
        if denied is None:
            return [counts[None] for counts in self._items_below]
        lists = [np.unique(np.asarray(items, np.int64)) for items in denied]
        user = torch.from_numpy(np.repeat(np.arange(users), [len(items) for items in lists])).to(device)
        item = torch.from_numpy(np.concatenate(lists)).to(device)
        left = []
        for counts, nodes in zip(self._items_below, self._nodes_of_item, strict=True):
            per_user = counts.repeat(users, 1)
            per_user.index_put_((user, nodes[item]), torch.full_like(item, -1), accumulate=True)
            left.append(per_user)
        return left
