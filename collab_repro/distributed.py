"""Training in several processes, through fastai's `distrib_ctx` and Accelerate; tested on CPUs.

    torchrun --nproc_per_node 2 -m collab_repro

N processes train one model on batches of N x bs. fastai would wrap each loader in its `DistributedDL`,
which needs CUDA; `RatingsDL` shares its own seeded order out instead.
"""

import atexit
import time
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy

import torch
from fastai.learner import Learner
from fastai.torch_core import num_distrib, rank_distrib

from .loaders import TensorDL

__all__ = ["distributed", "is_distributed"]


def is_distributed() -> bool:
    "Whether this process is one of several that `torchrun` (or the like) started."
    return num_distrib() > 1


def _share(dl: TensorDL) -> TensorDL:
    "`dl` for this rank: every `world_size`-th row of the one order."
    if dl.world_size > 1:
        return dl
    if dl.n < num_distrib():
        raise ValueError(f"{dl.n} rows can't be shared by {num_distrib()} processes")
    mine = copy(dl)
    mine.rank, mine.world_size = rank_distrib(), num_distrib()
    return mine


def _close_group() -> None:
    """End gloo's threads while Python lives: one that frees a tensor later aborts (pytorch#190489).

    The pause lets them free what they have, for which they need the GIL: older PyTorch waits for their end
    with the GIL held.
    """
    from fastai.distributed import teardown_distrib

    time.sleep(0.2)
    teardown_distrib()


@contextmanager
def distributed(learn: Learner, **kwargs) -> Iterator[Learner]:
    """`learn.distrib_ctx(**kwargs)` for a Learner whose loaders are `RatingsDL`s.

    Each row is met once an epoch by one of the processes. Outside `torchrun` it changes nothing.
    Raises ImportError, saying what to install, where Accelerate is missing.
    """
    if not is_distributed():
        yield learn
        return
    import fastai.distributed  # noqa: F401  adds `distrib_ctx`; needs Accelerate to import

    if not torch.distributed.is_initialized():
        from torch.distributed.nn import functional  # noqa: F401  later, its defaults would hold the group

        atexit.register(_close_group)
    kwargs = {"sync_bn": False, "cpu": not torch.cuda.is_available(), **kwargs}
    with learn.distrib_ctx(**kwargs):
        learn.distributed_trainer._wrap_dl = _share
        before = [dl.epoch_no for dl in learn.dls]
        yield learn
    for dl, epoch_no in zip(learn.dls, before, strict=True):  # the shares counted the epochs
        dl.epoch_no = epoch_no + learn.n_epoch
