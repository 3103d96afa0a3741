"""One epoch of the chapter's model, trained in several ways, and the whole main command."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from statistics import median

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.callback.schedule import combined_cos
from fastai.collab import CollabDataLoaders, collab_learner
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import MSELossFlat

from ..evidence.eight_runs import data_name
from ..loader import RatingsDL
from ..models import N_FACTORS, Y_RANGE, DotProductBias, YRange
from ..processes import usable_cores
from ..sources import check_ratings
from ..sources.files import DATA
from ..speed import FastLoop, FusedAdam, few_threads
from ..training import BS, EPOCHS, LR, WD, fit, learner

SEEDS = 10


def fit_quietly(learn: Learner, epochs: int = EPOCHS, lr: float = LR, wd: float = WD) -> float:
    """`learn.fit_one_cycle` without any output: the final validation loss."""
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, wd=wd)
    return learn.recorder.values[-1][1]


def timed(run: Callable, *args, **kwargs) -> tuple[object, float]:
    """What `run` returns, and the seconds that it takes."""
    started = time.perf_counter()
    result = run(*args, **kwargs)
    return result, time.perf_counter() - started


def stock_learner(ratings: pd.DataFrame, seed: int = 0, y_range: YRange = Y_RANGE, bs: int = BS) -> Learner:
    """fastai's own Learner, with its own loaders."""
    dls = CollabDataLoaders.from_df(check_ratings(ratings, y_range=y_range, bs=bs), bs=bs, seed=seed)
    return collab_learner(dls, n_factors=N_FACTORS, y_range=y_range)


