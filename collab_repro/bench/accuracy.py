"""RMSE on held-out ratings next to other libraries, and how our settings were chosen."""

import math
import sys
import time
from collections.abc import Iterable
from contextlib import redirect_stderr
from importlib.util import find_spec
from io import StringIO
from itertools import product

import numpy as np
import pandas as pd

from ..models import N_FACTORS, Y_RANGE, YRange
from ..processes import usable_cores
from ..recommending.predicting import predict
from ..sources import check_ratings
from ..speed import big_batch
from ..training import EPOCHS, LR, WD, fit, learner

Predicted = tuple[np.ndarray, float]  # predictions (stars), seconds of fitting
GRID = {"n_factors": (50, 100), "bs": (64, 128, 256), "wd": (0.05, 0.1, 0.2)}
ENSEMBLE = {
    "models": 10,
    "settings": {"n_factors": N_FACTORS, "bs": 128, "epochs": EPOCHS, "lr": LR, "wd": WD},
}


def accuracy(
    ratings: pd.DataFrame, splits: Iterable[int] = range(3), y_range: YRange = Y_RANGE
) -> pd.DataFrame:
    """RMSE (stars) on held-out rows, next to the libraries in `PEERS` that are installed.

    Split s holds out the first fifth of `np.random.default_rng(s).permutation(n)`, by row. Columns:
    model, split, rmse, seconds (of fitting). The settings of `ENSEMBLE` are those that `tuning` finds
    best on split 0's training rows, and within .0002 of the best on the other two splits'. The settings
    of the other libraries are fixed. One that fails is left out, with its reason on stderr.
    """
    checked = check_ratings(ratings, y_range=y_range)
    user, item, rating = checked.columns
    codes = np.stack([pd.factorize(checked[name])[0] for name in (user, item)], axis=1)
    stars = checked[rating].to_numpy(np.float64)
    peers = {name: peer for name, (package, peer) in PEERS.items() if find_spec(package)}
    rows = []
    for split in splits:
        test, train = _fifth(len(checked), split)
        ours = {
            "one model, batch 64": (1, {"epochs": EPOCHS}),
            "one model, big batch": (1, {"epochs": EPOCHS, **big_batch(len(train))}),
            f"mean of {ENSEMBLE['models']}": ENSEMBLE.values(),
        }
        for name in [*ours, *list(peers)]:
            try:
                if name in ours:
                    predicted, seconds = _ours(checked, test, *ours[name], y_range)
                else:
                    predicted, seconds = peers[name](codes[train], stars[train], codes[test])
            except Exception as error:  # another library may fail in any way
                if name in ours:
                    raise
                print(f"{name}: left out, {type(error).__name__}: {error}", file=sys.stderr)
                del peers[name]
                continue
            rows.append((name, split, _rmse(predicted, stars[test]), seconds))
    return pd.DataFrame(rows, columns=["model", "split", "rmse", "seconds"])


def tuning(
    ratings: pd.DataFrame, splits: Iterable[int] = range(3), y_range: YRange = Y_RANGE
) -> pd.DataFrame:
    """RMSE (stars) of the mean of ten models for each setting of `GRID`, on a fifth of the training rows.

    The rows that `accuracy` holds out of a split play no part. Columns: split, those of `GRID`, rmse.
    """
    checked, rows = check_ratings(ratings, y_range=y_range), []
    for split in splits:
        training = checked.iloc[_fifth(len(checked), split)[1]]
        test, _ = _fifth(len(training), split)
        stars = training.iloc[test, 2].to_numpy(np.float64)
        for values in product(*GRID.values()):
            setting = dict(zip(GRID, values, strict=True))
            predicted, _ = _ours(training, test, ENSEMBLE["models"], ENSEMBLE["settings"] | setting, y_range)
            rows.append((split, *values, _rmse(predicted, stars)))
    return pd.DataFrame(rows, columns=["split", *GRID, "rmse"])


def _rmse(predicted: np.ndarray, stars: np.ndarray) -> float:
    return math.sqrt(np.mean((predicted - stars) ** 2))


def _fifth(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """A random fifth of `range(n)`, and the others in order."""
    test = np.random.default_rng(seed).permutation(n)[: n // 5]
    return test, np.setdiff1d(np.arange(n), test)


def _ours(checked: pd.DataFrame, test: np.ndarray, models: int, settings: dict, y_range: YRange) -> Predicted:
    """The mean prediction of `models` models for the rows `test`, which they were not trained on."""
    made = {name: settings[name] for name in ("n_factors", "bs") if name in settings}
    fitted = {name: settings[name] for name in ("epochs", "lr", "wd") if name in settings}
    started = time.perf_counter()
    learns = [learner(checked, seed=s, split=test, y_range=y_range, **made) for s in range(models)]
    fit(learns, **fitted)
    seconds = time.perf_counter() - started
    return predict(learns, checked.iloc[test], unknown="average").to_numpy(), seconds


# Other libraries: x (n, 2) codes of users and items, y (n,) stars, at (m, 2) codes to predict


def _surprise_svd(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> Predicted:
    from surprise import SVD, Dataset, Reader

    frame = pd.DataFrame({"user": x[:, 0], "item": x[:, 1], "rating": y})
    data = Dataset.load_from_df(frame, Reader(rating_scale=(y.min(), y.max()))).build_full_trainset()
    started = time.perf_counter()
    model = SVD(n_factors=50, n_epochs=60, reg_all=0.1, random_state=0).fit(data)
    seconds = time.perf_counter() - started
    return np.array([model.predict(u, i).est for u, i in at]), seconds


def _cmfrec(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> Predicted:
    from cmfrec import CMF

    frame = pd.DataFrame({"UserId": x[:, 0], "ItemId": x[:, 1], "Rating": y})
    started = time.perf_counter()
    model = CMF(k=50, lambda_=10, verbose=False, nthreads=usable_cores(), random_state=0).fit(frame)
    seconds = time.perf_counter() - started
    return model.predict(user=at[:, 0], item=at[:, 1]), seconds


def _myfm(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> Predicted:
    from myfm import MyFMRegressor
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="ignore").fit(x)
    started = time.perf_counter()
    model = MyFMRegressor(rank=10, random_seed=0)
    shapes = [len(ids) for ids in encoder.categories_]
    with redirect_stderr(StringIO()):  # its progress bar cannot be turned off
        model.fit(encoder.transform(x), y, n_iter=200, n_kept_samples=190, group_shapes=shapes)
    seconds = time.perf_counter() - started
    return model.predict(encoder.transform(at)), seconds


PEERS = {
    "Surprise SVD, 50 factors": ("surprise", _surprise_svd),
    "cmfrec CMF, 50 factors": ("cmfrec", _cmfrec),
    "myFM, rank 10": ("myfm", _myfm),
}
