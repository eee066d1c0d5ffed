"""The policy that is a causal language model: a history is its prompt, the codes of the next item are its answer.

Training and teacher forcing read a prompt once and put every answer behind its prefix, under a mask that lets an answer see
its own prompt and itself: all prefixes of a history, or many candidates for one, are a single sequence. Decoding keeps the
prompt's keys and values once per user and feeds the beams' tokens one level at a time.

Legend: B users, H events, P prediction points, M items per session, L levels, S tokens of a prompt, T tokens of an answer,
W beams, K codes, D width, I item rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from recsys.contracts.errors import ConfigError
from recsys.data.batch import HistoryBatch, TrainingBatch
from recsys.data.item_catalogue import ItemCatalogue
from recsys.language_model.adapters import add_adapters
from recsys.language_model.auxiliary import auxiliary_losses, longest_of_tasks
from recsys.language_model.base import from_spec, longest_sequence
from recsys.language_model.causal_blocks import CausalBlocks
from recsys.language_model.costs import LanguageCosts
from recsys.language_model.prompt import NO_TOKEN, Prompts, PromptWriter
from recsys.language_model.vocabulary import ANSWER, BEHAVIOURS, ExtendedVocabulary
from recsys.model.encoder import ITEM_FEATURES, CodeEmbedding, ItemTower
from recsys.model.generative_recommender import AuxiliaryLoss, GenerativeRecommender, PolicySpec
from recsys.model.layers.attention import KeysValues
from recsys.model.layers.beam_cache import BeamCache
from recsys.model.layers.prefix_tree import PrefixTree
from recsys.model.layers.rows import Linear
from recsys.model.layers.tables import FeatureTables


@dataclass
class LanguageState:
    """A batch of users in the middle of decoding.

    Attributes:
        keys_values: Per layer, the prompt's keys and values, ``[B, G, S, C]`` each, computed once per user.
        visible: ``[B, 1, 1, S]`` real tokens of the prompts.
        length_B1: int64 tokens of the prompts.
        dense_query_BD: Query of the dense head.
        cache: Own tokens of the beams.
        position: Tokens of the answer so far.
    """

    keys_values: list[KeysValues]
    visible: torch.Tensor
    length_B1: torch.Tensor
    dense_query_BD: torch.Tensor
    cache: BeamCache
    position: int = 0


class CodeHead(nn.Module):
    """Logits of codes, and an empty cache: what the rest of the system asks of a policy's decoder."""

    def __init__(self, vocabulary: ExtendedVocabulary, blocks: CausalBlocks) -> None:
        super().__init__()
        self.vocabulary, self.blocks = vocabulary, blocks

    def code_logits(self, hidden: torch.Tensor, level: int) -> torch.Tensor:
        """Float32 logits of one level; see :meth:`~recsys.language_model.vocabulary.ExtendedVocabulary.code_logits`."""
        return self.vocabulary.code_logits(hidden, level)

    def hold_heads(self, dtype: torch.dtype) -> None:
        """Logits round their factors as the device and autocast say; no copy of a head is worth holding."""

    def start(self) -> BeamCache:
        """Return an empty cache."""
        return BeamCache.empty(self.blocks.num_layers)


