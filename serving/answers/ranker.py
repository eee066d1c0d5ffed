"""The recommender of a bundle: with the ranker that lies beside the policy, or as the decode configuration says.

The parity check opens the artefacts of the run in the same way, so that both are compared with all that they answer with.
"""

from __future__ import annotations

from pathlib import Path

from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.recommender import Recommender
from recsys.decoding.second_stage.recommender import RankedRecommender
from recsys.decoding.second_stage.stage import SecondStage
from recsys.model.generative_recommender import GenerativeRecommender
from recsys.semantic_ids.versions import SemanticIds


def open_recommender(
    policy: GenerativeRecommender,
    semantic_ids: SemanticIds,
    decode: DecodeConfig,
    ranker: Path | None,
    index: PrefixIndex | None = None,
) -> Recommender:
    """Open a recommender.

    Args:
        ranker: Folder that :meth:`~recsys.decoding.second_stage.stage.SecondStage.save` wrote; ``None``: there is none.

    Raises:
        ArtifactError: The ranker is damaged, or was fitted for another policy or other semantic IDs.
    """
    if ranker is None:
        return Recommender(policy, semantic_ids, decode, index)
    return RankedRecommender(policy, semantic_ids, decode, SecondStage.load(ranker), index)
