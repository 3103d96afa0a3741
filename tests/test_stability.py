"""How far several seeds agree on biases, neighbours and factors."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr
from test_interpret import made

from collab_repro.evidence.stability import (
    aligned_factors,
    bias_rank_correlation,
    bias_table,
    neighbour_overlap,
    rotated,
)
from collab_repro.interpret import UnknownTitle, movie_bias, movie_factors, n_ratings, similar_movies
from collab_repro.models import DotProductBias
from collab_repro.recommending.learned import Learned
from collab_repro.recommending.predicting import predict
from collab_repro.training import fit, learner


@pytest.fixture(scope="module")
def learns(planted):
    """Three seeds of the chapter's model, trained a little."""
    torch.set_num_threads(1)
    learns = [learner(planted, DotProductBias, seed=seed, n_factors=8) for seed in range(3)]
    fit(learns, 3)
    return learns


@pytest.fixture(scope="module")
def learned(learns):
    return Learned.of(learns[0])


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
    assert 0 < second.attrs["left"] < second.attrs["before"] and np.isclose(second.attrs["before"], unaligned)
