"""What a list is like beside its hits: novelty, diversity, Vendi score, calibration. Pure functions, a number per row.

A list that is right and always the same ten best-sellers is not what a shop wants; these say so. Places that hold no item
(-1) are passed over, so a short list is measured by the items that it has.

Sources: novelty as mean self-information, Zhou et al. 2010 (PNAS 107, 10) with one event added to every item, so that an
item without events has a finite one; diversity as mean distance between the items of a list, Ziegler et al. 2005 (WWW)
and Smyth and McClave 2001; Vendi score, Friedman and Dieng 2023 (arXiv 2210.02410, section 3); calibration, Steck 2018
(RecSys, equations 1 to 3).

Shape legend: N rows, k places, I items, D vector width, C categories.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

Values = npt.NDArray[np.float64]
Vectors = npt.NDArray[np.float32]
Places = npt.NDArray[np.int32]

SMOOTHING: Final = 0.01
"""Share of the history's distribution that is mixed into the list's, so that a category it lacks costs a finite amount."""


def self_information(counts: npt.NDArray[np.integer]) -> Values:
    """Return how surprising each item is, in bits: ``-log2`` of its share of all events, one added to every item.

    Args:
        counts: ``[I]`` events in training.

    Example:
        >>> self_information(np.array([2, 0])).round(3).tolist()
        [0.415, 2.0]
    """
    smoothed = counts.astype(np.float64) + 1.0
    return np.asarray(-np.log2(smoothed / smoothed.sum()))


def novelty(items: Places, information: Values) -> Values:
    """Mean self-information of the items of a list, in bits; 0 for an empty list.

    Args:
        items: ``[N, k]`` item_index, -1 none.
        information: ``[I]`` of :func:`self_information`.

    Example:
        >>> novelty(np.array([[0, 1], [1, -1]], np.int32), np.array([1.0, 4.0])).tolist()
        [2.5, 4.0]
    """
    there = items >= 0
    total = np.where(there, information[np.maximum(items, 0)], 0.0).sum(axis=1)
    return np.asarray(total / np.maximum(there.sum(axis=1), 1))


def unit_vectors(vectors: npt.NDArray[np.floating]) -> Vectors:
    """Scale vectors ``[I, D]`` to length 1; a vector of zeros, of which nothing is known, stays and is like no other."""
    found = np.asarray(vectors, np.float32)
    length = np.linalg.norm(found, axis=1, keepdims=True)
    return np.asarray(found / np.where(length > 0, length, 1.0), np.float32)


def diversity(items: Places, units: Vectors) -> Values:
    """Mean cosine distance over all pairs of items of a list: 0 all alike, 1 unrelated, above 1 opposed.

    Args:
        items: ``[N, k]`` item_index, -1 none.
        units: ``[I, D]`` of :func:`unit_vectors`.

    Returns:
        ``[N]``; 0 for a list of fewer than two items, which has no pair.

    Example:
        >>> units = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
        >>> diversity(np.array([[0, 1, -1], [0, 2, -1], [0, 1, 2]], np.int32), units).round(3).tolist()
        [1.0, 0.0, 0.667]
    """
    held = _vectors_of(items, units)
    number = (items >= 0).sum(axis=1)
    # twice the sum over pairs of v_i . v_j is |sum of v|^2 minus the sum of |v|^2
    squared, own = (held.sum(axis=1) ** 2).sum(axis=1), (held**2).sum(axis=(1, 2))
    pairs = number * (number - 1)
    return np.where(pairs > 0, 1.0 - (squared - own) / np.maximum(pairs, 1), 0.0)


def vendi_score(items: Places, units: Vectors) -> Values:
    """Effective number of different items in a list: the exponential of the entropy of the eigenvalues of its similarities.

    Args:
        items: ``[N, k]`` item_index, -1 none.
        units: ``[I, D]`` of :func:`unit_vectors`; the kernel is the cosine.

    Returns:
        ``[N]`` between 1 (all alike) and the number of items (none like another); 0 for an empty list.

    Example:
        >>> units = np.array([[1, 0], [0, 1], [1, 0]], np.float32)
        >>> vendi_score(np.array([[0, 1, -1], [0, 2, -1], [0, 1, 2]], np.int32), units).round(3).tolist()
        [2.0, 1.0, 1.89]
    """
    held = _vectors_of(items, units)
    there = items >= 0
    kernel = held @ held.transpose(0, 2, 1)
    place = np.arange(items.shape[1])
    kernel[:, place, place] = there  # an item is like itself, also one without a vector
    number = there.sum(axis=1)
    shares = np.linalg.eigvalsh(kernel / np.maximum(number, 1)[:, None, None]).clip(min=0.0)
    entropy = -(shares * np.log(np.where(shares > 0, shares, 1.0))).sum(axis=1)
    return np.where(number > 0, np.exp(entropy), 0.0)


def calibration(shown: Values, liked: Values) -> Values:
    """How far the categories of a list are from those of the user's history, in nats; 0 is the same mix.

    ``KL(p || (1 - a) q + a p)`` with p the history's shares, q the list's and a = .01.

    Args:
        shown: ``[N, C]`` items of the list per category.
        liked: ``[N, C]`` events of the history per category.

    Returns:
        ``[N]``; 0 for a user without history, whom no mix can miss, and for an empty list's row the largest value, as
        for a list that holds nothing of what the user likes.

    Example:
        >>> mixes = np.array([[1.0, 1.0], [2.0, 0.0]])
        >>> calibration(mixes, np.array([[5.0, 5.0], [5.0, 5.0]])).round(3).tolist()
        [0.0, 1.959]
    """
    p, q = (counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0) for counts in (liked, shown))
    mixed = (1.0 - SMOOTHING) * q + SMOOTHING * p
    ratio = np.divide(p, mixed, out=np.ones_like(p), where=p > 0)
    return np.asarray((p * np.log(ratio)).sum(axis=1))


def _vectors_of(items: Places, units: Vectors) -> Values:
    """``[N, k, D]``, zeros where there is no item."""
    return np.where((items >= 0)[..., None], units[np.maximum(items, 0)], 0.0).astype(np.float64)