def hand_written(dls: DataLoaders, epochs: int = 1, y_range: YRange = Y_RANGE) -> float:
    """The same training as a plain PyTorch loop, the least that any Learner can cost: the final loss."""
    model, bs = DotProductBias(*map(len, dls.classes.values()), N_FACTORS, y_range), dls.train.bs
    opt = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), eps=1e-5, weight_decay=WD, fused=True)
    (x, y), (valid_x, valid_y) = ((t.long() if i == 0 else t for i, t in enumerate(dl.tensors)) for dl in dls)
    steps, step = epochs * -(-len(x) // bs), 0
    rates, moms = combined_cos(0.25, LR / 25, LR, LR / 1e5), combined_cos(0.25, 0.95, 0.85, 0.95)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for xb, yb in zip(x[order].split(bs), y[order].split(bs), strict=True):
            for group in opt.param_groups:
                group["lr"], group["betas"] = rates(step / steps), (moms(step / steps), 0.99)
            F.mse_loss(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
            step += 1
        with torch.no_grad():
            loss = F.mse_loss(model(valid_x), valid_y)
    return loss.item()


def loops(
    ratings: pd.DataFrame, repeats: int = 3, epochs: int = EPOCHS, y_range: YRange = Y_RANGE, bs: int = BS
) -> pd.DataFrame:
    """Seconds of each way to train DotProductBias, `repeats` times in turn.

    Columns: loop, repeat, seconds (training and validation of one model for one epoch, measured over
    `epochs` epochs without making the loaders), valid_loss (MSE).
    """
    checked = check_ratings(ratings, y_range=y_range, bs=bs)

    def in_memory() -> DataLoaders:
        return CollabDataLoaders.from_df(checked, bs=bs, seed=0, dl_type=RatingsDL)

    def one(**kwargs) -> Callable[[], float]:
        dls = in_memory()
        model = DotProductBias(*map(len, dls.classes.values()), N_FACTORS, y_range)
        return partial(fit_quietly, Learner(dls, model, MSELossFlat(), **kwargs), epochs)

    def many(processes: int) -> Callable[[], float]:
        learns = [learner(ratings, seed=s, y_range=y_range, bs=bs) for s in range(SEEDS)]

        def run() -> float:
            fit(learns, epochs, processes=processes)
            return float(np.mean([learn.recorder.values[-1][1] for learn in learns]))

        return run

    ways = {  # each prepares a run of one model, or of SEEDS; only the run is timed
        "stock collab_learner": lambda: partial(fit_quietly, stock_learner(checked, 0, y_range, bs), epochs),
        "RatingsDL": one,
        "RatingsDL, FastLoop": partial(one, cbs=FastLoop),
        "RatingsDL, FastLoop, FusedAdam": partial(one, opt_func=FusedAdam, cbs=FastLoop),
        "hand-written": lambda: partial(hand_written, in_memory(), epochs, y_range=y_range),
        f"{SEEDS} seeds in one pass": partial(many, 1),
        f"{SEEDS} seeds, {usable_cores()} processes": partial(many, usable_cores()),
    }
    rows = []
    with few_threads(bs * N_FACTORS):
        for repeat, (name, prepare) in product(range(repeats), ways.items()):
            loss, seconds = timed(prepare())
            models = SEEDS if "seeds" in name else 1
            rows.append((name, repeat, seconds / models / epochs, loss))
    return pd.DataFrame(rows, columns=["loop", "repeat", "seconds", "valid_loss"])


def ratios(timings: pd.DataFrame) -> pd.DataFrame:
    """What `loops` returns, summed up: loop, times faster than the first, share of hand-written, seconds."""
    seconds = timings.groupby("loop", sort=False)["seconds"].median()
    ratios = {"x stock": seconds.iloc[0] / seconds, "of hand-written": seconds / seconds["hand-written"]}
    return pd.DataFrame({**ratios, "seconds": seconds}).reset_index()


def main_command(
    ratings: pd.DataFrame, seeds: int = 3, epochs: int = EPOCHS, y_range: YRange = Y_RANGE, bs: int = BS
) -> dict[str, float]:
    """Seconds of the whole main command, and of stock fastai for the same number of model-epochs."""
    with tempfile.TemporaryDirectory() as folder:
        if (data := data_name(ratings)) != DATA:
            checked = check_ratings(ratings, y_range=y_range, bs=bs)
            checked.to_csv(data := f"{folder}/ratings.csv", index=False)
        command = ["--data", data, "--out", folder, "--seeds", str(seeds), "--epochs", str(epochs)]
        command += ["--batch", str(bs)] if bs != BS else []
        command += ["--y-range", *map(str, y_range)] if y_range != Y_RANGE else []
        ours = _seconds_of("-m", "collab_repro", *command)

    def stock() -> None:
        for seed in range(2 * seeds):
            fit_quietly(stock_learner(ratings, seed, y_range, bs), epochs)

    return {"main command": ours, "stock collab_learner": timed(stock)[1]}


def startup(repeats: int = 3) -> pd.DataFrame:
    """Seconds that whole processes take before they do anything: columns process, seconds (median)."""
    with tempfile.TemporaryDirectory() as folder:
        command = ("-m", "collab_repro", "--data", "synthetic", "--seeds", "1", "--epochs", "1")
        _seconds_of(*command, "--out", folder)  # something to draw
        processes = {
            "import fastai.collab": ("-c", "import fastai.collab"),
            "import collab_repro": ("-c", "import collab_repro"),
            "--help": ("-m", "collab_repro", "--help"),
            "plots": ("-m", "collab_repro", "plots", "--out", folder),
        }
        seconds = {n: median(_seconds_of(*p) for _ in range(repeats)) for n, p in processes.items()}
    return pd.DataFrame(seconds.items(), columns=["process", "seconds"])


def _seconds_of(*arguments: str) -> float:
    """Seconds of a Python process with these arguments; raises RuntimeError with what it said last."""
    run, seconds = timed(subprocess.run, [sys.executable, *arguments], capture_output=True, text=True)
    if run.returncode:
        raise RuntimeError(f"{' '.join(arguments)}: {(run.stderr.strip().splitlines() or ['failed'])[-1]}")
    return seconds
