"""What a model learned, read by title. `made` makes the small models of known numbers for other tests too."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from fastai.collab import EmbeddingDotBias
from scipy.stats import spearmanr

from collab_repro import (
    DotProduct,
    DotProductBias,
    DotProductBiasParams,
    Learned,
    compare,
    copy_weights,
    factor_pca,
    fit,
    learner,
    movie_bias,
    movie_factors,
    similar_movies,
)
from collab_repro.interpret import UnknownTitle, movies, n_ratings
from collab_repro.models import tables

BIASED = [DotProductBias, DotProductBiasParams, EmbeddingDotBias]


@pytest.fixture(scope="module")
def learn(planted):
    """The chapter's model, trained a little."""
    torch.set_num_threads(1)
    learn = learner(planted, DotProductBias, seed=0, n_factors=8)
    fit([learn], 3)
    return learn


@pytest.fixture(scope="module")
def learned(learn):
    return Learned.of(learn)


def made(factors, counts=None, bias=None, y_range=(0, 5.5)) -> Learned:
    """A Learned of given movie factors (n, k), with as many users whose factors are all 1."""
    factors = np.array([[0] * len(factors[0]), *factors], np.float32)
    n = len(factors)
    zeros = np.zeros(n, np.float32)
    return Learned(
        users=["#na#", *range(1, n)],
        titles=["#na#", *"ABCDEFGHIJ"[: n - 1]],
        n_ratings=np.array([0, *(counts or [99] * (n - 1))]),
        user_factors=np.ones_like(factors),
        user_bias=zeros,
        movie_factors=factors,
        movie_bias=zeros if bias is None else np.array([9, *bias], np.float32),
        y_range=y_range,
    )


@pytest.mark.parametrize("model", BIASED)
def test_the_same_tables_read_the_same_from_any_model_and_stay_put(planted, learn, learned, model):
    other = learner(planted, model, seed=0, n_factors=8)
    copy_weights(learn.model, other.model)
    other.model.train()
    before = {name: (t.detach().clone(), t.data_ptr()) for name, t in tables(other.model).items()}
    title = n_ratings(other).index[0]
    near = lambda one: similar_movies(one, title, min_ratings=10)  # noqa: E731
    for read in (movie_bias, movie_factors, n_ratings, factor_pca, near):
        table = read(other)
        assert table.equals(read(learned))
        assert table.attrs["source"] == f"{planted.attrs['source']}, {model.__name__}"
    assert all(module.training for module in other.model.modules())
    for name, table in tables(other.model).items():
        was, place = before[name]
        assert torch.equal(table, was) and table.data_ptr() == place and table.requires_grad


@pytest.mark.parametrize(
    "attrs",
    [
        {"source": Path("a.csv")},
        {"source": None, "name": Path("a.csv")},
        {"source": "", "name": "a.csv"},
        {"source": np.array("a.csv"), "name": np.arange(3), "mine": np.arange(3)},
    ],
)
def test_the_source_may_be_any_object(few, attrs):
    few = few.copy()
    few.attrs = attrs
    found = learner(few, n_factors=3)
    assert movie_bias(found).attrs["source"] == movies(found).source == "a.csv, DotProductBias"
    found.dls.train_ds.items.attrs = attrs  # as they come to a Learner without `check_ratings`
    assert movie_bias(found).attrs["source"] == movies(found).source == "a.csv, DotProductBias"
    curves = compare(few, seeds=[0], epochs=1, n_factors=3)
    assert curves["data"].eq(str(attrs.get("name", ""))).all()


def test_movie_bias_is_by_title_lowest_first(planted):
    bias = movie_bias(made([[1], [1], [1]], bias=[0.5, -1, 0.25]))
    assert list(bias.items()) == [("B", -1), ("C", 0.25), ("A", 0.5)] and bias.index.name == "title"
    with pytest.raises(ValueError, match="DotProduct"):  # names the model
        movie_bias(learner(planted, DotProduct, seed=0))


def test_n_ratings_are_of_the_training_rows_most_first(learn):
    counts = n_ratings(learn)
    assert counts.sum() == len(learn.dls.train_ds)
    assert (counts.diff().dropna() <= 0).all()
    assert "#na#" not in counts.index


