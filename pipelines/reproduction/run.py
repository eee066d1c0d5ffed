"""Run a pack: compare its files, run its recipe under every seed, put the figures beside what was expected and published.

Reads a :class:`~pipelines.reproduction.pack.Pack` and the data it names; produces ``<output_dir>/<pack>/seed-<n>`` (ordinary
run folders; finished stages are skipped), ``result.json`` beside them, and the pages of
:mod:`pipelines.reproduction.page`.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

from pipelines.config import RunConfig, load_run_config
from pipelines.reproduction.pack import Pack
from recsys.contracts.errors import ArtifactError, ConfigError, DataError
from recsys.contracts.manifest import MANIFEST_NAME, explain_write_errors, read_json, write_json
from recsys.runtime import Progress

logger = logging.getLogger("recsys.pipelines")

RESULT_FILE: Final = "result.json"
_OWN_KEYS: Final = ("seed", "output_dir", "source.path")


@dataclass(frozen=True)
class Request:
    """What the command asks for.

    Attributes:
        name: Of the pack.
        output_dir: Holds all packs' folders.
        data: Folder of the files; ``None`` is ``$RECSYS_DATA`` and the pack's folder.
        seeds: In place of the pack's.
        overrides: ``key=value`` on top of recipe and pack; expected ranges are not looked at then.
        other_data: Go on where the files are not those the pack was made for.
        finished: Output folders of finished runs of the recipe, whose evaluations are taken; nothing is run then, and
            ``seeds`` must not be given.
    """

    name: str
    output_dir: Path
    data: Path | None = None
    seeds: tuple[int, ...] | None = None
    overrides: tuple[str, ...] = ()
    other_data: bool = False
    finished: tuple[Path, ...] = ()


def reproduce(pack: Pack, request: Request, progress: Progress) -> dict[str, Any]:
    """Run the pack and write ``result.json``.

    Returns:
        The result as written.

    Raises:
        ConfigError: An override is of a key that the command itself sets, seeds repeat, or are given for finished runs.
        DataError: The files are missing, or others than the pack was made for.
    """
    folder = request.output_dir / request.name
    if request.finished:
        configs = [_finished_config(pack, request, finished) for finished in request.finished]
        seeds: Sequence[int] = [config.seed for config in configs]
        _check(request, seeds)
    else:
        seeds = request.seeds or pack.seeds
        _check(request, seeds)
        configs = [_config(pack, request, seed, folder) for seed in seeds]
    differences = _differences(pack, request, configs)
    if request.finished:
        evaluations = [newest_evaluation(finished) for finished in request.finished]
    else:
        evaluations = _run_seeds(configs, progress)
    result = _result(pack, request, seeds, evaluations, differences)
    with explain_write_errors(folder, "--output-dir"):
        folder.mkdir(parents=True, exist_ok=True)
        write_json(folder / RESULT_FILE, result)
    return result


def _check(request: Request, seeds: Sequence[int]) -> None:
    if request.finished and request.seeds:
        raise ConfigError(
            "--seeds and --finished are given: finished runs have seeds of their own; leave one of them out"
        )
    if len(set(seeds)) != len(seeds):
        what = "--finished names runs of seeds" if request.finished else "--seeds names"
        raise ConfigError(f"{what} {','.join(map(str, seeds))}, one of them twice; every seed is one run")
    for override in request.overrides:
        key = override.partition("=")[0].strip()
        if key in _OWN_KEYS:
            way = {"seed": "--seeds", "output_dir": "--output-dir", "source.path": "--data"}[key]
            raise ConfigError(f"'{override}': {key} is set by `recsys reproduce` itself; give {way}")


def _differences(pack: Pack, request: Request, configs: Sequence[RunConfig]) -> list[str]:
    """How the files of any run differ from the pack's, each sentence once.

    Raises:
        DataError: They do, and nobody asked for other data.
    """
    differences: list[str] = []
    for where, source in {str(getattr(config.source, "path", "")): config.source for config in configs}.items():
        found = compare_files(pack.data.sha256, source.fingerprint())
        if found:
            said = f"the files in '{where}' are not those of pack '{request.name}': {'; '.join(found)}"
            if not request.other_data:
                raise DataError(
                    f"{said}. Give the folder of the right ones with --data, or --other-data to run on these"
                )
            logger.warning("%s; its figures cannot be held against the pack's", said)
            differences += [difference for difference in found if difference not in differences]
    return differences


def _data_folder(pack: Pack, request: Request) -> Path:
    """Where the files are.

    Raises:
        DataError: No folder is given, and ``RECSYS_DATA`` is not set; or there is no such folder.
    """
    root = os.environ.get("RECSYS_DATA")
    if request.data is None and not root:
        raise DataError(
            f"pack '{request.name}' reads the files of '{pack.data.folder}': give their folder with --data, or set "
            "RECSYS_DATA to the folder above it"
        )
    folder = request.data if request.data is not None else Path(root or "") / pack.data.folder
    if not folder.is_dir():
        raise DataError(
            f"pack '{request.name}': there is no folder '{folder.absolute()}'; give that of the files with --data"
        )
    return folder


def _config(pack: Pack, request: Request, seed: int, folder: Path) -> RunConfig:
    own = [
        f"seed={seed}",
        f"output_dir={folder / f'seed-{seed}'}",
        f"source.path={_data_folder(pack, request)}",
        f"name={request.name}",
    ]
    return load_run_config(pack.recipe_path, [*pack.overrides, *request.overrides, *own])


def compare_files(expected: Mapping[str, str], found: Mapping[str, str]) -> list[str]:
    """Say how the files that were found differ from those expected, by name and hash.

    Example:
        >>> for said in compare_files({"a": "0" * 64, "b": "1" * 64}, {"a": "2" * 64, "c": "3" * 64}):
        ...     print(said)
        a is another file (sha256 222222222222…, expected 000000000000…)
        b is missing
        c is not part of it
    """
    said = []
    for name, wanted in expected.items():
        if name not in found:
            said.append(f"{name} is missing")
        elif found[name] != wanted:
            said.append(f"{name} is another file (sha256 {found[name][:12]}…, expected {wanted[:12]}…)")
    return said + [f"{name} is not part of it" for name in found if name not in expected]


def newest_evaluation(folder: Path) -> Path:
    """Return the folder of the newest evaluation of a run.

    A folder may hold evaluations of other settings that were tried in between, newer than that of its ``config.yaml``. Of
    several, the newest one counts that was made with these settings, as were the policy and all else that it is of.

    Raises:
        ArtifactError: There is none.
    """
    found = sorted(folder.glob(f"artifacts/evaluation/*/{MANIFEST_NAME}"), key=lambda path: -path.stat().st_mtime_ns)
    if not found:
        raise ArtifactError(f"'{folder}' has no finished evaluation; run `recsys run` or `recsys evaluate` there")
    if len(found) == 1:
        return found[0].parent
    settings = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
    own = next((path for path in found if _made_with(path, settings["seed"], _flat(settings))), None)
    if own is None:
        raise ArtifactError(
            f"'{folder}' has {len(found)} evaluations, none with the settings of its config.yaml; run `recsys evaluate` "
            "there"
        )
    return own.parent


def _made_with(manifest: Path, seed: int, settings: Mapping[str, Any]) -> bool:
    """Whether a result, and every result that it was made from, has this seed and these settings, as far as it has any."""
    values = read_json(manifest)
    if values["seed"] != seed or any(settings.get(key) != value for key, value in _flat(values["config"]).items()):
        return False
    root = manifest.parents[2]
    parents = (path for digest in values["parents"].values() for path in root.glob(f"*/{digest[:16]}/{MANIFEST_NAME}"))
    return all(_made_with(path, seed, settings) for path in parents)


def _finished_config(pack: Pack, request: Request, folder: Path) -> RunConfig:
    """Read the configuration of a finished run, and make sure that it is that of the pack.

    Raises:
        ArtifactError: There is no configuration, or its settings are not the pack's.
    """
    path = folder / "config.yaml"
    if not path.is_file():
        raise ArtifactError(
            f"'{folder}' is no folder of a run: it has no config.yaml; give the output_dir of finished runs"
        )
    found = load_run_config(path, [f"source.path={request.data}"] if request.data is not None else [])
    wanted = load_run_config(pack.recipe_path, [*pack.overrides, *request.overrides])
    mine, theirs = (_settings(config) for config in (found, wanted))
    changed = sorted(key for key in mine.keys() | theirs.keys() if mine.get(key) != theirs.get(key))
    if changed:
        raise ArtifactError(
            f"'{folder}' was run with other settings than pack '{request.name}': {', '.join(changed[:5])}"
            f"{' …' if len(changed) > 5 else ''}; give those as overrides, or a run of {pack.recipe} as it is"
        )
    return found


def _settings(config: RunConfig) -> dict[str, Any]:
    """Every setting that a figure can depend on, flat."""
    sections = config.model_dump(mode="json")
    for name in ("name", "seed", "output_dir", "threads", "tracking", "export", "promote", "recommend", "changes"):
        sections.pop(name)
    sections["source"].pop("path", None)
    return _flat(sections)


def _flat(values: Any, above: str = "") -> dict[str, Any]:
    if not isinstance(values, dict) or not values:
        return {above: values}
    return {k: v for key, child in values.items() for k, v in _flat(child, f"{above}.{key}" if above else key).items()}


def _run_seeds(configs: Sequence[RunConfig], progress: Progress) -> list[Path]:
    """Run the recipe up to its evaluation, seed by seed; what is finished is not done again."""
    from pipelines.engine.lock import run_lock
    from pipelines.stages import EVALUATE
    from pipelines.workflow import Workflow

    folders = []
    for config in configs:
        logger.info("seed %s: %s", config.seed, config.output_dir)
        with run_lock(config.output_dir):
            outcomes = Workflow(config, progress).run_until(EVALUATE.name)
        folders.append(outcomes[EVALUATE.name].artifact.path)
    return folders


def _result(
    pack: Pack, request: Request, seeds: Sequence[int], evaluations: Sequence[Path], differences: Sequence[str]
) -> dict[str, Any]:
    from pipelines.reproduction.figures import Evaluations, as_json

    found = Evaluations(tuple(evaluations), tuple(seeds))
    figures = [
        {"system": system, "seen": seen, "metric": metric, **as_json(found.figure(system, seen, metric))}
        for system in found.systems
        for seen in pack.seen
        for metric in pack.metrics
    ]
    compared = not request.overrides and not differences
    return {
        "pack": request.name,
        "title": pack.title,
        "recipe": pack.recipe,
        "overrides": [*pack.overrides, *request.overrides],
        "data": dict(pack.data.sha256),
        "data_differs": list(differences),
        "seeds": list(seeds),
        "rows": found.summaries[0]["rows"],
        "users": found.summaries[0]["users"],
        "figures": figures,
        "compared": compared,
        "expected": [
            {**bound.model_dump(mode="json"), **_verdict(bound.model_dump(), figures)} for bound in pack.expected
        ]
        if compared
        else [],
    }


def _verdict(bound: Mapping[str, Any], figures: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Whether the figure that a bound is of lies within it; a figure that is not there does not."""
    keys = ("system", "seen", "metric")
    mean = next((f["mean"] for f in figures if all(f[key] == bound[key] for key in keys)), None)
    return {"mean": mean, "within": mean is not None and bound["low"] <= mean <= bound["high"]}
