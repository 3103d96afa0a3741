"""A fastai data loader that keeps the ratings in memory and serves every training row once an epoch.

    dls = CollabDataLoaders.from_df(ratings, item_name="title", bs=64, seed=42, dl_type=RatingsDL)

Since fastai 2.7.15 the loader that `from_df` makes by default draws its rows **with replacement**, so an
epoch meets only about 63 % of them. fastai's own `dl_type=TabDataLoader` (from `fastai.tabular.core`)
cures that; `RatingsDL` does too, is faster, and fixes the order of the rows by a seed.
"""

from collections.abc import Iterator
from itertools import islice

import numpy as np
import torch
from fastai.data.core import TfmdDL
from fastai.data.transforms import Categorize
from fastai.tabular.core import ReadTabBatch, Tabular
from torch import Tensor

BS = 64  # the chapter's batch size
CHUNK = 1 << 20  # rows gathered at a time, to bound the memory that shuffling takes


def shuffled(n: int, seed: int, epoch: int) -> Tensor:
    """A permutation of `range(n)`, (n,) int64, that depends on `seed` and `epoch` alone."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randperm(n, generator=torch.Generator().manual_seed(int(mixed) >> 1))


def narrow(column: Tensor) -> Tensor:
    """An integer `column` in the narrowest type that holds it, a float one as float32."""
    if column.is_floating_point():
        return column.float()
    largest = max(-int(column.min()), int(column.max())) if column.numel() else 0
    types = (torch.int8, torch.int16, torch.int32, torch.int64)
    return column.to(next(dtype for dtype in types if largest <= torch.iinfo(dtype).max))


class TensorDL(TfmdDL):
    """Batches cut from tensors in memory: `dataset.tensors`, usually (x, y), of equal length.

    `shuffle_seed` fixes the order of every epoch; the global random state plays no part. Each iteration is
    the next epoch; `one_batch` and `show_batch` do not count as one. Raises ValueError for a negative seed.
    """

    draw = staticmethod(shuffled)  # an epoch's rows, in the order of serving

    def __init__(self, dataset, bs=BS, shuffle=False, shuffle_seed=0, **kwargs):
        super().__init__(dataset, bs=bs, shuffle=shuffle, **{**kwargs, "num_workers": 0})
        self.shuffle_seed, self.epoch_no = shuffle_seed, 0
        if not isinstance(shuffle_seed, int | np.integer) or shuffle_seed < 0:  # not only in the first epoch
            raise ValueError(f"seed {shuffle_seed} of the batch order: it is a non-negative whole number")
        self.tensors = tuple(narrow(t) for t in self.read(dataset))

    def read(self, dataset) -> tuple[Tensor, ...]:
        return dataset.tensors

    def new(self, dataset=None, cls=None, **kwargs):
        return super().new(dataset, cls, **{"shuffle_seed": self.shuffle_seed, **kwargs})

    def get_idxs(self) -> Tensor:
        return self.draw(self.n, self.shuffle_seed, self.epoch_no) if self.shuffle else torch.arange(self.n)

    def sizes(self, n: int) -> list[int]:
        """The number of rows in each batch when `n` rows are served."""
        full, rest = divmod(n, self.bs)
        return [self.bs] * full + [rest] * bool(rest and not self.drop_last)

    def __len__(self) -> int:
        return len(self.sizes(self.n))

    def rows(self, idxs: Tensor) -> tuple[Tensor, ...]:
        """The rows `idxs` of every tensor on this loader's device, as int64 or float32."""
        picked = [t[idxs] if t.is_floating_point() else t[idxs].long() for t in self.tensors]
        return tuple(t if self.device is None else t.to(self.device) for t in picked)

    def do_item(self, s):
        return s or 0

    def create_batch(self, b) -> tuple[Tensor, ...]:
        return self.rows(torch.as_tensor(b))

    def batches(self) -> Iterator[tuple[Tensor, ...]]:
        """This epoch's batches before `after_batch`: for ratings x (bs, 2) int64 and y (bs, 1) float32."""
        idxs = self.get_idxs()
        self.epoch_no += 1
        if not isinstance(idxs, Tensor):  # a `get_idxs` of the user's own
            idxs = torch.tensor(list(islice(idxs, self.n)), dtype=torch.long)
        sizes, per_chunk = self.sizes(len(idxs)), max(1, CHUNK // self.bs)
        for at in range(0, len(sizes), per_chunk):
            cut = sizes[at : at + per_chunk]
            chunk = self.rows(idxs[at * self.bs : at * self.bs + sum(cut)])
            yield from zip(*(t.split(cut) for t in chunk), strict=True)

    def __iter__(self):
        self.before_iter()
        nothing_to_do = [type(tfm) for tfm in self.after_batch.fs] == [ReadTensors]
        yield from self.batches() if nothing_to_do else map(self.after_batch, self.batches())
        self.after_iter()

    def one_batch(self):
        epoch_no = self.epoch_no
        try:
            return super().one_batch()
        finally:
            self.epoch_no = epoch_no


class ReadTensors(ReadTabBatch):
    """fastai's reader of tabular batches, for batches that are tensors already: it only decodes."""

    def encodes(self, b):
        return b


class RatingsDL(TensorDL):
    """`TensorDL` over the encoded columns of a fastai `Tabular`: pass it as `dl_type` to `from_df`.

    A batch is fastai's: categories (bs, n) int64, continuous columns (bs, m) float32 unless the data is
    collaborative, and where known the targets, int64 for classes and float32 otherwise. Raises ValueError
    for `wgts`: rows drawn by weight do not come once an epoch.
    """

    def __init__(self, dataset, bs=BS, shuffle=False, after_batch=None, wgts=None, **kwargs):
        if wgts is not None:
            raise ValueError("RatingsDL serves every row once an epoch; for wgts use fastai's TabWeightedDL")
        after_batch = ReadTensors(dataset) if after_batch is None else after_batch
        super().__init__(dataset, bs=bs, shuffle=shuffle, after_batch=after_batch, **kwargs)

    def read(self, dataset: Tabular) -> tuple[Tensor, ...]:
        targets = list(dataset.y_names)
        known = targets if set(targets) <= set(dataset.items.columns) else []  # rows to predict have none
        classes = any(isinstance(proc, Categorize) for proc in dataset.procs.fs)
        columns = [(list(dataset.cat_names), np.int64)]
        columns += [(list(dataset.cont_names), np.float32)] * dataset.with_cont
        columns += [(known, np.int64 if classes else np.float32)] * bool(known)
        return tuple(torch.tensor(dataset.items[names].to_numpy(kind)) for names, kind in columns)
