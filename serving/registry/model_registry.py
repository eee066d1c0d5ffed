"""The MLflow registry: bundles become versions, versions carry aliases, and a reference becomes a bundle folder again.

What aliases and tags mean: :mod:`serving.registry.aliases`.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from recsys.contracts.columns import Columns
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.contracts.manifest import Artifact, ArtifactStore
from recsys.device import DEVICE_VARIABLE, PRECISION_VARIABLE
from recsys.scratch import scratch_folder
from serving.bundle.catalogue import Catalogue, read_catalogue
from serving.bundle.layout import BUNDLE_FILE, BUNDLE_KIND, BundleInfo, open_bundle, read_info
from serving.registry.aliases import BUNDLE_TAG, CHALLENGER, CLEANED_TAG, CONTENT_TAG
from serving.registry.file_store import check_there, database_of
from serving.registry.masking import shown
from serving.registry.mlflow_client import connect, translated_errors
from serving.registry.requirements import installed_flavour, language_packages, requirements, write_install_files

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

logger = logging.getLogger("serving")

MODEL_CONFIG: Final = {"device": None, "precision": None}
"""What a caller of ``load_model`` may set, see :class:`~serving.registry.pyfunc_model.RecommenderModel`."""


@dataclass(frozen=True)
class Version:
    """One version of a registered model."""

    name: str
    number: str
    tags: dict[str, str]
    model_id: str | None = None
    """MLflow's own name of the logged model, where the version was read from a registry."""

    @property
    def reference(self) -> str:
        """``models:/name/number``."""
        return f"models:/{self.name}/{self.number}"


