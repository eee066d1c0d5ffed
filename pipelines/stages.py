"""The stages of a run: from raw logs to recommendations, one function per stage, in the order they run.

    prepare    raw logs                -> events, histories, splits
    embed      items, train events     -> item embeddings
    tokenize   embeddings              -> semantic IDs
    train      histories, IDs          -> the policy
    reward     sessions with feedback  -> reward model, held-out reward model (where alignment or the bundle asks for them)
    align      policy, rewards         -> the aligned policy, round by round (only with an align.method)
    rank       policy, histories       -> item scorers, their weights, ranker of candidates (unless rank.method is none)
    baselines  histories               -> rankings of every baseline, kept apart so that a new model does not refit them
    evaluate   policy, baselines       -> metrics with intervals, report
    export     policy                  -> serving bundle
    recommend  bundle, histories       -> candidates for every user

Registration and promotion stand between ``export`` and ``recommend`` (:mod:`pipelines.workflow`): they move names in a
registry, and files only follow.

The functions of the stages that learn are in :mod:`pipelines.learning`. Every function has the form of
:data:`~pipelines.engine.stage.StageFunction` and imports what it needs inside, for two reasons: the command line starts
without torch, and the imports *are* the list of source files that the stage's digest depends on
(:mod:`pipelines.engine.code_version`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pipelines.engine.stage import Inputs, Stage
from pipelines.grown_stages import grow_embed, grow_tokenize, grow_train
from pipelines.learning import align, rank, reward, train
from pipelines.nightly.config import WARM_KEYS
from pipelines.training_inputs import base_fingerprints
from recsys.contracts.manifest import Artifact
from recsys.device import resolve_device
from recsys.runtime import Progress
from serving.config import NOT_ASKED, RULE_FILES

if TYPE_CHECKING:
    from pipelines.config import RunConfig
    from pipelines.other_systems import RegistryPlace

Summary = dict[str, Any]


def prepare(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Turn raw logs into the prepared data set."""
    from features.build import build
    from pipelines.described import describe
    from recsys.contracts.contents import read_meanwhile

    prepared = build(config.source, config.features, out_dir, config.seed)
    with read_meanwhile(out_dir):
        describe(config, out_dir, prepared)
    return prepared.report


def prepare_more(config: RunConfig, earlier: Sequence[Artifact], out_dir: Path, progress: Progress) -> Summary:
    """Turn raw logs into the prepared data set, reading only the files that an earlier one has not."""
    from features.append import prepare_appended
    from pipelines.described import describe
    from recsys.contracts.contents import read_meanwhile

    prepared = prepare_appended(config.source, config.features, earlier, out_dir, config.seed)
    with read_meanwhile(out_dir):
        describe(config, out_dir, prepared)
    return prepared.report


