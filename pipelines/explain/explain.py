"""From what was typed to an explanation: models, the user's history, rules, and the comparison with another model."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from pipelines.explain.rules import rules_of
from pipelines.explain.sessions import explain_sessions, first_places
from pipelines.explain.trace import Asked, explain_user, side_by_side
from recsys.contracts.errors import DataError
from serving.answers.scorer import Scorer
from serving.config import RecommendConfig
from serving.inputs.user_histories import StoredUsers


@dataclass(frozen=True)
class ExplainedModel:
    """A bundle, and how it is called.

    Attributes:
        bundle: Folder.
        version: Registry version, or the folder.
    """

    bundle: Path
    version: str


def explain(
    model: ExplainedModel,
    against: ExplainedModel | None,
    users: Callable[[], StoredUsers],
    user: str,
    config: RecommendConfig,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Explain one user's list, and set that of another model beside it.

    Args:
        users: Opens the users; each model maps them into its own indices.
        user: The id, as text.
        config: Rules and options of the job.

    Raises:
        DataError: There is no such user.
        ConfigError: The model cannot answer as the job asks.
    """
    found = _one(model, users(), user, config, device)
    if against is None:
        return found
    other = _one(against, users(), user, config, device)
    return {**found, "against": other, "compared": side_by_side(first_places(found), first_places(other))}


def _one(
    model: ExplainedModel, users: StoredUsers, user: str, config: RecommendConfig, device: torch.device | str
) -> dict[str, Any]:
    scorer = Scorer.open(model.bundle, device)
    users.check(scorer.catalogue)
    place = find_user(users.user_ids, user)
    masks = rules_of(config, scorer.catalogue, users, place)
    request = scorer.request(users, config.k, None, config.options)
    row, _ = request.shard(place, place + 1)
    rules = scorer.recommender.compile(masks.rules, 1)
    asked = Asked(row, rules, request, masks)
    explained = explain_sessions if config.answer == "sessions" else explain_user
    return {"user_id": row.user_ids[0], **explained(scorer, model.bundle, asked, model.version)}


def find_user(user_ids: pl.Series, user: str) -> int:
    """Place of a user.

    Raises:
        DataError: There is none of that id; the message names the nearest ones.
    """
    places = np.flatnonzero((user_ids.cast(pl.String) == user).to_numpy())
    if len(places):
        return int(places[0])
    close = difflib.get_close_matches(user, user_ids.cast(pl.String).head(100_000).to_list(), n=3, cutoff=0.5)
    nearest = (
        f"the nearest ids are {', '.join(map(repr, close))}"
        if close
        else f"ids look like {user_ids[0]!r}"
        if len(user_ids)
        else "there are no users"
    )
    raise DataError(
        f"explain: user {user!r} is not among the {len(user_ids)} users; {nearest}. Give another id, or with --users a file "
        "that holds the history of this user (recsys histories writes such files)"
    )