class Registry:
    """A registry behind a tracking URI.

    Args:
        uri: MLflow tracking URI; the registry is the same server.
        cache_dir: Where bundles from the registry are unpacked, by name and version.
        create: Make a database file that is missing, for a run's own registry. Off where it is only asked: see
            :func:`~serving.registry.mlflow_client.connect`.
    """

    def __init__(self, uri: str, cache_dir: Path, timeout_s: float = 5.0, *, create: bool = True) -> None:
        self.uri = uri
        self.cache_dir = cache_dir
        self._writes = create
        self.client: MlflowClient = connect(uri, timeout_s, create=create)

    def find_bundle(self, name: str, bundle_digest: str) -> Version | None:
        """Return the version made of this bundle, if it was registered before and its files were not cleaned away."""
        for version in self.versions(name):
            if version.tags.get(BUNDLE_TAG) == bundle_digest and CLEANED_TAG not in version.tags:
                return version
        return None

    def versions(self, name: str) -> list[Version]:
        """Return all versions of a model, oldest first; none where no model is called so."""
        with translated_errors(self.uri):
            found = list(self.client.search_model_versions(f"name='{name}'"))
        ordered = sorted(found, key=lambda one: int(one.version))
        return [Version(name, str(one.version), dict(one.tags), _logged_model(one.source)) for one in ordered]

    def register(self, bundle: Path, run_id: str, tags: Mapping[str, str]) -> Version:
        """Log a bundle into an MLflow run as a model from code, and register it; the new version becomes challenger.

        The digest of its content goes into the version's tags and into the model, whose loaders compare it.

        Args:
            tags: Tags of the version; :data:`BUNDLE_TAG` among them makes a second call find the first one's version.
        """
        info = read_info(bundle)
        known = self.find_bundle(info.name, tags[BUNDLE_TAG])
        if known is None:
            content = open_bundle(bundle).manifest.content_digest
            with translated_errors(self.uri):
                model_uri = _log_model(bundle, info, content, run_id)
                known = self._create_version(info.name, model_uri, run_id, {**tags, CONTENT_TAG: content})
        self.point(known.name, CHALLENGER, known.number)
        return known

    def by_alias(self, name: str, alias: str) -> Version | None:
        """Return the version that carries an alias, or ``None``."""
        from mlflow.exceptions import MlflowException

        with translated_errors(self.uri):
            try:
                found = self.client.get_model_version_by_alias(name, alias)
            except MlflowException as error:
                if error.error_code in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                    return None
                raise
        return Version(name, str(found.version), dict(found.tags))

    def aliases(self, name: str) -> dict[str, str]:
        """Return the version number of each alias of a model; empty where no model is called so."""
        from mlflow.exceptions import MlflowException

        with translated_errors(self.uri):
            try:
                found = self.client.get_registered_model(name).aliases
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    return {}
                raise
        return {str(alias): str(number) for alias, number in found.items()}

    def point(self, name: str, alias: str, number: str) -> None:
        """Move an alias to a version."""
        assert self._writes, "opened to be asked only"
        with translated_errors(self.uri):
            self.client.set_registered_model_alias(name, alias, number)

    def remove_alias(self, name: str, alias: str) -> None:
        """Take an alias away."""
        assert self._writes, "opened to be asked only"
        with translated_errors(self.uri):
            self.client.delete_registered_model_alias(name, alias)

    def set_tags(self, version: Version, tags: Mapping[str, str]) -> None:
        """Write tags on a version."""
        assert self._writes, "opened to be asked only"
        with translated_errors(self.uri):
            for key, value in tags.items():
                self.client.set_model_version_tag(version.name, version.number, key, value)

    def resolve(self, reference: str) -> Version:
        """Find the version behind ``models:/name@alias`` or ``models:/name/number``.

        Raises:
            ConfigError: The reference has another form.
            ArtifactError: There is no such version.
        """
        name, alias, number = parse_reference(reference)
        if alias is not None:
            version = self.by_alias(name, alias)
            if version is None:
                raise ArtifactError(f"'{reference}' does not exist at '{shown(self.uri)}': {self._what_there_is(name)}")
            return version
        from mlflow.exceptions import MlflowException

        with translated_errors(self.uri):
            try:
                found = self.client.get_model_version(name, str(number))
            except MlflowException as error:
                if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                    raise ArtifactError(
                        f"'{reference}' does not exist at '{shown(self.uri)}': {self._what_there_is(name)}"
                    ) from error
                raise
        return Version(name, str(found.version), dict(found.tags))

    def _what_there_is(self, name: str) -> str:
        """Say which models are registered, or which versions and aliases a model has."""
        with translated_errors(self.uri):
            names = sorted(model.name for model in self.client.search_registered_models())
            if name not in names:
                close = difflib.get_close_matches(name, names, n=1)
                hint = f"did you mean '{close[0]}'? " if close else ""
                listed = ", ".join(names[:20]) or "none; run `recsys export` first"
                return f"no model is called '{name}'; {hint}registered are {listed}"
            numbers = [int(version.version) for version in self.client.search_model_versions(f"name='{name}'")]
            aliases = self.client.get_registered_model(name).aliases
        numbered = ", ".join(map(str, sorted(numbers))) or "none"
        named = ", ".join(f"{alias} (version {number})" for alias, number in sorted(aliases.items()))
        return f"'{name}' has the versions {numbered}, and the aliases {named or 'none; run `recsys promote` first'}"

    def open_bundle(self, version: Version, store: ArtifactStore | None = None) -> Artifact:
        """Open the bundle that was registered as a version; every loader of versions comes through here.

        Args:
            store: Where it may lie already; else it is downloaded once, and verified each time it is opened.

        Raises:
            ArtifactError: The bundle is damaged, or another than was registered.
        """
        digest, content = version.tags.get(BUNDLE_TAG), version.tags.get(CONTENT_TAG)
        if content is None:
            logger.warning(
                "%s was registered before versions carried '%s': whether its bundle is the one that was registered "
                "cannot be checked; export and register it anew to bind it",
                version.reference,
                CONTENT_TAG,
            )
        local = store.find(BUNDLE_KIND, digest) if store is not None and digest is not None else None
        if local is not None and content in (None, local.manifest.content_digest):
            return local
        if local is not None:
            logger.warning(
                "'%s' was made anew since %s was registered; the registered one is taken", local.path, version.reference
            )
        if CLEANED_TAG in version.tags:
            raise ArtifactError(
                f"{version.reference} was cleaned away at {version.tags[CLEANED_TAG]}: its files were deleted by "
                "`recsys clean`, and no version with an alias was; choose a later version"
            )
        artifact = open_bundle(self._fetch(version), content, f"{version.reference} at '{shown(self.uri)}'")
        if digest not in (None, artifact.digest):
            raise ArtifactError(
                f"'{artifact.path}' holds the bundle {artifact.digest[:16]}, and {version.reference} is the bundle "
                f"{str(digest)[:16]}; delete the folder, so that it is fetched again"
            )
        return artifact

    def _fetch(self, version: Version) -> Path:
        """Return a folder with what the registry has of a version, downloaded once."""
        target = self.cache_dir / f"{version.name}-v{version.number}-{version.tags.get(BUNDLE_TAG, 'unknown')[:12]}"
        if (target / BUNDLE_FILE).exists():
            return target
        import mlflow

        temporary = target.with_name(f".{target.name}.part")
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        with translated_errors(self.uri):
            if database_of(self.uri) is not None:
                place = self.client.get_model_version_download_uri(version.name, version.number)
                check_there(place, f"the registry of '{version.reference}' at '{shown(self.uri)}'")
            local = mlflow.artifacts.download_artifacts(
                artifact_uri=version.reference, dst_path=str(temporary / "download")
            )
        found = [path.parent for path in (Path(local) / "artifacts").glob(f"*/{BUNDLE_FILE}")]
        if len(found) != 1:
            raise ArtifactError(
                f"'{version.reference}' holds no serving bundle; it was not registered by `recsys export`"
            )
        shutil.rmtree(target, ignore_errors=True)  # no bundle: what is there is a leftover
        found[0].rename(target)
        shutil.rmtree(temporary)
        return target

    def _create_version(self, name: str, model_uri: str, run_id: str, tags: dict[str, str]) -> Version:
        from mlflow.exceptions import MlflowException

        try:
            self.client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        created = self.client.create_model_version(
            name, model_uri, run_id=run_id, tags=tags, model_id=model_uri.removeprefix("models:/")
        )
        return Version(name, str(created.version), tags)


