"""What a stage is, what its result depends on, and whether it has to run.

Reads a configuration and the store's manifests; produces digests and :class:`PlannedStage` objects (the plan). The
digest of a stage follows from its inputs alone, so the whole plan is known before anything runs.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

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


GrowFunction = Callable[[Any, Inputs, Artifact, Path, Progress], dict[str, Any]]
"""``grow(config, inputs, base, out_dir, progress) -> summary``: writes what ``run`` writes, starting from ``base``, an
artefact of the stage's own kind that was made of other data. The result differs from that of ``run``: the base is part of
its digest."""

BASE_PREFIX: Final = "base:"
"""Before the stage's name, among the parents in a manifest: the artefact that the result was grown from."""


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
        extends_across: Dotted keys inside ``sections`` in which an earlier result may differ and still be extended.
        grow: Another result, made from an earlier artefact of the same kind; taken where the run has a base for the stage.
        grown_sections: Dotted keys that the result depends on, beside ``sections``, when it is grown.
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
    extends_across: tuple[str, ...] = ()
    grow: GrowFunction | None = None
    grown_sections: tuple[str, ...] = ()


@dataclass(frozen=True)
class PlannedStage:
    """A stage with its inputs fixed.

    Attributes:
        config: The sections that count, resolved, as plain JSON values.
        parents: Digest of each parent, by stage name, and of the base where there is one, as ``base:<stage name>``.
    """

    stage: Stage
    digest: str
    code: str
    seed: int
    config: dict[str, Any]
    parents: dict[str, str]

    @property
    def base(self) -> str | None:
        """Digest of the artefact that the result grows from; ``None`` where it does not."""
        return self.parents.get(f"{BASE_PREFIX}{self.stage.name}")


def plan_stage(
    stage: Stage, config: FrozenConfig, seed: int, parents: Mapping[str, str], base: str | None = None
) -> PlannedStage:
    """Fix the inputs of a stage and compute its digest.

    Args:
        parents: Digest of each parent, by stage name.
        base: Digest of the artefact to grow from; of no meaning to a stage that cannot grow.
    """
    values = config.model_dump(mode="json")
    unchanged = tuple(key for key, before in stage.added if _lookup(values, key) == before)
    function: Callable[..., Any] = stage.run
    keys = stage.sections
    if base is not None and stage.grow is not None:
        function, keys = stage.grow, (*stage.sections, *stage.grown_sections)
        parents = {**parents, f"{BASE_PREFIX}{stage.name}": base}
    sections = select_sections(values, keys, (*stage.ignored, *unchanged))
    code = code_version(function)
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


def make_plan(
    stages: Sequence[Stage],
    config: FrozenConfig,
    seed: int,
    bases: Mapping[str, str] | None = None,
    pinned: Mapping[str, Artifact] | None = None,
) -> list[PlannedStage]:
    """Fix all stages, parents before children; nothing runs.

    Args:
        bases: Digests of the artefacts that stages grow from, by stage name.
        pinned: Results that stand whatever has become of the raw files, by stage name; see :func:`pin`.
    """
    digests: dict[str, str] = {}
    steps = []
    for stage in stages:
        parents = {name: digests[name] for name in stage.parents}
        step = pin(
            plan_stage(stage, config, seed, parents, (bases or {}).get(stage.name)), (pinned or {}).get(stage.name)
        )
        digests[stage.name] = step.digest
        steps.append(step)
    return steps


def pin(step: PlannedStage, result: Artifact | None) -> PlannedStage:
    """Return the step with the digest of a result that differs in the raw files alone; any other result is left out."""
    return (
        step if result is None or not _differs_in_raw_files_alone(result, step) else replace(step, digest=result.digest)
    )


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
    return {key: _without(_lookup(values, key), ignored, key) for key in keys}


def explain(step: PlannedStage, store: ArtifactStore) -> str:
    """Say why a stage would run, by comparison with the newest artefact of its kind."""
    newest = _newest_manifest(store.root / step.stage.kind)
    if newest is None:
        return "no earlier result"
    reasons = [] if step.base is None else [f"grown from {step.base[:16]}"]
    if newest.code_version != step.code:
        reasons.append("its code changed")
    if newest.seed != step.seed:
        reasons.append(f"seed {newest.seed} -> {step.seed}")
    for name, digest in step.parents.items():
        if newest.parents.get(name) != digest and not name.startswith(BASE_PREFIX):
            reasons.append(f"'{name}' changed")
    reasons += changed_keys(newest.config, step.config)
    files = "the files that it reads beside earlier results changed" if step.parents else "the raw files changed"
    return "; ".join(reasons) or files


def changed_keys(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Say of every key that differs what it was and what it is.

    Example:
        >>> changed_keys({"model": {"width": 32}}, {"model": {"width": 64}})
        ['model.width 32 -> 64']
    """
    left, right = _flat(before), _flat(now)
    keys = sorted(left.keys() | right.keys())
    return [f"{key} {left.get(key)!r} -> {right.get(key)!r}" for key in keys if left.get(key) != right.get(key)]


def earlier_results(step: PlannedStage, store: ArtifactStore) -> list[Artifact]:
    """Return the artefacts that differ from ``step``'s in the raw files alone, the newest first; no file is verified.

    The keys in ``extends_across`` of the stage are not compared.
    """
    across = step.stage.extends_across
    results = newest_first(store.root / step.stage.kind)
    return [artifact for artifact in results if _differs_in_raw_files_alone(artifact, step, across)]


def newest_first(folder: Path) -> Iterator[Artifact]:
    """Yield the artefacts of one kind by the age of their manifests; no file is verified, older schemas are left out."""
    manifests = sorted(folder.glob(f"[!.]*/{MANIFEST_NAME}"), key=lambda path: path.stat().st_mtime)
    for path in reversed(manifests):
        try:
            yield open_artifact(path.parent, verify=False)
        except ArtifactError:  # an artefact of an older schema: of no use for a comparison
            continue


def _differs_in_raw_files_alone(result: Artifact, step: PlannedStage, across: Sequence[str] = ()) -> bool:
    found = result.manifest
    return (found.code_version, found.seed, found.parents) == (step.code, step.seed, step.parents) and (
        _without(found.config, across) == _without(step.config, across)
    )


def _newest_manifest(folder: Path) -> Manifest | None:
    return next((artifact.manifest for artifact in newest_first(folder)), None)


def _lookup(values: Mapping[str, Any], key: str) -> Any:
    node: Any = values
    for part in key.split("."):
        node = node[part]
    return node


def _without(value: Any, ignored: Sequence[str], prefix: str = "") -> Any:
    if not isinstance(value, dict):
        return value
    named = ((f"{prefix}.{name}" if prefix else name, name, child) for name, child in value.items())
    return {name: _without(child, ignored, key) for key, name, child in named if key not in ignored}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            key: leaf
            for name, child in value.items()
            for key, leaf in _flat(child, f"{prefix}.{name}" if prefix else name).items()
        }
    return {prefix: value}
