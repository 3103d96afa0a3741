"""The chapter's two DotProductBias models against each other: over many seeds, and bit by bit."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from fastai.learner import Learner
from torch import nn

from .models import DotProductBias, DotProductBiasParams, copy_weights, tables
from .training import EPOCHS, LR, WD, curve, fit, learner

Models = Sequence[Callable[..., nn.Module]]
BOTH = (DotProductBias, DotProductBiasParams)


def learners(
    ratings: pd.DataFrame, models: Models = BOTH, seeds: Iterable[int] = range(3), **settings
) -> dict[tuple[str, int], Learner]:
    """A Learner for each (model's name, seed), paired: a seed's models share split and batches.

    `settings` go to `learner`. Raises ValueError for models of the same name, or for no model or no seed.
    """
    seeds, names = list(seeds), [m.__name__ for m in models]
    if not seeds or len({*names}) < max(len(names), 1):
        raise ValueError(f"give a seed and a model at least, models by different names: {seeds=}, {names=}")
    return {(m.__name__, s): learner(ratings, m, s, **settings) for m in models for s in seeds}


def train(
    ratings: pd.DataFrame,
    models: Models = BOTH,
    seeds: Iterable[int] = range(3),
    epochs: int = EPOCHS,
    lr: float = LR,
    wd: float = WD,
    **settings,
) -> dict[tuple[str, int], Learner]:
    """`learners`, fitted."""
    learns = learners(ratings, models, seeds, **settings)
    fit(learns.values(), epochs, lr, wd)
    return learns


def curves_of(learns: dict[tuple[str, int], Learner], data: str = "") -> pd.DataFrame:
    """The curves of `train`'s Learners in one frame, with the columns that `compare` returns."""
    each = (curve(learn, data=data, model=model, seed=seed) for (model, seed), learn in learns.items())
    return pd.concat(each, ignore_index=True)


def compare(
    ratings: pd.DataFrame, models: Models = BOTH, seeds: Iterable[int] = range(3), *args, **settings
) -> pd.DataFrame:
    """The chapter's models over many seeds, paired, as a tidy frame of curves.

    Columns: data, model, seed, epoch (from 0), train_loss and valid_loss (MSE), seconds. A seed's models
    differ in their initial weights alone. Further arguments (epochs, lr, wd, ...) are those of `train`.
    """
    learns = train(ratings, models, seeds, *args, **settings)
    return curves_of(learns, data=str(ratings.attrs.get("name", "")))


@dataclass(frozen=True)
class SameStart:
    """How two models ended that were trained from copied weights on the same batches.

    `steps`: training steps of each; `equal_losses`: how many of them had bitwise equal (smoothed)
    losses; `equal_tables`: for each table, whether it ended bitwise equal; `curves`: as in `compare`.
    """

    steps: int
    equal_losses: int
    equal_tables: dict[str, bool]
    curves: pd.DataFrame

    @classmethod
    def of(cls, first: Learner, second: Learner, data: str = "", seed: int = 0) -> "SameStart":
        """How two fitted Learners ended; `data` and `seed` become columns of the curves."""
        losses = list(zip(first.recorder.losses, second.recorder.losses, strict=True))
        ours, theirs = tables(first.model), tables(second.model)
        each = (curve(ln, data=data, model=type(ln.model).__name__, seed=seed) for ln in (first, second))
        return cls(
            steps=len(losses),
            equal_losses=sum(torch.equal(a, b) for a, b in losses),
            equal_tables={name: torch.equal(t, theirs[name].reshape(t.shape)) for name, t in ours.items()},
            curves=pd.concat(each, ignore_index=True),
        )

    @property
    def identical(self) -> bool:
        return self.equal_losses == self.steps and all(self.equal_tables.values())

    def __str__(self) -> str:
        return (
            f"from copied weights {self.equal_losses:,} of {self.steps:,} training losses and "
            f"{sum(self.equal_tables.values())} of {len(self.equal_tables)} final tables are equal to the bit"
        )


def same_start(
    ratings: pd.DataFrame,
    models: Models = BOTH,
    seed: int = 0,
    epochs: int = EPOCHS,
    lr: float = LR,
    wd: float = WD,
    **settings,
) -> SameStart:
    """Train two models from the first one's initial weights on the same batches; compare bit by bit."""
    first, second = learners(ratings, models, [seed], **settings).values()
    copy_weights(first.model, second.model)
    fit([first, second], epochs, lr, wd)
    return SameStart.of(first, second, data=str(ratings.attrs.get("name", "")), seed=seed)
