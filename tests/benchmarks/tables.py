"""TorchRec's fused tables against ``nn.Embedding``: one training step of a table, from ids to updated rows.

Run: ``python -m tests.benchmarks.tables [--rows 10000 100000 1000000 10000000] [--threads 1]`` (about 3 minutes and
5 GB at 10M rows).

Width 64, a batch of 128 x 50 ids. Fused tables (FBGEMM's table-batched embedding, what TorchRec's sharded collections run)
update the looked-up rows inside the backward pass; ``nn.Embedding`` makes a gradient first, dense or of the rows alone.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from fbgemm_gpu.split_embedding_configs import EmbOptimType
from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
from fbgemm_gpu.split_table_batched_embeddings_ops_training import ComputeDevice, SplitTableBatchedEmbeddingBagsCodegen
from torch import nn

from tests.benchmarks import findings
from tests.benchmarks.cpu_time import alternate_cpu
from tests.benchmarks.paired import Timing, write_table

WIDTH, BATCH, LENGTH = 64, 128, 50
LEARNING_RATE = 0.02
ZIPF = 1.1
"""Exponent of the popularity of ids."""
DENSE_LIMIT = 1_000_000
"""Rows up to which optimisers that touch every row are run: AdamW holds four numbers per entry."""


def ids_of(rows: int, skewed: bool) -> torch.Tensor:
    """A batch of ids, ``[BATCH * LENGTH]``: uniform, or as popular items come."""
    generator = np.random.default_rng(0)
    count = BATCH * LENGTH
    drawn = generator.integers(0, rows, count)
    if skewed:
        ranks = generator.zipf(ZIPF, 4 * count)
        drawn = generator.permutation(ranks[ranks <= rows])[:count] - 1
        drawn = drawn * 2654435761 % rows  # popular rows are not neighbours
    return torch.from_numpy(drawn)


def plain(rows: int, ids: torch.Tensor, optimiser: str) -> Callable[[], None]:
    """A step of ``nn.Embedding``."""
    sparse = optimiser == "sparse Adagrad"
    table = nn.Embedding(rows, WIDTH, sparse=sparse)
    if sparse:
        step: torch.optim.Optimizer = torch.optim.Adagrad(table.parameters(), lr=LEARNING_RATE)
    elif optimiser == "Adagrad":
        step = torch.optim.Adagrad(table.parameters(), lr=LEARNING_RATE, fused=True)
    else:
        step = torch.optim.AdamW(table.parameters(), lr=LEARNING_RATE, fused=True)
    grad = torch.randn(len(ids), WIDTH)

    def run() -> None:
        step.zero_grad()
        table(ids).backward(grad)
        step.step()

    return run


def fused(rows: int, ids: torch.Tensor, optimiser: EmbOptimType) -> Callable[[], None]:
    """A step of a table whose optimiser is part of the backward pass."""
    tables = SplitTableBatchedEmbeddingBagsCodegen(
        [(rows, WIDTH, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=optimiser,
        learning_rate=LEARNING_RATE,
        pooling_mode=PoolingMode.NONE,
    )
    tables.init_embedding_weights_uniform(-0.01, 0.01)
    offsets = torch.arange(len(ids) + 1)
    grad = torch.randn(len(ids), WIDTH)

    def run() -> None:
        tables(ids, offsets).backward(grad)

    return run


def contestants(rows: int, ids: torch.Tensor) -> dict[str, Callable[[], Callable[[], None]]]:
    """What builds each way that fits into memory; names are the table's columns."""
    builders = {
        "fused row-wise Adagrad": partial(fused, rows, ids, EmbOptimType.EXACT_ROWWISE_ADAGRAD),
        "fused Adagrad": partial(fused, rows, ids, EmbOptimType.EXACT_ADAGRAD),
        "sparse Adagrad": partial(plain, rows, ids, "sparse Adagrad"),
    }
    if rows <= DENSE_LIMIT:
        builders |= {name: partial(plain, rows, ids, name) for name in ("AdamW", "Adagrad")}
    return builders


def timings_of(rows: int, ids: torch.Tensor, rounds: int) -> dict[str, Timing]:
    """Take turns where all tables fit into memory together; larger ones are built, timed and freed one by one."""
    builders = contestants(rows, ids)
    if rows <= DENSE_LIMIT:
        return alternate_cpu({name: build() for name, build in builders.items()}, rounds)
    return {name: alternate_cpu({name: build()}, rounds)[name] for name, build in builders.items()}


def main() -> None:
    """Time all sizes and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    others = ["fused Adagrad", "sparse Adagrad", "AdamW", "Adagrad"]
    rows = []
    for size in arguments.rows:
        for skewed in (False, True):
            ids = ids_of(size, skewed)
            timings = timings_of(size, ids, arguments.rounds)
            ours = timings["fused row-wise Adagrad"]
            cells = [ours.faster_than(timings[name]) if name in timings else "not run" for name in others]
            distinct = len(ids.unique())
            rows.append([f"{size:,}", f"{distinct:,}", f"{1e3 * ours.best:.2f}", *cells])
            print("  ".join(rows[-1]), flush=True)
    header = [
        "table rows",
        "distinct ids",
        "fused row-wise Adagrad, ms",
        *(f"faster than {name} by" for name in others),
    ]
    notes = [
        f"width {WIDTH}, {BATCH} x {LENGTH} ids per step, uniform, then Zipf ({ZIPF}); look-up, backward, update",
        "fused: FBGEMM, updated inside the backward pass; AdamW and Adagrad: nn.Embedding with torch's fused optimisers, "
        f"which touch every row (run up to {DENSE_LIMIT:,} rows, for memory); sparse Adagrad: nn.Embedding(sparse=True)",
        f"above {DENSE_LIMIT:,} rows the ways are timed one after the other, for memory",
        "seconds are the processor's; ratio: minimum over rounds, lowest and highest round in brackets",
    ]
    print(write_table("tables", "A training step of an id table", findings.of_tables(rows), header, rows, notes))


if __name__ == "__main__":
    main()
