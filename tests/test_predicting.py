"""Predicted ratings: those of the Learner, and for users and titles that it doesn't know."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_interpret import BIASED, made

from collab_repro import DotProduct, Learned, fit, learner, predict
from collab_repro.interpret import UnknownId, UnknownTitle


@pytest.fixture(scope="module")
def learned(planted):
    return Learned.of(learner(planted, seed=0, n_factors=8))


@pytest.mark.filterwarnings("ignore:FastLoop steps aside")  # get_preds does look at every batch
@pytest.mark.parametrize("model", [DotProduct, *BIASED])
def test_predictions_are_those_of_the_learner_and_leave_it_alone(planted, model):
    learn = learner(planted, model, seed=0)
    fit([learn], 1)
    learn.model.train()
    rows = learn.dls.valid_ds.items
    vocabularies = learn.dls.classes.items()
    rows = pd.DataFrame({name: rows[name].map(dict(enumerate(ids))) for name, ids in vocabularies})
    before = [p.detach().clone() for p in learn.model.parameters()]
    predictions = predict(learn, rows)
    assert predictions.index.equals(rows.index) and predictions.dtype == float
    assert predict(Learned.of(learn), rows).equals(predictions)
    assert learn.model.training and all(map(torch.equal, before, learn.model.parameters()))
    expected, _ = learn.get_preds(dl=learn.dls.valid)
    assert np.allclose(predictions, expected.numpy().ravel(), atol=1e-5)


def test_unknown_users_and_titles_are_named(learned):
    user, title = learned.users[1], learned.titles[1]
    for users, titles, kind, said in (
        ([user, -7, -8, -9, -10, -7], [title] * 6, UnknownId, "users -7, -8, -9 and 1 more"),
        ([user] * 3, [title, "Film", "#na#"], UnknownTitle, "titles 'Film', '#na#'"),
        ([-7, user], pd.Series([None, np.nan], dtype=object), UnknownId, "users -7; titles None, nan"),
        ([str(user)], [title], UnknownId, f"users '{user}'"),  # the text is not the number
    ):
        with pytest.raises(UnknownId) as error:
            predict(learned, pd.DataFrame({"user": users, "title": titles}))
        assert f"not in the training data: {said} (" in str(error.value) and type(error.value) is kind


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


def test_wrong_settings_and_no_rows(learned):
    with pytest.raises(ValueError, match="unknown='zero'"):
        predict(learned, pd.DataFrame({"user": [1], "title": ["A"]}), unknown="zero")
    with pytest.raises(ValueError, match=r"no columns? 'title'; they need \['user', 'title'\]"):
        predict(learned, pd.DataFrame({"user": [1], "movie": ["A"]}))
    assert predict(learned, pd.DataFrame({"user": [], "title": []})).empty


def test_several_models_predict_their_mean(planted):
    learns, rows = [learner(planted, seed=seed, n_factors=8) for seed in range(3)], planted.head(50)
    each = [predict(learn, rows) for learn in learns]
    assert np.allclose(predict(learns, rows), np.mean(each, axis=0))
    assert np.ptp(each, axis=0).max() > 0.01


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
