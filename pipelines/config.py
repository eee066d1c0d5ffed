"""The configuration of a whole run: composes what each package configures for itself, and adds nothing to it.

Reads a YAML recipe and ``key=value`` overrides; produces a frozen :class:`RunConfig`.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import Field, model_validator

from features.audit.changes import ChangesConfig
from features.build import FeaturesConfig
from features.embeddings.config import EmbedConfig
from features.sources import SourceConfig
from pipelines.nightly.config import NightsConfig
from pipelines.release.gate.config import PromoteConfig
from pipelines.release.tracking import TrackingConfig
from recsys.alignment.config import AlignConfig
from recsys.config import FrozenConfig, apply_overrides, read_recipe, validate
from recsys.contracts.errors import ConfigError
from recsys.decoding.config import DecodeConfig
from recsys.device import AUTO, DeviceName, RunPrecision, fill_precisions
from recsys.evaluation.config import EvaluateConfig
from recsys.model.config import ModelConfig
from recsys.paths import ConfigPath
from recsys.ranker.config import RankConfig
from recsys.reward.config import RewardConfig
from recsys.semantic_ids.config import TokenizeConfig
from recsys.training.config import TrainConfig
from serving.config import ExportConfig, RecommendConfig
from serving.registry.masking import masked, remember_all, shown

_VARIABLE = re.compile(r"\$(?:\$|\{(\w+)\}|(\w+))")


class RunConfig(FrozenConfig):
    """Everything about one run.

    Attributes:
        name: Names the experiment and the registered model.
        seed: Seed of every stage.
        output_dir: Holds artefacts, tracking records, the lock; created when missing. A relative path, here and in
            ``source.path``, starts at the working directory of the command.
        trust_file_times: A raw file, or one of an earlier result, that an earlier run in ``output_dir`` has read is not read
            again where path, inode, size and both times are as they were; ``false``: every file is. Does not enter any
            digest. See :mod:`pipelines.engine.kept_hashes`.
        threads: Compute threads; ``None`` takes the cores of the machine, at most 4. Does not enter any digest.
        device: Where models train and answer: ``cpu``, ``cuda`` (the first GPU), ``cuda:N``, or ``auto``, the first GPU
            where there is one. Does not enter any digest.
        precision: ``bf16-mixed`` is what ``train.precision``, ``reward.precision`` and ``align.precision`` are where they
            are not set, and makes ``decode.precision`` ``bfloat16``. The text encoder keeps ``embed.text.precision``: item
            vectors make the semantic IDs, which another precision of the policy is not to change.
    """

    name: str = Field(default="recsys", pattern=r"^[A-Za-z0-9_.-]+$")
    seed: int = Field(default=17, ge=0, lt=2**31)
    output_dir: ConfigPath = Path("runs/default")
    trust_file_times: bool = True
    threads: int | None = Field(default=None, ge=1)
    device: DeviceName = AUTO
    precision: RunPrecision = "float32"
    source: SourceConfig
    features: FeaturesConfig = FeaturesConfig()
    changes: ChangesConfig = ChangesConfig()
    embed: EmbedConfig = EmbedConfig()
    tokenize: TokenizeConfig = TokenizeConfig()
    model: ModelConfig = Field(default_factory=lambda: ModelConfig.model_validate({}))
    train: TrainConfig = TrainConfig()
    decode: DecodeConfig = DecodeConfig()
    reward: RewardConfig = RewardConfig()
    align: AlignConfig = AlignConfig()
    rank: RankConfig = RankConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    export: ExportConfig = ExportConfig()
    promote: PromoteConfig = PromoteConfig()
    recommend: RecommendConfig = RecommendConfig()
    nights: NightsConfig = NightsConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="before")
    @classmethod
    def _stages_follow_precision(cls, values: Any) -> Any:
        """Give the stages the run's precision where they have none of their own."""
        return fill_precisions(values, cls)

    @model_validator(mode="after")
    def _experts_can_run_in_bfloat16(self) -> Self:
        asked = {
            "train.precision": "bf16" in self.train.precision,
            "align.precision": "bf16" in self.align.precision,
            "decode.precision": self.decode.precision == "bfloat16",
        }
        for key, low in asked.items():
            if low:
                try:
                    self.model.check_bfloat16(key)
                except ConfigError as error:
                    raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _backbone_can_do_it(self) -> Self:
        train = self.train
        try:
            self.model.check_beside(
                decode_precision=self.decode.precision,
                compiles=train.compile != "none",
                spreads=train.processes > 1 or train.sharding != "none",
                smooths=train.label_smoothing > 0,
                distils=train.distillation_weight > 0,
            )
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self

    @model_validator(mode="after")
    def _disliked_are_signals(self) -> Self:
        """Refuse a signal that nobody declares now, and not after the training."""
        declared = getattr(self.source, "signals", None)
        if declared is None or not self.recommend.exclude_disliked:
            return self
        names = [signal.name for signal in (*declared, *self.features.derived_signals)]
        unknown = [name for name in self.recommend.exclude_disliked if name not in names]
        if unknown:
            close = difflib.get_close_matches(unknown[0], names, n=1)
            raise ValueError(
                f"recommend.exclude_disliked names '{unknown[0]}', which is no signal of the source "
                f"({', '.join(names) or 'it declares none'}); "
                + (f"did you mean '{close[0]}'?" if close else "declare it in source.signals, or leave it out")
            )
        return self

    @model_validator(mode="after")
    def _groups_are_carried(self) -> Self:
        """Refuse groups by a column of users that the source does not carry."""
        groups, carried = self.reward.train.worst_group, getattr(self.source, "user_columns", None)
        if groups is not None and carried is not None and groups.column not in carried:
            raise ValueError(
                f"reward.train.worst_group names column '{groups.column}', which source.user_columns does not carry "
                f"({', '.join(carried) or 'it is empty'}); add it there, or leave the option out"
            )
        return self

    @model_validator(mode="after")
    def _rewards_can_be_had(self) -> Self:
        """Refuse a reward that a run has nothing for before the policy is trained."""
        if self.align.method != "none" and "collaborative" in self.align.active.rewards:
            raise ValueError(
                f"align.{self.align.method}.rewards names 'collaborative', which needs another recommender's scores, and "
                "a run has none; leave it out (it is for callers of recsys.alignment.align)"
            )
        return self

    @model_validator(mode="after")
    def _propensities_are_mapped(self) -> Self:
        """Refuse to ask for logged propensities where no column of the source is one."""
        asked = self.align.method == "feedback" and self.align.feedback.logged_propensities
        if asked and getattr(getattr(self.source, "columns", None), "propensity", None) is None:
            raise ValueError(
                "align.feedback.logged_propensities needs the probability with which every item was shown, and the source "
                "maps none; set source.columns.propensity to the column that holds it, or leave the option out"
            )
        return self

    @model_validator(mode="after")
    def _ranked_search_takes_scores(self) -> Self:
        if self.rank.method == "none":
            return self
        if self.decode.cuda_graph:
            raise ValueError(
                "decode.cuda_graph records a search without item scores, and rank.method "
                f"'{self.rank.method}' guides it by them; set decode.cuda_graph: false, or rank.method: none"
            )
        if self.decode.guidance:
            raise ValueError(
                f"decode.guidance is {self.decode.guidance:g}, and with rank.method '{self.rank.method}' rank.guidance "
                "decides; set decode.guidance: 0, or rank.method: none"
            )
        return self

    @property
    def registered_name(self) -> str:
        """Name of the model in the registry."""
        return self.export.registered_name or self.name

    @property
    def bundles_reward_model(self) -> bool:
        """Whether the reward model goes into the serving bundle, as ``export.reward_model`` says or leaves open."""
        if self.export.reward_model is not None:
            return self.export.reward_model
        rewarded = self.recommend.second_stage == "reward" or self.recommend.reward_guidance > 0
        return self.align.needs_reward_model or (rewarded and self.recommend.model is None)

    @property
    def num_threads(self) -> int:
        """Compute threads, decided."""
        return self.threads or min(len(os.sched_getaffinity(0)), 4)


