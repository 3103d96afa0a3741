"""One model trained by several processes, through fastai's `distrib_ctx` and Accelerate; tested on CPUs.

    torchrun --nproc_per_node 2 -m collab_repro

N processes train on batches of N x bs. fastai's own `DistributedDL` needs CUDA; `SharedDL` does not.
"""

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fastai.learner import Learner
from fastai.torch_core import num_distrib, rank_distrib

from ..loader import TensorDL


def is_distributed() -> bool:
    """Whether this process is one of several that `torchrun` (or the like) started."""
    return num_distrib() > 1


class SharedDL(TensorDL):
    """The share of process `rank` in the rows of the loader `whole`: every `world_size`-th of its order.

    Step t of all N processes together is step t of one process with batches of N * bs, and all take
    equally many steps. Raises ValueError for fewer rows than processes.
    """

    def __init__(self, whole: TensorDL, rank: int, world_size: int):
        if whole.n < world_size:
            raise ValueError(f"{whole.n} rows can't be shared by {world_size} processes")
        self.__dict__.update(whole.__dict__)
        self.rank, self.world_size = rank, world_size

    def get_idxs(self) -> torch.Tensor:
        return super().get_idxs()[self.rank :: self.world_size]

    def sizes(self, n: int) -> list[int]:
        steps, rest = divmod(self.n, self.bs * self.world_size)
        if self.drop_last:
            return [self.bs] * steps
        steps += rest >= self.world_size  # a smaller rest joins the last step
        mine = len(range(self.rank, self.n, self.world_size))
        return [self.bs] * (steps - 1) + [mine - self.bs * (steps - 1)]


def _share(dl: TensorDL) -> SharedDL:
    return dl if isinstance(dl, SharedDL) else SharedDL(dl, rank_distrib(), num_distrib())


def _close_group() -> None:
    """End gloo's threads while Python lives: one that frees a tensor later aborts (pytorch#190489).

    The pause lets them free what they hold, for which they need the GIL.
    """
    from fastai.distributed import teardown_distrib

    time.sleep(0.2)
    teardown_distrib()


@contextmanager
def distributed(learn: Learner) -> Iterator[None]:
    """`learn.distrib_ctx()` for a Learner with loaders of this package; nothing outside `torchrun`.

    Raises ImportError, saying what to install, where Accelerate is missing.
    """
    if not is_distributed():
        yield
        return
    import fastai.distributed  # noqa: F401  adds `distrib_ctx`; needs Accelerate to import

    if not torch.distributed.is_initialized():
        from torch.distributed.nn import functional  # noqa: F401  later, its defaults would hold the group

        atexit.register(_close_group)
    whole = list(learn.dls)
    with learn.distrib_ctx(sync_bn=False, cpu=not torch.cuda.is_available()):
        learn.distributed_trainer._wrap_dl = _share
        yield
    for dl in whole:  # the shares counted the epochs
        dl.epoch_no += learn.n_epoch
