"""What a stage is, what its result depends on, and whether it has to run.

Reads a configuration and the store's manifests; produces digests and :class:`PlannedStage` objects (the plan). The
digest of a stage follows from its inputs alone, so the whole plan is known before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.engine.code_version import code_version
from recsys.config import FrozenConfig
from recsys.contracts.errors import ArtifactError
from recsys.contracts.manifest import MANIFEST_NAME, Artifact, ArtifactStore, Manifest, digest_of, open_artifact
from recsys.runtime import Progress

Inputs = Mapping[str, Artifact]
"""Opened artefacts of the parents, by stage name."""

StageFunction = Callable[[Any, Inputs, Path, Progress], dict[str, Any]]
"""``run(config, inputs, out_dir, progress) -> summary``: writes files into ``out_dir``, imports what it needs inside."""


ExtendFunction = Callable[[Any, Sequence[Artifact], Path, Progress], dict[str, Any]]
"""``extend(config, earlier, out_dir, progress) -> summary``: writes the files of ``run``, byte for byte, in less time, from
one of the earlier results of the same code, seed, configuration and parents (the newest first). Raises
:class:`~recsys.contracts.errors.CannotExtend` where none of them fits."""


def _no_fingerprints(config: Any) -> dict[str, str]:
    return {}


@dataclass(frozen=True)
class Stage:
    """One step from files to files.

    Attributes:
        name: What people call it.
        kind: Folder of its artefacts in the store.
        run: The work.
        sections: Dotted keys of the run configuration that the result depends on, for example ``evaluate.baselines``.
        ignored: Dotted keys inside ``sections`` that change where or how fast, never what.
        added: Dotted keys inside ``sections`` that came later, each with the value that means what was done before: with it
            the key enters no digest, and earlier results stay up to date.
        parents: Stages whose artefacts it reads.
        fingerprints: Content hashes of raw files it reads, by a name.
        resumable: After a kill the stage finds its work folder as it was and goes on.
        extend: A faster way to the same result when only raw files were added; taken where the run asks for it.
    """

    name: str
    kind: str
    run: StageFunction
    sections: tuple[str, ...]
    parents: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    added: tuple[tuple[str, Any], ...] = ()
    fingerprints: Callable[[Any], dict[str, str]] = _no_fingerprints
    resumable: bool = False
    extend: ExtendFunction | None = None


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its inputs fixed.

    Attributes:
        config: The sections that count, resolved, as plain JSON values.
        parents: Digest of each parent, by stage name.
    """

    stage: Stage
    digest: str
    code: str
    seed: int
    config: dict[str, Any]
    parents: dict[str, str]


def plan_stage(stage: Stage, config: FrozenConfig, seed: int, parents: Mapping[str, str]) -> PlannedStage:
    """Fix the inputs of a stage and compute its digest.

    Args:
        parents: Digest of each parent, by stage name.
    """
    values = config.model_dump(mode="json")
    unchanged = tuple(key for key, before in stage.added if _lookup(values, key) == before)
    sections = select_sections(values, stage.sections, (*stage.ignored, *unchanged))
    code = code_version(stage.run)
    digest = digest_of(
        {
            "kind": stage.kind,
            "code": code,
            "config": sections,
            "seed": seed,
            "parents": dict(parents),
            "raw": stage.fingerprints(config),
        }
    )
    return PlannedStage(stage, digest, code, seed, sections, dict(parents))


def make_plan(stages: Sequence[Stage], config: FrozenConfig, seed: int) -> list[PlannedStage]:
    """Fix all stages, parents before children; nothing runs."""
    digests: dict[str, str] = {}
    steps = []
    for stage in stages:
        step = plan_stage(stage, config, seed, {name: digests[name] for name in stage.parents})
        digests[stage.name] = step.digest
        steps.append(step)
    return steps


def with_ancestors(stages: Sequence[Stage], names: Collection[str]) -> tuple[Stage, ...]:
    """Return the stages of these names and all that they read from, in order: what a single verb has to plan.

    Args:
        stages: All of a run, parents before children.
        names: Some of their names.
    """
    wanted = set(names)
    for stage in reversed(stages):
        if stage.name in wanted:
            wanted.update(stage.parents)
    return tuple(stage for stage in stages if stage.name in wanted)


def select_sections(values: Mapping[str, Any], keys: Sequence[str], ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Pick dotted keys out of nested values.

    Example:
        >>> select_sections({"a": {"x": 1, "y": 2}, "b": 3}, ["a"], ignored=["a.y"])
        {'a': {'x': 1}}
        >>> select_sections({"a": {"x": 1, "y": 2}}, ["a.y"])
        {'a.y': 2}
    """
    return {key: _without(_lookup(values, key), key, ignored) for key in keys}


def explain(step: PlannedStage, store: ArtifactStore) -> str:
    """Say why a stage would run, by comparison with the newest artefact of its kind."""
    newest = _newest_manifest(store.root / step.stage.kind)
    if newest is None:
        return "no earlier result"
    reasons = []
    if newest.code_version != step.code:
        reasons.append("its code changed")
    if newest.seed != step.seed:
        reasons.append(f"seed {newest.seed} -> {step.seed}")
    for name, digest in step.parents.items():
        if newest.parents.get(name) != digest:
            reasons.append(f"'{name}' changed")
    before, now = _flat(newest.config), _flat(step.config)
    keys = sorted(before.keys() | now.keys())
    reasons += [f"{key} {before.get(key)!r} -> {now.get(key)!r}" for key in keys if before.get(key) != now.get(key)]
    return "; ".join(reasons) or "the raw files changed"


def earlier_results(step: PlannedStage, store: ArtifactStore) -> list[Artifact]:
    """Return the artefacts that differ from ``step``'s in the raw files alone, the newest first; no file is verified."""
    return [
        artifact
        for artifact in _newest_first(store.root / step.stage.kind)
        if (artifact.manifest.code_version, artifact.manifest.seed) == (step.code, step.seed)
        and (artifact.manifest.config, artifact.manifest.parents) == (step.config, step.parents)
    ]


def _newest_manifest(folder: Path) -> Manifest | None:
    return next((artifact.manifest for artifact in _newest_first(folder)), None)


def _newest_first(folder: Path) -> Iterator[Artifact]:
    manifests = sorted(folder.glob(f"[!.]*/{MANIFEST_NAME}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(manifests):
        try:
            yield open_artifact(path.parent, verify=False)
        except ArtifactError:  # an artefact of an older schema: of no use for a comparison
            continue


def _lookup(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        node = node[part]
    return node


def _without(value: Any, prefix: str, ignored: Sequence[str]) -> Any:
    if not isinstance(value, dict):
        return value
    return {
        name: _without(child, f"{prefix}.{name}", ignored)
        for name, child in value.items()
        if f"{prefix}.{name}" not in ignored
    }


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            key: leaf
            for name, child in value.items()
            for key, leaf in _flat(child, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: value}
