"""A language policy for a prepared data set, untrained as a policy: from the configuration to a model with new tokens."""

from __future__ import annotations

import json
import logging

from recsys.contracts.columns import Columns
from recsys.contracts.dataset import Dataset
from recsys.contracts.errors import ArtifactError, ConfigError
from recsys.data.item_catalogue import ItemCatalogue
from recsys.data.words import WordList
from recsys.language_model.base import from_shape, from_source
from recsys.language_model.language_policy import LanguagePolicy
from recsys.language_model.prompt import text_tokens
from recsys.model.config import ModelConfig
from recsys.model.generative_recommender import LanguageSpec, PolicySpec
from recsys.semantic_ids.versions import SemanticIds

logger = logging.getLogger(__name__)


def language_policy(prepared: Dataset, semantic_ids: SemanticIds, model: ModelConfig) -> LanguagePolicy:
    """Open or draw the language model, extend its vocabulary and read the titles; draws from torch's global generator.

    Raises:
        ConfigError: There is no such model, or it cannot do what is asked.
    """
    settings = model.language_model
    assert settings is not None
    base = (
        from_source(settings.source)
        if settings.source is not None
        else from_shape(settings.shape or {}, model.init_std)
    )
    if base.source is not None and base.tokenizer is None and settings.reads_text:
        logger.warning(
            "model.language_model.source '%s' has no tokenizer that can be read: its text is read as bytes, which mean "
            "something only to a model that was trained on bytes",
            base.source,
        )
    config = base.model.config
    instruction = [settings.instruction] if settings.instruction is not None else []
    tokens = text_tokens(instruction, base.tokenizer, int(config.max_position_embeddings), config.vocab_size)
    language = LanguageSpec(
        config=json.loads(json.dumps(config.to_dict(), default=str)),
        source=base.source,
        digest=base.digest,
        instruction=tuple(tokens[0]) if tokens else (),
    )
    spec = PolicySpec(
        model=model.model_copy(update={"width": config.hidden_size}),
        dataset=prepared.spec,
        level_sizes=semantic_ids.level_sizes,
        semantic_id_digest=semantic_ids.digest,
        words=() if model.words is None else WordList.of(prepared.items, model.words).words,
        language=language,
    )
    policy = LanguagePolicy(spec, ItemCatalogue.from_items(prepared.items, semantic_ids.codes), base.model)
    if base.source is not None:
        policy.vocabulary.start_near_words()
    if settings.reads_titles:
        titles = prepared.items[Columns.TITLE].to_list()
        title_tokens = text_tokens(titles, base.tokenizer, settings.title_tokens, config.vocab_size)
        if not any(title_tokens):
            raise ConfigError(
                "model.language_model asks for titles (titles, or auxiliary tasks), and no item of this data set has one; "
                "leave them out"
            )
        policy.set_titles(title_tokens)
    return policy


def restored(spec: PolicySpec, catalogue: ItemCatalogue) -> LanguagePolicy:
    """A policy of the given shape, whose own weights are about to be loaded; a base that is named by its digest is read.

    Raises:
        ConfigError: The base is not on this machine.
        ArtifactError: It has other weights than the one that the policy was trained on.
    """
    settings, language = spec.model.language_model, spec.language
    if settings is None or language is None:
        raise ArtifactError("policy.json says backbone: llm and holds no language model; train again")
    if settings.keep_base == "inside":
        return LanguagePolicy(spec, catalogue)
    assert language.source is not None
    base = from_source(language.source, language)
    if base.digest != language.digest:
        raise ArtifactError(
            f"language model '{language.source}' has weights {str(base.digest)[:16]}, and the policy was trained on "
            f"{str(language.digest)[:16]}; put that model back, or train again with keep_base: inside"
        )
    return LanguagePolicy(spec, catalogue, base.model)
