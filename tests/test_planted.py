"""Planted ratings: the chapter's columns and size, long tails, one seed, and a truth that models find."""

import time

import numpy as np
import pandas as pd
import pytest

from collab_repro.interpret import movie_bias
from collab_repro.sources import planted, planted_ratings
from collab_repro.training import fit, learner


def small(**sizes):
    return planted_ratings(**{"n_users": 50, "n_movies": 40, "n_ratings": 500, "n_factors": 2, **sizes})


def test_the_seed_alone_determines_ratings_and_truth():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    (first, truth), (other, others) = small(seed=7), small(seed=8)
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(2)
    again, same = small(seed=7)
    pd.testing.assert_frame_equal(first, again)
    for name in ("user_bias", "movie_bias", "user_factors", "movie_factors"):
        assert getattr(truth, name).equals(getattr(same, name))
        assert not np.allclose(getattr(truth, name), getattr(others, name))
    assert not first[["user", "movie", "rating"]].equals(other[["user", "movie", "rating"]])


def test_the_defaults_have_movielens_100ks_size_and_columns(planted_full):
    ratings, truth = planted_full
    assert list(ratings.columns) == ["user", "movie", "rating", "timestamp", "title"]
    assert ratings.attrs["name"] == "synthetic" and "not MovieLens" in ratings.attrs["source"]
    assert len(ratings) == 100_000 and not ratings.duplicated(["user", "movie"]).any()
    assert ratings["user"].between(1, 943).all() and ratings["movie"].between(1, 1664).all()
    assert ratings["user"].nunique() > 900 and ratings["movie"].nunique() > 1500
    assert len(truth.user_bias) == len(truth.user_factors) == 943
    assert len(truth.movie_bias) == len(truth.movie_factors) == 1664
    assert ratings["rating"].dtype == np.int64 and set(ratings["rating"]) == {1, 2, 3, 4, 5}
    assert ratings["rating"].mean() == pytest.approx(3.5, abs=0.25)
    assert ratings["rating"].std() == pytest.approx(1.13, abs=0.15)  # MovieLens 100K's
    assert ratings["title"].str.fullmatch(r"Film \d{4} \(19\d\d\)").all()
    assert ratings.groupby("movie")["title"].nunique().eq(1).all()
    assert ratings.groupby("title")["movie"].nunique().eq(1).all()
    assert set(ratings["title"]) <= set(truth.movie_bias.index)


@pytest.mark.parametrize("column", ["user", "title"])
def test_activity_and_popularity_have_long_tails(planted_full, column):
    counts = planted_full[0][column].value_counts()
    top_tenth = counts.iloc[: len(counts) // 10].sum() / counts.sum()
    assert top_tenth > 0.3, f"the top tenth has {top_tenth:.0%}; evenly it would have 10 %"
    assert counts.min() < counts.mean() / 5 and counts.max() > 4 * counts.mean()


def test_sizes():
    ratings, _ = small(n_users=10, n_movies=10, n_ratings=90)  # nine tenths of all pairs
    assert len(ratings) == 90 and not ratings.duplicated(["user", "movie"]).any()
    for n_ratings in (2000, 1801):
        with pytest.raises(ValueError, match=f"{n_ratings:,} ratings .* 50 users x 40 movies"):
            small(n_ratings=n_ratings)


def test_the_chapters_size_takes_less_than_a_second_of_work():
    started = time.process_time()
    planted_ratings()
    assert time.process_time() - started < 1


@pytest.mark.parametrize(("n_ratings", "text"), [(1_000_000, True), (1_000_001, False)])
def test_titles_are_text_up_to_a_million_ratings_and_then_categories(monkeypatch, n_ratings, text):
    monkeypatch.setattr(
        planted, "_pairs", lambda rng, n_users, n_movies, n: np.divmod(np.arange(n), n_movies)
    )
    title = planted_ratings(2_000, 1_000, n_ratings, n_factors=0)[0]["title"]
    assert type(title[0]) is str and isinstance(title.dtype, pd.CategoricalDtype) is not text


def test_mean_stars_follow_the_planted_biases(planted_full):
    ratings, truth = planted_full
    for column, bias, least in (("title", truth.movie_bias, 0.9), ("user", truth.user_bias, 0.85)):
        stars = ratings.groupby(column)["rating"].agg(["mean", "size"])
        stars = stars[stars["size"] >= 50]
        assert stars["mean"].corr(bias[stars.index], method="spearman") > least


def test_the_planted_factors_are_in_the_ratings(planted_full):
    ratings, truth = planted_full
    users, movies = truth.user_factors.loc[ratings["user"]], truth.movie_factors.loc[ratings["title"]]
    tastes = (users.to_numpy() * movies.to_numpy()).sum(axis=1)
    assert tastes.std() == pytest.approx(0.25, abs=0.05)  # stars, for any number of factors
    biases = truth.user_bias[ratings["user"]].to_numpy() + truth.movie_bias[ratings["title"]].to_numpy()
    left = ratings["rating"].to_numpy() - truth.mean - biases
    assert np.corrcoef(left, tastes)[0, 1] > 0.2


def test_the_chapters_model_learns_the_planted_movie_biases():
    ratings, truth = planted_ratings(400, 300, 20_000)
    learn = learner(ratings, seed=0)
    fit([learn], epochs=5, lr=5e-3, wd=0.1)
    counts = ratings["title"].value_counts()
    known = counts.index[counts >= 50]
    assert len(known) > 100
    assert movie_bias(learn)[known].corr(truth.movie_bias[known], method="spearman") > 0.9
