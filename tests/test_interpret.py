"""What the models learned, read by title; and how far several seeds agree."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.collab import EmbeddingDotBias
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from collab_repro.compare import copy_weights
from collab_repro.interpret import (
    UnknownId,
    UnknownTitle,
    factor_pca,
    movie_bias,
    movie_factors,
    n_ratings,
    predict,
    similar_movies,
)
from collab_repro.learned import Learned
from collab_repro.models import DotProduct, DotProductBias, DotProductBiasParams, tables
from collab_repro.stability import (
    aligned_factors,
    bias_rank_correlation,
    bias_table,
    neighbour_overlap,
    rotated,
)
from collab_repro.training import fit, learner

BIASED = [DotProductBias, DotProductBiasParams, EmbeddingDotBias]


@pytest.fixture(scope="module")
def learns(planted):
    "Three seeds of the chapter's model, trained a little."
    torch.set_num_threads(1)
    learns = [learner(planted, DotProductBias, seed=seed, n_factors=8) for seed in range(3)]
    fit(learns, 3)
    return learns


@pytest.fixture(scope="module")
def learned(learns):
    return Learned.of(learns[0])


def made(factors, counts=None, bias=None, y_range=(0, 5.5)) -> Learned:
    "A Learned of given movie factors (n, k), with as many users whose factors are all 1."
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
def test_the_same_tables_read_the_same_from_any_model_and_stay_put(planted, learns, model):
    learn = learner(planted, model, seed=0, n_factors=8)
    copy_weights(learns[0].model, learn.model)
    learn.model.train()
    before = {name: (t.detach().clone(), t.data_ptr()) for name, t in tables(learn.model).items()}
    title = n_ratings(learn).index[0]
    rows = planted.head(20)
    for read in (
        movie_bias,
        movie_factors,
        n_ratings,
        factor_pca,
        lambda one: similar_movies(one, title, min_ratings=10),
        lambda one: predict(one, rows),
    ):
        found, expected = read(learn), read(Learned.of(learns[0]))
        assert found.equals(expected)
        if list(found.index) != list(rows.index):  # predictions stand on the caller's rows
            assert found.attrs["source"] == f"{planted.attrs['source']}, {model.__name__}"
    assert all(module.training for module in learn.model.modules())
    for name, table in tables(learn.model).items():
        assert torch.equal(table, before[name][0])
        assert table.data_ptr() == before[name][1] and table.requires_grad


def test_movie_bias_is_by_title_lowest_first():
    bias = movie_bias(made([[1], [1], [1]], bias=[0.5, -1, 0.25]))
    assert bias.to_dict() == {"B": -1, "C": 0.25, "A": 0.5}
    assert list(bias.index) == ["B", "C", "A"] and bias.index.name == "title"


@pytest.mark.filterwarnings("ignore:FastLoop steps aside")  # get_preds does look at every batch
def test_a_model_without_biases_says_so(planted):
    learn = learner(planted, DotProduct, seed=0)
    with pytest.raises(ValueError, match="DotProduct has no biases"):
        movie_bias(learn)
    known, _ = learn.get_preds(dl=learn.dls.valid)
    rows = decoded(learn)
    assert np.allclose(predict(learn, rows), known.numpy().ravel(), atol=1e-5)


def test_n_ratings_are_of_the_training_rows_most_first(learns):
    counts = n_ratings(learns[0])
    assert counts.sum() == len(learns[0].dls.train_ds)
    assert (counts.diff().dropna() <= 0).all()
    assert "#na#" not in counts.index


def test_learned_bias_follows_the_planted_one(planted_full):
    ratings, truth = planted_full
    learn = learner(ratings, DotProductBias, seed=0, bs=512, n_factors=10)
    fit([learn], 5, 2e-2, 0.1)
    often = n_ratings(learn)[lambda n: n >= 50].index
    assert spearmanr(movie_bias(learn)[often], truth.movie_bias[often]).statistic > 0.9


# PCA


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


def test_pca_is_fastais_but_for_the_signs(learned):
    ours = factor_pca(learned, 3, top=50)
    theirs = torch.tensor(movie_factors(learned).loc[ours.index].to_numpy()).pca(3).numpy()
    assert np.allclose(np.abs(ours), np.abs(theirs), atol=1e-4)


def test_pca_of_more_components_than_there_are_is_an_error(learned):
    with pytest.raises(ValueError, match="n_components"):
        factor_pca(learned, 9)


# Neighbours


def test_neighbours_by_angle_and_by_distance():
    learned = made([[1, 0], [9, 1], [1.2, 0.5], [-1, 0], [0, 3]], counts=[60, 50, 70, 50, 50])
    by_angle = similar_movies(learned, "A", n=3)
    assert list(by_angle.index) == ["B", "C", "E"] and list(by_angle.columns) == ["cosine", "n_ratings"]
    assert np.allclose(by_angle["cosine"], [9 / 82**0.5, 1.2 / 1.3, 0], atol=1e-6)
    by_distance = similar_movies(learned, "A", n=2, by="euclidean")
    assert np.allclose(by_distance["euclidean"], [0.29**0.5, 2])
    assert by_distance["n_ratings"].to_dict() == {"C": 70, "D": 50}


def test_neighbours_have_enough_ratings_and_are_not_the_title_itself():
    learned = made([[1, 0], [1, 0], [1, 0.1], [1, 0.2]], counts=[3, 49, 50, 51])
    assert list(similar_movies(learned, "A").index) == ["C", "D"]  # although A itself has but 3
    assert set(similar_movies(learned, "C", min_ratings=0).index) == {"A", "B", "D"}
    assert similar_movies(learned, "A", min_ratings=1000).empty
    assert similar_movies(learned, "A", n=0).empty


@pytest.mark.parametrize("wrong", [{"by": "manhattan"}, {"n": -1}])
def test_wrong_settings_of_neighbours(learned, wrong):
    with pytest.raises(ValueError, match="by="):
        similar_movies(learned, n_ratings(learned).index[0], **wrong)


def test_a_misspelt_title_brings_suggestions():
    names = ["#na#", "Star Wars (1977)", "Star Trek: First Contact (1996)", "Lawnmower Man 2: Beyond (1996)"]
    learned = replace(made([[1], [1], [1]]), titles=names)
    for written, meant in {
        "star wars": "'Star Wars (1977)'?",
        "star": "'Star Wars (1977)' or 'Star Trek: First Contact (1996)'?",
        "Star Wras (1977)": "'Star Wars (1977)'?",
        "Lawmower Man 2": "'Lawnmower Man 2: Beyond (1996)'?",
    }.items():
        with pytest.raises(UnknownTitle) as error:
            similar_movies(learned, written)
        assert str(error.value) == f"no title {written!r}; did you mean {meant}"
        assert isinstance(error.value, KeyError)
    again = replace(learned, titles=["#na#", "Star Wars", "Lawnmower Man 2: A", "Lawnmower Man 2: B"])
    with pytest.raises(UnknownTitle, match="did you mean 'Lawnmower Man 2: B'"):  # the most rated
        similar_movies(replace(again, n_ratings=np.array([0, 1, 2, 3])), "Lawmower Man 2")
    for written in ("", "zzzzz", "#na#"):
        with pytest.raises(UnknownTitle) as error:
            similar_movies(learned, written)
        assert str(error.value) == f"no title {written!r}"


def test_a_title_without_training_rows_has_no_neighbours():
    with pytest.raises(UnknownTitle, match="'B' has no rating among the training rows"):
        similar_movies(made([[1], [1]], counts=[50, 0]), "B")


# Predictions


def decoded(learn) -> pd.DataFrame:
    "The validation rows with their own ids again."
    rows = learn.dls.valid_ds.items
    return pd.DataFrame(
        {name: rows[name].map(dict(enumerate(ids))) for name, ids in learn.dls.classes.items()}
    )


@pytest.mark.filterwarnings("ignore:FastLoop steps aside")  # get_preds does look at every batch
@pytest.mark.parametrize("model", BIASED)
def test_predictions_are_those_of_the_learner(planted, model):
    learn = learner(planted, model, seed=0)
    fit([learn], 1)
    rows = decoded(learn)
    predictions = predict(learn, rows)
    assert predictions.index.equals(rows.index) and predictions.dtype == float
    known, _ = learn.get_preds(dl=learn.dls.valid)
    assert np.allclose(predictions, known.numpy().ravel(), atol=1e-5)


def test_unknown_users_and_titles_are_named(learned):
    user, title = learned.users[1], learned.titles[1]
    rows = pd.DataFrame({"user": [user, -7, -8, -9, -10, -7], "title": [title] * 6})
    with pytest.raises(UnknownId) as error:
        predict(learned, rows)
    assert "users -7, -8, -9 and 1 more" in str(error.value) and "titles" not in str(error.value)
    assert not isinstance(error.value, UnknownTitle)
    with pytest.raises(UnknownTitle, match="titles 'Film', '#na#'"):
        predict(learned, pd.DataFrame({"user": user, "title": [title, "Film", "#na#"]}))
    with pytest.raises(UnknownId, match="users -7; titles None, nan"):
        predict(learned, pd.DataFrame({"user": [-7, user], "title": pd.Series([None, np.nan], dtype=object)}))
    with pytest.raises(UnknownId, match=f"users '{user}'"):  # the text is not the number
        predict(learned, pd.DataFrame({"user": [str(user)], "title": [title]}))


def test_unknown_ones_can_be_the_average_of_the_trained():
    learned = made([[1, 0], [3, 2], [50, 50]], counts=[5, 1, 0], bias=[0.5, 1.5, 50], y_range=None)
    learned = replace(learned, user_bias=np.array([50, 1, 2, 6], np.float32))
    rows = pd.DataFrame({"user": [1, "who", "who"], "title": ["what", "A", "what"]}, index=[7, 5, 7])
    average = predict(learned, rows, unknown="average")
    # the average title has factors (2, 1) and bias 1 (C was never rated), the average user bias 3
    assert average.tolist() == [3 + 1 + 1, 1 + 0.5 + 3, 3 + 1 + 3]
    assert average.index.tolist() == [7, 5, 7]
    exported = replace(learned, n_ratings=np.zeros(4, np.int64))
    assert np.isclose(predict(exported, rows, unknown="average").iloc[0], 1 + (52 + 18 * 3 + 52) / 3)


def test_wrong_settings_of_predict(learned):
    with pytest.raises(ValueError, match="unknown='zero'"):
        predict(learned, pd.DataFrame({"user": [1], "title": ["A"]}), unknown="zero")
    with pytest.raises(ValueError, match=r"no column 'title'; they need \['user', 'title'\]"):
        predict(learned, pd.DataFrame({"user": [1], "movie": ["A"]}))


def test_several_models_predict_their_mean(learns, planted):
    rows = planted.head(50)
    each = [predict(learn, rows) for learn in learns]
    assert np.allclose(predict(learns, rows), np.mean(each, axis=0))
    assert np.ptp(each, axis=0).max() > 0.01


def test_no_rows_no_predictions(learned):
    assert predict(learned, pd.DataFrame({"user": [], "title": []})).empty


@settings(max_examples=50, deadline=None)
@example(scale=1e3, y_range=(-2.0, 0.6), seed=0)  # -2 + (.6 + 2) rounds to more than .6
@given(
    scale=st.floats(0, 1e4),
    y_range=st.tuples(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3)).map(lambda r: (r[0], r[0] + r[1])),
    seed=st.integers(0, 99),
)
def test_predictions_lie_inside_y_range(scale, y_range, seed):
    rng = np.random.default_rng(seed)
    learned = made(rng.normal(0, scale, (6, 3)), bias=rng.normal(0, scale, 6), y_range=y_range)
    rows = pd.DataFrame({"user": [*range(1, 7), "new"], "title": [*"ABCDEF", "new"]})
    assert predict(learned, rows, unknown="average").between(*y_range).all()


# Several seeds


def test_bias_table_of_known_numbers():
    learns = [made([[1], [1], [1]], counts=[5, 6, c], bias=[0, b, 3]) for b, c in ((1, 1), (2, 1), (6, 4))]
    table = bias_table(learns)
    assert list(table.index) == ["A", "B", "C"]
    assert table.loc["B", "mean"] == 3 and np.isclose(table.loc["B", "sd"], 7**0.5)
    reach = 4.302653 * 7**0.5 * (1 + 1 / 3) ** 0.5  # t of two degrees of freedom
    assert np.allclose(table.loc["B", ["low", "high"]].astype(float), [3 - reach, 3 + reach])
    assert table.loc["B", ["best_rank", "worst_rank"]].tolist() == [1, 2]
    assert table.loc["A", ["best_rank", "worst_rank"]].tolist() == [3, 3]
    assert table["n_ratings"].tolist() == [5, 6, 2]
    assert bias_table(learns[:1])[["sd", "low", "high"]].isna().all(axis=None)
    assert np.isclose(bias_table(learns, 0.5).loc["B", "high"], 3 + 0.816497 * 7**0.5 * (4 / 3) ** 0.5)


def test_bias_table_is_of_the_titles_all_know(learns, planted):
    other = learner(planted[planted["title"] != planted["title"].iloc[0]], DotProductBias, seed=0)
    assert planted["title"].iloc[0] not in bias_table([*learns, other]).index
    assert len(bias_table(learns)) == planted["title"].nunique()
    assert bias_table(learns).attrs["source"] == f"{planted.attrs['source']}, 3 seeds"


def test_bias_rank_correlation(learns):
    table = bias_rank_correlation(learns)
    first, second = (movie_bias(learn).sort_index() for learn in learns[:2])
    assert np.isclose(table.loc[0, 1], spearmanr(first, second).statistic)
    often = [title for title in first.index if all(n_ratings(learn)[title] >= 30 for learn in learns)]
    expected = spearmanr(first[often], second[often]).statistic
    assert 0 < len(often) < len(first) and np.isclose(bias_rank_correlation(learns, 30).loc[1, 0], expected)


def test_neighbour_overlap_is_that_of_similar_movies(learns):
    common = [t for t in n_ratings(learns[0]).index if all(n_ratings(one)[t] >= 30 for one in learns)]
    overlap = neighbour_overlap(learns, n=4, min_ratings=30)
    for title in overlap.index[:5]:
        near = []
        for learn in learns:
            ranked = similar_movies(learn, title, n=1000, min_ratings=30)
            near.append(set([t for t in ranked.index if t in common][:4]))
        pairs = [(0, 1), (0, 2), (1, 2)]
        assert np.isclose(overlap[title], np.mean([len(near[i] & near[j]) / 4 for i, j in pairs]))
    assert overlap.attrs["chance"] == 4 / (len(common) - 1)
    one = overlap.index[3]
    assert neighbour_overlap(learns, [one], n=4, min_ratings=30).to_dict() == {one: overlap[one]}


def test_neighbour_overlap_runs_from_0_to_1():
    one, other = made([[1, 0], [1, 0.1], [0, 1], [0, 1.5]]), made([[1, 0], [0, 1], [1, 0.1], [0, 1.5]])
    assert neighbour_overlap([one, one, one], n=1).tolist() == [1] * 4
    assert neighbour_overlap([one, other], n=1)["A"] == 0
    assert neighbour_overlap([one, other], n=3).tolist() == [1] * 4  # all the others


def test_neighbour_overlap_of_too_little():
    one = made([[1, 0], [1, 0.1]])
    with pytest.raises(ValueError, match="too few"):
        neighbour_overlap([one], n=1)
    with pytest.raises(ValueError, match="too few"):
        neighbour_overlap([one, one], n=2)
    with pytest.raises(UnknownTitle, match="'Z'"):
        neighbour_overlap([one, one], ["Z"], n=1)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_rotation_changes_every_factor_and_no_prediction(learned, planted, seed):
    turned = rotated(learned, seed)
    rows = planted.head(200)
    assert np.allclose(predict(turned, rows), predict(learned, rows), atol=1e-5)
    assert np.abs(turned.movie_factors - learned.movie_factors).max() > 0.01
    assert np.array_equal(turned.movie_factors, rotated(learned, seed).movie_factors)
    near = [similar_movies(one, learned.titles[1], min_ratings=10) for one in (learned, turned)]
    assert list(near[0].index) == list(near[1].index)


def test_one_factor_rotates_into_its_opposite():
    learned = made([[1], [2]])
    assert rotated(learned).movie_factors.ravel().tolist() == [0, -1, -2]
    assert rotated(learned).user_factors.ravel().tolist() == [-1, -1, -1]


def test_alignment_undoes_a_rotation_and_leaves_what_differs(learned, learns):
    first, turned, halved = aligned_factors(
        [learned, rotated(learned, 5), replace(learned, movie_factors=learned.movie_factors / 2)], 0
    )
    assert np.allclose(turned, first, atol=1e-5) and turned.attrs["left"] < 1e-9
    assert np.isclose(halved.attrs["left"], 0.25)
    assert first.index.equals(n_ratings(learned).index)
    _, second, _ = aligned_factors(learns, 30)
    plain = [movie_factors(learn).loc[second.index].to_numpy() for learn in learns[:2]]
    unaligned = ((plain[1] - plain[0]) ** 2).sum() / (plain[0] ** 2).sum()
    assert 0 < second.attrs["left"] < unaligned
