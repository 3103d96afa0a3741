"""Four ways to look up rows of a table, their common derivative, and what each costs.

A table is (n, k), the wanted rows are `idx` (bs,) int64, and the result is (bs, k).
"""

import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from statistics import median

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ..models import N_FACTORS
from ..training import BS, LR

Lookup = Callable[[Tensor, Tensor], Tensor]


def one_hot(table: Tensor, idx: Tensor) -> Tensor:
    """Look up rows as the chapter introduces it: a (bs, n) matrix of zeros and ones times the table."""
    return F.one_hot(idx, len(table)).to(table.dtype) @ table


LOOKUPS: dict[str, Lookup] = {
    "one-hot @ table": one_hot,
    "index_select": lambda table, idx: table.index_select(0, idx),
    "table[idx]": lambda table, idx: table[idx],
    "Embedding": lambda table, idx: F.embedding(idx, table),
}


class GatherScatter(torch.autograd.Function):
    """The lookup with its derivative written out: `GatherScatter.apply(table, idx)`.

    The forward pass gathers rows. The backward pass adds each gradient to the row it came from: a row
    looked up twice gets the sum, a row not looked up gets zero. `table` is (n, ...).
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
    """The table's gradient (n, k), dense, when autograd sends `upstream` (bs, k) back through `lookup`."""
    leaf = table.detach().clone().requires_grad_()
    return torch.autograd.grad(lookup(leaf, idx), leaf, upstream)[0]


def attempt(fn: Callable[[], object], width: int = 100) -> str:
    """What `fn()` returns or raises, in one line of at most `width` characters.

    Of a tensor (n, k) it says the rows, of any other the shape; of an error the class and the message's first
    line. Warnings are caught, and mentioned.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            result = fn()
        except Exception as error:
            return f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"[:width]
    if isinstance(result, Tensor):
        shape = tuple(result.shape)
        result = f"{shape[0]} row{'s' * (shape[0] != 1)}" if len(shape) == 2 else f"shape {shape}"
    return f"{result}, with a warning"[:width] if caught else str(result)[:width]


class _DrawCounter(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.counts = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            self.counts.append(out.numel())
        return out


def draws(fn: Callable[[], object]) -> list[int]:
    """How many random numbers PyTorch draws while `fn` runs, one count per drawing operation, in order."""
    with torch.random.fork_rng(devices=[]), _DrawCounter() as counter:
        fn()
    return counter.counts


# What one training step costs: each way with the optimizer that suits it

WAYS = {
    "Embedding": (LOOKUPS["Embedding"], torch.optim.Adam, {"fused": True}),
    "index": (LOOKUPS["table[idx]"], torch.optim.Adam, {"fused": True}),
    "index_select": (LOOKUPS["index_select"], torch.optim.Adam, {"fused": True}),
    "Embedding, sparse": (lambda t, i: F.embedding(i, t, sparse=True), torch.optim.SparseAdam, {}),
    "one-hot": (one_hot, torch.optim.Adam, {"fused": True}),
}
LIMIT = 1_000  # megabytes


def megabytes(way: str, rows: int, n_factors: int = N_FACTORS, bs: int = BS) -> float:
    """10**6 bytes of a training step: table, Adam's two averages, gradient (if sparse, the batch's rows and
    their indices) and, for one-hot, its matrix twice, as int64 and as float32.
    """
    table = 4 * rows * n_factors
    if way == "Embedding, sparse":
        return (3 * table + bs * (4 * n_factors + 8)) / 1e6
    return (4 * table + (12 * bs * rows if way == "one-hot" else 0)) / 1e6


def cost(rows: Iterable[int], bs: int = BS, ways: Iterable[str] = tuple(WAYS), spend=1 / 3) -> pd.DataFrame:
    """Time forward pass, backward pass and optimizer step for tables of several sizes, on one thread.

    Columns: way, rows, seconds (per step), megabytes, note. A time is the median of at least five steps, and
    of as many as fit in `spend` seconds, after two to warm up; every step looks up other rows. Where one
    would need more than `LIMIT` megabytes, seconds are NaN, and note says why.
    """
    found = []
    for way, n in product(ways, rows):
        size, seconds = megabytes(way, n, bs=bs), []
        if size > LIMIT:
            note = f"not run: would hold {size:,.0f} MB, the limit is {LIMIT:,.0f}"
            found.append((way, n, float("nan"), size, note))
            continue
        lookup, optimizer, settings = WAYS[way]
        random = torch.Generator().manual_seed(0)
        table = nn.Parameter(torch.zeros(n, N_FACTORS).normal_(0, 0.01, generator=random))
        opt = optimizer([table], lr=LR, **settings)
        with _computing(threads=1):
            while len(seconds) < 7 or sum(seconds) < spend:
                idx = torch.randint(n, (bs,), generator=random)
                started = time.perf_counter()
                lookup(table, idx).square().sum().backward()
                opt.step()
                opt.zero_grad()
                seconds.append(time.perf_counter() - started)
        found.append((way, n, median(seconds[2:]), size, ""))
    return pd.DataFrame(found, columns=["way", "rows", "seconds", "megabytes", "note"])


# Where equality bit for bit ends: several threads divide a sum between them


@contextmanager
def _computing(threads: int, deterministic: bool = False) -> Iterator[None]:
    """Set PyTorch's number of threads and deterministic algorithms, then restore both."""
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    try:
        yield
    finally:
        torch.set_num_threads(before[0])
        torch.use_deterministic_algorithms(before[1])


def repeats(
    bs: Iterable[int] = (64, 65_536),
    times: int = 20,
    lookups: Iterable[str] = ("table[idx]", "index_select", "Embedding"),
) -> pd.DataFrame:
    """Count the different gradients that `times` identical calls of each lookup give.

    With one thread, with two, and with two and deterministic algorithms, on a table of MovieLens 100K's size.
    Columns: threads, deterministic, bs, lookup, different (1 to `times`), apart (the largest difference
    between the last gradient and Embedding's on one thread, by the latter's largest element).
    """
    found = []
    for (threads, deterministic), n in product(((1, False), (2, False), (2, True)), bs):
        random = torch.Generator().manual_seed(0)
        idx = torch.randint(1_665, (n,), generator=random)
        case = torch.zeros(1_665, N_FACTORS), idx, torch.randn(n, N_FACTORS, generator=random)
        with _computing(threads=1):
            exact = gradient(LOOKUPS["Embedding"], *case)
        for name in lookups:
            with _computing(threads, deterministic):
                grads = [gradient(LOOKUPS[name], *case) for _ in range(times)]
            different = len({grad.numpy().tobytes() for grad in grads})
            apart = float((grads[-1] - exact).abs().max() / exact.abs().max())
            found.append((threads, deterministic, n, name, different, apart))
    return pd.DataFrame(found, columns=["threads", "deterministic", "bs", "lookup", "different", "apart"])
