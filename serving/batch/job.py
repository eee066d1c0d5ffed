"""Candidates by any model for any users."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, open_artifact
from recsys.device import AskedPlacement, asked_placement, resolve_device
from recsys.runtime import Progress
from serving.config import RecommendConfig


def recommend_with(
    settings: RecommendConfig,
    users: Path,
    out: Path,
    tracking_uri: str | None,
    progress: Progress,
    lock: Callable[[], AbstractContextManager[None]] = nullcontext,
    placed: AskedPlacement | None = None,
) -> dict[str, Any]:
    """Write candidates for users that belong to no run; a request that is refused leaves nothing in ``out``.

    Args:
        settings: ``model`` names the bundle folder or registry reference.
        users: File of histories, or the folder of a prepared data set.
        tracking_uri: MLflow of a registry reference; ``None`` takes ``MLFLOW_TRACKING_URI``.
        lock: Held while ``out`` is written.
        placed: Where and in which numbers the model answers; ``None`` looks at the environment.

    Raises:
        ConfigError, DataError, ArtifactError: As in :func:`~serving.batch.candidates.write_candidates`; or the model or the
            users do not exist.
    """
    from serving.batch.candidates import write_candidates
    from serving.inputs.user_histories import FrameUsers, PreparedUsers, StoredUsers

    if settings.model is None:
        raise ConfigError("recommend: no model given; use --model with a registry reference or a bundle folder")
    asked = placed or asked_placement()
    device = resolve_device(asked.device)
    with TemporaryDirectory(prefix="recsys-model-") as scratch:
        bundle, pinned = _open_bundle(settings.model, Path(scratch), tracking_uri)
        people: StoredUsers
        if users.is_dir():
            digest = (
                open_artifact(users, "prepared").digest if (users / MANIFEST_NAME).exists() else str(users.resolve())
            )
            people = PreparedUsers(users, digest)
        else:
            people = FrameUsers(users, settings.timestamp_unit)
        pinned_settings = settings.model_copy(update={"model": pinned})
        return write_candidates(bundle, people, pinned_settings, out, progress, lock, device, asked.precision)


def _open_bundle(reference: str, scratch: Path, tracking_uri: str | None) -> tuple[Path, str]:
    if not reference.startswith("models:/"):
        if not Path(reference).is_dir():
            raise ArtifactError(
                f"model '{reference}' is neither models:/name@alias, models:/name/version, nor an existing bundle folder"
            )
        return Path(reference), reference
    from serving.registry.model_registry import Registry

    uri = tracking_uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        raise ConfigError(
            f"'{reference}' is in a registry; give --tracking-uri, for example sqlite:///runs/demo/mlflow.db"
        )
    registry = Registry(uri, scratch, create=False)
    version = registry.resolve(reference)
    return registry.open_bundle(version).path, version.reference
