"""fastai Learners from explicit seeds, fitted, and their curves as tidy DataFrames."""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain, groupby

import numpy as np
import pandas as pd
import torch
from fastai.callback.core import Callback, TrainEvalCallback
from fastai.callback.progress import ProgressCallback
from fastai.callback.schedule import Learner  # the Learner with `fit_one_cycle`
from fastai.collab import CollabDataLoaders, EmbeddingDotBias, TabularCollab
from fastai.data.block import TransformBlock
from fastai.data.core import DataLoaders
from fastai.data.transforms import IndexSplitter
from fastai.learner import CastToTensor, Recorder
from fastai.losses import MSELossFlat
from fastai.tabular.core import Categorify
from torch import nn

from .checks import check_ratings
from .distributed import distributed, is_distributed
from .fast import FastLoop, FusedAdam, few_threads
from .loaders import RatingsDL, TensorDL
from .models import DotProduct, DotProductBias, DotProductBiasParams, YRange
from .processes import in_processes, usable_cores
from .sidebyside import fit_side_by_side

__all__ = ["DivergedError", "big_batch", "curve", "fit", "learner"]

MAX_WORK = 32_768  # elements of a pass' largest tensor, ten of the chapter's models: more gain little
MIN_PASS = 3  # models in a pass below which splitting it over processes gains little
FROM_SIZES = (DotProduct, DotProductBias, DotProductBiasParams)


class DivergedError(ArithmeticError):
    "A loss became NaN or infinite."


class Stopwatch(Callback):
    "Seconds of each epoch, and an end with a reason for a run whose loss is no number any more."

    order = 55  # after the Recorder

    def before_fit(self):
        self.seconds = []

    def before_epoch(self):
        self.started = time.perf_counter()

    def after_train(self):
        losses = torch.stack(list(self.recorder.losses[-self.n_iter :]))  # (steps,), or (steps, models)
        bad = (~losses.isfinite()).view(len(losses), -1).any(dim=1).nonzero()
        if len(bad):
            self._diverged("training", f"epoch {self.epoch}, batch {int(bad[0])} on")

    def after_epoch(self):
        self.seconds.append(time.perf_counter() - self.started)
        loss = self.recorder.loss.value
        if loss is not None and not torch.as_tensor(loss).isfinite().all():
            self._diverged("validation", f"the end of epoch {self.epoch} on")

    def _diverged(self, which: str, since: str) -> None:
        raise DivergedError(
            f"the {which} loss is not a finite number from {since} (counted from 0; highest learning rate so "
            f"far {max(self.recorder.lrs):.2g}). The usual causes: a learning rate too high, or huge ratings"
        )


class Reporter(Callback):
    "Calls `report()` after each epoch."

    def __init__(self, report: Callable[[], None]):
        self.report = report

    def after_epoch(self):
        self.report()


