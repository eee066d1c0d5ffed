"""The stages that go on from an earlier night: each has the form of :data:`~pipelines.engine.stage.GrowFunction`.

    embed      vectors of tonight's items in the space of the generation; founders keep theirs
    train      a policy that goes on from an earlier one's weights
    tokenize   IDs of new items from the frozen codebooks, or a new generation that is named after the old one

As in :mod:`pipelines.stages`, imports stand inside the functions: the code version of a grown stage is made of them.
"""

from __future__ import annotations

from dataclasses import replace
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


def grow_tokenize(config: RunConfig, inputs: Inputs, base: Artifact, out_dir: Path, progress: Progress) -> Summary:
    """Give new items IDs from the codebooks of an earlier version; with ``tokenize.generation: new`` fit codebooks anew.

    A generation that grows needs vectors of its own space, so that `embed` has to grow as well. A new one is fitted to
    whatever `embed` gives, and its codes are named after the base.
    """
    import numpy as np

    from recsys.contracts.columns import Columns
    from recsys.contracts.dataset import Dataset
    from recsys.semantic_ids.generations.growth import grow_semantic_ids
    from recsys.semantic_ids.tokenize import tokenize
    from recsys.semantic_ids.versions import SemanticIds

    items = Dataset.open(inputs["prepare"].path).items
    embeddings = np.load(inputs["embed"].path / "fused.npy", mmap_mode="r")
    ids, traffic = items[Columns.ITEM_ID], items[Columns.TRAIN_COUNT].to_numpy()
    space = inputs["embed"].manifest.summary["space"]
    if config.tokenize.generation == "keep":
        report = grow_semantic_ids(base.path, embeddings, ids, traffic, space, config.tokenize, out_dir)
    else:
        named_after = SemanticIds.load(base.path)
        report = tokenize(embeddings, ids, traffic, config.tokenize, out_dir, config.seed, space, named_after)
    return {**report, "semantic_id_digest": report["digest"]}


def grow_train(config: RunConfig, inputs: Inputs, base: Artifact, out_dir: Path, progress: Progress) -> Summary:
    """Fit the policy from the weights of an earlier one, within the budget of a night; goes on after a kill."""
    from pipelines.training_inputs import training_inputs
    from recsys.contracts.errors import CannotGrow
    from recsys.contracts.manifest import ArtifactStore
    from recsys.data.samples import RecentRows
    from recsys.training.fit import train_policy
    from recsys.training.warm.start import WarmStart

    nights, digest = config.nights, base.manifest.parents["prepare"]
    dataset = ArtifactStore(base.path.parents[1]).find("prepared", digest, verify=False)
    if dataset is None:
        raise CannotGrow(
            f"a warm start from '{base.path}' needs the data set that it was trained on, for its vocabularies, and "
            f"'{digest[:16]}' is not there any more; train from nothing (nights.warm_start=false)"
        )
    training = training_inputs(config, inputs)
    train = training.train.warm(nights.epochs, nights.minutes, nights.learning_rate_share, nights.warmup_share)
    started = replace(
        training,
        train=train,
        start=WarmStart(base.path / "model", dataset.path, base.digest[:16]),
        recent=RecentRows(nights.recent_days, nights.sample) if nights.rows == "recent" else None,
    )
    summary = train_policy(started, out_dir, progress)
    if train.max_minutes is not None:
        summary["same_steps_again"] = False  # a clock ends it: the digest does not fix how many there were
    return summary