def parse_reference(reference: str) -> tuple[str, str | None, str | None]:
    """Split a model reference into name, alias, number.

    Example:
        >>> parse_reference("models:/beauty@champion"), parse_reference("models:/beauty/3")
        (('beauty', 'champion', None), ('beauty', None, '3'))
    """
    rest = reference.removeprefix("models:/")
    if reference.startswith("models:/"):
        name, at, alias = rest.partition("@")
        if at and name and alias:
            return name, alias, None
        name, slash, number = rest.partition("/")
        if slash and name and number.isdigit():
            return name, None, number
    raise ConfigError(
        f"model '{reference}' is neither models:/name@alias, nor models:/name/version, nor an existing bundle folder"
    )


def _logged_model(source: str | None) -> str | None:
    """MLflow's own name of the model that a version was made of; it names a folder, and nothing else may."""
    found = re.fullmatch(r"models:/(m-[0-9a-f]+)", source or "")
    return found[1] if found else None


def _log_model(bundle: Path, info: BundleInfo, content: str, run_id: str) -> str:
    import mlflow

    packages = Path(__file__).resolve().parents[2]
    catalogue, more = read_catalogue(bundle, info), language_packages(bundle)
    with _examined_on_cpu(), mlflow.start_run(run_id=run_id), scratch_folder("model") as scratch:
        logged = mlflow.pyfunc.log_model(
            name="model",
            python_model=str(packages / "serving" / "registry" / "pyfunc_model.py"),
            artifacts={"bundle": bundle.absolute().as_uri()},
            code_paths=[
                str(packages / "recsys"),
                str(packages / "serving"),
                *(str(path) for path in write_install_files(scratch, more)),
            ],
            pip_requirements=requirements(installed_flavour(), more),
            signature=model_signature(catalogue),
            model_config={**MODEL_CONFIG, CONTENT_TAG: content},
            input_example=_input_example(catalogue),
            metadata={"digests": info.digests, "inputs": _inputs(catalogue)},
        )
    return str(logged.model_uri)


