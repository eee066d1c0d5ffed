"""What a user's answer follows from, beside the model and the options: one number per user.

Reads mapped histories and rules; produces 64-bit numbers. Two jobs with the same model, options and code give a user with
the same number the same answer, so that a later job need not ask again (:mod:`serving.batch.carried`). The number covers
every event in the model's indices, the user's row of the user table, objective weights, words, what the rules of the user's
segment allow, what the user's own list denies, quotas, and whether seen items are left out. Two different askings share a
number once in 2^64.

Legend: N users of a shard, U of the job, E events, S segments.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt

from recsys.data.histories import Histories
from recsys.decoding.rules.item_rules import ItemRules
from recsys.decoding.rules.personal_lists import PersonalLists

Numbers = npt.NDArray[np.uint64]


def rule_numbers(rules: ItemRules, num_users: int) -> Numbers:
    """A number of the rules that every user is under, ``[U]``: equal for users, and jobs, with equal rules."""
    shared = hashlib.blake2b(digest_size=8)
    shared.update(f"exclude_seen={rules.exclude_seen}".encode())
    if rules.quotas is not None:
        for part in (rules.quotas.group_I, rules.quotas.limit_G):
            shared.update(part.cpu().numpy().tobytes() + b"|")
    allowed = rules.allowed
    if allowed is None:
        number_U = np.full(num_users, int.from_bytes(shared.digest(), "little"), np.uint64)
        return number_U if rules.personal is None else _with_lists(number_U, rules.personal)
    number_S = []
    for mask in np.atleast_2d(allowed):
        own = shared.copy()
        own.update(np.packbits(mask).tobytes())
        number_S.append(int.from_bytes(own.digest(), "little"))
    segments = rules.segments if rules.segments is not None else np.zeros(num_users, np.int64)
    number_U = np.array(number_S, np.uint64)[segments]
    return number_U if rules.personal is None else _with_lists(number_U, rules.personal)


def _with_lists(number_U: Numbers, lists: PersonalLists) -> Numbers:
    """Mix in what each user's own list denies, in whatever order it stands there; an empty list changes nothing."""
    number_U = number_U.copy()
    for user in np.flatnonzero(np.diff(lists.offsets)):
        listed = _mix(np.unique(lists.of(int(user))).astype(np.uint64))
        number_U[user] = _mix(number_U[[user]] + listed.sum(dtype=np.uint64))[0]
    return number_U


def asked_numbers(histories: Histories, rules_N: Numbers) -> Numbers:
    """A number of what every user is asked with, ``[N]``.

    Args:
        rules_N: Of the same users, from :func:`rule_numbers`.
    """
    lengths = histories.lengths
    first = np.cumsum(lengths) - lengths
    event = histories.event_rows()
    place = np.arange(len(event), dtype=np.uint64) - np.repeat(first, lengths).astype(np.uint64)
    number_E = _mix(place)
    for part in (histories.item, histories.behaviour, histories.gap, histories.watch):
        if len(part):
            number_E = _mix(number_E + np.asarray(part)[event].astype(np.int64).view(np.uint64))
    total_N = np.zeros(len(lengths), np.uint64)
    some = lengths > 0
    if some.any():
        total_N[some] = np.add.reduceat(number_E, first[some])
    number_N = _mix(total_N + lengths.astype(np.uint64))
    number_N = _mix(number_N + histories.user_index.astype(np.int64).view(np.uint64))
    if histories.objective is not None:
        for weight_N in histories.objective.T:
            number_N = _mix(number_N + np.ascontiguousarray(weight_N, np.float32).view(np.uint32).astype(np.uint64))
    if histories.words is not None:
        for word_N in histories.words.T:  # 0: no word; who says nothing is asked the same, whatever others say
            number_N = np.where(word_N == 0, number_N, _mix(number_N + word_N.astype(np.uint64)))
    return _mix(number_N + rules_N)


def _mix(x: Numbers) -> Numbers:
    """One step of splitmix64: every bit of the result depends on every bit of ``x``.

    Source: Steele, Lea, Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(x ^ (x >> np.uint64(31)), np.uint64)
