"""fastai data loaders that keep the ratings in memory as tensors and serve every row once an epoch.

    dls = CollabDataLoaders.from_df(ratings, item_name="title", bs=64, seed=42, dl_type=RatingsDL)

Since fastai 2.7.15 the loader that `from_df` makes by itself draws its rows **with replacement**, so
an epoch meets only about 63 % of them; `dl_type` is what cures that.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from fastai.data.core import TfmdDL
from fastai.tabular.core import ReadTabBatch, Tabular
from torch import Tensor

__all__ = ["RatingsDL", "TensorDL", "shuffled"]

CHUNK = 1 << 20  # rows gathered at a time, which bounds the copy that shuffling makes


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    "A permutation of `range(n)`, (n,) int64, fixed by `seed` and `epoch` and by nothing else."
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(mixed) >> 1))


def narrow(column: Tensor) -> Tensor:
    "An integer `column` in the narrowest type that holds it; a float one as float32."
    if column.is_floating_point():
        return column.float()
    low, high = (int(column.min()), int(column.max())) if len(column) else (0, 0)
    fits = (
        t
        for t in (torch.int8, torch.int16, torch.int32)
        if torch.iinfo(t).min <= low and high <= torch.iinfo(t).max
    )
    return column.to(next(fits, torch.int64))


class TensorDL(TfmdDL):
    """Batches cut from tensors in memory: `dataset.tensors` is (x, y) or (x,), equally long.

    `shuffle_seed` (from 0 on) fixes the order of every epoch; the global random state plays no part. Each
    iteration begun is the next epoch, while `one_batch` and `show_batch` leave the count alone. As rank
    `rank` of `world_size` processes it serves every `world_size`-th row of that one order, so that
    step t of all ranks together is step t of one process with `world_size * bs`.
    """

    def __init__(self, dataset, bs=64, shuffle=False, shuffle_seed=0, rank=0, world_size=1, **kwargs):
        super().__init__(dataset, bs=bs, shuffle=shuffle, **{**kwargs, "num_workers": 0})
        self.shuffle_seed, self.rank, self.world_size, self.epoch_no = shuffle_seed, rank, world_size, 0
        np.random.SeedSequence(shuffle_seed)  # a seed that won't do raises ValueError now
        self.tensors = tuple(narrow(t) for t in self.read(dataset))

    def read(self, dataset) -> tuple[Tensor, ...]:
        return dataset.tensors

    def new(self, dataset=None, cls=None, **kwargs):
        mine = {name: getattr(self, name) for name in ("shuffle_seed", "rank", "world_size")}
        return super().new(dataset, cls, **{**mine, **kwargs})

    def get_idxs(self):
        "This epoch's rows in the order of serving, before ranks share them."
        return shuffled(self.n, self.shuffle_seed, self.epoch_no) if self.shuffle else torch.arange(self.n)

    def sizes(self, n: int) -> list[int]:
        "Rows in each batch of this rank when `n` are shared out; every rank has as many batches."
        whole = self.bs * self.world_size
        if self.drop_last:
            return [self.bs] * (n // whole)
        mine = len(range(self.rank, n, self.world_size))
        steps = n // whole + (n % whole >= self.world_size)  # a rest too small to share joins the last step
        return [self.bs] * (steps - 1) + [mine - self.bs * (steps - 1)] if steps else [mine] * bool(mine)

    def __len__(self) -> int:
        return len(self.sizes(self.n))

    def rows(self, idxs: Tensor) -> tuple[Tensor, ...]:
        "The rows `idxs` of every column on this loader's device; ids as int64, ratings as float32."
        picked = (t[idxs] for t in self.tensors)
        picked = (t.float() if i else t.long() for i, t in enumerate(picked))
        return tuple(t if self.device is None else t.to(self.device) for t in picked)

    def do_item(self, s):
        return s or 0

    def create_batch(self, b) -> tuple[Tensor, ...]:
        return self.rows(torch.as_tensor(b))

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        "This epoch's batches before `after_batch`: x (bs, 2) int64 and, where known, y (bs, 1) float32."
        idxs = self.get_idxs()
        self.epoch_no += 1
        if not isinstance(idxs, Tensor):
            idxs = torch.tensor(list(islice(idxs, self.n)), dtype=torch.long)
        sizes, idxs = self.sizes(len(idxs)), idxs[self.rank :: self.world_size]
        per_chunk = max(1, CHUNK // self.bs)
        for at in range(0, len(sizes), per_chunk):
            cut = sizes[at : at + per_chunk]
            chunk = self.rows(idxs[at * self.bs : at * self.bs + sum(cut)])
            yield from zip(*(t.split(cut) for t in chunk), strict=True)

    def __iter__(self):
        self.before_iter()
        only_reads = [type(tfm) for tfm in self.after_batch.fs] == [ReadTensors]  # which are read already
        yield from self.batches() if only_reads else map(self.after_batch, self.batches())
        self.after_iter()

    def one_batch(self):
        epoch_no = self.epoch_no
        try:
            return super().one_batch()
        finally:
            self.epoch_no = epoch_no


class ReadTensors(ReadTabBatch):
    "fastai's reader of tabular batches where they are tensors already: it only decodes."

    def encodes(self, b):
        return b


class RatingsDL(TensorDL):
    "`TensorDL` over the encoded columns of a fastai `Tabular`: pass it as `dl_type` to `from_df`."

    def __init__(self, dataset, bs=64, shuffle=False, after_batch=None, **kwargs):
        after_batch = ReadTensors(dataset) if after_batch is None else after_batch
        super().__init__(dataset, bs=bs, shuffle=shuffle, after_batch=after_batch, **kwargs)

    def read(self, dataset: Tabular) -> tuple[Tensor, ...]:
        rated = set(dataset.y_names) <= set(dataset.items.columns)  # rows to predict have no rating
        x = torch.tensor(dataset.items[list(dataset.cat_names)].to_numpy(np.int64))  # (n, 2)
        if not rated:
            return (x,)
        return x, torch.tensor(dataset.items[list(dataset.y_names)].to_numpy(np.float32))  # (n, 1)
