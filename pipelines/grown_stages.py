"""The stages that go on from an earlier night: each has the form of :data:`~pipelines.engine.stage.GrowFunction`.

    embed      vectors of tonight's items in the space of the generation; founders keep theirs

As in :mod:`pipelines.stages`, imports stand inside the functions: the code version of a grown stage is made of them.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.engine.stage import Inputs
from recsys.contracts.manifest import Artifact
from recsys.device import resolve_device
from recsys.runtime import Progress

if TYPE_CHECKING:
    from pipelines.config import RunConfig

Summary = dict[str, Any]


def grow_embed(config: RunConfig, inputs: Inputs, base: Artifact, out_dir: Path, progress: Progress) -> Summary:
    """Give every item a vector in the space of an earlier result."""
    from features.item_embeddings import grow_embeddings
    from recsys.contracts.dataset import Dataset

    prepared, device = Dataset.open(inputs["prepare"].path), resolve_device(config.device)
    return grow_embeddings(prepared, config.embed, base.path, out_dir, progress, device)