def load_run_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a recipe with what it extends, apply overrides, fill in environment variables, validate.

    Raises:
        ConfigError: Names the key, the value and what was expected.
    """
    if path.is_file():  # its lines are quoted where they are no YAML
        remember_all(path.read_text(encoding="utf-8", errors="replace").splitlines())
    recipe = read_recipe(path)
    remember_all([recipe.values, *overrides])
    values = expand_variables(apply_overrides(recipe.values, overrides, RunConfig), str(path))
    remember_all(values)
    config = validate(RunConfig, values, str(path), recipe)
    if config.recommend.model is None:  # the bundle that answers is made with these limits
        config.export.limits.check_k(config.recommend.k, config.registered_name)
    return config


def expand_variables(values: Any, where: str) -> Any:
    """Replace ``$NAME`` and ``${NAME}`` in every string by the environment variable, and ``$$`` by a dollar sign.

    Raises:
        ConfigError: A variable is not set; an empty path would read the wrong folder without a word. Or a string, as it
            came from the command line, is no Unicode text, which could not be written down.
    """
    if isinstance(values, dict):
        return {
            key: expand_variables(child, f"{where}: {key}" if isinstance(key, str) else where)
            for key, child in values.items()
        }
    if isinstance(values, list):
        return [expand_variables(child, where) for child in values]
    if not isinstance(values, str):
        return values

    def replace(match: re.Match[str]) -> str:
        name = match.group(1) or match.group(2)
        if name is None:
            return "$"
        if name not in os.environ:
            name = name if name in masked(values) else "…"  # what follows the dollar sign of a password is part of it
            raise ConfigError(
                f"config {where} is '{values}', but the environment variable '{name}' is not set; "
                f"export {name}=… or give the path itself as an override, for example source.path=/my/folder "
                "(a dollar sign in a name is written $$)"
            )
        return os.environ[name]

    expanded = _VARIABLE.sub(replace, values)
    if not _is_unicode(expanded):
        raise ConfigError(
            f"config {where} is {expanded!a}, which holds bytes that are no UTF-8; rename what it names, or reach it by a "
            "symbolic link"
        )
    return expanded


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_yaml(config: RunConfig) -> str:
    """Return the resolved configuration as YAML that :func:`load_run_config` reads back, without passwords."""
    values = config.model_dump(mode="json")
    if config.tracking.uri is not None:
        values["tracking"]["uri"] = shown(config.tracking.uri)
    # the C writer, where PyYAML has it, takes a tenth of the time of the other one and writes the same
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(values, Dumper=dumper, sort_keys=False, allow_unicode=True))
