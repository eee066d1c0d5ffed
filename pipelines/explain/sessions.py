"""One user's sessions, taken apart: every code of every place, what the search and the reward model say of each session.

Reads an opened bundle and one row of histories; produces the values of :mod:`pipelines.explain.trace`, where an item stands
once for each session that shows it. The probabilities are those of the codes after the history *and* the session's earlier
items, so that their logarithms sum, over all places, to the path that the search followed.

Legend: N sessions, M places of one, L levels, T towers of the reward model.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipelines.explain.trace import Asked, Names, code_log_probs, history_of, neighbours, order_of, path_of, removed
from serving.answers.scorer import Scorer
from serving.answers.sessions import RankedSessions


def explain_sessions(scorer: Scorer, bundle: Path, asked: Asked, version: str) -> dict[str, Any]:
    """Take an answer of sessions apart.

    Args:
        bundle: Folder of the scorer, whose item titles are shown.
        version: How the model is called.
    """
    names = Names.read(scorer, bundle)
    ranked = scorer.answer_asked(asked.row, asked.rules, asked.request).ranked
    assert isinstance(ranked, RankedSessions), "items are explained in pipelines.explain.trace"
    sessions_NM = ranked.items[0][ranked.items[0, :, 0] >= 0].astype(np.int64)
    codes_IL = scorer.recommender.policy.item_tower.codes_IL[1:].cpu().numpy()
    log_probs_NML = code_log_probs(scorer, asked.row.histories, sessions_NM)
    stages = _stages(scorer, asked, sessions_NM)
    items = []
    for number, session in enumerate(sessions_NM.tolist()):
        for place, item in enumerate(session):
            items.append(
                {
                    "session": number + 1,
                    "rank": place + 1,
                    **names.of(item),
                    "score": float(ranked.scores[0, number]),
                    **path_of(codes_IL[item], log_probs_NML[number, place]),
                    "stages": stages[number],
                    "neighbours": neighbours(codes_IL, item, names),
                }
            )
    return {
        "model": {"name": scorer.info.name, "version": version, "order": order_of(scorer, asked.request)},
        "history": history_of(asked.row, names, scorer.recommender.policy.spec.model.max_history),
        "rules": removed(scorer, asked, np.unique(sessions_NM), names),
        "items": items,
        "sessions": [
            {
                "session": number + 1,
                "items": [names.of(item) for item in session],
                "score": float(ranked.scores[0, number]),
                "path_log_prob": float(log_probs_NML[number].sum()),
                "stages": stages[number],
            }
            for number, session in enumerate(sessions_NM.tolist())
        ],
    }


def _stages(scorer: Scorer, asked: Asked, sessions_NM: np.ndarray[Any, np.dtype[np.int64]]) -> list[dict[str, Any]]:
    """What the search and every tower of the reward model say of each session."""
    recommender, histories = scorer.recommender, asked.row.histories
    width = max(recommender.config.beam_width, asked.request.k)
    found, log_probs = recommender.generate(histories, width, asked.rules, scorer.guided_by(asked.request.options))
    searched = {tuple(session): place for place, session in enumerate(found[0].tolist())}
    reward = scorer.reward_model if asked.request.options.second_stage == "reward" else None
    told: list[dict[str, Any]] = [
        {"search": float(log_prob), "search_place": place + 1} for place, log_prob in enumerate(log_probs[0])
    ]
    if reward is not None:  # a reward compares candidates, so that all are asked about together, as they are in serving
        candidates = torch.from_numpy(found.astype(np.int64))
        value_NT, reward_N = reward.values(histories, candidates)[0], reward.reward(histories, candidates)[0]
        for place, values in enumerate(value_NT.float().tolist()):
            towers = {f"reward {name}": value for name, value in zip(reward.towers, values, strict=True)}
            told[place] |= {"reward": float(reward_N[place]), **towers}
    return [told[searched[tuple(session)]] for session in sessions_NM.tolist()]


def first_places(found: dict[str, Any]) -> list[dict[str, Any]]:
    """The items of an explanation, each once, where it is shown first; the rank of one in a session is the session's."""
    first: dict[str, dict[str, Any]] = {}
    for item in found["items"]:
        first.setdefault(str(item["item_id"]), item | {"rank": item.get("session", item["rank"])})
    return list(first.values())
