"""Constrained decoding against transformers: speed, share of the matmul roof, cost of the constraint, size of the index.

Run: ``python -m tests.benchmarks.decoder [--threads 1] [--quick]`` (about 15 minutes; ``--quick`` about 3).

The T5 of TIGER (sizes in :mod:`tests.benchmarks.decoder_models`), random weights, 80 tokens in. All contestants decode the
same weights and must return the same items and scores; our engine runs them through
:class:`~tests.benchmarks.t5_policy.T5Policy`. Our own model of the same widths stands beside it.
"""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PrefixConstrainedLogitsProcessor,
    T5ForConditionalGeneration,
)

from recsys import native
from recsys.decoding.beam_search import Beams, beam_search
from recsys.decoding.prefix_index import PrefixIndex
from recsys.decoding.search_index import SearchIndex
from tests.benchmarks import findings
from tests.benchmarks.cpu_time import alternate_cpu, matmul_roof
from tests.benchmarks.decoder_models import (
    CODES,
    INPUT_ITEMS,
    LEVELS,
    VOCAB_SIZE,
    own_history,
    own_policy,
    random_catalogue,
    tiger_t5,
    useful_flops,
)
from tests.benchmarks.paired import alternate, machine, write_table
from tests.benchmarks.t5_policy import FIRST_CODE, T5Policy, T5State


class PrefixTable:
    """The usual ``prefix_allowed_tokens_fn``: a dictionary from prefix to allowed tokens."""

    def __init__(self, codes_IL: npt.NDArray[np.int64]) -> None:
        tokens = codes_IL + FIRST_CODE + CODES * np.arange(LEVELS)
        self.allowed: dict[tuple[int, ...], list[int]] = {}
        for level in range(LEVELS):
            for row in np.unique(tokens[:, : level + 1], axis=0).tolist():
                self.allowed.setdefault(tuple(row[:-1]), []).append(row[-1])

    def __call__(self, batch: int, sentence: torch.Tensor) -> list[int]:
        return self.allowed[tuple(sentence[1:].tolist())]


class VectorisedMask(LogitsProcessor):
    """The same constraint without Python per beam: prefixes found by binary search, one mask row per prefix."""

    def __init__(self, codes_IL: npt.NDArray[np.int64]) -> None:
        self.keys, self.first, self.children = [], [], []
        numbers = np.zeros(len(codes_IL), np.int64)
        for level in range(LEVELS):
            pairs = np.unique(np.stack([numbers, codes_IL[:, level]], 1), axis=0)
            keys, first = np.unique(pairs[:, 0], return_index=True)
            self.keys.append(torch.from_numpy(keys))
            self.first.append(torch.from_numpy(np.append(first, len(pairs))))
            self.children.append(torch.from_numpy(pairs[:, 1] + FIRST_CODE + CODES * level))
            numbers = numbers * CODES + codes_IL[:, level]

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        level = input_ids.shape[1] - 1
        number = torch.zeros(len(input_ids), dtype=torch.int64)
        for done in range(level):
            number = number * CODES + input_ids[:, done + 1] - FIRST_CODE - CODES * done
        row = torch.searchsorted(self.keys[level], number)
        first, last = self.first[level][row], self.first[level][row + 1]
        counts = last - first
        where = torch.repeat_interleave(torch.arange(len(row)), counts)
        inside = torch.arange(int(counts.sum())) - torch.repeat_interleave(counts.cumsum(0) - counts, counts)
        token = self.children[level][torch.repeat_interleave(first, counts) + inside]
        masked = torch.full_like(scores, -torch.inf)
        masked[where, token] = scores[where, token]
        return masked


def generate(
    model: T5ForConditionalGeneration, tokens: torch.Tensor, width: int, constraint: PrefixTable | VectorisedMask
) -> tuple[torch.Tensor, torch.Tensor]:
    """Transformers' beam search; returns ``(tokens [B, W, L], scores [B, W])``."""
    how = (
        {"logits_processor": LogitsProcessorList([constraint])}
        if isinstance(constraint, VectorisedMask)
        else {"prefix_allowed_tokens_fn": constraint}
    )
    out = model.generate(
        tokens,
        num_beams=width,
        num_return_sequences=width,
        max_new_tokens=LEVELS,
        do_sample=False,
        length_penalty=0.0,
        early_stopping=False,
        return_dict_in_generate=True,
        output_scores=True,
        **how,
    )
    return out.sequences[:, 1:].view(len(tokens), width, -1), out.sequences_scores.view(len(tokens), width)


def compare_answers(
    beams: Beams, codes_IL: npt.NDArray[np.int64], theirs: tuple[torch.Tensor, torch.Tensor]
) -> tuple[int, float]:
    """Count ranks with another item where the scores are not tied, and the largest score difference.

    A rank is tied when a neighbour's score is within 1e-4: rounding may then decide the order.
    """
    items = codes_IL[beams.items[..., 0].numpy()] + FIRST_CODE + CODES * np.arange(LEVELS)
    same = (torch.from_numpy(items) == theirs[0]).all(-1)
    scores = theirs[1]
    gap = (scores[:, 1:] - scores[:, :-1]).abs()
    tied = torch.zeros_like(same)
    tied[:, 1:] |= gap < 1e-4
    tied[:, :-1] |= gap < 1e-4
    return int((~same & ~tied).sum()), float((beams.scores - scores).abs().max())


