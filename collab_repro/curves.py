"""Training curves as tidy DataFrames: their summary over seeds, and the paired difference of two models.

Columns: model, seed, epoch (from 0), train_loss and valid_loss (MSE), as `compare` returns them.
"""

import pandas as pd


def summary(curves: pd.DataFrame) -> pd.DataFrame:
    """Mean and sd over seeds of both losses, a row for each model and epoch; sd is NaN for one seed."""
    losses = curves.groupby(["model", "epoch"], sort=False)[["train_loss", "valid_loss"]]
    return losses.agg(["mean", "std"])


def difference(curves: pd.DataFrame, loss: str = "valid_loss", level: float = 0.95) -> pd.DataFrame:
    """The paired difference of two models, second minus first, a row for each epoch.

    Columns: mean, sd, n (seeds), low and high (the t interval of the mean at `level`).
    Raises ValueError unless there are exactly two models with the same seeds and epochs.
    """
    from scipy.special import stdtrit  # Student's t quantile

    first, second = two_models(curves)
    wide = curves.pivot(index=["epoch", "seed"], columns="model", values=loss)
    if wide.isna().any(axis=None):
        raise ValueError(f"{first} and {second} were not trained on the same seeds and epochs")
    table = (wide[second] - wide[first]).groupby("epoch").agg(["mean", "std", "count"])
    table.columns = ["mean", "sd", "n"]
    half = stdtrit(table["n"] - 1, (1 + level) / 2) * table["sd"] / table["n"] ** 0.5
    return table.assign(low=table["mean"] - half, high=table["mean"] + half)


def two_models(curves: pd.DataFrame) -> tuple[str, str]:
    """The names of the two models in order of appearance. Raises ValueError for more or fewer."""
    names = list(dict.fromkeys(curves["model"]))
    if len(names) != 2:
        raise ValueError(f"a difference needs two models, but the curves have {names}")
    return names[0], names[1]
