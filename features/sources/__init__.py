"""Sources: one reader per kind of raw data, told apart by ``kind`` in the recipe."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from features.sources.formats.amazon_reviews import AmazonReviewsSource
from features.sources.formats.kuairand import KuaiRandSource
from features.sources.formats.movielens import MovieLensSource
from features.sources.history_rows import HistoryRowsSource
from features.sources.recbole import RecBoleSource
from features.sources.simulated.source import SimulatedSource
from features.sources.table import TableSource

SourceConfig = Annotated[
    TableSource
    | RecBoleSource
    | HistoryRowsSource
    | AmazonReviewsSource
    | MovieLensSource
    | KuaiRandSource
    | SimulatedSource,
    Field(discriminator="kind"),
]

__all__ = [
    "AmazonReviewsSource",
    "HistoryRowsSource",
    "KuaiRandSource",
    "MovieLensSource",
    "RecBoleSource",
    "SimulatedSource",
    "SourceConfig",
    "TableSource",
]