def embed(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Give every item a vector."""
    from features.item_embeddings import embed as embed_items
    from recsys.contracts.dataset import Dataset

    prepared, device = Dataset.open(inputs["prepare"].path), resolve_device(config.device)
    return embed_items(prepared, config.embed, out_dir, config.seed, progress, device)


def tokenize(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Give every item a unique semantic ID."""
    import numpy as np

    from recsys.contracts.columns import Columns
    from recsys.contracts.dataset import Dataset
    from recsys.semantic_ids.tokenize import tokenize as fit_semantic_ids

    items = Dataset.open(inputs["prepare"].path).items
    embeddings = np.load(inputs["embed"].path / "fused.npy", mmap_mode="r")
    traffic = items[Columns.TRAIN_COUNT].to_numpy()
    space = inputs["embed"].manifest.summary["space"]
    report = fit_semantic_ids(embeddings, items[Columns.ITEM_ID], traffic, config.tokenize, out_dir, config.seed, space)
    return {**report, "semantic_id_digest": report["digest"]}


def baselines(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Fit every baseline and keep what it answers; a killed stage keeps the finished ones."""
    from recsys.contracts.dataset import Dataset
    from recsys.evaluation.baseline_rankings import rank_with_baselines

    return rank_with_baselines(Dataset.open(inputs["prepare"].path), config.evaluate, out_dir, config.seed, progress)


def evaluate(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Evaluate the policy beside the baselines on the same rows, and write the report."""
    import numpy as np

    from pipelines.other_systems import other_rankings
    from recsys.contracts.columns import Columns
    from recsys.contracts.dataset import Dataset
    from recsys.decoding.recommender import Recommender
    from recsys.decoding.second_stage.recommender import RankedRecommender
    from recsys.decoding.second_stage.stage import SecondStage
    from recsys.evaluation.by_id import read_ids
    from recsys.evaluation.examples import write_examples
    from recsys.evaluation.rank import BEFORE_ALIGNMENT, compare_systems, rank_with_policy
    from recsys.evaluation.rankings import SERVED
    from recsys.evaluation.second_stage import rank_with_second_stage
    from recsys.evaluation.steering.words import write_words
    from recsys.model.checkpoint import load_policy
    from recsys.reports.evaluation import report_on
    from recsys.semantic_ids.versions import SemanticIds

    prepared = Dataset.open(inputs["prepare"].path)
    asked = (config.evaluate, registry_place(config), prepared, inputs["prepare"])
    others, notes = other_rankings(*asked, inputs["baselines"].path, out_dir)
    semantic_ids = SemanticIds.load(inputs["tokenize"].path)
    opened = (semantic_ids.digest, resolve_device(config.device))
    trained = load_policy(inputs["train"].path / "model", *opened)
    aligned = load_policy(inputs["align"].path / "model", *opened) if "align" in inputs else None
    answering, unguided = trained if aligned is None else aligned, config.decode.model_copy(update={"guidance": 0.0})
    if "rank" in inputs:
        stage = SecondStage.load(inputs["rank"].path / "ranker")
        ranked = RankedRecommender(answering, semantic_ids, config.decode, stage)
        recommender: Recommender = ranked
        generative = rank_with_second_stage(prepared, ranked, config.evaluate, out_dir, progress)
    else:
        recommender = Recommender(answering, semantic_ids, config.decode)
        plain = partial(Recommender, answering, semantic_ids, unguided)
        generative = rank_with_policy(prepared, recommender, plain, config.evaluate, out_dir, progress)
    if answering.spec.words:
        notes = [*notes, *write_words(prepared, recommender, config.evaluate, out_dir, config.seed)]
    if aligned is not None:
        before, plain = (
            Recommender(trained, semantic_ids, config.decode),
            partial(Recommender, trained, semantic_ids, unguided),
        )
        generative |= rank_with_policy(prepared, before, plain, config.evaluate, out_dir, progress, BEFORE_ALIGNMENT)
    by_id, seconds = config.evaluate.by_id, inputs["train"].manifest.summary.get("seconds")
    ids = None if by_id is None else read_ids(by_id, source_folder(config), prepared.items[Columns.ITEM_ID])
    compared = (prepared, generative | others, inputs["baselines"].path, config.evaluate, out_dir, config.seed)
    vectors = np.load(inputs["embed"].path / "fused.npy", mmap_mode="r")
    summary = compare_systems(*compared, ids, vectors, policy_seconds=seconds, notes=notes)
    exclude, split = config.evaluate.filters[0], config.evaluate.split_code
    write_examples(
        prepared, generative[SERVED][exclude], split, out_dir, config.seed, system=SERVED, exclude_seen=exclude
    )
    report_on(out_dir / "report.html", f"Offline evaluation of '{config.name}'", out_dir, inputs)
    return summary


def export(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Write the self-contained serving bundle of the policy, aligned if it was, and prove that it answers like it."""
    from recsys.contracts.dataset import Dataset
    from serving.export.export import BundleSources, export_bundle
    from serving.export.parity import check_parity

    digests = {"data": inputs["prepare"].digest, "train": inputs["train"].digest}
    policy = inputs["train"]
    if "align" in inputs:
        policy = inputs["align"]
        digests["align"] = policy.digest
    if "reward" in inputs:
        digests["reward"] = inputs["reward"].digest
    if "rank" in inputs:
        digests["rank"] = inputs["rank"].digest
    sources = BundleSources(
        prepared=inputs["prepare"].path,
        semantic_ids=inputs["tokenize"].path,
        model=policy.path / "model",
        digests=digests,
        reward_model=inputs["reward"].path / "reward" if "reward" in inputs else None,
        ranker=inputs["rank"].path / "ranker" if "rank" in inputs else None,
    )
    decode, users, device = config.decode, config.export.parity_users, resolve_device(config.device)
    summary = export_bundle(sources, config.registered_name, decode, out_dir, config.export.limits, device)
    prepared = Dataset.open(inputs["prepare"].path)
    return {**summary, **check_parity(out_dir, sources, prepared, decode, users, device=device)}


def recommend(config: RunConfig, inputs: Inputs, out_dir: Path, progress: Progress) -> Summary:
    """Write candidates for every user of the prepared data, shard by shard; finished shards are kept after a kill."""
    from serving.batch.candidates import write_candidates
    from serving.batch.carried import newest_candidates
    from serving.inputs.user_histories import PreparedUsers

    bundle = inputs["export"]
    users = PreparedUsers(inputs["prepare"].path, inputs["prepare"].digest)
    device = resolve_device(config.device)
    since = newest_candidates(out_dir.parent) if config.recommend.delta else None
    return write_candidates(bundle.path, users, config.recommend, out_dir, progress, device=device, since=since)


def raw_fingerprints(config: RunConfig) -> dict[str, str]:
    """Content hashes of the raw files behind the source."""
    return config.source.fingerprint()


def vector_fingerprints(config: RunConfig) -> dict[str, str]:
    """Content hashes of the files of item vectors, and whether an optional text model is missing."""
    from features.embeddings.precomputed import fingerprint
    from features.embeddings.text import text_fingerprint

    return fingerprint(config.embed.precomputed) | text_fingerprint(config.embed.text)


def evaluation_fingerprints(config: RunConfig) -> dict[str, str]:
    """Content hashes of what an evaluation reads beside the artefacts: semantic IDs, and the lists and models of others."""
    from pipelines.other_systems import fingerprint as of_others
    from recsys.evaluation.by_id import fingerprint

    found = fingerprint(config.evaluate.by_id, source_folder(config))
    if config.evaluate.rankings or config.evaluate.models:
        found |= of_others(config.evaluate, registry_place(config))
    return found


def registry_place(config: RunConfig) -> RegistryPlace:
    """Where this run's registry is."""
    from pipelines.other_systems import RegistryPlace
    from serving.registry.mlflow_client import tracking_uri

    return RegistryPlace(tracking_uri(config.tracking.uri, config.output_dir), config.tracking.timeout_s)


def source_folder(config: RunConfig) -> Path | None:
    """Folder of the raw files; a source that makes its events itself has none."""
    folder = getattr(config.source, "path", None)
    return folder if isinstance(folder, Path) else None


def rule_fingerprints(config: RunConfig) -> dict[str, str]:
    """Content hashes of the files of business rules."""
    from serving.inputs.rules.item_lists import fingerprint

    return fingerprint(config.recommend)


PREPARE: Final = Stage(
    "prepare",
    "prepared",
    prepare,
    ("source", "features"),
    ignored=("source.path",),
    added=(("features.as_of", None),),
    extends_across=("features.as_of",),
    fingerprints=raw_fingerprints,
    extend=prepare_more,
)
EMBED: Final = Stage(
    "embed",
    "embeddings",
    embed,
    ("embed",),
    parents=("prepare",),
    ignored=("embed.precomputed.path", "embed.precomputed.ids"),
    fingerprints=vector_fingerprints,
    grow=grow_embed,
)
TOKENIZE: Final = Stage(
    "tokenize",
    "semantic_ids",
    tokenize,
    ("tokenize",),
    parents=("prepare", "embed"),
    # limits are held against the result, and what becomes of a generation is of no meaning without a base
    ignored=("tokenize.refit", "tokenize.generation", "tokenize.keep_within"),
    grow=grow_tokenize,
    grown_sections=("tokenize.generation", "tokenize.keep_within"),
)
TRAIN: Final = Stage(
    "train",
    "policy",
    train,
    ("model", "train", "decode"),
    parents=("prepare", "embed", "tokenize"),
    # as many processes as there are give the same policy, up to rounding
    ignored=("train.processes", "train.prefetch_batches"),
    added=(("train.tf32", True), ("model.backbone", "encoder_decoder"), ("model.language_model", None)),
    fingerprints=base_fingerprints,
    resumable=True,
    grow=grow_train,
    grown_sections=tuple(f"nights.{key}" for key in WARM_KEYS),
)
REWARD: Final = Stage(
    "reward",
    "reward_model",
    reward,
    ("reward",),
    added=(
        ("reward.precision", "32-true"),
        ("reward.combination.transform", "identity"),
        ("reward.combination.reference_quantile", 0.5),
        ("reward.combination.personal", None),
        ("reward.train.worst_group", None),
    ),
    parents=("prepare", "embed", "tokenize"),
    resumable=True,
)
ALIGN: Final = Stage(
    "align",
    "aligned_policy",
    align,
    ("align", "decode"),
    parents=("prepare", "embed", "tokenize", "train"),
    ignored=("align.checkpoint_every_steps",),
    added=(("align.precision", "32-true"), ("align.rsft", None)),
    resumable=True,
)
RANK: Final = Stage("rank", "ranker", rank, ("rank", "decode"), parents=("prepare", "embed", "tokenize", "train"))
_BASELINE_KEYS: Final = ("baselines", "baseline_settings", "tuning", "count_until", "ks", "split", "filter_seen")
BASELINES: Final = Stage(
    "baselines",
    "baseline_rankings",
    baselines,
    tuple(f"evaluate.{key}" for key in _BASELINE_KEYS),
    parents=("prepare",),
    resumable=True,
)
EVALUATE: Final = Stage(
    "evaluate",
    "evaluation",
    evaluate,
    ("evaluate", "decode"),
    parents=("prepare", "embed", "tokenize", "train", "baselines"),
    ignored=("evaluate.by_id.file", "evaluate.rankings", "evaluate.models"),  # their contents are fingerprints
    fingerprints=evaluation_fingerprints,
    resumable=True,
)
EXPORT: Final = Stage(
    "export", "bundle", export, ("export", "decode", "name"), parents=("prepare", "tokenize", "train")
)
RECOMMEND: Final = Stage(
    "recommend",
    "candidates",
    recommend,
    ("recommend",),
    parents=("prepare", "export"),
    ignored=tuple(f"recommend.{name}" for name in (*RULE_FILES, *NOT_ASKED)),
    fingerprints=rule_fingerprints,
    resumable=True,
)

STAGES: Final = (PREPARE, EMBED, TOKENIZE, TRAIN, REWARD, ALIGN, RANK, BASELINES, EVALUATE, EXPORT, RECOMMEND)
"""All of them, in the order they run."""

BY_NAME: Final = {stage.name: stage for stage in STAGES}


def stages_of(config: RunConfig, also: Collection[str] = ()) -> tuple[Stage, ...]:
    """Return the stages that a configuration runs, with the parents that they have there.

    Without alignment `reward` and `align` are left out, and `evaluate` and `export` read the result of `train`; with it they
    read the aligned policy. `reward` runs if a reward asks for the reward model, or the bundle is to have it, and `rank`
    unless its method is ``none``.

    Args:
        also: Stages that are asked for by name, whatever the configuration says.
    """
    wanted = {stage.name for stage in STAGES} - {REWARD.name, ALIGN.name, RANK.name} | set(also)
    if config.rank.method != "none":
        wanted.add(RANK.name)
    if config.align.method != "none":
        wanted.add(ALIGN.name)
    if config.align.needs_reward_model or config.bundles_reward_model:
        wanted.add(REWARD.name)
    return tuple(_with_parents(stage, config) for stage in STAGES if stage.name in wanted)


def _with_parents(stage: Stage, config: RunConfig) -> Stage:
    method = config.align.method
    if stage is ALIGN:
        reward_model = (REWARD.name,) if config.align.needs_reward_model else ()
        idle = tuple(f"align.{name}" for name in ("ipa", "rere", "feedback") if name != method)
        return replace(stage, parents=(*stage.parents, *reward_model), ignored=(*stage.ignored, *idle))
    parents = stage.parents
    if stage is EXPORT and config.bundles_reward_model:
        parents = (*parents, REWARD.name)
    if method != "none" and stage in (RANK, EVALUATE, EXPORT):
        parents = (*parents, ALIGN.name)
    if config.rank.method != "none" and stage in (EVALUATE, EXPORT):
        parents = (*parents, RANK.name)
    return stage if parents == stage.parents else replace(stage, parents=parents)
