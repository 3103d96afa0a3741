"""What each difference from the chapter's run 4 does to the final validation MSE, over paired seeds.

`diagnose` reads effects.csv and spread.csv beside this file. `python -m collab_repro chapter --effects
--splits 30` makes both again.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import pandas as pd
from fastai.learner import Learner
from fastai.losses import L1LossFlat
from fastai.optimizer import SGD
from scipy.special import stdtrit

from ..models import DotProductBiasParams
from ..training import EPOCHS, LR, WD, fit, learner
from .ablations import mse, mse_by_row
from .diagnosis import distances
from .eight_runs import REPLACED

COLUMNS = ["setting", "value", "mean", "sd", "n", "low", "high"]


@dataclass(frozen=True)
class Change:
    """One difference: the setting, its value, how the Learner is made, changed and fitted."""

    setting: str
    value: object
    made: dict = field(default_factory=dict)  # for `learner`
    change: Callable[[Learner], None] = lambda learn: None
    fitted: dict = field(default_factory=dict)  # for `fit`
    rows: Callable[[pd.DataFrame], pd.DataFrame] = lambda ratings: ratings
    fit: Callable = fit


def _y_range(y_range: tuple | None, learn: Learner) -> None:
    learn.model.y_range = y_range


def _set(learn: Learner, **values) -> None:
    for name, value in values.items():
        setattr(learn, name, value)


def _frozen(table: str, learn: Learner) -> None:
    getattr(learn.model, table).weight.requires_grad_(False)


def _flat(learns: list[Learner], epochs: int, lr: float, wd: float) -> None:
    for learn in learns:
        with learn.no_bar(), learn.no_logging():
            learn.fit(epochs, lr, wd=wd)


def _twice(learns: list[Learner], *settings) -> None:
    fit(learns, *settings)
    fit(learns, *settings)


def _some(share: float, ratings: pd.DataFrame) -> pd.DataFrame:
    return ratings.sample(frac=share, random_state=0, ignore_index=True)


def _doubled(share: float, ratings: pd.DataFrame) -> pd.DataFrame:
    more = pd.concat([ratings, _some(share, ratings)], ignore_index=True)
    more.attrs["duplicates"] = int(more.duplicated(["user", "title"]).sum())
    return more


TABLES = "user_factors", "movie_factors", "user_bias", "movie_bias"
Y_RANGES = None, (0, 5), (1, 5), (0.5, 5.5), (0, 6), (0, 10)
CHANGES = (
    *(Change("y_range", y, change=partial(_y_range, y)) for y in Y_RANGES),
    *(Change("wd", wd, fitted={"wd": wd}) for wd in (0, 0.01, 0.03, 0.2, 0.3, 1)),
    *(Change("factors", k, {"n_factors": k}) for k in (5, 10, 20, 100, 200)),
    *(Change("epochs", n, fitted={"epochs": n}) for n in (1, 2, 3, 4, 6, 10, 20)),
    *(Change("lr", lr, fitted={"lr": lr}) for lr in (1e-4, 5e-4, 1e-3, 2e-3, 1e-2, 2e-2, 1e-1)),
    Change("schedule", "flat", fit=_flat),
    *(Change("bs", bs, {"bs": bs}) for bs in (16, 32, 128, 256, 512, 1024)),
    Change("loss", "L1", change=partial(_set, loss_func=L1LossFlat())),
    Change("shape", "broadcast", {"model": DotProductBiasParams}, partial(_set, loss_func=mse)),
    *(Change("untrained", table, change=partial(_frozen, table)) for table in TABLES),
    Change("items", "ids", {"item_name": "movie"}),
    *(Change("rows missing", share, rows=partial(_some, 1 - share)) for share in (0.1, 0.5)),
    *(Change("rows doubled", share, rows=partial(_doubled, share)) for share in (0.1, 1)),
    *(Change("valid_pct", share, {"valid_pct": share}) for share in (0.1, 0.3)),
    Change("optimizer", "SGD", change=partial(_set, opt_func=SGD)),
    Change("fits", 2, fit=_twice),
)


def finals(ratings: pd.DataFrame, change: Change, seeds: Iterable[int]) -> np.ndarray:
    """The final validation MSE of run 4 with `change`, (seeds,), each row predicted by itself."""
    learns = [learner(change.rows(ratings), seed=seed, **change.made) for seed in seeds]
    for learn in learns:
        change.change(learn)
    settings = {"epochs": EPOCHS, "lr": LR, "wd": WD} | change.fitted
    change.fit(learns, *settings.values())
    return np.array([mse_by_row(learn) for learn in learns])


def measure(
    ratings: pd.DataFrame,
    changes: Iterable[Change] = CHANGES,
    seeds: Iterable[int] = range(10),
    progress: Callable[[int], None] = lambda trained: None,
) -> pd.DataFrame:
    """The effect of each change on the final validation MSE: changed minus unchanged, paired by seed.

    Columns: setting, value, mean, sd, n (seeds), low and high (the 95 % t interval of the mean).
    """
    seeds, rows = list(seeds), []
    unchanged = finals(ratings, Change("", ""), seeds)
    for change in changes:
        apart = finals(ratings, change, seeds) - unchanged
        progress(EPOCHS * len(seeds))
        rows.append((change.setting, str(change.value), *_paired(apart)))
    return pd.DataFrame(rows, columns=COLUMNS)


def _paired(apart: np.ndarray | pd.Series) -> tuple:
    """Mean, sd, number, and the mean's 95 % interval."""
    mean, sd, n = np.mean(apart), np.std(apart, ddof=1), len(apart)
    half = stdtrit(n - 1, 0.975) * sd / n**0.5
    return mean, sd, n, mean - half, mean + half


