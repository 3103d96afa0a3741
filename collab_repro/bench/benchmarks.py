"""Published RMSE of rating prediction, each with its protocol, beside what is measured here on the same one.

Compare within one protocol only: 75/25, 80/20 and 90/10 leave more or less to learn from, a mean of users'
own RMSEs is another measure, and GroupLens' fold u1 is harder than a random fifth.
"""

import sys
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np
import pandas as pd
import torch
from scipy import sparse

from ..data import load_ratings
from ..further.bags import SPANS
from ..further.classes import stars_learner, validated
from ..further.columns import QUICK, SETTINGS, columns_in, with_columns
from ..models import N_FACTORS
from ..sources import RatingsUnavailable, check_ratings
from ..speed import big_batch
from ..training import EPOCHS, LR, WD, fit, learner
from .accuracy import ENSEMBLE, Predicted, _fifth, fitted_myfm, installed, judged
from .ways import timed

FOLD_1, FOLDS = "100K, GroupLens' fold u1", "100K, mean of GroupLens' five folds"
FIFTHS, MILLION, TEN_MILLION = "100K, mean of random fifths", "1M, a random tenth", "10M, a random tenth"
MYFM, RENDLE = "myFM's documentation", "Rendle et al., arXiv 1905.01395"
GCMC = "Berg et al., arXiv 1706.02263"
PUBLISHED = [
    (FOLD_1, "myFM, ordered probit, all columns", 0.8808, MYFM),
    (FOLD_1, "myFM, regression, all columns", 0.8833, MYFM),
    (FOLD_1, "GHRS", 0.887, "Darban and Valipour, arXiv 2111.11293"),
    (FOLD_1, "GLocal-K", 0.8889, "Han et al., CIKM 2021"),
    (FOLD_1, "GC-MC, with features", 0.905, GCMC),
    (FOLD_1, "GC-MC", 0.910, GCMC),
    (FOLDS, "Surprise SVD++, defaults", 0.919, "Surprise's README"),
    (FOLDS, "Surprise SVD, defaults", 0.934, "Surprise's README"),
    (MILLION, "myFM, ordered probit, all columns", 0.8140, MYFM),
    (MILLION, "myFM, regression, all columns", 0.8161, MYFM),
    (MILLION, "GLocal-K", 0.8227, "Han et al., CIKM 2021"),
    (TEN_MILLION, "timeSVD++ flipped", 0.7485, RENDLE),
    (TEN_MILLION, "SVD++", 0.7563, RENDLE),
    (TEN_MILLION, "Bayesian MF", 0.7633, RENDLE),
    (TEN_MILLION, "SGD MF", 0.772, RENDLE),
]
LARGE = {"bs": 4096, "epochs": 12, "lr": 5e-3, "wd": 1.2}  # of 100 factors, all columns, a million ratings
LARGE_STARS = {"bs": 4096, "epochs": 10, "lr": 5e-3, "wd": 1.0}
STARS = {"bs": 512, "epochs": 8, "lr": 3e-3, "wd": 0.8}  # of the ordinal model with all columns
COLUMNS = ["protocol", "split", "model", "rmse", "seconds"]


