"""Many seeds of a model trained as one, through one Learner in one pass.

Ten models are one model with ten times the users and titles: their tables stand row upon row, and
every batch holds a batch of each. Nothing is shared but the steps, so each model ends where it would
have ended alone, on its own split and in its own order, to the bit (see `training.fit`).
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy

import torch
import torch.nn.functional as F
from fastai.callback.schedule import Learner  # with `fit_one_cycle`
from fastai.data.core import DataLoaders
from fastai.learner import AvgLoss, AvgSmoothLoss, Recorder
from fastcore.foundation import L
from torch import Tensor

from .loaders import TensorDL
from .models import tables

__all__ = ["fit_side_by_side"]


class SideBySide:
    """The batches of `loaders`, all equally long, behind each other.

    Loader s keeps its rows and their order; its ids move up by `offsets[s]` (users, movies), which
    points them at the rows of model s: x (S * bs, 2), y (S * bs, 1).
    """

    n_inp = 1

    def __init__(self, loaders: Sequence[TensorDL], offsets: Tensor):
        self.loaders, self.offsets, self.device = loaders, offsets, loaders[0].device

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for parts in zip(*(dl.batches() for dl in self.loaders), strict=True):
            xs, ys = zip(*parts, strict=True)
            yield (torch.stack(xs) + self.offsets).flatten(0, 1), torch.cat(ys)

    def to(self, device):
        self.device, self.offsets = device, self.offsets.to(device)


class EachMSE:
    "The mean squared error of each of `n` models whose predictions lie behind each other, summed."

    def __init__(self, n: int):
        self.n = n

    def __call__(self, pred: Tensor, y: Tensor) -> Tensor:
        errors = F.mse_loss(pred.view(-1), y.view(-1), reduction="none")  # (n * bs,)
        each = errors.view(self.n, -1).mean(dim=1)  # (n,)
        self.each = each.detach()
        return each.sum()


class EachSmoothLoss(AvgSmoothLoss):
    "fastai's smoothed training loss, of each model: (n,)."

    def accumulate(self, learn):
        self.count += 1
        self.val = torch.lerp(learn.loss_func.each.cpu(), self.val, self.beta)


class EachLoss(AvgLoss):
    "fastai's mean validation loss, of each model: (n,)."

    def accumulate(self, learn):
        rows = len(learn.yb[0]) // learn.loss_func.n
        self.total += learn.loss_func.each.cpu() * rows
        self.count += rows


def fit_side_by_side(learns: Sequence[Learner], epochs: int, lr: float, wd: float, cbs=None) -> Learner:
    """`fit_one_cycle(epochs, lr, wd=wd)` of all `learns` in one pass of one Learner, which it returns.

    They must be fresh, of one table-only model class, with equally long loaders and the same
    `opt_func`. Each gets its weights, its optimizer's state and its recorder's numbers back.
    `cbs` are the callbacks of the one Learner.
    """
    each = [tables(learn.model) for learn in learns]
    rows = torch.tensor([[len(t["user_factors"]), len(t["movie_factors"])] for t in each])
    offsets = (rows.cumsum(0) - rows)[:, None, :]  # (S, 1, 2)
    model = deepcopy(learns[0].model)
    for name, table in tables(model).items():
        table.data = torch.cat([t[name].detach() for t in each])

    loaders = [SideBySide([learn.dls[i] for learn in learns], offsets) for i in (0, 1)]
    dls = DataLoaders(*loaders, device=learns[0].dls.device)
    wide = Learner(dls, model, EachMSE(len(learns)), learns[0].opt_func, cbs=cbs)
    wide.recorder.loss, wide.recorder.smooth_loss = EachLoss(), EachSmoothLoss()
    wide.create_opt()
    sizes = {name: [len(t[name]) for t in each] for name in tables(model)}
    for name, table in tables(model).items():
        if any(t[name].numel() % 16 for t in each):  # floats in a cache line, see FusedAdam
            wide.opt.state[table]["rows"] = sizes[name]
    with wide.no_bar(), wide.no_logging():
        wide.fit_one_cycle(epochs, lr, wd=wd)

    for learn in learns:
        learn.create_opt()
    for name, table in tables(model).items():
        state = wide.opt.state[table]
        state.pop("rows", None)
        state.pop("pieces", None)
        whole = table.detach(), state["grad_avg"], state["sqr_avg"]
        parts = zip(*(t.split(sizes[name]) for t in whole), strict=True)
        for learn, own, (weights, grad_avg, sqr_avg) in zip(learns, each, parts, strict=True):
            own[name].data.copy_(weights)
            averages = {"grad_avg": grad_avg.clone(), "sqr_avg": sqr_avg.clone()}
            learn.opt.state[own[name]] = state | averages
    for s, learn in enumerate(learns):
        learn.model.eval()  # as validation leaves it
        learn.opt.hypers = deepcopy(wide.opt.hypers)
        _hand_back(wide.recorder, learn.recorder, s)
    return wide


def _hand_back(wide: Recorder, own: Recorder, s: int) -> None:
    "What `wide` recorded of model `s`, to its own recorder."
    own.lrs, own.iters, own.hps, own.metric_names = wide.lrs, wide.iters, wide.hps, wide.metric_names
    own.losses = [loss[s] for loss in wide.losses]
    own.values = [L(float(value[s]) for value in row) for row in wide.values]
