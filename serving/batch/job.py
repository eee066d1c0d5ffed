"""Candidates by any model for any users."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, open_artifact
from recsys.device import AskedPlacement, asked_placement, resolve_device
from recsys.runtime import Progress
from recsys.scratch import scratch_folder
from serving.config import RecommendConfig

if TYPE_CHECKING:
    import torch

    from recsys.contracts.event_times import NumberUnit
    from serving.batch.plan import Plan
    from serving.inputs.user_histories import StoredUsers, UserSource


def recommend_with(
    settings: RecommendConfig,
    users: Path,
    out: Path,
    tracking_uri: str | None,
    progress: Progress,
    lock: Callable[[], AbstractContextManager[None]] = nullcontext,
    placed: AskedPlacement | None = None,
    since: Path | None = None,
) -> dict[str, Any]:
    """Write candidates for users that belong to no run; a request that is refused leaves nothing in ``out``.

    Args:
        settings: ``model`` names the bundle folder or registry reference.
        users: File of histories, or the folder of a prepared data set.
        tracking_uri: MLflow of a registry reference; ``None`` takes ``MLFLOW_TRACKING_URI``.
        lock: Held while ``out`` is written.
        placed: Where and in which numbers the model answers; ``None`` looks at the environment.
        since: Earlier candidates, whose rows unchanged users keep.

    Raises:
        ConfigError, DataError, ArtifactError: As in :func:`~serving.batch.candidates.write_candidates`; or the model or the
            users do not exist.
    """
    from serving.batch.candidates import write_candidates

    with _opened(settings, users, tracking_uri, placed) as asked:
        return write_candidates(*asked[:3], out, progress, lock, *asked[3:], since)


def plan_with(
    settings: RecommendConfig,
    users: Path,
    out: Path,
    tracking_uri: str | None,
    placed: AskedPlacement | None = None,
    since: Path | None = None,
) -> Plan:
    """Say what :func:`recommend_with` would take, measured on a first batch; writes nothing."""
    from serving.batch.candidates import plan_candidates

    with _opened(settings, users, tracking_uri, placed) as asked:
        return plan_candidates(*asked[:3], out, *asked[3:], since)


@contextmanager
def _opened(
    settings: RecommendConfig, users: Path, tracking_uri: str | None, placed: AskedPlacement | None
) -> Iterator[tuple[Path, StoredUsers, RecommendConfig, torch.device, str | None]]:
    """Bundle, users, settings with the version that they mean now, device and precision."""
    if settings.model is None:
        raise ConfigError("recommend: no model given; use --model with a registry reference or a bundle folder")
    asked = placed or asked_placement()
    device = resolve_device(asked.device)
    with scratch_folder("model") as scratch:
        bundle, pinned = open_bundle(settings.model, scratch, tracking_uri)
        people = source_of(users, settings.timestamp_unit).open()
        yield bundle, people, settings.model_copy(update={"model": pinned}), device, asked.precision


def source_of(users: Path, timestamp_unit: NumberUnit) -> UserSource:
    """Where users are kept: a folder of prepared data, or a file of histories."""
    from serving.inputs.user_histories import UserSource

    if not users.is_dir():
        return UserSource(users, None, timestamp_unit)
    files = sorted(users.glob("*.parquet"))
    if files and not (users / "dataset.json").exists():
        raise ArtifactError(
            f"the folder '{users}' is no prepared data set (it has no dataset.json) but holds '{files[0].name}'"
            f"{f' and {len(files) - 1} more such files' if files[1:] else ''}; users are one Parquet file of histories or "
            "the folder of a prepared data set: name the file, or put several together into one"
        )
    digest = open_artifact(users, "prepared").digest if (users / MANIFEST_NAME).exists() else str(users.resolve())
    return UserSource(users, digest)


def open_bundle(reference: str, scratch: Path, tracking_uri: str | None) -> tuple[Path, str]:
    """Open a model by reference or folder; returns its bundle, and the version that an alias means now.

    Raises:
        ArtifactError: There is no such model, or it is damaged.
        ConfigError: It is in a registry, and none is named.
    """
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
