"""Somebody new: their factors and bias from their ratings alone, without training."""

from collections.abc import Mapping

import numpy as np
import pandas as pd

from ..interpret import UnknownTitle, suggest, trained
from ..sources import BadRatings
from .learned import Learn
from .predicting import Sides, Together, squash

ADAM_EPS = 1e-5  # fastai's
STAR = 1 / 5.5  # the RMSE of the average user's predictions as a share of y_range, see fold_in
Stars = Mapping[object, float] | pd.Series


def fold_in(learn: Learn, ratings: Stars, wd: float = 0.1, bs: int = 64) -> pd.Series:
    """The factors and bias of somebody new from their `ratings` alone, the films' tables as they are.

    `ratings`: stars by title, a dict or a Series. Returns float64 (k + 1,): the factors, numbered from 0,
    and "bias", which a model without biases lacks; none has a unit. `wd`, `bs`: those of the training.

    It minimises the chapter's loss under the same weight decay. fastai's Adam moves a weight p each step by
    lr * (m / (√v + eps) + wd * p), with m the running mean of its gradients and v that of their squares. So p
    comes to rest where m = -wd * (√v + eps) * p. A user's row has a gradient only in batches that hold one
    of their ratings: with N training rows, batches of `bs`, and g_i the derivative by p of the squared error
    of rating i, m is Σ g_i / N, and v is Σ g_i² / (N bs). That is the minimum of

        Σ (prediction_i - stars_i)² + Σ λ_p p²,    λ_p = wd / 2 * (√(N / bs) √(Σ g_i²) + N eps),

    so n ratings meet a penalty that grows like √n. Two things are chosen here: the g_i are those of the
    average user with errors of one star in 5.5, and p is pulled to the average user instead of zero. (Pulled
    to zero, the RMSE for 100 new users of MovieLens 100K over three seeds was .11 higher with one rating
    each, .006 with half of theirs.) Notebook 06 sets the result beside training again.

    Raises `UnknownTitle`, with suggestions; `BadRatings` for stars that are not numbers inside y_range, and
    for an exported Learner, which does not know its training rows.
    """
    model = Together.of([learn])
    person = fold(model.sides[0], *rated(model, ratings), wd, bs)
    k = model.learned[0].movie_factors.shape[1]
    return pd.Series(person, pd.Index([*range(k), "bias"][: len(person)], dtype=object))


def rated(models: Together, ratings: Stars) -> tuple[np.ndarray, np.ndarray]:
    """The rows of the titles rated, (n,), and their stars, (n,) float64. Raises as `fold_in` does."""
    given = pd.Series(ratings, dtype=object)
    rows = models.titles.get_indexer(given.index)
    if (rows < 0).any():
        title, often = given.index[rows.argmin()], np.argsort(-models.n_ratings, kind="stable")
        raise UnknownTitle(f"no title {title!r}{suggest(title, models.titles[often])}")
    if not (learned := trained(models.n_ratings)[rows]).all():
        title = given.index[learned.argmin()]
        raise UnknownTitle(f"{title!r} has no rating among the training rows: nothing was learned of it")
    stars = pd.to_numeric(given, errors="coerce").to_numpy(float)
    ranges = [side.y_range or (-np.inf, np.inf) for side in models.sides]
    low, high = max(low for low, _ in ranges), min(high for _, high in ranges)
    wrong = ~(np.isfinite(stars) & (low < stars) & (stars < high))
    if wrong.any():
        at = wrong.argmax()
        problem = f"{given.iloc[at]!r} for {given.index[at]!r} is no rating"
        raise BadRatings(f"{problem}; give a number above {low:g} and below {high:g}")
    return rows, stars


def fold(side: Sides, rows: np.ndarray, stars: np.ndarray, wd: float = 0.1, bs: int = 64) -> np.ndarray:
    """`fold_in`'s minimum, (d,), for the titles `rows` (n,) and their `stars` (n,)."""
    from scipy.optimize import least_squares

    average, pull = side.people[0], np.sqrt(penalty(side, rows, wd, bs))

    def residuals(person: np.ndarray) -> np.ndarray:
        return np.append(linear(side, rows, person)[0] - stars, pull * (person - average))

    def jacobian(person: np.ndarray) -> np.ndarray:
        return np.vstack([linear(side, rows, person)[1], np.diag(pull)])

    return least_squares(residuals, average, jacobian, method="lm").x


def penalty(side: Sides, rows: np.ndarray, wd: float, bs: int) -> np.ndarray:
    """The λ of `fold_in` for somebody who rated the titles `rows`, (d,)."""
    low, high = side.y_range or (0, 5.5)
    gradients = 2 * STAR * (high - low) * linear(side, rows, side.people[0])[1]  # (n, d)
    return wd / 2 * (np.sqrt(side.n_rows / bs * (gradients**2).sum(axis=0)) + side.n_rows * ADAM_EPS)


def linear(side: Sides, rows: np.ndarray, person: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Somebody's predictions for the titles `rows`, (n,), and their derivatives by `person`, (n, d)."""
    films = side.films[rows]
    predictions = squash(films @ person + side.offset[rows], side.y_range)
    if side.y_range is None:
        return predictions, films
    low, high = side.y_range
    return predictions, ((predictions - low) * (high - predictions) / (high - low))[:, None] * films


def lifts(
    side: Sides, rows: np.ndarray, stars: np.ndarray, person: np.ndarray, wanted: np.ndarray, wd=0.1, bs=64
) -> np.ndarray:
    """How much each of somebody's ratings raises the score of each of the titles `wanted`, (n_wanted, n).

    `rows` and `stars` as in `fold`, `person` (d,) what it returned. The lift is the score minus what it would
    be without that rating, by one Newton step: exact where there is no sigmoid and the penalty is held.
    """
    predictions, slopes = linear(side, rows, person)
    hessian = slopes.T @ slopes + np.diag(penalty(side, rows, wd, bs))
    moves = np.linalg.solve(hessian, slopes.T)  # (d, n)
    leverage = np.einsum("nd,dn->n", slopes, moves)
    return side.films[wanted] @ moves * ((stars - predictions) / (1 - leverage))
