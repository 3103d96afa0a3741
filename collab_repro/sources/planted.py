"""Made-up ratings, drawn from planted biases and factors that a trained model can be compared with."""

from typing import NamedTuple

import numpy as np
import pandas as pd

MEAN = 3.53  # stars


class Truth(NamedTuple):
    """What planted ratings were drawn from, in stars before rounding.

    `user_bias` is indexed by user id, `movie_bias` by title. The dot product of a row of `user_factors`
    (n_users, n_factors) and a row of `movie_factors` (n_movies, n_factors) is in stars too.
    """

    mean: float
    user_bias: pd.Series
    movie_bias: pd.Series
    user_factors: pd.DataFrame
    movie_factors: pd.DataFrame


def planted_ratings(
    n_users: int = 943, n_movies: int = 1664, n_ratings: int = 100_000, n_factors: int = 4, seed: int = 0
) -> tuple[pd.DataFrame, Truth]:
    """Made-up ratings with the chapter's columns: user, movie, rating, timestamp, title; and their truth.

    A rating is mean + user bias + movie bias + dot product + noise, rounded to 1 to 5 whole stars. The
    numbers of ratings per user and per movie have long tails, as in MovieLens. No user rates a movie
    twice. The default sizes are those of MovieLens 100K. The seed and the sizes determine everything.
    Titles are text, or categories where there are more than a million ratings.

    Raises ValueError for more than nine tenths of all pairs. It gets slow from half of them on.
    """
    if n_ratings > 0.9 * n_users * n_movies:
        raise ValueError(f"{n_ratings:,} ratings need more than {n_users:,} users x {n_movies:,} movies")
    rng = np.random.default_rng(seed)
    user_bias, movie_bias = rng.normal(0, 0.4, n_users), rng.normal(0, 0.55, n_movies)
    scale = 0.5 / np.sqrt(max(n_factors, 1)) ** 0.5
    user_factors, movie_factors = (rng.normal(0, scale, (n, n_factors)) for n in (n_users, n_movies))

    users, movies = _pairs(rng, n_users, n_movies, n_ratings)
    stars = MEAN + user_bias[users] + movie_bias[movies] + rng.normal(0, 0.8, n_ratings)
    for f in range(n_factors):  # one factor at a time: no (n_ratings, n_factors) copy
        stars += user_factors[users, f] * movie_factors[movies, f]

    titles = np.array([f"Film {m + 1:0{len(str(n_movies))}} ({1930 + m % 69})" for m in range(n_movies)])
    ratings = pd.DataFrame({"user": users + 1, "movie": movies + 1})
    ratings["rating"] = np.clip(np.rint(stars), 1, 5).astype(np.int64)
    ratings["timestamp"] = 880_000_000 + rng.integers(0, 10_000_000, n_ratings)
    ratings["title"] = pd.Categorical.from_codes(movies, titles)
    if n_ratings <= 1_000_000:
        ratings["title"] = ratings["title"].astype(str)
    source = f"planted ratings ({n_ratings:,} made up from seed {seed}; not MovieLens)"
    ratings.attrs.update(name="synthetic", source=source)
    by_user, by_title = pd.RangeIndex(1, n_users + 1, name="user"), pd.Index(titles, name="title")
    biases = pd.Series(user_bias, by_user, name="bias"), pd.Series(movie_bias, by_title, name="bias")
    factors = pd.DataFrame(user_factors, by_user), pd.DataFrame(movie_factors, by_title)
    return ratings, Truth(MEAN, *biases, *factors)


def _pairs(rng: np.random.Generator, n_users: int, n_movies: int, n: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` different pairs of a user and a movie, in random order; users and movies have long tails."""
    activity = rng.permutation(rng.lognormal(0, 1.0, n_users))
    popularity = rng.permutation(1 / (np.arange(n_movies) + 20) ** 1.1)
    cum_u, cum_m = (np.cumsum(p / p.sum()) for p in (activity, popularity))
    pairs = np.empty(0, np.int64)
    while len(pairs) < n:
        size = int(1.3 * (n - len(pairs))) + 1000
        users = np.minimum(np.searchsorted(cum_u, rng.random(size)), n_users - 1)
        movies = np.minimum(np.searchsorted(cum_m, rng.random(size)), n_movies - 1)
        pairs = np.sort(np.concatenate([pairs, users * n_movies + movies]))
        pairs = pairs[np.append(True, pairs[1:] > pairs[:-1])]  # np.unique, which is slower for millions
    pairs = rng.permutation(pairs)[:n]
    return pairs // n_movies, pairs % n_movies
