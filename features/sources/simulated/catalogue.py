"""The simulator's short videos: topics, sub-topics, series of numbered parts, authors, titles.

Reads a configuration; produces :class:`SimulatedItems`. Titles are made of the topic's own words ("Sourdough kitchen tips
#12 by Mara"), so that a text embedding carries the topic.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt
import polars as pl

from recsys.contracts.columns import Columns

FloatArray = npt.NDArray[np.float32]
IndexArray = npt.NDArray[np.int64]

FIRST_ITEM_ID: Final = 500_000
"""item_id = FIRST_ITEM_ID + place in the world, so that an id cannot be mistaken for an index."""

_TOPICS: Final[dict[str, tuple[str, ...]]] = {
    "kitchen": ("sourdough", "noodle", "dumpling", "pickle", "curry", "pastry", "barbecue", "breakfast"),
    "garden": ("tomato", "bonsai", "compost", "orchid", "hedge", "greenhouse", "herb", "pond"),
    "fitness": ("squat", "marathon", "yoga", "kettlebell", "rowing", "stretching", "boxing", "climbing"),
    "music": ("guitar", "piano", "drum", "violin", "synthesizer", "choir", "jazz", "songwriting"),
    "travel": ("island", "railway", "backpack", "harbour", "desert", "mountain", "castle", "market"),
    "animals": ("puppy", "kitten", "parrot", "horse", "turtle", "aquarium", "rabbit", "beehive"),
    "gaming": ("speedrun", "dungeon", "racing", "chess", "puzzle", "arcade", "strategy", "platformer"),
    "beauty": ("lipstick", "skincare", "nail", "perfume", "eyeliner", "hairstyle", "serum", "contour"),
    "science": ("volcano", "magnet", "telescope", "microscope", "robot", "chemistry", "fossil", "gravity"),
    "crafts": ("origami", "knitting", "pottery", "woodwork", "leather", "calligraphy", "quilt", "candle"),
    "cars": ("engine", "drift", "restoration", "motorcycle", "rally", "electric", "tyre", "garage"),
    "football": ("dribble", "penalty", "goalkeeper", "freekick", "tactics", "derby", "header", "academy"),
    "comedy": ("prank", "parody", "sketch", "standup", "office", "roommate", "neighbour", "wedding"),
    "fashion": ("sneaker", "denim", "vintage", "runway", "jacket", "jewellery", "handbag", "tailor"),
    "history": ("pharaoh", "viking", "samurai", "empire", "cathedral", "revolution", "explorer", "legion"),
    "finance": ("budget", "mortgage", "pension", "startup", "dividend", "tax", "savings", "auction"),
}
_FORMATS: Final = ("tips", "diary", "challenge", "explained", "mistakes", "secrets", "at home", "for beginners")
_AUTHORS: Final = (
    "Mara", "Jonas", "Aiko", "Pedro", "Lena", "Omar", "Chloe", "Ravi", "Ingrid", "Tomas", "Yara", "Felix",
    "Nadia", "Hugo", "Suki", "Emil", "Rosa", "Kofi", "Greta", "Dario", "Mina", "Otto", "Zoe", "Bashir",
)  # fmt: skip


SUBTOPICS_PER_TOPIC: Final = 4


@dataclass(frozen=True)
class SimulatedItems:
    """The catalogue. Items of a sub-topic stand side by side, in series of ``parts`` numbered parts.

    Attributes:
        num_topics: Topics; each has four sub-topics, so there are ``G = 4 * num_topics`` sub-topics.
        parts: Items per series; the last series of a sub-topic may be shorter.
        first_item: ``[G + 1]`` sub-topic ``g`` owns items ``first_item[g]`` to ``first_item[g + 1]``.
        subtopic: ``[I]`` sub-topic of each item.
        part: ``[I]`` place inside its series, from 0.
        author: ``[I]``; an author keeps mostly to one topic.
        series: ``[I]`` number of the series inside its sub-topic.
        subtopic_taste: ``[G, D]`` place in the space of fine tastes.
        cumulative_pull: ``[I]`` running sum of popularity over all items.
        pull: ``[I]`` log popularity; a few items of a sub-topic get most of its views.
        release_day: ``[I]`` 0 for items that exist at the start; later parts of a series come later.
        quality: ``[I]`` utility that everybody gets.
        duration_ms: ``[I]``.
    """

    num_topics: int
    parts: int
    first_item: IndexArray
    subtopic: IndexArray
    part: IndexArray
    series: IndexArray
    author: IndexArray
    subtopic_taste: FloatArray
    cumulative_pull: npt.NDArray[np.float64]
    pull: FloatArray
    release_day: FloatArray
    quality: FloatArray
    duration_ms: FloatArray

    @property
    def num_subtopics(self) -> int:
        """Sub-topics in the world, ``G``."""
        return len(self.first_item) - 1

    @property
    def num_items(self) -> int:
        """Items in the world, ``I``."""
        return len(self.subtopic)

    def popular_in(self, start: IndexArray, end: IndexArray, uniform: npt.NDArray[np.float64]) -> IndexArray:
        """Draw an item of ``[start, end)`` in proportion to its popularity; all arguments have one shape."""
        before = np.where(start > 0, self.cumulative_pull[start - 1], 0.0)
        wanted = before + uniform * (self.cumulative_pull[end - 1] - before)
        return np.clip(np.searchsorted(self.cumulative_pull, wanted, side="right"), start, end - 1)


def make_items(num_items: int, num_topics: int, parts: int, taste_dim: int, days: float, seed: int) -> SimulatedItems:
    """Draw the catalogue; seven items in ten exist at the start, the others appear during the log."""
    rng = np.random.default_rng([seed, 1])
    num_subtopics = SUBTOPICS_PER_TOPIC * num_topics
    first_item = np.linspace(0, num_items, num_subtopics + 1).round().astype(np.int64)
    subtopic = np.repeat(np.arange(num_subtopics), np.diff(first_item))
    place = np.arange(num_items) - first_item[subtopic]
    part, series = place % parts, place // parts
    run = np.cumsum(part == 0) - 1  # number of the series in the whole catalogue
    authors_per_topic = max(1, num_items // (3 * parts * num_topics))
    own = subtopic // SUBTOPICS_PER_TOPIC * authors_per_topic + rng.integers(0, authors_per_topic, num_items)
    elsewhere = rng.integers(0, num_topics * authors_per_topic, num_items)
    author = np.where(rng.random(num_items) < 0.1, elsewhere, own)
    # Zipf inside each sub-topic: the item of rank r draws 1 / (1 + r) of the views of the first
    rank = np.argsort(np.lexsort((rng.random(num_items), subtopic))) - first_item[subtopic]
    between = rng.normal(0.0, 0.4, num_subtopics)
    pull = between[subtopic] - np.log1p(rank)
    late = rng.uniform(0.0, days, num_items) * (rng.random(num_items) < 0.3)
    release_day = np.empty(num_items)
    release_day[np.lexsort((part, run))] = late[np.lexsort((late, run))]
    length_ms = np.exp(rng.normal(np.log(30_000), 0.4, int(run[-1]) + 1))
    return SimulatedItems(
        num_topics=num_topics,
        parts=parts,
        first_item=first_item,
        subtopic=subtopic,
        part=part,
        series=series,
        author=author[np.flatnonzero(part == 0)][run],
        subtopic_taste=(rng.normal(size=(num_subtopics, taste_dim)) / np.sqrt(taste_dim)).astype(np.float32),
        cumulative_pull=np.cumsum(np.exp(pull)),
        pull=pull.astype(np.float32),
        release_day=release_day.astype(np.float32),
        quality=rng.normal(0.0, 0.3, num_items).astype(np.float32),
        duration_ms=np.round(length_ms[run] * np.exp(rng.normal(0, 0.2, num_items))).astype(np.float32),
    )


def item_table(items: SimulatedItems) -> pl.DataFrame:
    """Return the catalogue in canonical item columns."""
    names = list(_TOPICS)
    titles, texts, categories, authors = [], [], [], []
    for place in range(items.num_items):
        subtopic = int(items.subtopic[place])
        topic, side = divmod(subtopic, SUBTOPICS_PER_TOPIC)
        topic_name = _numbered(names[topic % len(names)], topic // len(names))
        words = _TOPICS[names[topic % len(names)]][2 * side : 2 * side + 2]
        series = int(items.series[place])
        kind = _numbered(_FORMATS[series // 2 % len(_FORMATS)], series // (2 * len(_FORMATS)))
        author = _numbered(_AUTHORS[items.author[place] % len(_AUTHORS)], int(items.author[place]) // len(_AUTHORS))
        titles.append(f"{words[series % 2].capitalize()} {topic_name} {kind} #{items.part[place] + 1} by {author}")
        texts.append(f"{topic_name}, {words[0]} and {words[1]}")
        categories.append([topic_name, f"{topic_name}: {words[0]} and {words[1]}"])
        authors.append(author)
    return pl.DataFrame(
        {
            Columns.ITEM_ID: np.arange(items.num_items, dtype=np.int64) + FIRST_ITEM_ID,
            Columns.TITLE: titles,
            Columns.TEXT: texts,
            Columns.CATEGORIES: categories,
            Columns.AUTHOR_ID: authors,
        }
    )


def _numbered(name: str, round_number: int) -> str:
    return name if round_number == 0 else f"{name} {round_number + 1}"
