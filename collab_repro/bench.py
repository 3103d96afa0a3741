"""What training costs: loops side by side, cost against size, accuracy beside other libraries.

Every number is measured where the command runs. Machines differ and are shared: read the ratios.
"""

import json
import math
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from contextlib import redirect_stderr
from functools import partial
from importlib.util import find_spec
from io import StringIO
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.callback.schedule import combined_cos
from fastai.collab import CollabDataLoaders, collab_learner
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.optimizer import Adam
from torch.utils.data import TensorDataset

from .checks import check_ratings
from .fast import FastLoop, FusedAdam, few_threads
from .interpret import predict
from .loaders import RatingsDL, TensorDL
from .models import DotProductBias
from .processes import usable_cores
from .report import table
from .synthetic import planted_ratings
from .training import Stopwatch, big_batch, fit, learner

__all__ = ["accuracy", "loops", "machine", "main_command", "ratios", "scale", "tuning"]

SIZES = {  # users, titles and ratings of MovieLens 100K, 1M, 10M and 25M
    "100k": (943, 1_664, 100_000),
    "1m": (6_040, 3_706, 1_000_000),
    "10m": (69_878, 10_677, 10_000_000),
    "25m": (162_541, 59_047, 25_000_000),
}
SEEDS = 10


def machine() -> str:
    "The processor, its usable cores and PyTorch's threads, on one line."
    model = _linux("cpuinfo", "model name") or platform.machine()
    return f"{model}, usable cores: {usable_cores()}, threads of PyTorch: {torch.get_num_threads()}"


def _linux(file: str, name: str) -> str:
    "What a file under /proc says after `name`, or nothing."
    file = Path("/proc") / file
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


# One epoch of the chapter's model, loop by loop


def _quiet_fit(learn: Learner, epochs: int = 1, lr: float = 5e-3, wd: float = 0.1) -> Learner:
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, wd=wd)
    return learn


def hand_written(dls: DataLoaders, epochs: int = 1, lr: float = 5e-3, wd: float = 0.1) -> float:
    "The same training as a plain PyTorch loop: the floor that any Learner is measured against."
    model = DotProductBias(*map(len, dls.classes.values()), 50)
    opt = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.99), eps=1e-5, weight_decay=wd, fused=True)
    (x, y), (valid_x, valid_y) = ((t.long() if i == 0 else t for i, t in enumerate(dl.tensors)) for dl in dls)
    steps, step = epochs * -(-len(x) // 64), 0
    rates, moms = combined_cos(0.25, lr / 25, lr, lr / 1e5), combined_cos(0.25, 0.95, 0.85, 0.95)
    for _ in range(epochs):
        order = torch.randperm(len(x))
        for xb, yb in zip(x[order].split(64), y[order].split(64), strict=True):
            for group in opt.param_groups:
                group["lr"], group["betas"] = rates(step / steps), (moms(step / steps), 0.99)
            F.mse_loss(model(xb), yb).backward()
            opt.step()
            opt.zero_grad()
            step += 1
        with torch.no_grad():
            loss = F.mse_loss(model(valid_x), valid_y)
    return loss.item()


def loops(ratings: pd.DataFrame, repeats: int = 3, epochs: int = 5) -> pd.DataFrame:
    """Seconds per model-epoch of each way to train DotProductBias at batch 64, `repeats` times in turn,
    `epochs` at a time.

    Columns: loop, repeat, seconds (training and validation of one model for one epoch, without making
    the loaders), valid_loss.
    """
    ratings = check_ratings(ratings)

    def dls(**kwargs) -> DataLoaders:
        return CollabDataLoaders.from_df(ratings, bs=64, seed=0, **kwargs)

    def stock() -> Callable[[], float]:
        learn = collab_learner(dls(), n_factors=50, y_range=(0, 5.5))
        return lambda: _quiet_fit(learn, epochs).recorder.values[-1][1]

    def in_memory(**kwargs) -> Callable[[], float]:
        data = dls(dl_type=RatingsDL)
        model = DotProductBias(*map(len, data.classes.values()), 50)
        learn = Learner(data, model, MSELossFlat(), **kwargs)
        return lambda: _quiet_fit(learn, epochs).recorder.values[-1][1]

    def written() -> Callable[[], float]:
        return partial(hand_written, dls(dl_type=RatingsDL), epochs)

    def seeds(processes: int) -> Callable[[], float]:
        learns = [learner(ratings, seed=s) for s in range(SEEDS)]

        def run() -> float:
            fit(learns, epochs, processes=processes)
            return float(np.mean([learn.recorder.values[-1][1] for learn in learns]))

        return run

    ways = {  # each prepares a run; the run alone is timed
        "stock collab_learner": (stock, 1),
        "RatingsDL": (partial(in_memory, opt_func=Adam), 1),
        "RatingsDL, FastLoop": (partial(in_memory, opt_func=Adam, cbs=FastLoop), 1),
        "RatingsDL, FastLoop, FusedAdam": (partial(in_memory, opt_func=FusedAdam, cbs=FastLoop), 1),
        "hand-written": (written, 1),
        f"{SEEDS} seeds in one pass": (partial(seeds, 1), SEEDS),
        f"{SEEDS} seeds, {usable_cores()} processes": (partial(seeds, usable_cores()), SEEDS),
    }
    rows = []
    with few_threads(64 * 50):
        for repeat in range(repeats):
            for name, (prepare, models) in ways.items():
                run = prepare()
                started = time.perf_counter()
                loss = run()
                rows.append((name, repeat, (time.perf_counter() - started) / models / epochs, loss))
    return pd.DataFrame(rows, columns=["loop", "repeat", "seconds", "valid_loss"])


def ratios(found: pd.DataFrame) -> str:
    "What `loops` found as a table: times faster than stock first, then the medians themselves."
    medians = found.groupby("loop", sort=False)["seconds"].median()
    stock, floor = medians.iloc[0], medians["hand-written"]
    rows = [(way, f"{stock / s:.1f}", f"{s / floor:.2f}", f"{s:.2f}") for way, s in medians.items()]
    return table(["loop", "x stock", "of hand-written", "seconds"], rows)


def main_command(ratings: pd.DataFrame, seeds: int = 3, epochs: int = 5) -> dict[str, float]:
    "Seconds of the whole main command, and of stock fastai doing the same number of model-epochs."
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "collab_repro", "--seeds", str(seeds), "--epochs", str(epochs)]
        started = time.perf_counter()
        subprocess.run(
            [*command, "--data", ratings.attrs["name"], "--out", out], check=True, capture_output=True
        )
        ours = time.perf_counter() - started
    started = time.perf_counter()
    for seed in range(2 * seeds):
        dls = CollabDataLoaders.from_df(check_ratings(ratings), bs=64, seed=seed)
        _quiet_fit(collab_learner(dls, n_factors=50, y_range=(0, 5.5)), epochs)
    return {"main command": ours, "stock collab_learner": time.perf_counter() - started}


