"""The search as one CUDA graph per batch shape: hundreds of small kernels are launched at once, encoding included.

Batches are padded to few shapes (:func:`padded_size`): to a fixed number of users, to the next power of two of history
events, and of closed nodes. Users are decoded in the order of their lengths, so a data set needs about a graph per power
of two; all share one memory pool, and the graph that was used longest ago is dropped when there are :data:`MOST_GRAPHS`.

Legend: B users, H history events, R closed nodes of a user.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Final, Protocol

import torch

from recsys.contracts.errors import ConfigError
from recsys.data.batch import HistoryBatch
from recsys.decoding.beam_search import Beams, search_from
from recsys.decoding.rules.batch_rules import NO_NODE, BatchRules, PersonalRules
from recsys.decoding.search_index import SearchIndex
from recsys.decoding.transfers import PREPARING
from recsys.model.generative_recommender import GenerativeRecommender

FEWEST: Final = 16
"""Events and closed nodes of the smallest shape."""

MOST_GRAPHS: Final = 16
"""Kept at once; each holds its inputs and answers, a few megabytes, beside the pool that all share."""

WARMUP_RUNS: Final = 3
"""Runs on a side stream before recording, as torch asks for, so that lazy initialisation is over."""

Shape = tuple[object, ...]


class Recording(Protocol):
    """A search that can be run again on whatever lies in its inputs."""

    beams: Beams

    def replay(self) -> None:
        """Run it; the answer is in ``beams``."""
        ...


Recorder = Callable[[Callable[[], Beams]], Recording]
"""Runs a search once and returns the recording of it."""


@dataclass
class _CudaRecording:
    graph: torch.cuda.CUDAGraph
    beams: Beams

    def replay(self) -> None:
        self.graph.replay()


class CudaRecorder:
    """Records CUDA graphs that share one memory pool.

    They may: no two run at the same time, and what one leaves in the pool is copied out before another runs.

    Raises:
        ConfigError: The device is no GPU.
    """

    def __init__(self, device: torch.device) -> None:
        if device.type != "cuda":
            raise ConfigError(f"decode.cuda_graph needs a GPU, the policy is on {device}; set decode.cuda_graph=false")
        self.device = device
        self._pool = torch.cuda.graph_pool_handle()

    def __call__(self, search: Callable[[], Beams]) -> Recording:
        """Warm up and record.

        Raises:
            ConfigError: The search asks for something that cannot be recorded, such as a value read back.
        """
        with PREPARING, torch.cuda.device(self.device):  # nothing else may be asked of the GPU meanwhile
            side = torch.cuda.Stream(self.device)
            side.wait_stream(torch.cuda.current_stream(self.device))
            with torch.cuda.stream(side):
                for _ in range(WARMUP_RUNS):
                    search()
            torch.cuda.current_stream(self.device).wait_stream(side)
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                    beams = search()
            except RuntimeError as error:
                raise ConfigError(
                    f"decode.cuda_graph: this search cannot be recorded ({error}); set decode.cuda_graph: false"
                ) from error
        return _CudaRecording(graph, beams)


@dataclass
class _Recorded:
    """A recording and the tensors that it reads."""

    history: HistoryBatch
    rules: BatchRules
    recording: Recording

    def fill(self, history: HistoryBatch, rules: BatchRules) -> None:
        """Copy a batch over the recorded one; a padded user has no history, and a padded list closes nothing."""
        for target, source in zip(_history_tensors(self.history), _history_tensors(history), strict=True):
            _write(target, source, 0)
        for target, source in zip(_closed(self.rules), _closed(rules), strict=True):
            _write(target, source, NO_NODE)
        if self.rules.segment_B is not None and rules.segment_B is not None:
            _write(self.rules.segment_B, rules.segment_B, 0)
        for target, source in zip(_shared(self.rules), _shared(rules), strict=True):
            target.copy_(source)


class GraphedSearch:
    """Next-item beam search by replaying graphs.

    Args:
        policy: In evaluation mode on a CUDA device.
        index: On the same device.
        widths: Beam width of the one item.
        users: B of every batch; smaller batches are padded.
        recorder: Records the searches; ``None``: as CUDA graphs with a pool of their own.
        most_graphs: How many recordings are kept.

    Raises:
        ConfigError: The policy is not on a GPU.
    """

    def __init__(
        self,
        policy: GenerativeRecommender,
        index: SearchIndex,
        widths: Sequence[int],
        users: int,
        *,
        recorder: Recorder | None = None,
        most_graphs: int = MOST_GRAPHS,
    ) -> None:
        self.device = policy.codes.weight.device
        self.policy, self.index, self.widths, self.users = policy, index, widths, users
        self.most_graphs = most_graphs
        self._record = recorder if recorder is not None else CudaRecorder(self.device)
        self._recorded: dict[Shape, _Recorded] = {}

    def __len__(self) -> int:
        return len(self._recorded)

    @torch.inference_mode()
    def __call__(self, history: HistoryBatch, rules: BatchRules) -> Beams:
        """Answer a batch of at most ``users`` histories, as :func:`~recsys.decoding.beam_search.beam_search` would.

        Raises:
            ConfigError: The search cannot be recorded.
        """
        asked = len(history)
        assert asked <= self.users, f"{asked} users are more than the {self.users} that graphs are recorded for"
        padded = self._padded(history, rules)
        recorded = self._recorded.pop(padded.shape, None)
        if recorded is None:
            while len(self._recorded) >= self.most_graphs:
                del self._recorded[next(iter(self._recorded))]  # used longest ago
            recorded = self._new(padded, history, rules)
        self._recorded[padded.shape] = recorded
        recorded.fill(history, rules)
        recorded.recording.replay()
        beams = recorded.recording.beams
        return Beams(**{part.name: getattr(beams, part.name)[:asked].clone() for part in fields(Beams)})

    def _padded(self, history: HistoryBatch, rules: BatchRules) -> _Padded:
        events = padded_size(history.item_BH.shape[1], self.policy.spec.model.max_history)
        return _Padded(
            events=events,
            closed=tuple(padded_size(nodes.shape[1]) for nodes in _closed(rules)),
            shape=(
                events,
                None if history.objective_BO is None else history.objective_BO.shape[1],
                None if history.words_BT is None else history.words_BT.shape[1],
                tuple(padded_size(nodes.shape[1]) for nodes in _closed(rules)),
                rules.segment_B is not None,
                rules.alive is not None,
                tuple(tuple(tensor.shape) for tensor in _shared(rules)),
                None if rules.quotas is None else rules.quotas.list_length,
                torch.is_autocast_enabled(self.device.type),
            ),
        )

    def _new(self, padded: _Padded, history: HistoryBatch, rules: BatchRules) -> _Recorded:
        def room(tensor: torch.Tensor, *width: int) -> torch.Tensor:
            return torch.zeros(self.users, *width, dtype=tensor.dtype, device=self.device)

        own = {
            part.name: room(tensor, *([padded.events] if part.name.endswith("_BH") else tensor.shape[1:]))
            for part in fields(HistoryBatch)
            if (tensor := getattr(history, part.name)) is not None
        }
        closed = [room(nodes, size) for nodes, size in zip(_closed(rules), padded.closed, strict=True)]
        quotas = rules.quotas
        if quotas is not None:
            quotas = replace(quotas, group_I=quotas.group_I.clone(), limit_G=quotas.limit_G.clone())
        recorded = _Recorded(
            history=HistoryBatch(**own),
            rules=BatchRules(
                alive=None if rules.alive is None else tuple(mask.clone() for mask in rules.alive),
                segment_B=None if rules.segment_B is None else room(rules.segment_B),
                personal=PersonalRules(closed) if rules.personal is not None else None,
                quotas=quotas,
            ),
            recording=_NotRecorded(),
        )
        recorded.fill(history, rules)

        def search() -> Beams:
            state = self.policy.start(recorded.history)
            return search_from(self.policy, state, self.index, self.widths, recorded.rules)

        recorded.recording = self._record(search)
        return recorded


@dataclass(frozen=True)
class _Padded:
    """Sizes of a batch's inputs, and all that makes two batches share a graph."""

    events: int
    closed: tuple[int, ...]
    shape: Shape


