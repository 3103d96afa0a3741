"""The chapter's eight runs trained again over many splits, and compared with the losses it printed."""

import hashlib
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.collab import EmbeddingDotBias, EmbeddingNN
from fastai.learner import Learner
from fastai.tabular.model import get_emb_sz
from torch import Tensor

from ..chapter import RUNS, published
from ..models import Y_RANGE, CollabNN, DotProduct, DotProductBias, DotProductBiasParams
from ..processes import usable_cores
from ..sources import check_ratings
from ..sources.files import DATA, read_losses, write_table
from ..training import BS, EPOCHS, LR, WD, curve, fit, learner

MODELS = {
    "DotProduct": DotProduct,
    "DotProductBias": DotProductBias,
    "DotProductBiasParams": DotProductBiasParams,
    "EmbeddingDotBias": EmbeddingDotBias,
    "CollabNN": lambda dls, y_range: CollabNN(*get_emb_sz(dls), y_range, n_act=100),
    "EmbeddingNN": lambda dls, y_range: EmbeddingNN(get_emb_sz(dls), [100, 50], y_range=y_range),
}
COLUMNS = ["data", "run", "model", "split", "epoch", "train_loss", "valid_loss"]
KEY = ["run", "split", "epoch"]
REPLACED = ", drawn with replacement"
ML_100K = "2288bf3d"  # the start of its digest, see data_name


def with_replacement(n: int, seed: int, epoch: int) -> Tensor:
    """`n` rows drawn from all `n`, (n,) int64, as fastai's default loader draws them in each epoch."""
    mixed = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)[0]
    return torch.randint(n, (n,), generator=torch.Generator().manual_seed(int(mixed) >> 1))


def run_learner(
    ratings: pd.DataFrame, number: int, split: int = 0, *, replacement: bool = False, **settings
) -> Learner:
    """The Learner of the chapter's run `number` on split `split`, ready for `fit` with wd `run.wd`.

    With `replacement` its training rows are drawn as fastai's default loader draws them. `settings` go to
    `learner`; a y_range counts where the run has one.
    """
    run, model, y_range = RUNS[number], MODELS[RUNS[number].model], settings.pop("y_range", Y_RANGE)
    model = partial(model, y_range=y_range) if run.model.endswith("NN") else model
    learn = learner(ratings, model, split, y_range=run.y_range and y_range, **settings)
    if replacement:
        learn.dls.train.draw = with_replacement
    return learn


def reproduce(
    ratings: pd.DataFrame,
    runs: Iterable[int] = tuple(RUNS),
    splits: int = 10,
    epochs: int = EPOCHS,
    path: str | Path | None = None,
    progress: Callable[[int], None] = lambda trained: None,
    *,
    replacement: bool = False,
    lr: float = LR,
    wd: float = WD,
    **settings,
) -> pd.DataFrame:
    """Train the chapter's `runs` on `splits` random splits each, and return all losses, one row an epoch.

    Columns: data, run, model, split, epoch (from 0), train_loss, valid_loss (MSE). The CSV at `path` grows
    as training goes on: splits it holds for ratings of the same content (`data_name`) and number of epochs
    are not trained again; rows of other data stay, above. `progress` is told how many model-epochs were done.
    `replacement` as in `run_learner`, `wd` for the runs with .1 (the others have a tenth), `settings` of
    `learner`: `data` says what of these is not the chapter's.
    Raises `FileError` when `path` holds anything else, `BadRatings`, `DivergedError`, OSError.
    """
    runs, data = list(runs), data_name(ratings, lr=lr, wd=wd, **settings) + REPLACED * replacement
    done, others = _read(path, data, epochs)
    for number in runs:
        kept = set(done.loc[done["run"] == number, "split"])
        progress(epochs * len(kept & set(range(splits))))
        missing = [s for s in range(splits) if s not in kept]
        at_once = usable_cores() if RUNS[number].model.endswith("NN") else 10  # splits between two savings
        for at in range(0, len(missing), at_once):
            part = missing[at : at + at_once]
            part = {s: run_learner(ratings, number, s, replacement=replacement, **settings) for s in part}
            fit(part.values(), epochs, lr, RUNS[number].wd * (wd / WD), progress)
            labels = {"data": data, "run": number, "model": RUNS[number].model}
            rows = [curve(ln, **labels, split=s).drop(columns="seconds") for s, ln in part.items()]
            done = pd.concat([done, *rows], ignore_index=True)
            if path is not None:
                write_table(path, pd.concat([others, done.sort_values(KEY)]))
    if path is not None and len(others):  # `plots` draws the data that stands last
        write_table(path, pd.concat([others, done.sort_values(KEY)]))
    wanted = done[done["run"].isin(runs) & (done["split"] < splits)]
    return wanted.sort_values(KEY, ignore_index=True)


def data_name(ratings: pd.DataFrame, **settings) -> str:
    """What tells these ratings from others: name and content; and which `settings` aren't the chapter's.

    `DATA` alone says that they are the book's: by their content, whatever they are called.
    """
    checked = check_ratings(ratings, y_range=None, bs=1)
    content = pd.util.hash_pandas_object(checked, index=False).to_numpy().tobytes()
    digest = hashlib.sha256(content).hexdigest()[:8]
    name = DATA if digest == ML_100K else f"{ratings.attrs.get('name', '')} {digest}".strip()
    chapters = {"lr": LR, "wd": WD, "bs": BS, "y_range": Y_RANGE}
    changed = [f"{key}={value}" for key, value in settings.items() if value != chapters.get(key)]
    return " ".join([name, *changed])


def _read(path: str | Path | None, data: str, epochs: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    """From the CSV at `path`: the splits of `data` that have `epochs` epochs, and the rows of other data."""
    if path is None or not Path(path).exists():
        empty = pd.DataFrame({name: [] for name in COLUMNS}).astype(dict.fromkeys(KEY, int))
        return empty, empty
    losses = read_losses(path, COLUMNS)
    length = losses.groupby(["data", "run", "split"])["epoch"].transform("size")
    ours = losses["data"] == data
    return losses[ours & (length == epochs)], losses[~ours]


def against_the_book(losses: pd.DataFrame, reprinted: bool = False) -> pd.DataFrame:
    """Each published loss next to the distribution of `losses` over splits, a row for each run and epoch.

    `losses` is what `reproduce` returns, `reprinted` is as in `published`. Columns, for each of
    train_loss and valid_loss: book, mean, sd, z = (book - mean) / sd; and `verdict`: "inside the spread"
    when both are within two sd, otherwise which one is outside.
    """
    ours = losses.groupby(["run", "epoch"])[["train_loss", "valid_loss"]].agg(["mean", "std"])
    book = published(*dict.fromkeys(losses["run"]), reprinted=reprinted).set_index(["run", "epoch"])
    columns = {}
    for loss in ("train_loss", "valid_loss"):
        mean, sd = ours[loss]["mean"], ours[loss]["std"]
        numbers = {"book": book[loss], "mean": mean, "sd": sd, "z": (book[loss] - mean) / sd}
        columns |= {(loss, name): column for name, column in numbers.items()}
    table = pd.DataFrame(columns).reindex(ours.index)
    z = table.xs("z", axis=1, level=1)
    outside = [
        " and ".join(loss.removesuffix("_loss") for loss in z if abs(row[loss]) > 2)
        for _, row in z.iterrows()
    ]
    verdicts = [f"{losses} outside the spread" if losses else "inside the spread" for losses in outside]
    table["verdict", ""] = np.where(z.isna().any(axis=1), "no spread from one split", verdicts)
    return table
