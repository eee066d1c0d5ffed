"""The serving bundle: one folder with all that is needed to answer, and nothing that could be mixed with another model.

Files:
    bundle.json         name, digests, types of the ids, format version: :class:`BundleInfo`
    model/              the policy, safetensors + JSON
    semantic_ids.parquet, reserved.parquet, codes.npy, codebooks.safetensors, semantic_ids.json
    prefix_index/       flat arrays of legal prefixes
    items.parquet       item_index, item_id, title; row number = item_index
    users.parquet       user_index, user_id; only where the policy has a table of users
    dataset.json          sizes and signals of the data it was trained on
    data_contract.json    what those data promised, to hold the next night's data against
    decode.json         how it decodes
    reward_model/       the session reward model, safetensors + JSON; only where ``bundle.json`` names its digest
    ranker/             item scorers, weights and ranker of the candidates; only where ``bundle.json`` names its digest

    manifest.json       size and sha256 of every file: whoever opens the folder compares them, and opens none without it

There is no pickle anywhere. Whose bundle it is, the registry says: a version carries the digest of the content
(:attr:`~recsys.contracts.manifest.Manifest.content_digest`), and :func:`open_bundle` compares it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ConfigDict, ValidationError

from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import Artifact, open_artifact, read_json
from serving.config import ServingLimits

BUNDLE_FORMAT: Final = 2
"""2 since a bundle can hold a ranker: older code would answer with it in another order."""

RANKER_FOLDER: Final = "ranker"
"""Of a bundle."""

BUNDLE_KIND: Final = "bundle"
"""Kind of its artefact."""
BUNDLE_FILE: Final = "bundle.json"


class BundleInfo(BaseModel):
    """What the bundle says about itself.

    Attributes:
        format: Version of the folder layout.
        name: Registered name of the model.
        digests: ``data``, ``train`` (artefact digests) and ``semantic_ids`` (of the codes themselves); ``align``,
            ``reward`` and ``rank`` (artefact digests) where the policy was aligned, and where the bundle has a reward model
            or a ranker.
        uses_users: The policy looks up users it has met in training.
        limits: What one request may ask for at most.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: int
    name: str
    digests: dict[str, str]
    uses_users: bool
    limits: ServingLimits = ServingLimits()


def open_bundle(folder: Path, content: str | None = None, whose: str = "") -> Artifact:
    """Verify a bundle, and whose it is.

    Args:
        content: Digest of the content that it must have; ``None`` takes any.
        whose: Who says so, for the message.

    Raises:
        ArtifactError: The folder is no bundle, damaged, or another's.
    """
    if not (folder / BUNDLE_FILE).exists():
        raise ArtifactError(
            f"'{folder}' is no serving bundle: it holds no {BUNDLE_FILE}; give the folder that `export` printed"
        )
    artifact = open_artifact(folder, BUNDLE_KIND)
    found = artifact.manifest.content_digest
    if content is not None and found != content:
        raise ArtifactError(
            f"'{folder}' holds another bundle than {whose}: its content has the digest {found[:16]}, and {content[:16]} was "
            "registered; delete the folder, so that it is fetched again, or register what is in it as a version of its own"
        )
    return artifact


def read_info(folder: Path, content: str | None = None) -> BundleInfo:
    """Read ``bundle.json``, after verifying the whole folder against its manifest.

    Args:
        content: As of :func:`open_bundle`.

    Raises:
        ArtifactError: No bundle, a damaged one, another one, or one of another format.
    """
    open_bundle(folder, content, "the model that it came with")
    values: Any = read_json(folder / BUNDLE_FILE)
    try:
        info = BundleInfo.model_validate(values)
    except ValidationError as error:
        raise ArtifactError(
            f"'{folder / BUNDLE_FILE}' does not keep the schema: {error}; export the model again"
        ) from error
    if info.format != BUNDLE_FORMAT:
        raise ArtifactError(
            f"'{folder}' has bundle format {info.format}, this code reads {BUNDLE_FORMAT}; export the model again"
        )
    return info
