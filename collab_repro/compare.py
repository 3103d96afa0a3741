"""The chapter's two DotProductBias models against each other: same weights, same curves, differences."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from fastai.learner import Learner
from scipy import stats
from torch import nn

from .models import DotProductBias, DotProductBiasParams, tables
from .training import curve, fit, learner

__all__ = ["SameStart", "compare", "copy_weights", "curves", "difference", "same_start", "summary", "train"]

Model = Callable[..., nn.Module]
BOTH = (DotProductBias, DotProductBiasParams)


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Give `target` the tables of `source`, for any two of the dot-product models.

    A bias held as (n, 1) goes into one held as (n,) and back. Raises ValueError when a table is
    missing on one side or has another size, TypeError for models not made of tables alone.
    """
    ours, theirs = tables(source), tables(target)
    if ours.keys() != theirs.keys():
        raise ValueError(f"tables differ: {sorted(ours)} against {sorted(theirs)}")
    for name, table in theirs.items():
        if ours[name].numel() != table.numel() or len(ours[name]) != len(table):
            raise ValueError(f"{name}: {tuple(ours[name].shape)} does not fit {tuple(table.shape)}")
    with torch.no_grad():
        for name, table in theirs.items():
            table.copy_(ours[name].reshape(table.shape))


def train(
    ratings: pd.DataFrame,
    models: Sequence[Model] = BOTH,
    seeds: Iterable[int] = range(3),
    epochs: int = 5,
    lr: float = 5e-3,
    wd: float = 0.1,
    progress: Callable[[int], None] = lambda trained: None,
    **settings,
) -> dict[tuple[str, int], Learner]:
    """A fitted Learner for each (model's name, seed), paired: a seed's models share split and batches.

    `settings` go to `learner` (bs, n_factors, y_range, split, init, order, column names).
    Raises ValueError for models of the same name.
    """
    if len({m.__name__ for m in models}) < len(models):
        raise ValueError(f"models need names that differ: {[m.__name__ for m in models]}")
    learns = {(m.__name__, s): learner(ratings, m, s, **settings) for m in models for s in seeds}
    fit(learns.values(), epochs, lr, wd, progress)
    return learns


def curves(learns: dict[tuple[str, int], Learner], data: str = "") -> pd.DataFrame:
    "The curves of `train`'s Learners in one frame, with the columns that `compare` returns."
    return pd.concat(
        [curve(learn, data=data, model=model, seed=seed) for (model, seed), learn in learns.items()],
        ignore_index=True,
    )


def compare(
    ratings: pd.DataFrame,
    models: Sequence[Model] = BOTH,
    seeds: Iterable[int] = range(3),
    epochs: int = 5,
    lr: float = 5e-3,
    wd: float = 0.1,
    bs: int = 64,
    **settings,
) -> pd.DataFrame:
    """The chapter's models over many seeds, paired, as a tidy frame of curves.

    Columns: data, model, seed, epoch (from 0), train_loss and valid_loss (MSE), seconds. For one seed
    all models share the split and the batch order; initial weights differ as the models draw them.
    """
    learns = train(ratings, models, list(seeds), epochs, lr, wd, bs=bs, **settings)
    return curves(learns, data=ratings.attrs.get("name", ""))


def summary(curves: pd.DataFrame) -> pd.DataFrame:
    "Mean and sd over seeds of both losses, a row for each model and epoch; sd is NaN for one seed."
    losses = curves.groupby(["model", "epoch"], sort=False)[["train_loss", "valid_loss"]]
    return losses.agg(["mean", "std"])


def difference(curves: pd.DataFrame, loss: str = "valid_loss", level: float = 0.95) -> pd.DataFrame:
    """The paired difference of two models, second minus first, per epoch.

    Columns: mean, sd, n (seeds), low and high (the t interval of the mean at `level`).
    Raises ValueError unless there are exactly two models with the same seeds.
    """
    first, second = _two_models(curves)
    wide = curves.pivot(index=["epoch", "seed"], columns="model", values=loss)
    if wide.isna().any(axis=None):
        raise ValueError(f"{first} and {second} were not trained on the same seeds and epochs")
    found = (wide[second] - wide[first]).groupby("epoch").agg(["mean", "std", "count"])
    found.columns = ["mean", "sd", "n"]
    half = stats.t.ppf((1 + level) / 2, found["n"] - 1) * found["sd"] / found["n"] ** 0.5
    return found.assign(low=found["mean"] - half, high=found["mean"] + half)


def _two_models(curves: pd.DataFrame) -> tuple[str, str]:
    names = list(dict.fromkeys(curves["model"]))
    if len(names) != 2:
        raise ValueError(f"a difference needs two models, found {names}")
    return names[0], names[1]


@dataclass(frozen=True)
class SameStart:
    """How two models trained from copied weights on the same batches came out.

    `steps`: training steps of each; `equal_losses`: how many of them had bitwise equal (smoothed)
    losses; `equal_tables`: for each table, whether it ended bitwise equal; `curves`: as in `compare`.
    """

    steps: int
    equal_losses: int
    equal_tables: dict[str, bool]
    curves: pd.DataFrame

    @property
    def identical(self) -> bool:
        return self.equal_losses == self.steps and all(self.equal_tables.values())

    def __str__(self) -> str:
        same = [name for name, equal in self.equal_tables.items() if equal]
        return (
            f"from copied weights {self.equal_losses:,} of {self.steps:,} training losses and "
            f"{len(same)} of {len(self.equal_tables)} final tables are equal to the bit"
        )


def same_start(
    ratings: pd.DataFrame,
    models: Sequence[Model] = BOTH,
    seed: int = 0,
    epochs: int = 5,
    lr: float = 5e-3,
    wd: float = 0.1,
    progress: Callable[[int], None] = lambda trained: None,
    **settings,
) -> SameStart:
    "Train two models from the first one's initial weights on the same batches, and compare bit by bit."
    first, second = (learner(ratings, m, seed, **settings) for m in models)
    copy_weights(first.model, second.model)
    fit([first, second], epochs, lr, wd, progress)
    pairs = list(zip(first.recorder.losses, second.recorder.losses, strict=True))
    ours, theirs = tables(first.model), tables(second.model)
    return SameStart(
        steps=len(pairs),
        equal_losses=sum(torch.equal(a, b) for a, b in pairs),
        equal_tables={name: torch.equal(t, theirs[name].reshape(t.shape)) for name, t in ours.items()},
        curves=curves(
            {(m.__name__, seed): ln for m, ln in zip(models, (first, second), strict=True)},
            data=ratings.attrs.get("name", ""),
        ),
    )