def benchmarks(splits: Iterable[int] = range(3), folds: Iterable[int] = range(1, 6)) -> pd.DataFrame:
    """RMSE (stars) measured on the protocols of `PUBLISHED` whose ratings are at hand, a row a split.

    Columns: `COLUMNS`. Random fifth s is that of `accuracy`. The folds need GroupLens' own ml-100k, the
    random tenth a kept ml-1m (10% from `default_rng(0)`); what isn't there is named on stderr.
    """
    ratings, rows = load_ratings(genres=True, users=True), []
    for split in splits:
        held = _fifth(len(ratings), split)[0]
        rows += [(FIFTHS, f"fifth {split}", *row) for row in measured(ratings, held)]
    try:
        for fold in folds:
            ratings = load_ratings(genres=True, users=True, fold=fold)
            held = np.flatnonzero(ratings["held_out"])
            rows += [(FOLDS, f"u{fold}", *row) for row in measured(ratings, held)]
    except RatingsUnavailable as error:
        print(f"{FOLDS}: left out, {error}", file=sys.stderr)
    try:
        ratings = load_ratings("ml-1m", genres=True, users=True)
        held = np.random.default_rng(0).permutation(len(ratings))[: len(ratings) // 10]
        rows += [(MILLION, "tenth 0", *row) for row in measured(ratings, held, large=True)]
    except RatingsUnavailable as error:
        print(f"{MILLION}: left out, {error}", file=sys.stderr)
    return pd.DataFrame(rows, columns=COLUMNS)


def measured(ratings: pd.DataFrame, held: np.ndarray, models: int = 10, large: bool = False) -> list[tuple]:
    """(model, RMSE, seconds of fitting) of our models and of the peers installed; `held` are positions.

    With `large`, ours alone, fewer and in large batches; settings chosen on a part of ml-1m's training rows.
    """
    names = columns_in(ratings)
    movie = [name for name in ("raters", "genres", "year") if name in names]
    ids, stars = partial(learner, ratings), partial(stars_learner, ratings, columns=names)

    def told(columns: list[str], n_factors: int = N_FACTORS) -> Callable:
        return partial(learner, ratings, with_columns(ratings, columns, n_factors))

    if large:
        wide = partial(stars, n_factors=100)
        quick = big_batch(len(ratings) - len(held))
        kinds = {
            "one model, ids only": (1, ids, quick),
            "one model, raters, genres, year": (1, told(movie), quick | {"wd": 0.8}),
            "one model, all columns, 100 factors": (1, told(names, 100), LARGE),
            "mean of 3, all columns, 100 factors": (3, told(names, 100), LARGE),
            "mean of 3 ordinal models, all columns, 100 factors": (3, wide, LARGE_STARS),
        }
        peers = {}
    else:
        kinds = {
            "one model, raters, genres, year": (1, told(movie), QUICK),
            f"mean of {models}, ids only": (models, ids, {"bs": ENSEMBLE["bs"]}),
            "one model, all columns": (1, told(names), SETTINGS),
            f"mean of {models}, all columns": (models, told(names), SETTINGS),
            "one ordinal model, all columns": (1, stars, STARS),
            f"mean of {models} ordinal models, all columns": (models, stars, STARS),
        }
        peers = {f"{name}, ids only": peer for name, peer in installed().items()}
        if "myFM, rank 10, ids only" in peers:
            peers["myFM, rank 10, all columns"] = lambda *_: _myfm_columns(ratings, held, names)
    ours = {name: partial(_fitted, held, n, make, **given) for name, (n, make, given) in kinds.items()}
    return list(judged(check_ratings(ratings), held, ours, peers))


def _fitted(held: np.ndarray, models: int, make: Callable, bs: int, epochs=EPOCHS, lr=LR, wd=WD) -> Predicted:
    """The mean prediction of models that `make` makes, one a seed, for the rows `held`."""
    learns = [make(seed=s, bs=bs, split=held) for s in range(models)]
    _, seconds = timed(fit, learns, epochs, lr, wd)
    given = validated(learns)
    return given if given.ndim == 1 else given @ learns[0].loss_func.stars.double().numpy(), seconds


def _myfm_columns(ratings: pd.DataFrame, held: np.ndarray, names: list[str]) -> Predicted:
    """myFM with the bags, values and spans of time that our models get."""
    from myfm import RelationBlock

    learn = learner(ratings, with_columns(ratings, dict.fromkeys(names, 1.0)), split=held)
    model, sides = learn.model, []
    for bags in (model.user_bags, model.movie_bags):
        starts = np.append(bags.rows_starts, len(bags.rows_index))
        entries = sparse.csr_matrix((bags.rows_weights.numpy(), bags.rows_index.numpy(), starts))
        entries.resize(len(bags.rows_starts), len(bags.table))
        sides.append(sparse.hstack([sparse.identity(entries.shape[0]), entries]).tocsr().astype(float))

    def told(dl) -> tuple:
        x, y = dl.rows(torch.arange(dl.n))
        spans = np.zeros(dl.n, int) if model.clock is None else model.clock.span(x).numpy()
        main = sparse.csr_matrix((np.ones(dl.n), (np.arange(dl.n), spans)), shape=(dl.n, SPANS + 1))
        blocks = [RelationBlock(x[:, side].numpy(), sides[side]) for side in (0, 1)]
        return main, blocks, y[:, 0].double().numpy()

    shapes = [SPANS + 1, *(n for ids, every in (side.shape for side in sides) for n in (ids, every - ids))]
    (main, blocks, y), (held_main, held_blocks, _) = map(told, learn.dls)
    fm, seconds = fitted_myfm(main, y, shapes, X_rel=blocks)
    return fm.predict(held_main, held_blocks), seconds


def beside(found: pd.DataFrame) -> pd.DataFrame:
    """`benchmarks`' means beside `PUBLISHED`: protocol, model, rmse, seconds, source; best first in each."""
    extra = found[found["split"] == "u1"].assign(protocol=FOLD_1)
    found = pd.concat([found, extra]).groupby(["protocol", "model"], as_index=False)
    listed = pd.DataFrame(PUBLISHED, columns=["protocol", "model", "rmse", "source"])
    both = pd.concat([found[["rmse", "seconds"]].mean().assign(source="measured here"), listed])
    order = {name: n for n, name in enumerate((FIFTHS, FOLD_1, FOLDS, MILLION, TEN_MILLION))}
    both = both.sort_values(["protocol", "rmse"], key=lambda c: c.map(order) if c.name == "protocol" else c)
    return both[["protocol", "model", "rmse", "seconds", "source"]].reset_index(drop=True)
