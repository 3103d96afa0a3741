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
from ..speed.fitting import KNOWN_MODULES
from ..training import learner
from .columns import with_columns


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
        user, movie = (
            t(x[:, i]).view(len(x), self.stars, -1) for i, t in enumerate((self.users, self.movies))
        )
        logits = (user[..., :-1] * movie[..., :-1]).sum(dim=2) + user[..., -1] + movie[..., -1]
        return (self.start + logits).log_softmax(dim=1)  # (bs, n_stars)


class Ordinal(nn.Module):
    """One score, and cut points that divide the line of scores into stars.

    P(rating <= star k) = sigmoid(cut k - score). The cut points start where the training rows' `shares` of
    stars would put them. With `own`, each user's cut points are moved apart or together by a row of `moves`,
    (n_users, n_stars - 1), which weight decay draws to zero: back to the cut points of all.
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
        first, gaps = (self.start + self.moves(user * self.own)).split([1, len(self.start) - 1], dim=1)
        return torch.cat([first, first + gaps.exp().cumsum(dim=1)], dim=1)

    def forward(self, x: Tensor) -> Tensor:
        below = (self.cuts(x[:, 0]) - self.score(x).view(-1, 1)).sigmoid()  # (bs, n_stars - 1)
        edges = torch.zeros_like(below[:, :1])
        return torch.cat([edges, below, 1 - edges], dim=1).diff(dim=1).clamp_min(1e-6).log()  # (bs, n_stars)


KNOWN_MODULES.update(
    {LinearOnScore, LogitsForEach, Ordinal}
)  # `fit` may train them in processes of their own
HEADS = {
    "linear layer on the score": LinearOnScore,
    "logits for each star": LogitsForEach,
    "ordinal": Ordinal,
    "ordinal, cut points of each user": lambda *args: Ordinal(*args, own=True),
}


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
    each star", which has no score to add them to; errors of `learner` and `with_columns`.
    """
    if head not in HEADS:
        raise ValueError(f"no head {head!r}: choose from {list(HEADS)}")
    if columns and HEADS[head] is LogitsForEach:
        raise ValueError(f"{head!r} takes no columns")
    stars = []

    def model(dls) -> nn.Module:
        rated = dls.train.dataset.items[dls.train.dataset.y_names[0]]
        shares = rated.value_counts(normalize=True).sort_index()
        stars.append(torch.tensor(shares.index.to_numpy(np.float32)))
        sizes, shares = list(map(len, dls.classes.values())), torch.tensor(shares.to_numpy(np.float32))
        if HEADS[head] is LogitsForEach:
            return LogitsForEach(*sizes, n_factors, shares)
        y_range = Y_RANGE if HEADS[head] is LinearOnScore else None
        score = with_columns(ratings, columns, n_factors, y_range)(dls)
        return HEADS[head](score, sizes[0], shares)

    learn = learner(ratings, model, seed, **settings)
    learn.loss_func = LogLoss(*stars)
    return learn