# Cost against size


def scale(sizes: Iterable[str] = tuple(SIZES), epochs: int = 5, bs: int | None = None) -> pd.DataFrame:
    """Planted ratings of MovieLens' sizes trained with `big_batch`, each size in a process of its own.

    With `bs` in batches of that size instead, to see what a rating costs, whatever the loss.
    Columns: size, ratings, users, titles, bs, epochs, seconds (median epoch, validation included),
    ratings_per_s, memory (peak, GB, planting included; Linux only), valid_loss (after the last epoch).
    """
    rows = []
    for size in sizes:
        code = f"from collab_repro.bench import _one_size; _one_size({size!r}, {epochs}, {bs})"
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or [f"killed by signal {-run.returncode}"])[-1]
            print(f"{size}: left out, {reason}", file=sys.stderr)
            continue
        rows.append({"size": size, **json.loads(run.stdout)})
    return pd.DataFrame(rows)


def _one_size(size: str, epochs: int, bs: int | None = None) -> None:
    users, titles, n = SIZES[size]
    ratings = planted_ratings(users, titles, n)[0]
    x = torch.stack([torch.from_numpy(ratings[c].to_numpy(np.int32)) for c in ("user", "movie")], dim=1)
    y = torch.from_numpy(ratings["rating"].to_numpy(np.float32))[:, None]
    del ratings
    held = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: n // 5]
    training = torch.ones(n, dtype=torch.bool).index_fill_(0, held, False)
    settings = big_batch(n - n // 5)
    bs = bs or settings["bs"]
    del settings["bs"]
    datasets = TensorDataset(x[training], y[training]), TensorDataset(x[held], y[held])
    del x, y
    dls = DataLoaders(*(TensorDL(d, bs, shuffle=d is datasets[0]) for d in datasets), device="cpu")
    torch.manual_seed(0)
    model = DotProductBias(users + 1, titles + 1, 50)
    learn = Learner(dls, model, MSELossFlat(), opt_func=FusedAdam, cbs=[FastLoop, Stopwatch])
    with few_threads(bs * 50):
        _quiet_fit(learn, epochs, **settings)
    seconds = float(np.median(learn.stopwatch.seconds))
    found = {"ratings": n, "users": users, "titles": titles, "bs": bs, "epochs": epochs, "seconds": seconds}
    peak = _linux("self/status", "VmHWM").removesuffix(" kB")  # getrusage counts what the parent held, too
    memory = int(peak) / 2**20 if peak else math.nan
    last = {"ratings_per_s": n / seconds, "memory": memory, "valid_loss": learn.recorder.values[-1][1]}
    print(json.dumps(found | last))


# Accuracy beside other libraries


def accuracy(ratings: pd.DataFrame, splits: Iterable[int] = range(3)) -> pd.DataFrame:
    """RMSE (stars) on held-out rows and seconds of fitting, beside the libraries that are installed.

    Split s holds out the first fifth of `np.random.default_rng(s).permutation(n)`, by row. Columns:
    model, split, rmse, seconds. The settings of `ENSEMBLE` are those that `tuning` finds best on split 0's
    training rows (and within .0002 of the best on the other two splits'); the peers' are fixed.
    """
    checked = check_ratings(ratings)
    user, item, rating = checked.columns
    codes = np.stack([pd.factorize(checked[name])[0] for name in (user, item)], axis=1)
    stars = checked[rating].to_numpy(np.float64)
    rows = []
    for split in splits:
        held, train = _fifth(len(checked), split)
        ways = {
            "one model, batch 64": lambda h=held: _ours(checked, h, 1, {"epochs": 5}),
            "one model, big batch": lambda h=held, t=train: _ours(
                checked, h, 1, {"epochs": 5, **big_batch(len(t))}
            ),
            f"mean of {ENSEMBLE['models']}": lambda h=held: _ours(checked, h, **ENSEMBLE),
        } | {
            name: lambda h=held, t=train, peer=peer: peer(codes[t], stars[t], codes[h])
            for name, (package, peer) in PEERS.items()
            if find_spec(package)
        }
        for name, run in ways.items():
            try:
                predicted, seconds = run()
            except ImportError as error:
                print(f"{name}: left out, {error}", file=sys.stderr)
                continue
            rows.append((name, split, math.sqrt(np.mean((predicted - stars[held]) ** 2)), seconds))
    return pd.DataFrame(rows, columns=["model", "split", "rmse", "seconds"])


def tuning(ratings: pd.DataFrame, splits: Iterable[int] = range(3)) -> pd.DataFrame:
    """RMSE of the mean of ten models at each setting of `GRID`, on a fifth of each split's training rows.

    The rows that `accuracy` holds out of that split play no part. Columns: split, those of `GRID`, rmse.
    """
    checked, rows = check_ratings(ratings), []
    for split in splits:
        training = checked.iloc[_fifth(len(checked), split)[1]]
        held, _ = _fifth(len(training), split)
        stars = training.iloc[held, 2].to_numpy(np.float64)
        for values in product(*GRID.values()):
            setting = dict(zip(GRID, values, strict=True))
            predicted, _ = _ours(training, held, ENSEMBLE["models"], ENSEMBLE["settings"] | setting)
            rows.append((split, *values, math.sqrt(np.mean((predicted - stars) ** 2))))
    return pd.DataFrame(rows, columns=["split", *GRID, "rmse"])


def _fifth(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    "A random fifth of `range(n)`, and the others in order."
    held = np.random.default_rng(seed).permutation(n)[: n // 5]
    return held, np.setdiff1d(np.arange(n), held)


def _ours(checked: pd.DataFrame, held: np.ndarray, models: int, settings: dict) -> tuple[np.ndarray, float]:
    "Predictions of the held-out rows by the mean of `models` models, and the seconds this took."
    made = {name: settings[name] for name in ("n_factors", "bs") if name in settings}
    fitted = {name: settings[name] for name in ("epochs", "lr", "wd") if name in settings}
    started = time.perf_counter()
    learns = [learner(checked, seed=s, split=held, **made) for s in range(models)]
    fit(learns, **fitted)
    seconds = time.perf_counter() - started
    return predict(learns, checked.iloc[held]).to_numpy(), seconds


def _surprise_svd(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, float]:
    from surprise import SVD, Dataset, Reader

    frame = pd.DataFrame({"user": x[:, 0], "item": x[:, 1], "rating": y})
    data = Dataset.load_from_df(frame, Reader(rating_scale=(1, 5))).build_full_trainset()
    started = time.perf_counter()
    model = SVD(n_factors=50, n_epochs=60, reg_all=0.1, random_state=0).fit(data)
    seconds = time.perf_counter() - started
    return np.array([model.predict(u, i).est for u, i in at]), seconds


def _cmfrec(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, float]:
    from cmfrec import CMF

    frame = pd.DataFrame({"UserId": x[:, 0], "ItemId": x[:, 1], "Rating": y})
    started = time.perf_counter()
    model = CMF(k=50, lambda_=10, verbose=False, nthreads=usable_cores(), random_state=0).fit(frame)
    seconds = time.perf_counter() - started
    return model.predict(user=at[:, 0], item=at[:, 1]), seconds


def _myfm(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, float]:
    from myfm import MyFMRegressor
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="ignore").fit(x)
    started = time.perf_counter()
    model = MyFMRegressor(rank=10, random_seed=0)
    shapes = [len(ids) for ids in encoder.categories_]
    with redirect_stderr(StringIO()):  # it has no way to show no progress bar
        model.fit(encoder.transform(x), y, n_iter=200, n_kept_samples=190, group_shapes=shapes)
    seconds = time.perf_counter() - started
    return model.predict(encoder.transform(at)), seconds


PEERS = {
    "Surprise SVD, 50 factors": ("surprise", _surprise_svd),
    "cmfrec CMF, 50 factors": ("cmfrec", _cmfrec),
    "myFM, rank 10": ("myfm", _myfm),
}
GRID = {"n_factors": (50, 100), "bs": (64, 128, 256), "wd": (0.05, 0.1, 0.2)}
ENSEMBLE = {"models": 10, "settings": {"n_factors": 50, "bs": 128, "epochs": 5, "lr": 5e-3, "wd": 0.1}}
