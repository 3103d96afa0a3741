"""Many seeds of one model trained as one wide model, by one Learner in one pass.

Ten models are one model with ten times the users and titles: their tables are stacked, and every batch
holds a batch for each. They share nothing but the steps, so each model ends where it would have ended
alone, on its own split and in its own order, to the bit (see `fit`).
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from fastai.callback.schedule import Learner  # with `fit_one_cycle`
from fastai.data.core import DataLoaders
from fastai.learner import AvgLoss, AvgSmoothLoss
from fastcore.foundation import L
from torch import Tensor

from ..loader import TensorDL
from ..models import tables


class SideBySide:
    """The batches of S `loaders` of equal length, joined: x (S * bs, 2), y (S * bs, 1).

    The ids of loader s move up by `offsets[s]` (users, movies), to the rows of model s.
    """

    n_inp = 1

    def __init__(self, loaders: Sequence[TensorDL], offsets: Tensor):
        self.loaders, self.offsets, self.device = loaders, offsets, loaders[0].device
        self.bs = sum(dl.bs for dl in loaders)

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for parts in zip(*(dl.batches() for dl in self.loaders), strict=True):
            xs, ys = zip(*parts, strict=True)
            yield (torch.stack(xs) + self.offsets).flatten(0, 1), torch.cat(ys)

    def to(self, device):
        self.device, self.offsets = device, self.offsets.to(device)


class EachMSE:
    """The sum of the mean squared errors of `n` models whose predictions are joined."""

    def __init__(self, n: int):
        self.n = n

    def __call__(self, pred: Tensor, y: Tensor) -> Tensor:
        errors = F.mse_loss(pred.view(-1), y.view(-1), reduction="none")  # (n * bs,)
        each = errors.view(self.n, -1).mean(dim=1)  # (n,)
        self.each = each.detach()
        return each.sum()


class EachSmoothLoss(AvgSmoothLoss):
    """fastai's smoothed training loss, of each model: (n,)."""

    def accumulate(self, learn):
        self.count += 1
        self.val = torch.lerp(learn.loss_func.each.cpu(), self.val, self.beta)


class EachLoss(AvgLoss):
    """fastai's mean validation loss, of each model: (n,)."""

    def accumulate(self, learn):
        rows = len(learn.yb[0]) // learn.loss_func.n
        self.total += learn.loss_func.each.cpu() * rows
        self.count += rows


def fit_side_by_side(learns: Sequence[Learner], epochs: int, lr: float, wd: float, cbs=None) -> Learner:
    """`fit_one_cycle(epochs, lr, wd=wd)` of all `learns` in one pass of one Learner, which it returns.

    They must be untrained, of one table-only model class, with loaders of equal length and the same
    `opt_func`. Each gets back its weights, its optimizer's state and what its recorder would hold.
    `cbs` are the callbacks of the one Learner.
    """
    each = [tables(learn.model) for learn in learns]
    sizes = {name: [len(t[name]) for t in each] for name in each[0]}
    rows = torch.tensor([sizes["user_factors"], sizes["movie_factors"]]).T
    offsets = (rows.cumsum(0) - rows)[:, None, :]  # (S, 1, 2)
    model = deepcopy(learns[0].model)
    for name, table in tables(model).items():
        table.data = torch.cat([t[name].detach() for t in each])
    loaders = [SideBySide([learn.dls[i] for learn in learns], offsets) for i in (0, 1)]
    dls = DataLoaders(*loaders, device=learns[0].dls.device)
    wide = Learner(dls, model, EachMSE(len(learns)), learns[0].opt_func, cbs=cbs, moms=learns[0].moms)
    wide.recorder.loss, wide.recorder.smooth_loss = EachLoss(), EachSmoothLoss()
    wide.create_opt()
    for name, table in tables(model).items():
        if any(t[name].numel() % 16 for t in each):  # floats in a cache line, see FusedAdam
            wide.opt.state[table]["rows"] = sizes[name]
    with wide.no_bar(), wide.no_logging():
        wide.fit_one_cycle(epochs, lr, wd=wd)
    for s, (learn, own) in enumerate(zip(learns, each, strict=True)):
        _hand_back(wide, s, learn, own, sizes)
    return wide


def _hand_back(wide: Learner, s: int, learn: Learner, own: dict, sizes: dict) -> None:
    """Give what `wide` has of model `s` to its Learner: weights, optimizer state, records."""
    learn.create_opt()
    learn.opt.hypers = deepcopy(wide.opt.hypers)
    for name, table in tables(wide.model).items():
        state = wide.opt.state[table]
        own[name].data.copy_(table.detach().split(sizes[name])[s])
        averages = {k: state[k].split(sizes[name])[s].clone() for k in ("grad_avg", "sqr_avg")}
        learn.opt.state[own[name]] = {
            k: v for k, v in state.items() if k not in ("rows", "pieces")
        } | averages
    learn.model.eval()  # as validation leaves it
    ours, theirs = learn.recorder, wide.recorder
    for name in ("lrs", "iters", "hps", "metric_names"):
        setattr(ours, name, deepcopy(getattr(theirs, name)))
    ours.losses = [loss[s] for loss in theirs.losses]
    ours.values = [L(float(value[s]) for value in row) for row in theirs.values]