class Replay:
    """Answer with recorded log-probabilities, so that what remains of the search is constraint, top-k and bookkeeping.

    Attributes:
        seconds: ``[searches][LEVELS]`` processor seconds from each answer to the next question, or to the end.
    """

    def __init__(self, policy: T5Policy, tokens: torch.Tensor, index: SearchIndex, width: int) -> None:
        self.recorded: list[torch.Tensor] = []
        self.state = policy.start(tokens)
        next_codes = policy.next_codes

        def record(state: T5State, codes: torch.Tensor | None) -> torch.Tensor | None:
            answer = next_codes(state, codes)
            assert answer is not None
            self.recorded.append(answer)
            return answer

        policy.next_codes = record  # type: ignore[method-assign]
        beam_search(policy, tokens, index, width)
        policy.next_codes = next_codes  # type: ignore[method-assign]
        self.search = partial(beam_search, self, tokens, index, width)
        self.seconds: list[list[float]] = []

    def __call__(self) -> None:
        """Search once, and note how long each step took."""
        self.asked: list[float] = []
        self.answered: list[float] = []
        self.search()
        ends = [*self.asked[1:], time.process_time()]
        self.seconds.append([end - start for start, end in zip(self.answered, ends, strict=True)])

    def start(self, _: object) -> T5State:
        """Hand out a fresh state over the recorded encoder pass."""
        return dataclasses.replace(self.state, cache=type(self.state.cache)([], []), position=0)

    def next_codes(self, state: T5State, _: torch.Tensor | None) -> torch.Tensor:
        """Return what was recorded for this step."""
        self.asked.append(time.process_time())
        state.position += 1
        self.answered.append(time.process_time())
        return self.recorded[state.position - 1]


def speed_rows(cells: list[tuple[int, int, int]], rounds: int) -> list[list[str]]:
    """One row per (items, batch, width)."""
    model = tiger_t5()
    policy = T5Policy(model, (CODES,) * LEVELS)
    rows = []
    for items in sorted({cell[0] for cell in cells}):
        codes = random_catalogue(items)
        index = SearchIndex.from_index(PrefixIndex.build(codes, (CODES,) * LEVELS))
        table, mask = PrefixTable(codes), VectorisedMask(codes)
        own = {name: own_policy(items, dense) for name, dense in (("own_dense", True), ("own_moe", False))}
        for _, batch, width in (cell for cell in cells if cell[0] == items):
            drawn = np.random.default_rng(1).integers(0, items, (batch, INPUT_ITEMS))
            tokens = torch.from_numpy((codes[drawn] + FIRST_CODE + CODES * np.arange(LEVELS)).reshape(batch, -1))
            search = partial(beam_search, policy, tokens, index, width)
            histories = own_history(batch, items)
            contestants: dict[str, Callable[[], object]] = {
                "ours": search,
                "hf_prefix_fn": partial(generate, model, tokens, width, table),
                "hf_vectorised": partial(generate, model, tokens, width, mask),
                "own_dense": partial(beam_search, own["own_dense"], histories, index, width),
                "own_moe": partial(beam_search, own["own_moe"], histories, index, width),
            }
            wrong, difference = compare_answers(search(), codes, generate(model, tokens, width, table))
            timings = alternate_cpu(contestants, max(rounds, 9) if batch == 1 else rounds, warmup=batch == 1)
            roof = matmul_roof()
            share = useful_flops(batch, width) / timings["ours"].best / roof
            rows.append(
                [
                    f"{items:,}",
                    str(batch),
                    str(width),
                    f"{batch / timings['ours'].best:.1f}",
                    timings["ours"].faster_than(timings["hf_prefix_fn"]),
                    timings["ours"].faster_than(timings["hf_vectorised"]),
                    f"{share:.0%}",
                    f"{batch / timings['own_dense'].best:.1f}",
                    f"{batch / timings['own_moe'].best:.1f}",
                    f"{wrong} / {difference:.0e}",
                ]
            )
            print("  ".join(rows[-1]), flush=True)
    return rows