def test_learned_bias_follows_the_planted_one(planted_full):
    ratings, truth = planted_full
    learn = learner(ratings, DotProductBias, seed=0, bs=512, n_factors=10)
    fit([learn], 5, 2e-2, 0.1)
    often = n_ratings(learn)[lambda n: n >= 50].index
    assert spearmanr(movie_bias(learn)[often], truth.movie_bias[often]).statistic > 0.9


def test_pca_is_of_the_most_rated_in_their_order(learned):
    top = n_ratings(learned).index[:30]
    pca = factor_pca(learned, 3, top=30)
    assert list(pca.index) == list(top) and list(pca.columns) == [0, 1, 2]
    factors = movie_factors(learned).loc[top].to_numpy(float)
    centred = factors - factors.mean(axis=0)
    values, vectors = np.linalg.eigh(centred.T @ centred)
    for component, share in zip(range(3), pca.attrs["explained_variance"], strict=True):
        vector = vectors[:, -1 - component]
        vector = vector * np.sign(vector[np.abs(vector).argmax()])  # the largest loading is positive
        assert np.allclose(pca[component], centred @ vector)
        assert np.isclose(share, values[-1 - component] / values.sum())
    fastais = torch.tensor(movie_factors(learned).loc[top].to_numpy()).pca(3).numpy()
    assert np.allclose(np.abs(pca), np.abs(fastais), atol=1e-4)  # the same but for the signs
    with pytest.raises(ValueError, match="n_components"):
        factor_pca(learned, 9)


def test_neighbours_by_angle_and_by_distance():
    learned = made([[1, 0], [9, 1], [1.2, 0.5], [-1, 0], [0, 3]], counts=[60, 50, 70, 50, 50])
    by_angle = similar_movies(learned, "A", n=3)
    assert list(by_angle.index) == ["B", "C", "E"] and list(by_angle.columns) == ["cosine", "n_ratings"]
    assert np.allclose(by_angle["cosine"], [9 / 82**0.5, 1.2 / 1.3, 0], atol=1e-6)
    by_distance = similar_movies(learned, "A", n=2, by="euclidean")
    assert np.allclose(by_distance["euclidean"], [0.29**0.5, 2])
    assert by_distance["n_ratings"].to_dict() == {"C": 70, "D": 50}
    for wrong in ({"by": "manhattan"}, {"n": -1}):
        with pytest.raises(ValueError, match="by="):
            similar_movies(learned, "A", **wrong)


def test_neighbours_have_enough_ratings_and_are_not_the_title_itself():
    learned = made([[1, 0], [1, 0], [1, 0.1], [1, 0.2]], counts=[3, 49, 50, 51])
    assert list(similar_movies(learned, "A").index) == ["C", "D"]  # although A itself has but 3
    assert set(similar_movies(learned, "C", min_ratings=0).index) == {"A", "B", "D"}
    assert similar_movies(learned, "A", min_ratings=1000).empty
    assert similar_movies(learned, "A", n=0).empty
    with pytest.raises(UnknownTitle, match="'B' has no rating among the training rows"):
        similar_movies(made([[1], [1]], counts=[50, 0]), "B")


def test_a_misspelt_title_brings_suggestions():
    names = ["#na#", "Star Wars (1977)", "Star Trek: First Contact (1996)", "Lawnmower Man 2: Beyond (1996)"]
    others = ["#na#", "Star Wars", "Lawnmower Man 2: A", "Lawnmower Man 2: B"]
    for titles, written, meant in (
        (names, "star wars", "'Star Wars (1977)'"),
        (names, "star", "'Star Wars (1977)' or 'Star Trek: First Contact (1996)'"),
        (names, "Star Wras (1977)", "'Star Wars (1977)'"),
        (names, "Lawmower Man 2", "'Lawnmower Man 2: Beyond (1996)'"),
        (others, "Lawmower Man 2", "'Lawnmower Man 2: B'"),  # the most rated
        *((names, written, "") for written in ("", "zzzzz", "#na#")),
    ):
        counts = [1, 2, 3] if titles is others else None
        with pytest.raises(UnknownTitle) as error:
            similar_movies(replace(made([[1], [1], [1]], counts), titles=titles), written)
        assert str(error.value) == f"no title {written!r}" + (f"; did you mean {meant}?" if meant else "")
        assert isinstance(error.value, KeyError)
