"""Rows of a table by four routes, their one derivative, and what each route costs.

A table is (n, k), the rows wanted are `idx` (bs,) int64, what comes out is (bs, k).
"""

import time
from collections.abc import Callable, Iterable
from itertools import product
from statistics import median

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["LOOKUPS", "GatherScatter", "cost", "draws", "gradient", "megabytes"]

Lookup = Callable[[Tensor, Tensor], Tensor]


def one_hot(table: Tensor, idx: Tensor) -> Tensor:
    "Row lookup as the chapter introduces it: a matrix of zeros and ones (bs, n) times the table (n, k)."
    return F.one_hot(idx, len(table)).to(table.dtype) @ table


LOOKUPS: dict[str, Lookup] = {
    "one-hot @ table": one_hot,
    "index_select": lambda table, idx: table.index_select(0, idx),
    "table[idx]": lambda table, idx: table[idx],
    "Embedding": lambda table, idx: F.embedding(idx, table),
}


class GatherScatter(torch.autograd.Function):
    """The lookup with its derivative written out: `GatherScatter.apply(table, idx)`.

    Forward gathers rows. Backward adds each row's gradient to the row it came from: a row that was
    looked up twice gets the sum, a row that was not looked up gets zero. `table` is (n, ...).
    """

    @staticmethod
    def forward(ctx, table, idx):
        ctx.n, ctx.idx = len(table), idx
        return table.index_select(0, idx)  # out[i] = table[idx[i]]

    @staticmethod
    def backward(ctx, upstream):
        grad = upstream.new_zeros(ctx.n, *upstream.shape[1:])
        return grad.index_add(0, ctx.idx, upstream), None  # grad[idx[i]] += upstream[i]


def gradient(lookup: Lookup, table: Tensor, idx: Tensor, upstream: Tensor) -> Tensor:
    "d(rows)/d(table) applied to `upstream` (bs, k), by autograd through `lookup`: (n, k), dense."
    leaf = table.detach().clone().requires_grad_()
    return torch.autograd.grad(lookup(leaf, idx), leaf, upstream)[0]


class _Draws(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.found.append(out.numel())
        return out


def draws(fn: Callable[[], object]) -> list[int]:
    "How many random numbers PyTorch draws while `fn` runs: a count for each drawing, in order."
    with torch.random.fork_rng(devices=[]), _Draws() as mode:
        fn()
    return mode.found


# What a step costs, by way of looking up: how rows are found, and the optimizer that suits

WAYS = {
    "Embedding": (LOOKUPS["Embedding"], torch.optim.Adam, {"fused": True}),
    "index": (LOOKUPS["table[idx]"], torch.optim.Adam, {"fused": True}),
    "Embedding, sparse": (lambda t, i: F.embedding(i, t, sparse=True), torch.optim.SparseAdam, {}),
    "one-hot": (one_hot, torch.optim.Adam, {"fused": True}),
}


def megabytes(way: str, rows: int, n_factors: int = 50, bs: int = 64) -> float:
    """What a training step holds, in 10**6 bytes of float32 and int64.

    The table, Adam's two averages, the gradient (all rows, or with `sparse` those of the batch and
    their numbers), and for one-hot its matrix twice: whole numbers first, then floats.
    """
    table = 4 * rows * n_factors
    if way == "Embedding, sparse":
        return (3 * table + bs * (4 * n_factors + 8)) / 1e6
    return (4 * table + (12 * bs * rows if way == "one-hot" else 0)) / 1e6


def cost(
    rows: Iterable[int] = (1_000, 10_000, 100_000, 1_000_000),
    n_factors: int = 50,
    bs: int = 64,
    limit: float = 1_000.0,
    repeats: int = 5,
    ways: Iterable[str] = tuple(WAYS),
    seed: int = 0,
) -> pd.DataFrame:
    """Time of forward, backward and optimizer step against the number of rows, one thread.

    Columns: way, rows, seconds (a step: the median of `repeats` after two to warm up, or of as many more
    as a third of a second holds), megabytes, note. A step that would hold more than `limit` megabytes is
    not taken: seconds is NaN, and note says why.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        found = []
        for way, n in product(ways, rows):
            size = megabytes(way, n, n_factors, bs)
            fits = size <= limit
            note = "" if fits else f"not run: would hold {size:,.0f} MB, the limit is {limit:,.0f}"
            taken = _seconds(way, n, n_factors, bs, repeats, seed) if fits else float("nan")
            found.append((way, n, taken, size, note))
    finally:
        torch.set_num_threads(threads)
    return pd.DataFrame(found, columns=["way", "rows", "seconds", "megabytes", "note"])


def _seconds(way: str, rows: int, n_factors: int, bs: int, repeats: int, seed: int) -> float:
    "Median seconds of a step; every step looks up other rows."
    lookup, optimizer, settings = WAYS[way]
    random = torch.Generator().manual_seed(seed)
    table = nn.Parameter(torch.zeros(rows, n_factors).normal_(0, 0.01, generator=random))
    opt = optimizer([table], lr=5e-3, **settings)
    taken = []
    while len(taken) < repeats + 2 or sum(taken) < 1 / 3:
        idx = torch.randint(rows, (bs,), generator=random)
        started = time.perf_counter()
        lookup(table, idx).square().sum().backward()
        opt.step()
        opt.zero_grad()
        taken.append(time.perf_counter() - started)
    return median(taken[2:])
