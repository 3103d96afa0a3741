"""fastai Learners from explicit seeds, fitted, and their curves as tidy DataFrames."""

import time
from collections.abc import Callable, Iterable
from itertools import groupby

import pandas as pd
import torch
from fastai.callback.core import Callback
from fastai.callback.schedule import Learner  # the Learner with `fit_one_cycle`
from fastai.collab import CollabDataLoaders, EmbeddingDotBias
from fastai.losses import MSELossFlat
from torch import nn

from .fast import SHARED_WORK, FastLoop, FusedAdam, few_threads
from .loaders import RatingsDL
from .models import DotProduct, DotProductBias, DotProductBiasParams, YRange
from .sidebyside import fit_side_by_side

__all__ = ["DivergedError", "curve", "fit", "learner"]

FROM_SIZES = (DotProduct, DotProductBias, DotProductBiasParams)


class DivergedError(ArithmeticError):
    "A loss became NaN or infinite."


class Stopwatch(Callback):
    "Seconds of each epoch, and an end with a reason for a run whose loss is no number any more."

    def before_fit(self):
        self.seconds = []

    def before_epoch(self):
        self.started = time.perf_counter()

    def after_train(self):
        losses = torch.stack(list(self.recorder.losses[-self.n_iter :]))  # (steps,), or (steps, models)
        bad = (~losses.isfinite()).view(len(losses), -1).any(dim=1).nonzero()
        if len(bad):
            raise DivergedError(
                f"the training loss is not a finite number from epoch {self.epoch}, batch {int(bad[0])} on "
                f"(both from 0; highest learning rate so far {max(self.recorder.lrs):.2g}). The usual "
                "causes: a learning rate too high, or ratings that are huge"
            )

    def after_epoch(self):
        self.seconds.append(time.perf_counter() - self.started)


def learner(
    ratings: pd.DataFrame,
    model: Callable[..., nn.Module] = DotProductBias,
    seed: int = 0,
    *,
    split: int | None = None,
    init: int | None = None,
    order: int | None = None,
    n_factors: int = 50,
    y_range: YRange = (0, 5.5),
    bs: int = 64,
    valid_pct: float = 0.2,
    user_name: str | None = None,
    item_name: str | None = None,
    rating_name: str | None = None,
) -> Learner:
    """A Learner as chapter 8 makes it, ready for `fit_one_cycle(5, 5e-3, wd=0.1)` or for `fit`.

    `model` is one of `DotProduct`, `DotProductBias`, `DotProductBiasParams`, fastai's
    `EmbeddingDotBias`, or any function from the DataLoaders to a module. `seed` fixes the split into
    training and validation rows, the initial weights and the batch order; `split`, `init` and `order`
    fix one of the three apart. PyTorch's global random state is left as it was.
    """
    split, init, order = (seed if own is None else own for own in (split, init, order))
    if item_name is None and "title" in ratings:
        item_name = "title"
    with torch.random.fork_rng(devices=[]):
        dls = CollabDataLoaders.from_df(
            ratings,
            valid_pct=valid_pct,
            user_name=user_name,
            item_name=item_name,
            rating_name=rating_name,
            seed=split,
            bs=bs,
            dl_type=RatingsDL,
            shuffle_seed=order,
            drop_last=False,
        )
        torch.manual_seed(init)
        if model in FROM_SIZES:
            module = model(*map(len, dls.classes.values()), n_factors, y_range)
        elif model is EmbeddingDotBias:
            module = model.from_classes(n_factors, dls.classes, y_range=y_range)
        else:
            module = model(dls)
    return Learner(dls, module, loss_func=MSELossFlat(), opt_func=FusedAdam, cbs=[FastLoop, Stopwatch])


def curve(learn: Learner, **labels) -> pd.DataFrame:
    """What a fitted Learner recorded: `labels`, then epoch (from 0), train_loss, valid_loss, seconds.

    Losses are MSE; train_loss is fastai's smoothed one (beta .98) at the epoch's end.
    """
    losses = pd.DataFrame([row[:2] for row in learn.recorder.values], columns=["train_loss", "valid_loss"])
    return losses.assign(epoch=range(len(losses)), seconds=learn.stopwatch.seconds, **labels)[
        [*labels, "epoch", "train_loss", "valid_loss", "seconds"]
    ]


def fit(learns: Iterable[Learner], epochs: int = 5, lr: float = 5e-3, wd: float = 0.1, cbs=None) -> None:
    """`learn.fit_one_cycle(epochs, lr, wd=wd)` for each of `learns`, side by side where that is possible.

    Weights, recorded losses and curves are those of each Learner fitted alone. Learners of the same
    table-only model with equally many batches go together, the others one by one. `cbs` are fastai
    callbacks for each pass. Raises `DivergedError` when a loss stops being a finite number.
    """
    for _, alike in groupby(learns, key=_kind):
        alike = list(alike)
        work = alike[0].dls.train.bs * _width(alike[0].model)
        most = max(1, SHARED_WORK // work)
        for at in range(0, len(alike), most):
            part = alike[at : at + most]
            with few_threads(work * len(part)):
                if len(part) > 1:
                    wide = fit_side_by_side(part, epochs, lr, wd, [FastLoop, Stopwatch, *(cbs or ())])
                    for learn in part:
                        learn.stopwatch.seconds = [s / len(part) for s in wide.stopwatch.seconds]
                else:
                    with part[0].no_bar(), part[0].no_logging():
                        part[0].fit_one_cycle(epochs, lr, wd=wd, cbs=cbs)


def _kind(learn: Learner) -> tuple:
    "Learners of one kind can be trained as one model."
    if learn.opt is not None or not isinstance(learn.model, (*FROM_SIZES, EmbeddingDotBias)):
        return (id(learn),)
    return type(learn.model), learn.opt_func, learn.model.y_range, learn.dls.train.bs, *map(len, learn.dls)


def _width(model: nn.Module) -> int:
    return max((p.shape[1] for p in model.parameters() if p.ndim > 1), default=1)
