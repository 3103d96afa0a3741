"""How sure one can be: what several seeds of a model learned, against each other.

Every function takes `learns`, Learners or `Learned`s of the same ratings. Two seeds differ in
split, initial weights and batch order, unless the caller fixed some of them (see `learner`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from fastai.learner import Learner
from scipy.linalg import orthogonal_procrustes
from scipy.stats import ortho_group, t
from sklearn.metrics import pairwise_distances

from .interpret import MIN_RATINGS, UnknownTitle, movie_bias, movie_factors, n_ratings
from .learned import Learned

__all__ = [
    "aligned_factors",
    "bias_rank_correlation",
    "bias_table",
    "neighbour_overlap",
    "rotated",
]

Learns = Iterable[Learner | Learned]


def bias_table(learns: Learns, level: float = 0.95) -> pd.DataFrame:
    """Each title's bias over the seeds, lowest mean first, of the titles that all of them know.

    Columns: mean, sd (over seeds), low, high: the interval that another seed's bias falls into with
    probability `level` (mean -+ t sd sqrt(1 + 1/S)); best_rank, worst_rank: the extremes among the
    seeds, 1 for the highest bias; n_ratings: the training rows, mean over seeds.
    With one seed sd, low and high are NaN.
    """
    learns = [Learned.of(learn) for learn in learns]
    bias, n = _biases(learns), len(learns)
    ranks = bias.rank(ascending=False, method="first").astype(int)
    mean, sd = bias.mean(axis=1), bias.std(axis=1)
    reach = t.ppf((1 + level) / 2, n - 1) * sd * np.sqrt(1 + 1 / n)
    table = {"mean": mean, "sd": sd, "low": mean - reach, "high": mean + reach}
    table |= {"best_rank": ranks.min(axis=1), "worst_rank": ranks.max(axis=1)}
    table["n_ratings"] = _counts(learns).mean(axis=1)
    table = pd.DataFrame(table, bias.index).sort_values("mean", kind="stable")
    about = dict.fromkeys(one.note.get("source", "") for one in learns)
    table.attrs["source"] = ", ".join([*filter(None, about), f"{n} seed{'s' * (n != 1)}"])
    return table


def bias_rank_correlation(learns: Learns, min_ratings: int = 0) -> pd.DataFrame:
    """Spearman's rank correlation of the biases of every two of `learns`, (S, S), -1 to 1.

    Of the titles that have `min_ratings` training ratings or more in all of them.
    """
    learns = [Learned.of(learn) for learn in learns]
    return _biases(learns).loc[_known(learns, min_ratings)].corr("spearman")


def neighbour_overlap(
    learns: Learns,
    titles: Sequence[str] | None = None,
    n: int = 5,
    by: str = "cosine",
    min_ratings: int = MIN_RATINGS,
) -> pd.Series:
    """The share of a title's `n` nearest that two seeds agree on, by title, mean over their pairs.

    `titles` default to the 100 most rated; neighbours are those of `similar_movies`, among titles
    with `min_ratings` in all seeds. `.attrs["chance"]` is what random neighbours would share.
    Raises `UnknownTitle`, and ValueError for fewer than two learns or fewer than n + 1 candidates.
    """
    learns = [Learned.of(learn) for learn in learns]
    known = _known(learns, min_ratings)
    if len(learns) < 2 or len(known) <= n:
        raise ValueError(f"{len(learns)} learns, {len(known)} titles: too few to compare {n} of")
    counts = _counts(learns).sum(axis=1).sort_values(ascending=False, kind="stable")
    titles = counts.index[:100] if titles is None else pd.Index(titles, name=counts.index.name)
    if len(strange := titles.difference(counts.index)):
        raise UnknownTitle(f"no title {strange[0]!r} in all of them")
    found = np.zeros((len(titles), len(known)))  # how many seeds find each neighbour
    itself = known.get_indexer(titles)[:, None] == np.arange(len(known))
    for factors in map(movie_factors, learns):
        factors = factors.astype(float)
        distance = pairwise_distances(factors.loc[titles], factors.loc[known], metric=by)
        distance[itself] = np.inf
        near = distance.argsort(axis=1, kind="stable")[:, :n]
        found[np.arange(len(titles))[:, None], near] += 1
    pairs = len(learns) * (len(learns) - 1)
    overlap = pd.Series((found * (found - 1)).sum(axis=1) / (n * pairs), titles, name="overlap")
    overlap.attrs["chance"] = n / (len(known) - 1)
    return overlap


def aligned_factors(learns: Learns, min_ratings: int = MIN_RATINGS) -> list[pd.DataFrame]:
    """Each of `learns`' factors, turned as near to the first one's as a rotation brings them.

    A rotation of all factors changes no prediction (`rotated`), so only turned ones compare. Title
    x factor, of the titles with `min_ratings` in all; `.attrs["left"]` is the share of the first
    one's squared length that is still different: 0 for a mere rotation.
    """
    learns = [Learned.of(learn) for learn in learns]
    known = _known(learns, min_ratings)
    tables = [movie_factors(learned).loc[known].astype(float) for learned in learns]
    aligned = [table @ orthogonal_procrustes(table, tables[0])[0] for table in tables]
    for table in aligned:
        left = np.linalg.norm(table - tables[0]) / np.linalg.norm(tables[0])
        table.attrs["left"] = float(left**2)
    return aligned


def rotated(learn: Learner | Learned, seed: int = 0) -> Learned:
    """`learn` with all its factors turned by one random rotation: it predicts the same."""
    learned = Learned.of(learn)
    k = learned.user_factors.shape[1]
    turn = ortho_group.rvs(k, random_state=seed) if k > 1 else -np.ones((1, 1))
    factors = (learned.user_factors @ turn, learned.movie_factors @ turn)
    users, movies = (table.astype(np.float32) for table in factors)
    return replace(learned, user_factors=users, movie_factors=movies)


def _biases(learns: Sequence[Learned]) -> pd.DataFrame:
    """Title x seed, float64, of the titles that all of them know."""
    biases = [movie_bias(learned).astype(float) for learned in learns]
    return pd.concat(biases, axis=1, join="inner", keys=range(len(learns)))


def _counts(learns: Sequence[Learned]) -> pd.DataFrame:
    """Training ratings, title x seed, of the titles that all of them know."""
    return pd.concat(map(n_ratings, learns), axis=1, join="inner", keys=range(len(learns)))


def _known(learns: Sequence[Learned], min_ratings: int) -> pd.Index:
    """The titles with `min_ratings` training ratings or more in all of `learns`."""
    fewest = _counts(learns).min(axis=1)
    return fewest.index[fewest >= min_ratings]
