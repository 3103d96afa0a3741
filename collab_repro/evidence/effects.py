"""What each difference from the chapter's run 4 does to the final validation MSE, over paired seeds.

`diagnose` reads effects.csv and spread.csv beside this file. `python -m collab_repro chapter --effects
--splits 30` makes both again.
"""

from collections.abc import Callable, Iterable

import numpy as np
import pandas as pd
from fastai.losses import L1LossFlat
from fastai.optimizer import SGD
from scipy.special import stdtrit

from ..models import DotProductBiasParams
from ..sources.notes import kept
from ..training import EPOCHS, LR, WD, fit, learner
from .ablations import mse, mse_by_row
from .diagnosis import distances
from .eight_runs import REPLACED

COLUMNS = ["setting", "value", "mean", "sd", "n", "low", "high"]
VALUES = {
    "y_range": (None, (0, 5), (1, 5), (0.5, 5.5), (0, 6), (0, 10)),
    "wd": (0, 0.01, 0.03, 0.2, 0.3, 1),
    "factors": (5, 10, 20, 100, 200),
    "epochs": (1, 2, 3, 4, 6, 10, 20),
    "lr": (1e-4, 5e-4, 1e-3, 2e-3, 1e-2, 2e-2, 1e-1),
    "schedule": ("flat",),
    "bs": (16, 32, 128, 256, 512, 1024),
    "loss": ("L1",),
    "shape": ("broadcast",),
    "untrained": ("user_factors", "movie_factors", "user_bias", "movie_bias"),
    "items": ("ids",),
    "rows missing": (0.1, 0.5),  # share of the rows
    "rows doubled": (0.1, 1),
    "valid_pct": (0.1, 0.3),
    "optimizer": ("SGD",),
    "fits": (2,),
}
CHANGES = [(setting, value) for setting, values in VALUES.items() for value in values]


def finals(
    ratings: pd.DataFrame, seeds: Iterable[int], setting: str = "", value: object = None
) -> np.ndarray:
    """The final validation MSE of run 4 with one of `CHANGES`, (seeds,), each row predicted by itself."""
    if setting.startswith("rows"):
        share = value if setting == "rows doubled" else 1 - value
        some = ratings.sample(frac=share, random_state=0, ignore_index=True)
        ratings = pd.concat([ratings, some], ignore_index=True) if setting == "rows doubled" else some
        kept(ratings, duplicates=int(ratings.duplicated(["user", "title"]).sum()))
    made = {"factors": {"n_factors": value}, "bs": {"bs": value}, "valid_pct": {"valid_pct": value}}
    made |= {"items": {"item_name": "movie"}, "shape": {"model": DotProductBiasParams}}
    learns = [learner(ratings, seed=seed, **made.get(setting, {})) for seed in seeds]
    for learn in learns:
        if setting == "y_range":
            learn.model.y_range = value
        if setting == "untrained":
            getattr(learn.model, value).weight.requires_grad_(False)
        learn.loss_func = {"loss": L1LossFlat(), "shape": mse}.get(setting, learn.loss_func)
        learn.opt_func = SGD if setting == "optimizer" else learn.opt_func
    settings = {"epochs": EPOCHS, "lr": LR, "wd": WD}
    settings |= {setting: value} if setting in settings else {}
    if setting == "schedule":
        for learn in learns:
            with learn.no_bar(), learn.no_logging():
                learn.fit(settings["epochs"], settings["lr"], wd=settings["wd"])
    else:
        for _ in range(value if setting == "fits" else 1):
            fit(learns, **settings)
    return np.array([mse_by_row(learn) for learn in learns])


def measure(
    ratings: pd.DataFrame,
    changes: Iterable[tuple[str, object]] = CHANGES,
    seeds: Iterable[int] = range(10),
    progress: Callable[[int], None] = lambda trained: None,
) -> pd.DataFrame:
    """The effect of each change on the final validation MSE: changed minus unchanged, paired by seed.

    Columns: setting, value, mean, sd, n (seeds), low and high (the 95 % t interval of the mean).
    """
    seeds, rows = list(seeds), []
    unchanged = finals(ratings, seeds)
    for setting, value in changes:
        apart = finals(ratings, seeds, setting, value) - unchanged
        progress(EPOCHS * len(seeds))
        rows.append((setting, str(value), *_paired(apart)))
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