class LanguagePolicy(GenerativeRecommender):
    """A :class:`~recsys.model.generative_recommender.GenerativeRecommender` whose encoder and decoder are one causal model.

    The dense head is the same, with queries from the hidden state of a prompt's last token. An item's tokens are
    ``ANSWER c1 ... cL``, of which the last is fed only where another item follows.

    Args:
        spec: Its ``model.width`` is the language model's, its ``language`` the configuration of that.
        catalogue: Semantic ID, author and category of every item.
        base: The language model, without adapters; ``None``: one of the right shape, whose weights are about to be loaded.

    Raises:
        ConfigError: The longest history makes a longer sequence than the model can read.
    """

    title_IT: torch.Tensor

    def __init__(self, spec: PolicySpec, catalogue: ItemCatalogue, base: Any | None = None) -> None:
        nn.Module.__init__(self)  # the parts of the encoder-decoder are not built
        config, settings = spec.model, spec.model.language_model
        assert settings is not None
        assert spec.language is not None
        catalogue.check_fits(spec.dataset.num_items, spec.level_sizes)
        self.spec, self.settings = spec, settings
        base = base if base is not None else from_spec(spec.language)
        rows = spec.dataset.table_rows([name for name in config.features if name in ITEM_FEATURES])
        self.tables = FeatureTables(rows, config.width, config.init_std)
        self.codes = CodeEmbedding(spec.level_sizes, config.width, config.init_std)
        self.item_tower = ItemTower(config, self.tables, self.codes, catalogue)
        self.dense_query = Linear(config.width, config.width, bias=False)
        nn.init.eye_(self.dense_query.weight)
        self.objective = self.words = None
        self.base: Any = base
        if settings.tune == "lora":
            add_adapters(base.model, settings.lora)
        blocks = CausalBlocks(base.model, config.dropout, checkpointing=settings.gradient_checkpointing)
        first_word = BEHAVIOURS + max(spec.dataset.num_behaviours, 1)
        num_marks = first_word + len(spec.words)
        self.vocabulary = ExtendedVocabulary(base, self.codes, num_marks, settings.softmax)
        self.encoder: Any = PromptWriter(
            self.vocabulary,
            spec.language.instruction,
            behaviours="behaviour" in config.features,
            titles=settings.titles,
            first_word=None if config.words is None else first_word,
            longest_sentence=0 if config.words is None else config.words.longest,
        )
        self.decoder: Any = CodeHead(self.vocabulary, blocks)
        self.blocks = blocks
        self.embedding_dropout = nn.Dropout(config.embedding_dropout)
        width = settings.title_tokens if settings.reads_titles else 0
        self.register_buffer("title_IT", torch.full((spec.dataset.num_items + 1, width), NO_TOKEN, dtype=torch.int64))
        self._freeze()
        self._check_length()

    def _freeze(self) -> None:
        """Train adapters alone beside what is new, and no word that is never read or written."""
        if self.settings.tune == "lora":
            for name, parameter in self.base.named_parameters():
                parameter.requires_grad_("lora_" in name)
        elif not self.settings.reads_text and self.settings.softmax == "level":
            self.vocabulary.text.weight.requires_grad_(False)
            self.vocabulary.text_head.weight.requires_grad_(False)

    def _check_length(self) -> None:
        events, session = self.spec.model.max_history, self.spec.dataset.session_length
        prompt = self.encoder.longest(events, self.num_levels, self.title_IT.shape[1])
        answered, room = prompt + session * (self.num_levels + 1), longest_sequence(self.base.config)
        longest = max(answered, longest_of_tasks(self))
        if longest > room:
            told = "" if longest == answered else " in model.language_model.auxiliary"
            raise ConfigError(
                f"model.max_history={events} makes sequences of up to {longest} tokens{told}, and this language model reads "
                f"at most {room}; lower model.max_history, or shorten instruction and title_tokens"
            )

    @property
    def stored_elsewhere(self) -> frozenset[str]:
        """Names of weights that are not saved with the policy: those of a base that is named by its digest."""
        return self.base_weights if self.settings.keep_base == "reference" else frozenset()

    @property
    def base_weights(self) -> frozenset[str]:
        """Names of the weights that came with the language model."""
        return frozenset(f"base.{name}" for name, _ in self.base.named_parameters() if "lora_" not in name)

    def named_rows(self) -> dict[str, list[tuple[str, ...]]]:
        """Of marks, and of the head that is not their embeddings; as in the base class."""
        dataset = self.spec.dataset
        marks: list[tuple[str, ...]] = [("mark", str(number)) for number in range(BEHAVIOURS)]
        marks += [("behaviour", str(n), *(dataset.signals if n else ())) for n in range(max(dataset.num_behaviours, 1))]
        marks += [("word", word) for word in self.spec.words]
        codes: list[tuple[str, ...]] = [("code", str(row)) for row in range(len(self.codes.weight))]
        head = {} if self.vocabulary.tied else {"vocabulary.head": [*marks, *codes]}
        return {"vocabulary.marks": marks, **head}

    def set_titles(self, tokens: list[list[int]]) -> None:
        """Take the titles of all items, in the order of item_index."""
        for row, title in enumerate(tokens, start=1):
            self.title_IT[row, : len(title)] = torch.tensor(title, dtype=torch.int64)

    def _prompts(self, history: HistoryBatch) -> Prompts:
        titles = self.title_IT if self.settings.titles else None
        prompts: Prompts = self.encoder(history, self.item_tower.codes_IL, titles)
        return prompts

    def forward(self, batch: TrainingBatch) -> tuple[torch.Tensor, torch.Tensor]:
        """Return hidden states for every asked code and dense queries for every point; shapes as in the base class."""
        return self.answers_behind(self._prompts(batch.history), batch, self.encoder.has_text)

    def answers_behind(self, prompts: Prompts, batch: TrainingBatch, text: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """The same for histories that are written down in any way.

        Args:
            prompts: Of the batch's users.
            text: There may be text among their tokens.
        """
        codes_BPML = self.item_tower.codes_IL[batch.target_BPM]
        length_BP, answer_BPT = prompts.lengths(batch.visible_BP), self.answers(codes_BPML)
        size = answer_BPT.shape[2]
        position_BR = (length_BP[..., None] + torch.arange(size, device=length_BP.device)).flatten(1)
        mask = answer_mask(prompts.token_BS.shape[1], length_BP, size)
        hidden_BSD, hidden_BRD = self.read(prompts.token_BS, answer_BPT.flatten(1), position_BR, mask, text)
        hidden_BPTD = hidden_BRD.unflatten(1, tuple(answer_BPT.shape[1:]))
        b, p, m, levels = codes_BPML.shape
        # the token of cL predicts nothing; the very last one was never fed
        hidden = nn.functional.pad(hidden_BPTD, (0, 0, 0, 1)).view(b, p, m, levels + 1, -1)[..., :levels, :]
        last = (length_BP - 1)[..., None].expand(-1, -1, hidden_BSD.shape[-1])
        return hidden, self._dense_query(hidden_BSD.gather(1, last))

    def auxiliary_losses(self, batch: TrainingBatch) -> dict[str, AuxiliaryLoss]:
        """Losses of the tasks between titles and codes; draws items from torch's global generator."""
        return auxiliary_losses(self, batch) if self.settings.auxiliary.is_asked else {}

    def answers(self, codes_BPML: torch.Tensor) -> torch.Tensor:
        """Tokens ``ANSWER c1 ... cL`` per item, without the last code of the last one: ``[B, P, M * (L + 1) - 1]``."""
        mark = torch.full_like(codes_BPML[..., :1], self.vocabulary.mark(ANSWER))
        return torch.cat([mark, self.vocabulary.code_tokens(codes_BPML)], dim=-1).flatten(2)[..., :-1]

    def read(
        self, token_BS: torch.Tensor, answer_BR: torch.Tensor, position_BR: torch.Tensor, mask: torch.Tensor, text: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Read prompts and what stands behind them in one pass.

        Args:
            token_BS: Prompts.
            answer_BR: Tokens of answers, in any order.
            position_BR: Their positions.
            mask: Boolean ``[B, S + R, S + R]``, who may look at whom.
            text: There may be text among the tokens.

        Returns:
            Hidden states of prompts and answers, ``[B, S, D]`` and ``[B, R, D]``.
        """
        prompt = token_BS.shape[1]
        place_S = torch.arange(prompt, device=token_BS.device)
        positions = torch.cat([place_S.expand(len(token_BS), -1), position_BR], dim=1)
        tokens = torch.cat([token_BS, answer_BR], dim=1)
        x = self.embedding_dropout(self.vocabulary.embed(tokens, text=text))
        hidden, _ = self.blocks(x, positions, mask[:, None])
        return hidden[:, :prompt], hidden[:, prompt:]

    def log_probs_along(self, history: HistoryBatch, tree: PrefixTree) -> list[torch.Tensor]:
        """Log-probabilities of the next code after every prefix of a tree; as in the base class."""
        prompts = self._prompts(history)
        length_B1 = prompts.lengths(history.lengths_B[:, None])
        tokens = [torch.full_like(tree.lines[0][:, 0], self.vocabulary.mark(ANSWER))]
        tokens += [
            codes + (self.vocabulary.first_code + self.codes.offsets[level]) for level, codes in enumerate(tree.codes)
        ]
        level_N = torch.cat([torch.full_like(line[:, 0], level) for level, line in enumerate(tree.lines)])
        blank = torch.zeros(tree.users * tree.width, dtype=torch.int64, device=level_N.device)
        answer_BR = blank.index_copy(0, tree.place_N, torch.cat(tokens)).view(tree.users, tree.width)
        level_BR = blank.index_copy(0, tree.place_N, level_N).view_as(answer_BR)
        mask = tree_mask(prompts.token_BS.shape[1], length_B1, tree)
        text = self.encoder.has_text
        _, hidden_BRD = self.read(prompts.token_BS, answer_BR, length_B1 + level_BR, mask, text)
        hidden_ND = hidden_BRD.flatten(0, 1)[tree.place_N]
        found = []
        for level, (here, size) in enumerate(zip(tree.level_slices, self.spec.level_sizes, strict=True)):
            log_probs = self.decoder.code_logits(hidden_ND[here], level).log_softmax(-1)
            found.append(log_probs[:, :size])
        return found

    def start(self, history: HistoryBatch) -> LanguageState:  # type: ignore[override]
        """Read the prompts, once per user."""
        prompts = self._prompts(history)
        x_BSD = self.vocabulary.embed(prompts.token_BS, text=self.encoder.has_text)
        place_S = torch.arange(x_BSD.shape[1], device=x_BSD.device)
        hidden_BSD, keys_values = self.blocks(x_BSD, place_S[None])
        length_B1 = prompts.lengths(history.lengths_B[:, None])
        last = (length_B1 - 1)[..., None].expand(-1, -1, hidden_BSD.shape[-1])
        return LanguageState(
            keys_values=keys_values,
            visible=(place_S < length_B1)[:, None, None],
            length_B1=length_B1,
            dense_query_BD=self._dense_query(hidden_BSD.gather(1, last)[:, 0]),
            cache=self.decoder.start(),
        )

    def next_codes(self, state: LanguageState, codes_BW: torch.Tensor | None) -> torch.Tensor | None:  # type: ignore[override]
        """Feed the codes chosen last (``None``: the mark of an answer); shapes as in the base class."""
        level = state.position % (self.num_levels + 1)
        if codes_BW is None:
            shape = (len(state.visible), state.cache.width)
            tokens = torch.full(shape, self.vocabulary.mark(ANSWER), device=state.visible.device)
        else:
            tokens = codes_BW + (self.vocabulary.first_code + self.codes.offsets[level - 1])
        x_BWD = self.vocabulary.embed(tokens, text=False)
        position_B1 = state.length_B1 + state.position
        hidden_BWD = self.blocks.step(x_BWD, position_B1, state.keys_values, state.visible, state.cache)
        state.position += 1
        if level == self.num_levels:
            return None
        log_probs: torch.Tensor = self.decoder.code_logits(hidden_BWD, level).log_softmax(-1)
        return log_probs[..., : self.spec.level_sizes[level]]

    @property
    def costs(self) -> LanguageCosts:
        """Its matrix products, for :mod:`recsys.model.summary`."""
        return LanguageCosts.of(self)


def answer_mask(prompt: int, length_BP: torch.Tensor, size: int) -> torch.Tensor:
    """Who may look at whom in a sequence of a prompt and the answers behind its prefixes, bool ``[B, S + P * T]²``.

    A prompt's token looks at itself and what stands before it; an answer's at its prefix of the prompt, at itself and at
    what stands before it in the same answer.

    Example:
        A prompt of two tokens, one answer of one token behind its first, one behind both.

        >>> answer_mask(2, torch.tensor([[1, 2]]), 1)[0].int().tolist()
        [[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 1, 0, 1]]
    """
    (users, points), device = length_BP.shape, length_BP.device
    answers = points * size
    place_S, place_R = torch.arange(prompt, device=device), torch.arange(answers, device=device)
    mask = torch.zeros(users, prompt + answers, prompt + answers, dtype=torch.bool, device=device)
    mask[:, :prompt, :prompt] = place_S[:, None] >= place_S
    mask[:, prompt:, :prompt] = (place_S < length_BP[..., None]).repeat_interleave(size, dim=1)
    same = place_R[:, None] // size == place_R // size
    mask[:, prompt:, prompt:] = same & (place_R[:, None] >= place_R)
    return mask


def tree_mask(prompt: int, length_B1: torch.Tensor, tree: PrefixTree) -> torch.Tensor:
    """The same for the nodes of a tree, each of which sees its user's prompt, its ancestors and itself, ``[B, S + W]²``."""
    device = length_B1.device
    own = torch.zeros(tree.users * tree.width, tree.width, dtype=torch.bool, device=device)
    for here, line in zip(tree.level_slices, tree.lines, strict=True):
        own[tree.place_N[here][:, None], tree.place_N[line] % tree.width] = True
    own.view(tree.users, tree.width, -1).diagonal(dim1=1, dim2=2).fill_(True)  # a place without a node sees something
    place_S = torch.arange(prompt, device=device)
    mask = torch.zeros(tree.users, prompt + tree.width, prompt + tree.width, dtype=torch.bool, device=device)
    mask[:, :prompt, :prompt] = place_S[:, None] >= place_S
    mask[:, prompt:, :prompt] = (place_S < length_B1)[:, None]
    mask[:, prompt:, prompt:] = own.view(tree.users, tree.width, -1)
    return mask