class _NotRecorded:
    """Stands where a recording will be."""

    beams: Beams

    def replay(self) -> None:
        """There is nothing."""
        raise AssertionError("replayed before it was recorded")


def padded_size(size: int, most: int | None = None) -> int:
    """The next power of two from :data:`FEWEST` on, at most ``most``; nothing stays nothing.

    Example:
        >>> [padded_size(size, 50) for size in (0, 1, 16, 17, 33, 50)]
        [0, 16, 16, 32, 50, 50]
    """
    if size == 0:
        return 0
    padded = max(FEWEST, 1 << (size - 1).bit_length())
    return padded if most is None else max(size, min(padded, most))


def _write(target: torch.Tensor, source: torch.Tensor, padding: int) -> None:
    """Copy into the upper left corner; the rest is padding."""
    target.fill_(padding)
    target[tuple(slice(size) for size in source.shape)].copy_(source, non_blocking=True)


def _history_tensors(history: HistoryBatch) -> list[torch.Tensor]:
    found = (getattr(history, part.name) for part in fields(HistoryBatch))
    return [tensor for tensor in found if tensor is not None]


def _closed(rules: BatchRules) -> list[torch.Tensor]:
    return [] if rules.personal is None else rules.personal.closed


def _shared(rules: BatchRules) -> list[torch.Tensor]:
    """Tensors that do not belong to single users."""
    quotas = [] if rules.quotas is None else [rules.quotas.group_I, rules.quotas.limit_G]
    return [*(rules.alive or ()), *quotas]