def wide(losses: pd.DataFrame) -> pd.DataFrame:
    """`reproduce`'s losses with both loaders: one training a row, by run, replacement (0 or 1) and split."""
    losses = losses.assign(replacement=losses["data"].str.endswith(REPLACED) * 1)
    index, values = ["run", "replacement", "split"], ["train_loss", "valid_loss"]
    table = losses.pivot(index=index, columns="epoch", values=values)
    return table.set_axis([f"{loss.removesuffix('_loss')} {epoch}" for loss, epoch in table], axis=1)


def spread_of(trained: pd.DataFrame) -> pd.DataFrame:
    """spread.csv: the covariance of the losses within a run and loader, one for all; then their means."""
    groups = trained.groupby(["run", "replacement"])
    within = trained - groups.transform("mean")
    covariance = within.T @ within / (len(trained) - groups.ngroups)
    covariance.index = pd.MultiIndex.from_product([[0], range(len(covariance))], names=["run", "replacement"])
    return pd.concat([covariance, groups.mean()])


def loader_effects(trained: pd.DataFrame) -> pd.DataFrame:
    """The effect of drawing with replacement on each run, paired by split; columns as in `measure`."""
    final = trained["valid 4"].unstack("replacement")
    rows = [("loader", str(run), *_paired(each[1] - each[0])) for run, each in final.groupby("run")]
    return pd.DataFrame(rows, columns=COLUMNS)


def confusion(held_out: pd.DataFrame, spread: pd.DataFrame) -> pd.DataFrame:
    """How many trainings of each run and loader (rows) are nearest to which (columns); r: replacement."""
    covariance, means = spread.iloc[:10].to_numpy(), spread.iloc[10:]
    nearest = [distances(row.reshape(2, 5).T, means, covariance).idxmin() for row in held_out.to_numpy()]
    true, named = ([f"{run}{'r' * way}" for run, way, *_ in keys] for keys in (held_out.index, nearest))
    return pd.crosstab(pd.Series(true, name="trained"), pd.Series(named, name="named"))
