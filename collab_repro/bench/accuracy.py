"""RMSE on held-out ratings next to other libraries, and how our settings were chosen."""

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import redirect_stderr
from functools import partial
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
from ..training import BS, EPOCHS, LR, WD, fit, learner
from .ways import timed

Predicted = tuple[np.ndarray, float]  # predictions (stars), seconds of fitting
GRID = {"n_factors": (50, 100), "bs": (64, 128, 256), "wd": (0.05, 0.1, 0.2)}
ENSEMBLE = {"models": 10, "n_factors": N_FACTORS, "bs": 128, "wd": WD}


def accuracy(
    ratings: pd.DataFrame, splits: Iterable[int] = range(3), y_range: YRange = Y_RANGE, bs: int = BS
) -> pd.DataFrame:
    """RMSE (stars) on held-out rows, next to the libraries in `PEERS` that are installed.

    Split s holds out `_fifth(n, s)`. Columns: model, split, rmse, seconds (of fitting). `ENSEMBLE`'s settings
    are those that `tuning` finds best on split 0's training rows, and within .0002 of the best on the other
    two splits'. The settings of the other libraries are fixed.
    """
    checked, peers, rows = check_ratings(ratings, y_range=y_range, bs=bs), installed(), []
    for split in splits:
        held, train = _fifth(len(checked), split)
        ours = {f"one model, batch {bs}": {"bs": bs}, "one model, big batch": big_batch(len(train))}
        ours[f"mean of {ENSEMBLE['models']}"] = ENSEMBLE
        ours = {name: partial(_ours, checked, held, y_range, **settings) for name, settings in ours.items()}
        rows += [(name, split, *found) for name, *found in judged(checked, held, ours, peers)]
    return pd.DataFrame(rows, columns=["model", "split", "rmse", "seconds"])


def tuning(
    ratings: pd.DataFrame, splits: Iterable[int] = range(3), y_range: YRange = Y_RANGE
) -> pd.DataFrame:
    """RMSE (stars) of the mean of ten models for each setting of `GRID`, on a fifth of the training rows.

    The rows that `accuracy` holds out of a split play no part. Columns: split, those of `GRID`, rmse.
    """
    checked, rows = check_ratings(ratings, y_range=y_range, bs=1), []
    for split, *values in product(splits, *GRID.values()):
        training = checked.iloc[_fifth(len(checked), split)[1]]
        held, _ = _fifth(len(training), split)
        settings = ENSEMBLE | dict(zip(GRID, values, strict=True))
        predicted, _ = _ours(training, held, y_range, **settings)
        rows.append((split, *values, rmse(predicted, training.iloc[held, 2].to_numpy(float))))
    return pd.DataFrame(rows, columns=["split", *GRID, "rmse"])


def judged(
    checked: pd.DataFrame, held: np.ndarray, ours: dict[str, Callable], peers: dict[str, Callable]
) -> Iterator[tuple[str, float, float]]:
    """(model, RMSE in stars, seconds of fitting) of our models, then of `peers`, on the rows `held`.

    A peer that fails in any way is dropped from `peers`, with its reason on stderr.
    """
    codes = np.stack([pd.factorize(checked[name])[0] for name in checked.columns[:2]], axis=1)
    stars, train = checked.iloc[:, 2].to_numpy(float), np.setdiff1d(np.arange(len(checked)), held)
    theirs = {name: partial(peer, codes[train], stars[train], codes[held]) for name, peer in peers.items()}
    for name, model in {**ours, **theirs}.items():
        try:
            predicted, seconds = model()
        except Exception as error:
            if name in ours:
                raise
            print(f"{name}: left out, {type(error).__name__}: {error}", file=sys.stderr)
            del peers[name]
        else:
            yield name, rmse(predicted, stars[held]), seconds


def rmse(predicted: np.ndarray, stars: np.ndarray) -> float:
    return math.sqrt(np.mean((predicted - stars) ** 2))


def _fifth(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The first fifth of `np.random.default_rng(seed).permutation(n)`, and the others in order."""
    held = np.random.default_rng(seed).permutation(n)[: n // 5]
    return held, np.setdiff1d(np.arange(n), held)


def _ours(
    checked: pd.DataFrame, held: np.ndarray, y_range: YRange, models: int = 1, lr=LR, wd=WD, bs=BS, **made
) -> Predicted:
    """The mean prediction of `models` models for the rows `held`, which they were not trained on."""
    started, made["bs"] = time.perf_counter(), min(bs, len(checked) - len(held))
    learns = [learner(checked, seed=s, split=held, y_range=y_range, **made) for s in range(models)]
    fit(learns, EPOCHS, lr, wd)
    seconds = time.perf_counter() - started
    return predict(learns, checked.iloc[held], unknown="average").to_numpy(), seconds


# Other libraries: x (n, 2) codes of users and items, y (n,) stars, at (m, 2) codes to predict


def _surprise_svd(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> Predicted:
    from surprise import SVD, Dataset, Reader

    frame = pd.DataFrame({"user": x[:, 0], "item": x[:, 1], "rating": y})
    data = Dataset.load_from_df(frame, Reader(rating_scale=(y.min(), y.max()))).build_full_trainset()
    model, seconds = timed(SVD(n_factors=50, n_epochs=60, reg_all=0.1, random_state=0).fit, data)
    return np.array([model.predict(u, i).est for u, i in at]), seconds


def _cmfrec(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> Predicted:
    from cmfrec import CMF

    frame = pd.DataFrame({"UserId": x[:, 0], "ItemId": x[:, 1], "Rating": y})
    model = CMF(k=50, lambda_=10, verbose=False, nthreads=usable_cores(), random_state=0)
    model, seconds = timed(model.fit, frame)
    return model.predict(user=at[:, 0], item=at[:, 1]), seconds


def _myfm(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> Predicted:
    from sklearn.preprocessing import OneHotEncoder

    encoder = OneHotEncoder(handle_unknown="ignore").fit(x)
    model, seconds = fitted_myfm(encoder.transform(x), y, [len(ids) for ids in encoder.categories_])
    return model.predict(encoder.transform(at)), seconds


def fitted_myfm(x, y: np.ndarray, shapes: list[int], **blocks) -> tuple:
    """myFM of rank 10, fitted to a sparse `x` whose columns come in groups of `shapes`, and the seconds."""
    from myfm import MyFMRegressor

    model, samples = MyFMRegressor(rank=10, random_seed=0), {"n_iter": 200, "n_kept_samples": 190}
    with redirect_stderr(StringIO()):  # its progress bar cannot be turned off
        _, seconds = timed(model.fit, x, y, group_shapes=shapes, **samples, **blocks)
    return model, seconds


PEERS = {
    "Surprise SVD, 50 factors": ("surprise", _surprise_svd),
    "cmfrec CMF, 50 factors": ("cmfrec", _cmfrec),
    "myFM, rank 10": ("myfm", _myfm),
}


def installed() -> dict[str, Callable]:
    """The `PEERS` that are installed, by name."""
    return {name: peer for name, (package, peer) in PEERS.items() if find_spec(package)}
