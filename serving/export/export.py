"""Builds the serving bundle from the artefacts of `prepare`, `tokenize` and `train` (layout: :mod:`serving.bundle.layout`).

An aligned policy comes from `align`, the ranker of the candidates from `rank`, and the reward model that a request may ask
for from `reward`; the held-out reward model stays behind.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch

import recsys
from recsys.contracts.columns import Columns
from recsys.contracts.contents import MANIFEST_NAME, describe_files
from recsys.contracts.dataset import CONTRACT_NAME, Dataset
from recsys.contracts.manifest import Manifest, digest_of, write_json
from recsys.decoding.config import DecodeConfig
from recsys.decoding.prefix_index import PrefixIndex
from recsys.model.checkpoint import load_policy
from recsys.model.weights import WEIGHTS_NAME
from recsys.reward.checkpoint import SPEC_NAME
from recsys.semantic_ids.versions import SemanticIds
from serving.answers.ranker import open_recommender
from serving.answers.second_stage import REWARD_FOLDER, open_reward_model
from serving.bundle.layout import BUNDLE_FILE, BUNDLE_FORMAT, BUNDLE_KIND, RANKER_FOLDER, BundleInfo
from serving.config import ServingLimits

REWARD_FILES: Final = (WEIGHTS_NAME, SPEC_NAME)


@dataclass(frozen=True)
class BundleSources:
    """Where the parts of a bundle come from.

    Attributes:
        prepared: Folder of the prepared data.
        semantic_ids: Folder of the tokenizer's artefact.
        model: Folder that ``save_policy`` wrote.
        digests: Artefact digests of ``data`` and ``train``, and where they are there of ``align``, ``reward`` and ``rank``.
        reward_model: Folder that ``save_reward_model`` wrote, for the second stage; ``None`` leaves it out.
        ranker: Folder of the fitted second stage of item lists; ``None`` leaves it out.
    """

    prepared: Path
    semantic_ids: Path
    model: Path
    digests: Mapping[str, str]
    reward_model: Path | None = None
    ranker: Path | None = None


def export_bundle(
    sources: BundleSources,
    name: str,
    decode: DecodeConfig,
    out_dir: Path,
    limits: ServingLimits | None = None,
    device: torch.device | str = "cpu",
) -> dict[str, Any]:
    """Write the bundle.

    Args:
        name: Registered name of the model.
        limits: What one request may ask for at most; ``None`` takes the defaults.
        device: Where the parts are opened, to see that they belong together; nothing of it is in the bundle.

    Returns:
        Summary: sizes and digests.

    Raises:
        ArtifactError: Policy, reward model or ranker was trained with other semantic IDs than those given, or they do not
            belong together.
    """
    semantic_ids = SemanticIds.load(sources.semantic_ids)
    policy = load_policy(sources.model, semantic_ids.digest, device)
    prepared = Dataset.open(sources.prepared)
    uses_users = "user" in policy.spec.model.features
    if (sources.reward_model is None) != ("reward" not in sources.digests):
        raise ValueError(f"reward_model is {sources.reward_model}, the digests are of {', '.join(sources.digests)}")
    if (sources.ranker is None) != ("rank" not in sources.digests):
        raise ValueError(f"ranker is {sources.ranker}, the digests are of {', '.join(sources.digests)}")
    reward_model = None if sources.reward_model is None else open_reward_model(sources.reward_model, policy)
    open_recommender(policy, semantic_ids, decode, sources.ranker)

    out_dir.mkdir(parents=True, exist_ok=True)
    shutil.copytree(sources.model, out_dir / "model", dirs_exist_ok=True)
    if sources.reward_model is not None:
        (out_dir / REWARD_FOLDER).mkdir(exist_ok=True)
        for file in REWARD_FILES:
            shutil.copyfile(sources.reward_model / file, out_dir / REWARD_FOLDER / file)
    if sources.ranker is not None:
        shutil.copytree(sources.ranker, out_dir / RANKER_FOLDER, dirs_exist_ok=True)
    semantic_ids.save(out_dir)
    (out_dir / "prefix_index").mkdir(exist_ok=True)
    PrefixIndex.build(semantic_ids.codes, semantic_ids.level_sizes).save(out_dir / "prefix_index")
    prepared.items.select(Columns.ITEM_INDEX, Columns.ITEM_ID, Columns.TITLE).write_parquet(out_dir / "items.parquet")
    if uses_users:
        prepared.users.select(Columns.USER_INDEX, Columns.USER_ID).write_parquet(out_dir / "users.parquet")
    write_json(out_dir / "dataset.json", prepared.spec.model_dump(mode="json"))
    if (sources.prepared / CONTRACT_NAME).exists():
        shutil.copyfile(sources.prepared / CONTRACT_NAME, out_dir / CONTRACT_NAME)
    write_json(out_dir / "decode.json", json.loads(decode.model_dump_json()))
    info = BundleInfo(
        format=BUNDLE_FORMAT,
        name=name,
        digests={**sources.digests, "semantic_ids": semantic_ids.digest},
        uses_users=uses_users,
        limits=limits or ServingLimits(),
    )
    write_json(out_dir / BUNDLE_FILE, info.model_dump(mode="json"))
    _seal(out_dir, info)
    size = sum(path.stat().st_size for path in out_dir.rglob("*") if path.is_file())
    return {
        "registered_name": name,
        "num_items": prepared.spec.num_items,
        "megabytes": round(size / 1e6, 3),
        "semantic_id_digest": semantic_ids.digest,
        "objectives": list(policy.spec.objectives),
        "has_ranker": sources.ranker is not None,
        "reward_towers": [] if reward_model is None else list(reward_model.towers),
    }


def _seal(folder: Path, info: BundleInfo) -> None:
    """Write the manifest, without which no bundle is opened; a pipeline that publishes the folder writes its own over it."""
    manifest = Manifest(
        kind=BUNDLE_KIND,
        digest=digest_of({"name": info.name, "digests": info.digests}),
        code_version=recsys.__version__,
        seed=0,
        parents=info.digests,
        config={},
        summary={},
        files=describe_files(folder),
    )
    write_json(folder / MANIFEST_NAME, manifest.model_dump(mode="json"))
