"Planted ratings: the chapter's columns and size, long tails, one seed, and a truth that models find."

import time

import numpy as np
import pandas as pd
import pytest

from collab_repro.interpret import movie_bias
from collab_repro.synthetic import planted_ratings
from collab_repro.training import fit, learner


def small(**sizes):
    return planted_ratings(**{"n_users": 50, "n_movies": 40, "n_ratings": 500, "n_factors": 2, **sizes})


def test_the_same_seed_gives_the_same_ratings_and_truth():
    (first, truth), (again, same) = small(seed=7), small(seed=7)
    pd.testing.assert_frame_equal(first, again)
    for name in ("user_bias", "movie_bias"):
        pd.testing.assert_series_equal(getattr(truth, name), getattr(same, name))
    for name in ("user_factors", "movie_factors"):
        pd.testing.assert_frame_equal(getattr(truth, name), getattr(same, name))


def test_another_seed_gives_other_ratings():
    (first, truth), (other, its) = small(seed=7), small(seed=8)
    assert not first[["user", "movie", "rating"]].equals(other[["user", "movie", "rating"]])
    assert not np.allclose(truth.movie_bias, its.movie_bias)


def test_the_global_random_state_is_neither_used_nor_moved():
    np.random.seed(1)
    before = np.random.get_state()[1].copy()
    first, _ = small()
    assert (np.random.get_state()[1] == before).all()
    np.random.seed(2)
    pd.testing.assert_frame_equal(first, small()[0])


def test_the_defaults_have_movielens_100ks_size_and_columns(planted_full):
    ratings, truth = planted_full
    assert list(ratings.columns) == ["user", "movie", "rating", "timestamp", "title"]
    assert len(ratings) == 100_000
    assert ratings["user"].between(1, 943).all() and ratings["movie"].between(1, 1664).all()
    assert ratings["user"].nunique() > 900 and ratings["movie"].nunique() > 1500
    assert len(truth.user_bias) == len(truth.user_factors) == 943
    assert len(truth.movie_bias) == len(truth.movie_factors) == 1664


def test_ratings_are_whole_stars_from_1_to_5_all_of_them_in_use(planted_full):
    ratings, _ = planted_full
    assert ratings["rating"].dtype == np.int64
    assert set(ratings["rating"]) == {1, 2, 3, 4, 5}
    assert ratings["rating"].mean() == pytest.approx(3.5, abs=0.25)


def test_no_user_rates_a_movie_twice(planted_full):
    assert not planted_full[0].duplicated(["user", "movie"]).any()


def test_sizes_are_kept_even_where_nearly_all_pairs_are_wanted():
    ratings, _ = small(n_users=10, n_movies=10, n_ratings=90)
    assert len(ratings) == 90 and not ratings.duplicated(["user", "movie"]).any()


@pytest.mark.parametrize("column", ["user", "title"])
def test_activity_and_popularity_have_long_tails(planted_full, column):
    counts = planted_full[0][column].value_counts()
    top_tenth = counts.iloc[: len(counts) // 10].sum() / counts.sum()
    assert top_tenth > 0.3, f"the top tenth has {top_tenth:.0%}; evenly it would have 10 %"
    assert counts.min() < counts.mean() / 5 and counts.max() > 4 * counts.mean()


def test_a_title_is_made_up_and_stands_for_one_movie(planted_full):
    ratings, truth = planted_full
    assert ratings["title"].str.fullmatch(r"Film \d{4} \(19\d\d\)").all()
    assert ratings.groupby("movie")["title"].nunique().eq(1).all()
    assert ratings.groupby("title")["movie"].nunique().eq(1).all()
    assert set(ratings["title"]) <= set(truth.movie_bias.index)


def test_the_name_says_that_the_ratings_are_synthetic(planted):
    assert planted.attrs["name"] == "synthetic" and "not MovieLens" in planted.attrs["source"]


def test_the_chapters_size_takes_less_than_a_second_of_work():
    started = time.process_time()
    planted_ratings()
    assert time.process_time() - started < 1


def test_a_million_titles_are_categories_and_fewer_are_text():
    assert small()[0]["title"].map(type).eq(str).all()
    ratings, _ = planted_ratings(30_000, 20_000, 1_000_001, n_factors=1)
    assert isinstance(ratings["title"].dtype, pd.CategoricalDtype)


@pytest.mark.parametrize("n_ratings", [2000, 1801])
def test_more_ratings_than_pairs_are_refused_with_the_numbers(n_ratings):
    with pytest.raises(ValueError, match=f"{n_ratings:,} ratings .* 50 users x 40 movies"):
        small(n_ratings=n_ratings)


def test_mean_stars_follow_the_planted_biases(planted_full):
    ratings, truth = planted_full
    stars = ratings.groupby("title")["rating"].agg(["mean", "size"])
    stars = stars[stars["size"] >= 50]
    assert stars["mean"].corr(truth.movie_bias[stars.index], method="spearman") > 0.9
    users = ratings.groupby("user")["rating"].agg(["mean", "size"])
    users = users[users["size"] >= 50]
    assert users["mean"].corr(truth.user_bias[users.index], method="spearman") > 0.85


def test_the_planted_factors_are_in_the_ratings(planted_full):
    ratings, truth = planted_full
    users, movies = truth.user_factors.loc[ratings["user"]], truth.movie_factors.loc[ratings["title"]]
    tastes = (users.to_numpy() * movies.to_numpy()).sum(axis=1)
    biases = truth.user_bias[ratings["user"]].to_numpy() + truth.movie_bias[ratings["title"]].to_numpy()
    left = ratings["rating"].to_numpy() - truth.mean - biases
    assert np.corrcoef(left, tastes)[0, 1] > 0.2


def test_the_chapters_model_learns_the_planted_movie_biases(planted_full):
    ratings, truth = planted_full
    learn = learner(ratings, seed=0)
    fit([learn], epochs=5, lr=5e-3, wd=0.1)
    learned = movie_bias(learn)
    counts = ratings["title"].value_counts()
    known = counts.index[counts >= 50]
    assert len(known) > 300
    assert learned[known].corr(truth.movie_bias[known], method="spearman") > 0.9
