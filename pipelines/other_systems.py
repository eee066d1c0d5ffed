"""Systems of others in the table of an evaluation: registered versions, bundles, and lists that somebody wrote down.

Reads ``evaluate.rankings`` and ``evaluate.models``; produces rankings of the same rows as all other systems, kept on disk as
soon as they are there, and sentences about what does not fit.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import MANIFEST_NAME, Artifact, read_json, sha256_of_file
from recsys.scratch import scratch_folder

if TYPE_CHECKING:
    from recsys.contracts.dataset import Dataset
    from recsys.evaluation.config import EvaluateConfig
    from recsys.evaluation.rankings import Rankings
    from serving.registry.model_registry import Registry

_REGISTERED: Final = "models:/"


@dataclass(frozen=True)
class RegistryPlace:
    """Where registered versions are looked up.

    Attributes:
        uri: MLflow's tracking URI.
        timeout_s: Seconds to wait for a server.
    """

    uri: str
    timeout_s: float


def fingerprint(settings: EvaluateConfig, registry: RegistryPlace) -> dict[str, str]:
    """Content of everything named in ``evaluate.rankings`` and ``evaluate.models``.

    Raises:
        DataError, ArtifactError, ConfigError: Something that is named is not there.
    """
    from recsys.evaluation.given_rankings import fingerprint as of_rankings

    found = of_rankings(settings.rankings)
    for name, reference in settings.models.items():
        found[f"evaluate.models.{name}"] = _identity(registry, name, reference)
    return found


def other_rankings(
    settings: EvaluateConfig,
    registry: RegistryPlace,
    prepared: Dataset,
    artifact: Artifact,
    baselines_dir: Path,
    out_dir: Path,
) -> tuple[Rankings, list[str]]:
    """Rank the rows of the split with every system of others.

    Args:
        prepared: The data set, opened; ``artifact`` is it as an artefact.
        baselines_dir: Rankings of the baselines, whose names are taken.
        out_dir: Of the evaluation; rankings are kept in it until it is done.

    Raises:
        ConfigError: A name is another system's.
        DataError, ArtifactError: As the readers of lists and bundles say.
    """
    from recsys.evaluation.baseline_rankings import SYSTEMS_FILE
    from recsys.evaluation.given_rankings import read_ranking_of
    from recsys.evaluation.rankings import (
        OWN_SYSTEMS,
        ROWS_PER_BLOCK,
        ranking_folder,
        read_rankings,
        write_ranking,
        write_rankings,
    )

    names = [*settings.rankings, *settings.models]
    if not names:
        return {}, []
    _check_names(names, [*OWN_SYSTEMS, *read_json(baselines_dir / SYSTEMS_FILE)["systems"]])
    targets, width = prepared.targets(settings.split_code), settings.ks[-1]
    notes: list[str] = []

    def missing(name: str) -> dict[bool, Path]:
        paths = {exclude: ranking_folder(out_dir / ".rankings", name, exclude) for exclude in settings.filters}
        return {exclude: path for exclude, path in paths.items() if not path.exists()}

    for name, path in settings.rankings.items():
        given = read_ranking_of(name, path, prepared, targets, width)
        notes += given.notes
        for exclude, target in missing(name).items():
            write_ranking(target, given.ranked(prepared, targets, width, exclude_seen=exclude))
    for name, reference in settings.models.items():
        if todo := missing(name):
            from serving.answers.prepared_rows import answer_rows
            from serving.answers.scorer import Scorer
            from serving.inputs.user_histories import PreparedUsers

            with _bundle(registry, name, reference) as folder:
                scorer = Scorer.open(folder)
            users = PreparedUsers(artifact.path, artifact.digest)
            for exclude, target in todo.items():
                blocks = answer_rows(scorer, users, targets, width, exclude_seen=exclude, rows_per_block=ROWS_PER_BLOCK)
                write_rankings([target], blocks, len(targets))
    return read_rankings(out_dir / ".rankings", names, settings.filters), notes


def _check_names(names: Collection[str], taken: Collection[str]) -> None:
    folders: dict[str, str] = {_plain(name): name for name in taken}
    for name in names:
        other = folders.setdefault(_plain(name), name)
        if other != name or name in taken or not _plain(name):
            raise ConfigError(
                f"evaluate: a system of evaluate.rankings or evaluate.models is called '{name}', which cannot be told from "
                f"'{other}' of the same table; give it a name of its own, with letters or digits"
            )


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _identity(registry: RegistryPlace, name: str, reference: str) -> str:
    if reference.startswith(_REGISTERED):
        from serving.registry.aliases import BUNDLE_TAG, CONTENT_TAG

        with scratch_folder("model") as scratch:
            version = _open(registry, scratch).resolve(reference)
        return version.tags.get(CONTENT_TAG) or version.tags.get(BUNDLE_TAG, version.reference)
    from serving.bundle.layout import BUNDLE_FILE

    folder = _folder(name, reference)
    files = [folder / MANIFEST_NAME, folder / BUNDLE_FILE]
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise ArtifactError(
            f"evaluate.models.{name}: '{folder}' is no serving bundle; give the folder that `export` printed"
        )
    return sha256_of_file(found)


@contextmanager
def _bundle(registry: RegistryPlace, name: str, reference: str) -> Iterator[Path]:
    if not reference.startswith(_REGISTERED):
        yield _folder(name, reference)
        return
    with scratch_folder("model") as scratch:
        opened = _open(registry, scratch)
        yield opened.open_bundle(opened.resolve(reference)).path


def _folder(name: str, reference: str) -> Path:
    folder = Path(reference).expanduser()
    if not folder.is_dir():
        raise ArtifactError(
            f"evaluate.models.{name} is '{reference}', which is neither models:/name@alias, models:/name/version, nor an "
            "existing bundle folder"
        )
    return folder


def _open(place: RegistryPlace, scratch: Path) -> Registry:
    from serving.registry.model_registry import Registry

    return Registry(place.uri, scratch, place.timeout_s, create=False)
