"""The search as one CUDA graph per batch shape: hundreds of small kernels are launched at once.

Encoding stays outside the graph, because looking up jagged ids has shapes of its own; from the projected keys and values
on, every shape is fixed. Batches are padded to a few shapes: to a fixed number of users, to a multiple of
:data:`LENGTH_STEP` history positions and of :data:`CLOSED_STEP` closed nodes.

Legend: B users, S memory positions, R closed nodes of a user.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F

from recsys.data.batch import HistoryBatch
from recsys.decoding.beam_search import Beams, search_from
from recsys.decoding.rules.batch_rules import NO_NODE, BatchRules, PersonalRules
from recsys.decoding.rules.item_rules import Quotas
from recsys.decoding.search_index import SearchIndex
from recsys.model.generative_recommender import DecodingState, GenerativeRecommender
from recsys.model.layers.beam_cache import BeamCache

LENGTH_STEP: Final = 16
CLOSED_STEP: Final = 64
WARMUP_RUNS: Final = 3
"""Runs on a side stream before recording, as torch asks for, so that lazy initialisation is over."""


@dataclass
class _Inputs:
    """Everything that a graph reads; each batch is copied over the recorded one's."""

    keys_values: list[tuple[torch.Tensor, torch.Tensor]]
    visible: torch.Tensor
    closed: list[torch.Tensor]
    segment: list[torch.Tensor]
    alive: list[torch.Tensor]
    quotas: list[torch.Tensor]
    list_length: int | None

    def tensors(self) -> list[torch.Tensor]:
        """All of them, in one order."""
        pairs = [tensor for pair in self.keys_values for tensor in pair]
        return [*pairs, self.visible, *self.closed, *self.segment, *self.alive, *self.quotas]

    @property
    def shape(self) -> tuple[tuple[int, ...], ...]:
        """What a graph is recorded for: the shapes of all inputs, and which kinds of rule there are."""
        kinds = (len(self.closed), len(self.segment), len(self.alive), len(self.quotas), self.list_length or 0)
        return (kinds, *(tuple(tensor.shape) for tensor in self.tensors()))

    def rules(self) -> BatchRules:
        """The rules as the search takes them."""
        return BatchRules(
            alive=tuple(self.alive) if self.alive else None,
            segment_B=self.segment[0] if self.segment else None,
            personal=PersonalRules(self.closed) if self.closed else None,
            quotas=Quotas(*self.quotas, list_length=self.list_length) if self.quotas else None,
        )


@dataclass
class _Recorded:
    graph: torch.cuda.CUDAGraph
    inputs: _Inputs
    beams: Beams


class GraphedSearch:
    """Next-item beam search by replaying graphs.

    Args:
        policy: In evaluation mode on a CUDA device.
        index: On the same device.
        widths: Beam width of the one item.
        users: B of every batch; smaller batches are padded.

    """

    def __init__(self, policy: GenerativeRecommender, index: SearchIndex, widths: Sequence[int], users: int) -> None:
        self.device = policy.codes.weight.device
        self.policy, self.index, self.widths, self.users = policy, index, widths, users
        self._recorded: dict[tuple[tuple[int, ...], ...], _Recorded] = {}

    @torch.inference_mode()
    def __call__(self, history: HistoryBatch, rules: BatchRules) -> Beams:
        """Answer a batch of at most ``users`` histories, as :func:`~recsys.decoding.beam_search.beam_search` would."""
        asked = len(history)
        state = self.policy.start(history)
        inputs = self._pad(state, rules)
        recorded = self._recorded.get(inputs.shape)
        if recorded is None:
            recorded = self._recorded[inputs.shape] = self._record(inputs)
        for target, source in zip(recorded.inputs.tensors(), inputs.tensors(), strict=True):
            target.copy_(source)
        recorded.graph.replay()
        beams = recorded.beams
        clones = [part[:asked].clone() for part in (beams.items, beams.scores, beams.log_probs)]
        return Beams(clones[0], clones[1], state.dense_query_BD, clones[2])

    def _pad(self, state: DecodingState, rules: BatchRules) -> _Inputs:
        """Pad users, memory positions and closed lists to few shapes; a padded user sees position 0."""
        users = self.users - len(state.visible)
        length = -state.visible.shape[-1] % LENGTH_STEP
        visible = F.pad(state.visible, (0, length, 0, 0, 0, 0, 0, users))
        visible[..., 0] = True
        return _Inputs(
            keys_values=[
                (F.pad(k, (0, 0, 0, length, 0, 0, 0, users)), F.pad(v, (0, 0, 0, length, 0, 0, 0, users)))
                for k, v in state.keys_values
            ],
            visible=visible,
            closed=[
                F.pad(nodes.to(self.device), (0, -nodes.shape[1] % CLOSED_STEP, 0, users), value=NO_NODE)
                for nodes in (rules.personal.closed if rules.personal is not None else [])
            ],
            segment=[F.pad(rules.segment_B, (0, users))] if rules.segment_B is not None else [],
            alive=[mask.to(self.device) for mask in rules.alive or []],
            quotas=[rules.quotas.group_I, rules.quotas.limit_G] if rules.quotas is not None else [],
            list_length=rules.quotas.list_length if rules.quotas is not None else None,
        )

    def _record(self, inputs: _Inputs) -> _Recorded:
        rules = inputs.rules()
        no_query = torch.empty(self.users, 0, device=self.device)

        def search() -> Beams:
            cache = BeamCache.empty(len(self.policy.decoder.blocks))
            state = DecodingState(inputs.keys_values, inputs.visible, no_query, cache)
            return search_from(self.policy, state, self.index, self.widths, rules)

        side = torch.cuda.Stream(self.device)
        side.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(side):
            for _ in range(WARMUP_RUNS):
                search()
        torch.cuda.current_stream(self.device).wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            beams = search()
        return _Recorded(graph, inputs, beams)