def learner(
    ratings: pd.DataFrame,
    model: Callable[..., nn.Module] = DotProductBias,
    seed: int = 0,
    *,
    split: int | Sequence[int] | None = None,
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
    fix one of the three apart; `split` may also list the rows to validate on. PyTorch's global random
    state on the CPU is left as it was. Columns not named are the first three, the item `title` where
    there is one. Raises `BadRatings` (see `check_ratings`).
    """
    split, init, order = (seed if own is None else own for own in (split, init, order))
    ratings = check_ratings(ratings, user_name, item_name, rating_name, y_range, bs, valid_pct)
    with torch.random.fork_rng(devices=[]):
        dls = _dls(ratings, split, valid_pct, bs=bs, dl_type=RatingsDL, shuffle_seed=order, drop_last=False)
        torch.manual_seed(init)
        if model in FROM_SIZES:
            module = model(*map(len, dls.classes.values()), n_factors, y_range)
        elif model is EmbeddingDotBias:
            module = model.from_classes(n_factors, dls.classes, y_range=y_range)
        else:
            module = model(dls)
    return Learner(dls, module, loss_func=MSELossFlat(), opt_func=FusedAdam, cbs=[FastLoop, Stopwatch])


def _dls(ratings: pd.DataFrame, split: int | Sequence[int], valid_pct: float, **kwargs) -> DataLoaders:
    "`CollabDataLoaders.from_df` of checked ratings; with validation rows given, what it does inside."
    if isinstance(split, int | np.integer):
        return CollabDataLoaders.from_df(ratings, valid_pct=valid_pct, seed=int(split), **kwargs)
    user, item, rating = ratings.columns
    splits = tuple(map(list, IndexSplitter(list(split))(ratings)))
    columns = {"cat_names": [user, item], "y_names": [rating], "y_block": TransformBlock()}
    return TabularCollab(ratings, [Categorify], **columns, splits=splits).dataloaders(**kwargs)


def curve(learn: Learner, **labels) -> pd.DataFrame:
    """What a fitted Learner recorded: `labels`, then epoch (from 0), train_loss, valid_loss, seconds.

    Losses are MSE; train_loss is fastai's smoothed one (beta .98) at the epoch's end. Raises ValueError
    when the recorder holds no fit: fastai's `validate` and `get_preds` clear it.
    """
    if not learn.recorder.values or len(learn.recorder.values[0]) < 2:
        raise ValueError("no fit is recorded: take the curve before validate() or get_preds() clear it")
    losses = pd.DataFrame([row[:2] for row in learn.recorder.values], columns=["train_loss", "valid_loss"])
    return losses.assign(epoch=range(len(losses)), seconds=learn.stopwatch.seconds, **labels)[
        [*labels, "epoch", "train_loss", "valid_loss", "seconds"]
    ]


def fit(
    learns: Iterable[Learner],
    epochs: int = 5,
    lr: float = 5e-3,
    wd: float = 0.1,
    progress: Callable[[int], None] = lambda trained: None,
    processes: int | None = None,
) -> None:
    """`learn.fit_one_cycle(epochs, lr, wd=wd)` for each of `learns`, many at once where that is possible.

    Weights, optimizer states, recorded losses and curves are those of each Learner fitted alone: to the
    bit where batches, the last ones too, are multiples of 16 rows (MovieLens 100K's are), else within
    rounding, for PyTorch computes the last few sigmoids of a batch in another way.

    Fresh Learners of one table-only model with equally many batches are trained side by side, and
    `processes` of such passes (all usable cores when None) run at a time; Learners with metrics, losses
    or callbacks of your own are fitted here, one by one, as is everything under `torchrun`. `progress`
    is called with the number of model-epochs whenever some are done.
    Raises `DivergedError` when a loss stops being a finite number.
    """
    learns = list(learns)
    for learn in learns:
        if not hasattr(learn, "stopwatch"):
            learn.add_cb(Stopwatch())
    plain = [] if is_distributed() else [learn for learn in learns if _is_plain(learn)]
    for learn in learns:
        if learn not in plain:
            with distributed(learn):
                _fit_alone(learn, epochs, lr, wd, progress)

    cores, passes = usable_cores() if processes is None else processes, []
    for _, alike in groupby(plain, key=_kind):
        alike = list(alike)
        most = min(max(1, MAX_WORK // _work(alike[0])), max(MIN_PASS, -(-len(alike) // cores)))
        passes += [alike[at : at + most] for at in range(0, len(alike), most)]
    forked = cores > 1 and len(passes) > 1

    def one_pass(part: list[Learner], report: Callable[[int], None]) -> list[dict]:
        if len(part) == 1:
            _fit_alone(part[0], epochs, lr, wd, report)
        else:
            cbs = [FastLoop, Stopwatch, Reporter(lambda: report(len(part)))]
            with few_threads(_work(part[0]) * len(part)):
                wide = fit_side_by_side(part, epochs, lr, wd, cbs)
            for learn in part:
                learn.stopwatch.seconds = [s / len(part) for s in wide.stopwatch.seconds]
        return [_state(learn) for learn in part] if forked else []

    states = in_processes([partial(one_pass, part) for part in passes], cores, progress)
    if forked:
        for learn, state in zip(chain(*passes), chain(*states), strict=True):
            _restore(learn, state)


def _fit_alone(learn: Learner, epochs: int, lr: float, wd: float, report: Callable[[int], None]) -> None:
    with few_threads(_work(learn)), learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, wd=wd, cbs=Reporter(lambda: report(1)))


def big_batch(n_train: int) -> dict[str, float]:
    """Batch size, learning rate and weight decay for large sets: keywords of `learner` and `fit`.

    Batches of 1,024 at MovieLens 100K's 80,000 training rows, growing with the 3/4th power of the rows
    (a power of two, from 64 on), so that ten times the rows are 1.8 times the steps. With decoupled
    decay a table shrinks by lr x wd each step: fewer steps want a stronger wd than the chapter's .1. `python
    -m collab_repro bench --parts accuracy` sets five such epochs on MovieLens 100K beside the chapter's.
    """
    return {"bs": 2 ** max(6, round(math.log2(1024 * (n_train / 80_000) ** 0.75))), "lr": 8e-3, "wd": 0.2}


RECORDED = "losses", "values", "lrs", "iters", "hps", "metric_names"


def _state(learn: Learner) -> dict:
    "What fitting changed in `learn`, to be carried between processes."
    recorded = {name: getattr(learn.recorder, name) for name in RECORDED}
    return {
        "model": learn.model.state_dict(),
        "opt": learn.opt.state_dict(),
        "recorder": recorded | {"losses": torch.stack(list(recorded["losses"]))},
        "seconds": learn.stopwatch.seconds,
        "epoch_no": [dl.epoch_no for dl in learn.dls],
    }


def _restore(learn: Learner, state: dict) -> None:
    learn.model.load_state_dict(state["model"])
    learn.create_opt()
    learn.opt.load_state_dict(state["opt"])
    for name, value in state["recorder"].items():
        setattr(learn.recorder, name, list(value) if name == "losses" else value)
    learn.stopwatch.seconds = state["seconds"]
    for dl, epoch_no in zip(learn.dls, state["epoch_no"], strict=True):
        dl.epoch_no = epoch_no


PLAIN_CALLBACKS = {TrainEvalCallback, Recorder, CastToTensor, ProgressCallback, FastLoop, Stopwatch}
TABLE_MODELS = {*FROM_SIZES, EmbeddingDotBias}


def _is_plain(learn: Learner) -> bool:
    "Whether `learn` is as `learner` makes it, with nothing of the user's own, and on the CPU."
    return (
        all(isinstance(dl, TensorDL) for dl in learn.dls)
        and learn.dls.device.type == "cpu"
        and isinstance(getattr(learn.loss_func, "func", None), nn.MSELoss)
        and {type(cb) for cb in learn.cbs} <= PLAIN_CALLBACKS
        and not learn.metrics
    )


def _kind(learn: Learner) -> tuple:
    "Learners of one kind can be trained as one model: fresh ones of tables alone, equally many batches."
    if learn.opt is not None or type(learn.model) not in TABLE_MODELS or learn.opt_func is not FusedAdam:
        return (id(learn),)
    sizes = [(dl.n, dl.bs, dl.drop_last) for dl in learn.dls]
    return type(learn.model), learn.model.y_range, learn.moms, _work(learn), *sizes


def _work(learn: Learner) -> int:
    "Elements of a training batch's largest tensor."
    return learn.dls.train.bs * max((p.shape[1] for p in learn.model.parameters() if p.ndim > 1), default=1)
