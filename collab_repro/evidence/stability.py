"""How far models of the same ratings agree on what they learned, seed by seed.

Every function takes `learns`, Learners or `Learned`s of the same ratings. Two seeds differ in split,
initial weights and batch order, unless the caller fixed some of them (see `learner`).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
from scipy.special import stdtrit

from ..interpret import MIN_RATINGS, UnknownTitle, movie_bias, movie_factors, n_ratings
from ..recommending.learned import Learn, Learned


def bias_table(learns: Iterable[Learn], level: float = 0.95) -> pd.DataFrame:
    """Each title's bias over the seeds, lowest mean first, for the titles that all seeds know.

    Columns: mean, sd (over seeds); low and high, the interval that contains another seed's bias with
    probability `level` (mean -+ t sd sqrt(1 + 1/S)); best_rank and worst_rank over seeds, 1 for the highest
    bias; n_ratings, the training rows, mean over seeds. With one seed, sd, low and high are NaN.
    """
    learns = [Learned.of(learn) for learn in learns]
    bias, n = _by_seed(movie_bias, learns).astype(float), len(learns)
    ranks = bias.rank(ascending=False, method="first").astype(int)
    mean, sd = bias.mean(axis=1), bias.std(axis=1)
    reach = stdtrit(n - 1, (1 + level) / 2) * sd * np.sqrt(1 + 1 / n)
    table = {"mean": mean, "sd": sd, "low": mean - reach, "high": mean + reach}
    table |= {"best_rank": ranks.min(axis=1), "worst_rank": ranks.max(axis=1)}
    table |= {"n_ratings": _by_seed(n_ratings, learns).mean(axis=1)}
    table = pd.DataFrame(table, bias.index).sort_values("mean", kind="stable")
    sources = dict.fromkeys(learned.note.get("source", "") for learned in learns)
    table.attrs["source"] = ", ".join([*filter(None, sources), f"{n} seed{'s' * (n != 1)}"])
    return table


def bias_rank_correlation(learns: Iterable[Learn], min_ratings: int = 0) -> pd.DataFrame:
    """Spearman's correlation of the biases, (S, S), over titles with `min_ratings` training rows in all."""
    learns = [Learned.of(learn) for learn in learns]
    bias = _by_seed(movie_bias, learns).astype(float)
    return bias.loc[_often_rated(learns, min_ratings)].corr("spearman")


def neighbour_overlap(
    learns: Iterable[Learn],
    titles: Sequence[str] | None = None,
    n: int = 5,
    by: str = "cosine",
    min_ratings: int = MIN_RATINGS,
) -> pd.Series:
    """By title, the share of its `n` nearest neighbours that two seeds have in common, mean over all pairs.

    `titles` defaults to the 100 most rated; neighbours are those of `similar_movies`, among titles with
    `min_ratings` in all seeds. `.attrs["chance"]` is the share that random ones would have in common.
    Raises `UnknownTitle`, and ValueError for fewer than two learns or fewer than n + 1 candidates.
    """
    from sklearn.metrics import pairwise_distances

    learns = [Learned.of(learn) for learn in learns]
    known = _often_rated(learns, min_ratings)
    if len(learns) < 2 or len(known) <= n:
        raise ValueError(f"{len(learns)} learns, {len(known)} titles: too few to compare {n} neighbours")
    counts = _by_seed(n_ratings, learns).sum(axis=1).sort_values(ascending=False, kind="stable")
    titles = counts.index[:100] if titles is None else pd.Index(titles, name=counts.index.name)
    if len(unknown := titles.difference(counts.index)):
        raise UnknownTitle(f"no title {unknown[0]!r} in all of them")
    votes = np.zeros((len(titles), len(known)))  # seeds that have this neighbour
    itself = known.get_indexer(titles)[:, None] == np.arange(len(known))
    for factors in map(movie_factors, learns):
        factors = factors.astype(float)
        distance = pairwise_distances(factors.loc[titles], factors.loc[known], metric=by)
        distance[itself] = np.inf
        near = distance.argsort(axis=1, kind="stable")[:, :n]
        votes[np.arange(len(titles))[:, None], near] += 1
    pairs = len(learns) * (len(learns) - 1)
    overlap = pd.Series((votes * (votes - 1)).sum(axis=1) / (n * pairs), titles, name="overlap")
    overlap.attrs["chance"] = n / (len(known) - 1)
    return overlap


def aligned_factors(learns: Iterable[Learn], min_ratings: int = MIN_RATINGS) -> list[pd.DataFrame]:
    """The movie factors of each of `learns`, rotated to be as close as possible to the first one's.

    Rotating all factors changes no prediction, so factors can be compared only after this. Each frame is
    title x factor, for titles with `min_ratings` in all. `.attrs["left"]` is the squared distance to the
    first one by the first one's squared length: 0 for a mere rotation, about 2 for unrelated factors of the
    same length; `.attrs["before"]` is the same before rotating.
    """
    from scipy.linalg import orthogonal_procrustes

    learns = [Learned.of(learn) for learn in learns]
    known = _often_rated(learns, min_ratings)
    tables = [movie_factors(learned).loc[known].astype(float) for learned in learns]
    aligned = [table @ orthogonal_procrustes(table, tables[0])[0] for table in tables]
    for before, after in zip(tables, aligned, strict=True):
        for when, table in (("before", before), ("left", after)):
            distance = np.linalg.norm(table - tables[0]) / np.linalg.norm(tables[0])
            after.attrs[when] = float(distance**2)
    return aligned


def rotated(learn: Learn, seed: int = 0) -> Learned:
    """`learn` with all its factors turned by one random rotation: its predictions stay the same."""
    from scipy.stats import ortho_group

    learned = Learned.of(learn)
    k = learned.user_factors.shape[1]
    turn = ortho_group.rvs(k, random_state=seed) if k > 1 else -np.ones((1, 1))
    factors = (learned.user_factors @ turn, learned.movie_factors @ turn)
    users, movies = (table.astype(np.float32) for table in factors)
    return replace(learned, user_factors=users, movie_factors=movies)


def _by_seed(read, learns: Sequence[Learned]) -> pd.DataFrame:
    """What `read` tells of each of `learns`, title x seed, for the titles that all of them know."""
    return pd.concat(map(read, learns), axis=1, join="inner", keys=range(len(learns)))


def _often_rated(learns: Sequence[Learned], min_ratings: int) -> pd.Index:
    """The titles with at least `min_ratings` training ratings in all of `learns`."""
    fewest = _by_seed(n_ratings, learns).min(axis=1)
    return fewest.index[fewest >= min_ratings]