def constraint_rows(catalogues: list[int], width: int, batch: int) -> list[list[str]]:
    """Share of the constraint in decoding, and each step against transformers' prefix function."""
    model = tiger_t5()
    policy = T5Policy(model, (CODES,) * LEVELS)
    rows = []
    for items in catalogues:
        codes = random_catalogue(items)
        built = alternate({"build": lambda codes=codes: PrefixIndex.build(codes, (CODES,) * LEVELS)}, 3)["build"].best
        flat = PrefixIndex.build(codes, (CODES,) * LEVELS)
        index = SearchIndex.from_index(flat)
        drawn = np.random.default_rng(1).integers(0, items, (batch, INPUT_ITEMS))
        tokens = torch.from_numpy((codes[drawn] + FIRST_CODE + CODES * np.arange(LEVELS)).reshape(batch, -1))
        replay = Replay(policy, tokens, index, width)
        timings = alternate_cpu({"all": partial(beam_search, policy, tokens, index, width), "constraint": replay}, 7)
        steps = np.min(replay.seconds, axis=0)
        per_step = "not run"
        if items <= 1_000_000:
            processor = PrefixConstrainedLogitsProcessor(PrefixTable(codes), num_beams=width)
            found = beam_search(policy, tokens, index, width).items[..., 0]
            prefix = torch.from_numpy(codes[found.numpy()] + FIRST_CODE + CODES * np.arange(LEVELS)).flatten(0, 1)
            scores = torch.randn(batch * width, VOCAB_SIZE).log_softmax(-1)

            seconds = [
                alternate_cpu({"step": partial(hf_step, processor, prefix[:, :level], scores, batch)})["step"].best
                for level in range(1, LEVELS)
            ]
            per_step = " / ".join(f"{theirs / ours:.0f}" for theirs, ours in zip(seconds, steps[1:], strict=True))
        rows.append(
            [
                f"{items:,}",
                f"{built:.3f}",
                f"{flat.num_bytes / items:.1f}",
                f"{timings['constraint'].best / timings['all'].best:.1%}",
                " / ".join(f"{1e3 * seconds:.2f}" for seconds in steps),
                per_step,
            ]
        )
        print("  ".join(rows[-1]), flush=True)
    return rows


def size_ratio(sizes: tuple[int, int], batch: int, width: int, rounds: int = 7) -> str:
    """Users per second over the second catalogue as a share of those over the first, by processor time, in turns."""
    policy = T5Policy(tiger_t5(), (CODES,) * LEVELS)
    searches = {}
    for items in sizes:
        codes = random_catalogue(items)
        index = SearchIndex.from_index(PrefixIndex.build(codes, (CODES,) * LEVELS))
        drawn = np.random.default_rng(1).integers(0, items, (batch, INPUT_ITEMS))
        tokens = torch.from_numpy((codes[drawn] + FIRST_CODE + CODES * np.arange(LEVELS)).reshape(batch, -1))
        searches[str(items)] = partial(beam_search, policy, tokens, index, width)
    timings = alternate_cpu(searches, rounds)
    return timings[str(sizes[1])].faster_than(timings[str(sizes[0])])


def hf_step(
    processor: PrefixConstrainedLogitsProcessor, prefix: torch.Tensor, scores: torch.Tensor, batch: int
) -> torch.Tensor:
    """One step of transformers' constraint and its top-k over twice the beams."""
    allowed = processor(torch.nn.functional.pad(prefix, (1, 0)), scores)
    return allowed.view(batch, -1).topk(2 * scores.shape[0] // batch, dim=1).values


def main() -> None:
    """Run all parts and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="only 12k items and 32 users")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.set_grad_enabled(False)
    print(machine(), "native kernels:", native.available(), flush=True)
    cells = [(12_000, 32, 50), (12_000, 32, 20), (12_000, 32, 10)]
    if not arguments.quick:
        cells += [(12_000, 1, 50), (12_000, 1, 10), (12_000, 128, 50), (1_000_000, 32, 50), (1_000_000, 32, 10)]
    rows = speed_rows(cells, arguments.rounds)
    constraint = constraint_rows([12_000] if arguments.quick else [12_000, 1_000_000, 10_000_000], 50, 32)
    notes = [
        f"native kernels: {'compiled' if native.available() else 'not compiled (pure PyTorch)'}",
        "ratios and users/s by processor seconds of one thread: minimum over rounds, lowest and highest round in brackets",
        "wrong: ranks with another item than transformers where no neighbour's score is within 1e-4, and the largest "
        "difference of scores",
        "roof: useful FLOPs of the search per processor second over those of a 2048 x 2048 float32 product in this process",
    ]
    if not arguments.quick:
        ratio = size_ratio((12_000, 1_000_000), 32, 50)
        notes.append(f"users/s at 1M items over users/s at 12k, batch 32, beam 50, in turns: {ratio}")
    header = (
        "items | batch | beam | users/s | vs HF prefix fn | vs HF vectorised | roof | own dense users/s | "
        "own MoE users/s | wrong"
    )
    table = write_table("decoder", "Constrained decoding", findings.of_decoder(rows), header.split(" | "), rows, notes)
    header = "items | build s | bytes/item | share of decoding | ms, steps 0-3 | HF prefix fn / ours, steps 1-3"
    table += write_table(
        "constraint",
        "Prefix index and constraint (32 users, beam 50)",
        findings.of_constraint(constraint),
        header.split(" | "),
        constraint,
        [
            "constraint: the search with recorded log-probabilities, so everything but the model; processor seconds",
            "HF: transformers' PrefixConstrainedLogitsProcessor over a dictionary, and its top-k over twice the beams",
        ],
        module="decoder",
    )
    print(table)


if __name__ == "__main__":
    main()
