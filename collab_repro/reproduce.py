"""The chapter's eight runs trained again over many splits, and held against what it printed."""

from collections.abc import Callable, Iterable
from pathlib import Path

import pandas as pd
from fastai.collab import EmbeddingDotBias, EmbeddingNN
from fastai.learner import Learner
from fastai.tabular.model import get_emb_sz

from .chapter import RUNS, published
from .files import read_losses, write_table
from .models import CollabNN, DotProduct, DotProductBias, DotProductBiasParams
from .processes import usable_cores
from .training import curve, fit, learner

__all__ = ["against_the_book", "reproduce", "run_learner"]

MODELS = {
    "DotProduct": DotProduct,
    "DotProductBias": DotProductBias,
    "DotProductBiasParams": DotProductBiasParams,
    "EmbeddingDotBias": EmbeddingDotBias,
    "CollabNN": lambda dls: CollabNN(*get_emb_sz(dls), n_act=100),
    "EmbeddingNN": lambda dls: EmbeddingNN(get_emb_sz(dls), layers=[100, 50], y_range=(0, 5.5)),
}
COLUMNS = ["data", "run", "model", "split", "epoch", "train_loss", "valid_loss"]


def run_learner(ratings: pd.DataFrame, number: int, split: int = 0) -> Learner:
    "The Learner of the chapter's run `number` on split `split`, ready for `fit` at lr 5e-3 and `run.wd`."
    run = RUNS[number]
    return learner(ratings, MODELS[run.model], split, y_range=run.y_range)


def reproduce(
    ratings: pd.DataFrame,
    runs: Iterable[int] = tuple(RUNS),
    splits: int = 10,
    epochs: int = 5,
    path: str | Path | None = None,
    progress: Callable[[int], None] = lambda trained: None,
) -> pd.DataFrame:
    """Train the chapter's `runs` on `splits` random splits each; every loss, a row an epoch.

    Columns: data, run, model, split, epoch (from 0), train_loss, valid_loss. With `path` the CSV there
    grows as training goes on; what it already holds of the same data and number of epochs is not
    trained again, and its rows of other data stay. `progress` is called with the number of model-epochs
    each time some are done.
    """
    data = ratings.attrs.get("name", "")
    done, others = _read(path, data, epochs)
    for number in runs:
        kept = set(done.loc[done["run"] == number, "split"])
        progress(epochs * len(kept & set(range(splits))))
        missing = [s for s in range(splits) if s not in kept]
        at_once = usable_cores() if RUNS[number].model.endswith("NN") else 10  # between two savings
        for at in range(0, len(missing), at_once):
            part = {s: run_learner(ratings, number, s) for s in missing[at : at + at_once]}
            fit(part.values(), epochs, lr=5e-3, wd=RUNS[number].wd, progress=progress)
            labels = {"data": data, "run": number, "model": RUNS[number].model}
            rows = [curve(ln, **labels, split=s).drop(columns="seconds") for s, ln in part.items()]
            done = pd.concat([done, *rows], ignore_index=True)
            if path is not None:
                write_table(path, pd.concat([others, done.sort_values(["run", "split", "epoch"])]))
    wanted = done[done["run"].isin(list(runs)) & (done["split"] < splits)]
    return wanted.sort_values(["run", "split", "epoch"], ignore_index=True)


def _read(path: str | Path | None, data: str, epochs: int) -> tuple[pd.DataFrame, pd.DataFrame]:
    "From the CSV at `path`: the (run, split)s of `data` that have `epochs` epochs, and other data's rows."
    if path is None or not Path(path).exists():
        empty = pd.DataFrame({name: [] for name in COLUMNS}).astype({"run": int, "split": int, "epoch": int})
        return empty, empty
    kept = read_losses(path, COLUMNS)
    kept["data"] = kept["data"].astype(object).fillna("")  # ratings without a name
    ours, length = kept["data"] == data, kept.groupby(["data", "run", "split"])["epoch"].transform("size")
    return kept[ours & (length == epochs)], kept[~ours]


def against_the_book(losses: pd.DataFrame, reprinted: bool = False) -> pd.DataFrame:
    """Each published loss beside our distribution over splits, a row for each run and epoch.

    Columns, for each of train_loss and valid_loss: book, mean, sd, z = (book - mean) / sd; and
    `verdict`: "inside the spread" when both are within two sd, else which is outside.
    """
    ours = losses.groupby(["run", "epoch"])[["train_loss", "valid_loss"]].agg(["mean", "std"])
    book = published(*dict.fromkeys(losses["run"]), reprinted=reprinted).set_index(["run", "epoch"])
    columns = {}
    for loss in ("train_loss", "valid_loss"):
        mean, sd = ours[loss]["mean"], ours[loss]["std"]
        columns |= {
            (loss, "book"): book[loss],
            (loss, "mean"): mean,
            (loss, "sd"): sd,
            (loss, "z"): (book[loss] - mean) / sd,
        }
    table = pd.DataFrame(columns).reindex(ours.index)
    table["verdict", ""] = [_verdict(row) for _, row in table.iterrows()]
    return table


def _verdict(row: pd.Series) -> str:
    z = {name: row[f"{name}_loss", "z"] for name in ("train", "valid")}
    if any(pd.isna(value) for value in z.values()):
        return "no spread from one split"
    outside = [name for name, value in z.items() if abs(value) > 2]
    return f"{' and '.join(outside)} outside the spread" if outside else "inside the spread"
