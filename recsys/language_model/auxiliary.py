"""Tasks that bind semantic IDs to titles, so that what a model knows of words helps it with codes, and back.

Source: MiniOneRec (arXiv 2510.24431), whose public code trains title and ID of single items in both directions, and
histories told by titles; its wording is replaced by marks.

A policy is a :class:`~recsys.language_model.language_policy.LanguagePolicy`.

Legend: N items, T tokens of a title, B users, P prediction points, M items per session, L levels, D width.
"""

from __future__ import annotations

from typing import Any

import torch

from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.language_model.prompt import NO_TOKEN
from recsys.language_model.vocabulary import START, TITLE
from recsys.model.generative_recommender import AuxiliaryLoss


def auxiliary_losses(policy: Any, batch: TrainingBatch) -> dict[str, AuxiliaryLoss]:
    """The tasks that have a weight; items are drawn from torch's global generator.

    Args:
        batch: Its histories are told by titles in ``titles_to_id``.
    """
    config = policy.settings.auxiliary
    found: dict[str, AuxiliaryLoss] = {}
    for name, task in (("title_to_id", title_to_id), ("id_to_title", id_to_title)):
        weight: float = getattr(config, name)
        if weight > 0:
            rows_N = drawn_items(policy, config.items_per_step)
            found[name] = AuxiliaryLoss(task(policy, rows_N).mean(), len(rows_N), weight)
    if config.titles_to_id > 0:
        losses = titles_to_id(policy, batch)
        mean = losses.mean() if len(losses) else losses.sum()
        found["titles_to_id"] = AuxiliaryLoss(mean, len(losses), config.titles_to_id)
    return found


def longest_of_tasks(policy: Any) -> int:
    """Tokens of the longest sequence that a task with a weight makes; 0 without one."""
    config, spec = policy.settings.auxiliary, policy.spec
    title, item = policy.title_IT.shape[1], policy.num_levels + 1
    told = policy.encoder.longest(0, 0, 0) + spec.model.max_history * title + spec.dataset.session_length * item
    single = 1 + title + item  # a mark before the title, and one between title and codes
    return max(
        told if config.titles_to_id > 0 else 0, single if config.title_to_id > 0 or config.id_to_title > 0 else 0
    )


def drawn_items(policy: Any, count: int) -> torch.Tensor:
    """Rows of so many random items that have a title, int64 ``[N]``, with replacement."""
    titled = (policy.title_IT[:, 0] != NO_TOKEN).nonzero()[:, 0]
    return titled[torch.randint(len(titled), (count,), device="cpu").to(titled.device)]


def title_to_id(policy: Any, rows_N: torch.Tensor) -> torch.Tensor:
    """Minus the log-probability of each item's codes behind its title, ``[N]``."""
    titles = policy.encoder.of_events(policy.title_IT[rows_N][:, None], ragged=True, instructed=False)
    batch = _items_as_targets(rows_N)
    hidden, _ = policy.answers_behind(titles, batch, text=True)
    losses: torch.Tensor = policy.code_losses(hidden[:, 0, 0], rows_N).sum(-1)
    return losses


def id_to_title(policy: Any, rows_N: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of each title's tokens, and of its end, behind the item's codes, ``[N]``."""
    vocabulary = policy.vocabulary
    codes = vocabulary.code_tokens(policy.item_tower.codes_IL[rows_N])
    prompts = policy.encoder.of_events(codes[:, None], ragged=False, instructed=False)
    title_NT = policy.title_IT[rows_N]
    mark = torch.full_like(title_NT[:, :1], vocabulary.mark(TITLE))
    fed = torch.cat([mark, title_NT], dim=1)
    wanted = torch.cat([title_NT, torch.full_like(mark, NO_TOKEN)], dim=1)
    length_N1 = (title_NT != NO_TOKEN).sum(1, keepdim=True)
    wanted = wanted.scatter(1, length_N1, vocabulary.mark(START))  # what follows a title is something new
    size, prompt = fed.shape[1], prompts.token_BS.shape[1]
    place_R = torch.arange(prompt + size, device=fed.device)
    mask = (place_R[:, None] >= place_R).expand(len(rows_N), -1, -1)
    positions = place_R[prompt:].expand(len(rows_N), -1)
    _, hidden_NRD = policy.read(prompts.token_BS, fed.clamp(min=0), positions, mask, text=True)
    asked = wanted != NO_TOKEN
    losses = torch.zeros(wanted.shape, device=fed.device)
    losses = losses.masked_scatter(asked, vocabulary.token_losses(hidden_NRD[asked], wanted[asked]))
    return losses.sum(1) / asked.sum(1)


def titles_to_id(policy: Any, batch: TrainingBatch) -> torch.Tensor:
    """Minus the log-probability of each target's codes behind a history of titles, ``[targets]``; others are mute.

    Where a row says something its sentence stands here too: it asks only for what that names.
    """
    said_BN = policy.encoder.said(batch.history)
    prompts = policy.encoder.of_events(policy.title_IT[batch.history.item_BH], ragged=True, said_BN=said_BN)
    hidden, _ = policy.answers_behind(prompts, batch, text=True)
    losses: torch.Tensor = policy.code_losses(batch.asked.items(hidden), batch.asked.items(batch.target_BPM)).sum(-1)
    return losses


def _items_as_targets(rows_N: torch.Tensor) -> TrainingBatch:
    """Each item as the only target of a user whose history is one event, the title."""
    blank = torch.zeros_like(rows_N)
    events = blank[:, None]
    history = HistoryBatch(blank, events, events, events, events, lengths_B=torch.ones_like(rows_N))
    return TrainingBatch(history, rows_N[:, None, None], torch.ones_like(rows_N)[:, None])
