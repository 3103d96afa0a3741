"""Ratings as classes: a probability for each star, from the chapter's tables, in four ways.

Every model takes a batch `x` (bs, 2) and returns log-probabilities (bs, n_stars); the loss is the log-loss
(cross-entropy in nats). Source of the ordinal model: OrdRec (Koren and Sill, RecSys 2011).
"""

from collections.abc import Iterable

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.layers import Embedding
from fastai.learner import Learner
from torch import Tensor, nn

from ..models import N_FACTORS, Y_RANGE
from ..sources import BadRatings
from ..speed.fitting import KNOWN_MODULES
from ..training import learner
from .columns import with_columns

# Adam moves every number by about the learning rate, so a factor on a table is a learning rate of its own.
SCORE = 3.0  # a star is several units of log-odds wide
MOVE = 5.0


class LinearOnScore(nn.Module):
    """A linear layer on the predicted rating: what public answers to the chapter's task do.

    Its logits are lines over one number, so a star whose line is never the highest is never predicted.
    """

    def __init__(self, score: nn.Module, n_users: int, shares: Tensor):
        super().__init__()
        self.score, self.layer = score, nn.Linear(1, len(shares))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.score(x).view(-1, 1)).log_softmax(dim=1)  # (bs, n_stars)


class LogitsForEach(nn.Module):
    """A `DotProductBias` for each star, and the softmax of their scores: stars have no order."""

    def __init__(self, n_users: int, n_movies: int, n_factors: int, shares: Tensor):
        super().__init__()
        self.stars, size = len(shares), len(shares) * (n_factors + 1)
        self.users, self.movies = Embedding(n_users, size), Embedding(n_movies, size)
        self.register_buffer("start", shares.log())

    def forward(self, x: Tensor) -> Tensor:
        user = self.users(x[:, 0]).view(len(x), self.stars, -1)  # (bs, n_stars, n_factors + 1)
        movie = self.movies(x[:, 1]).view(len(x), self.stars, -1)
        logits = (user[..., :-1] * movie[..., :-1]).sum(dim=2) + user[..., -1] + movie[..., -1]
        return (self.start + SCORE * logits).log_softmax(dim=1)  # (bs, n_stars)