@contextmanager
def _examined_on_cpu() -> Iterator[None]:
    """Let MLflow, which opens the model that it logs, do so where every bundle can be opened, whatever it was made for."""
    asked = {DEVICE_VARIABLE: "cpu", PRECISION_VARIABLE: "float32"}
    before = {name: os.environ.get(name) for name in asked}
    os.environ.update(asked)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def model_signature(catalogue: Catalogue) -> ModelSignature:
    """Parameters and outputs; why no inputs, :mod:`serving.registry.pyfunc_model` says, and the metadata name them."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    item = DataType.long if catalogue.item_ids.dtype.is_integer() else DataType.string
    outputs = Schema(
        [
            ColSpec(AnyType(), Columns.USER_ID),
            ColSpec(item, Columns.ITEM_ID),
            ColSpec(DataType.long, Columns.RANK, required=False),  # of items
            ColSpec(DataType.long, Columns.SESSION_RANK, required=False),  # of sessions
            ColSpec(DataType.long, Columns.PLACE, required=False),
            ColSpec(DataType.double, Columns.SCORE),
            ColSpec(DataType.long, Columns.NUM_UNKNOWN_ITEMS),
        ]
    )
    params = ParamSchema(
        [
            ParamSpec("k", DataType.long, 10),
            ParamSpec("exclude_seen", DataType.boolean, True),
            ParamSpec("allow", item, [], shape=(-1,)),
            ParamSpec("deny", item, [], shape=(-1,)),
            ParamSpec("max_per_category", DataType.long, 0),
            ParamSpec("answer", DataType.string, "items"),
            ParamSpec("second_stage", DataType.string, "none"),
            ParamSpec("reward_guidance", DataType.double, 0.0),
            ParamSpec(Columns.OBJECTIVE, DataType.string, ""),
            ParamSpec("timestamp_unit", DataType.string, "us"),
        ]
    )
    return ModelSignature(inputs=None, outputs=outputs, params=params)


def _inputs(catalogue: Catalogue) -> dict[str, str]:
    """What a row may hold, for people who look at the registered model."""
    item = "integer" if catalogue.item_ids.dtype.is_integer() else "text"
    return {
        Columns.USER_ID: "integer or text, required",
        Columns.ITEM_IDS: f"list of {item} ids, oldest first, required; null: no history",
        Columns.TIMESTAMPS: "list of UTC microseconds, Datetime or ISO text, optional; null: not known",
        Columns.BEHAVIOURS: f"list of codes of the signals {list(catalogue.spec.signals)}, optional; null: not known",
        Columns.WATCH_RATIOS: "list of watched time / duration, optional; null: not known",
        Columns.DENY_ITEM_IDS: f"list of {item} ids that this user must not be shown, optional; null: none",
        Columns.OBJECTIVE: "JSON text of objective weights, optional",
        Columns.WORDS: "text that says what is wanted, optional, of a model that reads words",
    }


def _input_example(catalogue: Catalogue) -> Any:
    import pandas as pd

    items = catalogue.item_ids.head(3).to_list()
    columns: dict[str, list[Any]] = {Columns.USER_ID: ["7", "8"], Columns.ITEM_IDS: [items, items[:1]]}
    if catalogue.spec.has_timestamps:
        times = [1_700_000_000_000_000 + minute * 60_000_000 for minute in range(len(items))]
        columns[Columns.TIMESTAMPS] = [times, times[:1]]
    if catalogue.spec.signals:  # code 2: the first signal, and no other
        columns[Columns.BEHAVIOURS] = [[2] * len(items), [2]]
    return pd.DataFrame(columns)