class Ordinal(nn.Module):
    """One score, and cut points that divide the line of scores into stars.

    P(rating <= star k) = sigmoid(cut k - score). The cut points start where the training rows' `shares` of
    stars put them. With `own`, a row of `moves` (n_users, n_stars - 1) moves each user's apart or together;
    weight decay draws it to zero, back to the cut points of all.
    """

    def __init__(self, score: nn.Module, n_users: int, shares: Tensor, own: bool = False):
        super().__init__()
        self.score = score
        cuts = shares.cumsum(0)[:-1].logit()
        self.register_buffer("start", torch.cat([cuts[:1], cuts.diff().log()]))
        self.moves = Embedding(n_users if own else 1, len(cuts))
        self.own = own

    def cuts(self, user: Tensor) -> Tensor:
        """The cut points of users, in increasing order: (bs,) -> (bs, n_stars - 1)."""
        first, gaps = (self.start + MOVE * self.moves(user * self.own)).split([1, len(self.start) - 1], dim=1)
        return torch.cat([first, first + gaps.exp().cumsum(dim=1)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        below = (self.cuts(x[:, 0]) - SCORE * self.score(x).view(-1, 1)).sigmoid()  # (bs, n_stars - 1)
        edges = torch.zeros_like(below[:, :1])
        return torch.cat([edges, below, 1 - edges], dim=1).diff(dim=1).clamp_min(1e-6).log()  # (bs, n_stars)


KNOWN_MODULES.update({LinearOnScore, LogitsForEach, Ordinal})  # `fit` may train them in other processes
HEADS = {
    "linear layer on the score": LinearOnScore,
    "logits for each star": LogitsForEach,
    "ordinal": Ordinal,
    "ordinal, cut points of each user": lambda *args: Ordinal(*args, own=True),
}
# How each, and the MSE model, did best on parts of MovieLens 100K's training rows, in batches of 512.
SETTINGS = {name: {"epochs": 8, "lr": 3e-3, "wd": 0.6} for name in HEADS}
SETTINGS["MSE"] = {"epochs": 5, "lr": 5e-3, "wd": 0.2}
SETTINGS["linear layer on the score"] = {"epochs": 8, "lr": 5e-3, "wd": 0.02}


class LogLoss:
    """Minus the log-probability of the rating, mean over the batch (nats). `stars`: the ratings in order."""

    def __init__(self, stars: Tensor):
        self.stars = stars

    def __call__(self, log_probs: Tensor, y: Tensor) -> Tensor:
        return F.nll_loss(log_probs, torch.searchsorted(self.stars.to(y.device), y.reshape(-1)))


def stars_learner(
    ratings: pd.DataFrame,
    head: str = "ordinal, cut points of each user",
    seed: int = 0,
    columns: Iterable[str] = (),
    n_factors: int = N_FACTORS,
    **settings,
) -> Learner:
    """`learner(ratings, ..., seed)` whose model gives each star a probability by one of `HEADS`.

    Its loss is `LogLoss`; `learn.loss_func.stars` are the different ratings. `columns` as in `with_columns`;
    further `settings` go to `learner`. Raises ValueError for another head, or for columns with "logits for
    each star", which has no score to add them to; `BadRatings` for fewer than two different ratings among the
    training rows or others among the validation rows; errors of `learner` and `with_columns`.
    """
    if head not in HEADS:
        raise ValueError(f"no head {head!r}: choose from {list(HEADS)}")
    if columns and HEADS[head] is LogitsForEach:
        raise ValueError(f"{head!r} takes no columns")
    stars = []

    def model(dls) -> nn.Module:
        rated, held = (dl.dataset.ys.iloc[:, 0].astype(np.float32) for dl in dls)
        shares = rated.value_counts(normalize=True).sort_index()
        if len(shares) < 2:
            raise BadRatings(
                f"all training rows are rated {rated.iloc[0]:g}; classes need two ratings or more"
            )
        if len(other := held[~held.isin(shares.index)]):
            told = f"{len(other):,} of {len(held):,} validation rows have a rating (first {other.iloc[0]:g})"
            raise BadRatings(f"{told} that no training row has; round the ratings, or take another split")
        stars.append(torch.tensor(shares.index.to_numpy(np.float32)))
        sizes, shares = list(map(len, dls.classes.values())), torch.tensor(shares.to_numpy(np.float32))
        if HEADS[head] is LogitsForEach:
            return LogitsForEach(*sizes, n_factors, shares)
        y_range = Y_RANGE if HEADS[head] is LinearOnScore else None
        return HEADS[head](with_columns(ratings, columns, n_factors, y_range)(dls), sizes[0], shares)

    learn = learner(ratings, model, seed, **settings)
    learn.loss_func = LogLoss(*stars)
    return learn


def validated(learns: Iterable[Learner]) -> np.ndarray:
    """The mean prediction of `learns` for their validation rows, which must be the same.

    (n,) stars, or (n, n_stars) probabilities from models with one of `HEADS`.
    """
    each = []
    for learn in learns:
        with learn.no_bar(), learn.no_logging():
            pred = learn.get_preds()[0].double().numpy()
        each.append(np.exp(pred) if isinstance(learn.loss_func, LogLoss) else pred.reshape(-1))
    return np.mean(each, axis=0)


def judge(predicted: np.ndarray, stars: np.ndarray, rated: np.ndarray) -> dict[str, float]:
    """How good predictions are: rmse, mae, accuracy, log_loss, calibration.

    `predicted` is (n, n_stars) probabilities of `stars`, or (n,) ratings, of which only the first three are
    known; `rated` is (n,). RMSE of the expectation, MAE of the median, accuracy of the likeliest star (of the
    nearest one for ratings), log-loss in nats. `calibration` is the expected calibration error: how far the
    probability of the likeliest star is from how often it is right, mean over `reliability`'s bins by rows.
    """
    if predicted.ndim == 1:
        expected = median = predicted
        likeliest = stars[np.abs(predicted[:, None] - stars).argmin(axis=1)]
        log_loss = calibration = np.nan
    else:
        expected, likeliest = predicted @ stars, stars[predicted.argmax(axis=1)]
        median = stars[(predicted.cumsum(axis=1) < 0.5).sum(axis=1).clip(max=len(stars) - 1)]
        log_loss = -np.log(predicted[np.arange(len(rated)), np.searchsorted(stars, rated)]).mean()
        bins = reliability(predicted.max(axis=1), likeliest == rated)
        calibration = ((bins["probability"] - bins["share"]).abs() * bins["rows"]).sum() / len(rated)
    return {
        "rmse": float(np.sqrt(np.mean((expected - rated) ** 2))),
        "mae": float(np.abs(median - rated).mean()),
        "accuracy": float((likeliest == rated).mean()),
        "log_loss": float(log_loss),
        "calibration": float(calibration),
    }


def reliability(probability: np.ndarray, happened: np.ndarray, bins: int = 10) -> pd.DataFrame:
    """What was said and what came, in `bins` equally wide bins of `probability`; both are (n,).

    Columns: probability and share (means of the two), rows; bins without rows are left out.
    """
    at = np.minimum((probability * bins).astype(int), bins - 1)
    table = pd.DataFrame({"probability": probability, "share": happened, "rows": 1}).groupby(at)
    return table.agg({"probability": "mean", "share": "mean", "rows": "sum"})
