"""Somebody new folded in, the titles listed for them, and how well a model ranks, each computed twice."""

import re
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import ndcg_score
from test_interpret import made

from collab_repro import (
    BadRatings,
    DotProduct,
    DotProductBias,
    Learned,
    fit,
    fold_in,
    learner,
    predict,
    ranking,
    recommend,
)
from collab_repro.interpret import UnknownId, UnknownTitle
from collab_repro.recommending import ranked
from collab_repro.recommending.folding import lifts, penalty, rated
from collab_repro.recommending.predicting import Together

KINDS = {
    "bias": (DotProductBias, (0, 5.5)),
    "no bias": (DotProduct, (-1, 7)),
    "no sigmoid": (DotProduct, None),
}


@pytest.fixture(scope="module")
def learns(planted):
    """A trained model of each kind."""
    torch.set_num_threads(1)
    each = {kind: learner(planted, model, 0, n_factors=8, y_range=y) for kind, (model, y) in KINDS.items()}
    fit(each.values())
    return each


@pytest.fixture(scope="module")
def learn(learns):
    return learns["bias"]


@pytest.fixture(scope="module")
def mine(planted):
    """The ratings of one user, by title."""
    return planted[planted["user"] == 7].set_index("title")["rating"]


def person(learned, folded):
    """`learned` with somebody called "me", whom `fold_in` returned."""
    k = learned.movie_factors.shape[1]
    bias = None if learned.user_bias is None else np.append(learned.user_bias, np.float32(folded["bias"]))
    factors = np.vstack([learned.user_factors, folded.iloc[:k].to_numpy(np.float32)])
    return replace(learned, users=[*learned.users, "me"], user_factors=factors, user_bias=bias)


def by_descent(learned, ratings, wd, bs):
    """The minimum that `fold_in` describes, by PyTorch's own derivatives and L-BFGS."""
    rows = [learned.titles.index(title) for title in ratings.index]
    films, people = (torch.tensor(t).double() for t in (learned.movie_factors, learned.user_factors[1:]))
    films, biases = films[rows], torch.zeros(len(rows)).double()
    if learned.movie_bias is not None:
        films = torch.cat([films, torch.ones(len(rows), 1)], 1)
        people = torch.cat([people, torch.tensor(learned.user_bias[1:, None])], 1)
        biases = torch.tensor(learned.movie_bias)[rows].double()
    stars, average, n = torch.tensor(ratings.to_numpy(float)), people.mean(0), learned.n_ratings.sum()

    low, high = learned.y_range or (0, 5.5)

    def predicted(p):
        score = films @ p + biases
        return score if learned.y_range is None else low + (high - low) * score.sigmoid()

    slopes = torch.autograd.functional.jacobian(predicted, average)  # times two, by an error of one star
    star = (high - low) / 5.5
    strength = wd / 2 * ((n / bs) ** 0.5 * (2 * star * slopes).square().sum(0).sqrt() + n * 1e-5)
    p = average.clone().requires_grad_()
    descent = torch.optim.LBFGS([p], max_iter=500, tolerance_change=1e-14, line_search_fn="strong_wolfe")

    def loss():
        descent.zero_grad()
        value = (predicted(p) - stars).square().sum() + (strength * (p - average).square()).sum()
        value.backward()
        return value

    descent.step(loss)
    return p.detach().numpy()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"wd": 0.01, "bs": 16}])
def test_fold_in_is_the_minimum_that_gradient_descent_finds(kind, settings, learns, mine):
    learned = Learned.of(learns[kind])
    for ratings in (mine, mine.head(1), mine.clip(5, 5)):
        folded = fold_in(learns[kind], ratings, **settings)
        assert list(folded.index) == [*range(8), *["bias"] * (kind == "bias")]
        expected = by_descent(learned, ratings, **{"wd": 0.1, "bs": 64, **settings})
        assert np.allclose(folded, expected, atol=1e-4), (kind, len(ratings))
        assert fold_in(learned, dict(ratings), **settings).equals(folded)


def test_no_rating_gives_the_average_user_and_each_moves_away_from_it(learn, planted, mine):
    learned, titles = Learned.of(learn), pd.DataFrame({"title": planted["title"].unique()})
    average = predict(learned, titles.assign(user="nobody"), unknown="average")

    def moved(ratings, **settings):
        me = person(learned, fold_in(learned, ratings, **settings))
        return (predict(me, titles.assign(user="me")) - average).mean()

    assert abs(moved({})) < 1e-6
    one = mine.index[0]
    assert moved({one: 1}) < 0 < moved({one: 5}) < moved(mine.clip(5, 5)) < 2
    assert moved({one: 5}, wd=1) < moved({one: 5}) < moved({one: 5}, wd=0.01)
    assert moved({one: 5}, bs=16) < moved({one: 5})


def test_a_rating_that_cannot_be_used_is_named(learn, learns, mine):
    title = mine.index[0]
    for stars in (0, 5.5, np.nan, None, "good", np.inf):
        with pytest.raises(BadRatings, match=rf"{stars!r} for '.*' is no rating; .* above 0 and below 5.5"):
            fold_in(learn, {title: stars})
    assert np.isfinite(fold_in(learns["no sigmoid"], {title: 9})).all()
    for function in (fold_in, recommend):
        with pytest.raises(UnknownTitle, match=rf"no title '{title[:-6]}'; did you mean '"):
            function(learn, {title: 4, title[:-6]: 4})
    exported = replace(Learned.of(learn), n_ratings=0 * Learned.of(learn).n_ratings)
    with pytest.raises(BadRatings, match="exported"):
        fold_in(exported, mine)


@pytest.mark.filterwarnings("ignore:.* rows repeat a pair")
def test_new_users_of_movielens_are_predicted_as_after_training_again(ml100k):
    new = ml100k["user"].isin(ml100k["user"].drop_duplicates().sample(100, random_state=0))
    order = ml100k[new].sample(frac=1, random_state=0).groupby("user").cumcount().reindex(ml100k.index)
    given = new & (order < ml100k.groupby("user")["user"].transform("size") // 2)
    hidden = ml100k[new & ~given]
    before, again = learner(ml100k[~new], valid_pct=0.01), learner(ml100k, split=(new & ~given).to_numpy())
    fit([before, again])
    learned, errors = (
        Learned.of(before),
        {"again": predict(again, hidden, unknown="average") - hidden["rating"]},
    )
    for name, shown in {"folded": ml100k[given], "average": ml100k[given].head(0)}.items():
        for user, rows in hidden.groupby("user"):
            stars = shown[(shown["user"] == user) & shown["title"].isin(learned.titles)]
            me = person(learned, fold_in(learned, stars.groupby("title")["rating"].mean()))
            found = predict(me, rows.assign(user="me"), unknown="average") - rows["rating"]
            errors[name] = pd.concat([errors.get(name), found])
    rmse = {name: np.sqrt((error**2).mean()) for name, error in errors.items()}
    assert abs(rmse["folded"] - rmse["again"]) < 0.012, rmse
    assert rmse["folded"] < rmse["average"] - 0.08, rmse


def unseen(planted, user, counts, floor):
    seen = planted.loc[planted["user"] == user, "title"]
    return [title for title in counts.index[counts >= floor] if title not in set(seen)]


def counts_of(*learned):
    return pd.concat([pd.Series(one.n_ratings, one.titles)[1:] for one in learned], axis=1).min(axis=1)


@pytest.mark.parametrize("floor", [0, 30])
def test_what_is_listed_is_what_predict_sorts_without_what_was_seen(floor, learn, planted):
    every = recommend(learn, planted["user"].unique(), 5, min_ratings=floor)
    assert list(every.columns) == ["user", "title", "prediction", "n_ratings", "because"]
    counts = counts_of(Learned.of(learn))
    assert (counts < 30).any()
    for user, rows in every.groupby("user"):
        titles = unseen(planted, user, counts, floor)
        values = predict(learn, pd.DataFrame({"user": user, "title": titles}))
        best = values.sort_values(ascending=False).head(5)
        assert np.allclose(rows["prediction"], best) and set(rows["title"]) == {titles[i] for i in best.index}
        assert rows["n_ratings"].tolist() == counts[rows["title"]].tolist()
    assert recommend(learn, [], 5).columns.equals(every.columns)
    one = recommend(learn, 7, 5, min_ratings=floor)
    pd.testing.assert_frame_equal(one, every[every["user"] == 7].drop(columns="user").reset_index(drop=True))
    by_hand = recommend(Learned.of(learn), 7, 5, planted, floor)
    assert by_hand["title"].equals(one["title"]) and by_hand["because"].equals(one["because"])


def test_somebody_new_and_several_models(learns, planted, mine):
    other = Learned.of(learns["no bias"])
    models = learns["bias"], replace(other, n_ratings=other.n_ratings + 5)
    best = recommend(iter(models), mine, 8, min_ratings=20)
    assert list(best.columns) == ["title", "prediction", "n_ratings", "because"]
    titles = unseen(planted, 7, counts_of(*map(Learned.of, models)), 20)
    rows = pd.DataFrame({"user": "me", "title": titles})
    each = [predict(person(Learned.of(one), fold_in(one, mine)), rows) for one in models]
    expected = pd.Series(np.mean(each, axis=0), titles).sort_values(ascending=False).head(8)
    assert best["title"].tolist() == expected.index.tolist()
    assert np.allclose(best["prediction"], expected, atol=1e-6)
    assert best["n_ratings"].tolist() == counts_of(other)[best["title"]].tolist()  # the fewer of the two
    assert set(best["because"].dropna()) <= set(mine.index)
    assert recommend(models, {}, 3)["because"].isna().all()
    assert len(recommend(models, mine, 3, min_ratings=10**6)) == 0 == len(recommend(models, mine, 0))


def test_a_lift_is_what_the_score_loses_without_that_rating(learns, mine):
    """Exactly, where there is no sigmoid: a ridge regression without row i."""
    models = Together.of(learns["no sigmoid"])
    (side,), (rows, stars) = models.sides, rated(models, mine)
    strength, films, average = np.diag(penalty(side, rows, 0.1, 64)), side.films[rows], side.people[0]

    def solved(kept):
        pull = films[kept].T @ stars[kept] + strength @ average
        return np.linalg.solve(films[kept].T @ films[kept] + strength, pull)

    everything = np.arange(len(rows))
    whole = solved(everything)
    lost = np.array([side.films @ (whole - solved(np.delete(everything, i))) for i in everything]).T
    assert np.allclose(lifts(side, rows, stars, whole, np.arange(len(side.films))), lost)
    best = recommend(learns["no sigmoid"], mine, 5, min_ratings=0)
    at = models.titles.get_indexer(best["title"])
    assert best["because"].tolist() == [mine.index[i] for i in lost[at].argmax(axis=1)]


def test_a_reason_is_the_rating_without_which_the_score_is_lowest(learn, mine):
    """Mostly, under the sigmoid, where the lift is one Newton step."""
    learned, best = Learned.of(learn), recommend(learn, mine, 10, min_ratings=0)
    rows = pd.DataFrame({"user": "me", "title": best["title"]})
    without = {left: predict(person(learned, fold_in(learned, mine.drop(left))), rows) for left in mine.index}
    lowest = pd.DataFrame(without).idxmin(axis=1)
    assert best["because"].nunique() > 1 and (best["because"] == lowest).mean() >= 0.7


def test_wrong_requests(learn):
    with pytest.raises(UnknownId, match="users -1, 'x'"):
        recommend(learn, [7, -1, "x"])
    with pytest.raises(UnknownId, match="users '7'"):
        recommend(learn, "7")
    with pytest.raises(ValueError, match="pass the ratings as seen="):
        recommend(Learned.of(learn), 7)
    with pytest.raises(ValueError, match="no columns 'title'"):
        recommend(learn, 7, seen=pd.DataFrame({"user": [7], "film": ["A"], "rating": [3]}))
    with pytest.raises(ValueError, match="n=-1"):
        recommend(learn, 7, -1)
    with pytest.raises(ValueError, match="one model at least"):
        recommend([], 7)
    other = replace(Learned.of(learn), titles=[f"{title}!" for title in Learned.of(learn).titles])
    for function in (recommend, ranking):
        with pytest.raises(ValueError, match="no title in common"):
            function([learn, other], pd.DataFrame({"user": [7], "title": ["A"], "rating": [5]}))


def test_nothing_is_said_of_somebody_by_a_title_without_training_rows(planted):
    title = planted["title"].mode()[0]
    mask = (planted["title"] == title).to_numpy() | (np.arange(len(planted)) % 9 == 0)
    with pytest.warns(UserWarning, match="without a training row"):
        learn = learner(planted, split=mask, n_factors=4)
    fit([learn], 2)
    for function in (fold_in, recommend):
        with pytest.raises(UnknownTitle, match=rf"'{re.escape(title)}' has no rating among the training"):
            function(learn, {title: 5})
    user = planted.loc[planted["title"] == title, "user"].iloc[0]
    without = planted[planted["title"] != title]
    pd.testing.assert_frame_equal(recommend(learn, user), recommend(learn, user, seen=without))


def test_a_title_with_one_training_row_can_be_listed():
    learned = made([[1.0], [2.0], [3.0]], counts=[9, 1, 0], bias=[0.0, 5.0, 9.0])
    assert recommend(learned, {}, min_ratings=0)["title"].tolist() == ["B", "A"]


@pytest.mark.parametrize("name", ["stars", "rating_of_mine"])
def test_the_stars_are_the_column_that_was_trained_on(planted, name):
    other = planted.rename(columns={"rating": name})[["user", "title", "timestamp", name, "movie"]]
    learn = learner(other, n_factors=4, rating_name=name)
    fit([learn], 1)
    held = other.iloc[learn.dls.valid_ds.items.index]
    right = ranking(learn, held[["user", "title", name]], 5)
    assert ranking(learn, held, 5).equals(right)
    assert ranking(learn, held.assign(rating=5), 5).equals(right), "whatever else is called so"
    assert recommend(learn, 7, seen=other).equals(recommend(learn, 7))
    if name == "stars":  # tables alone go by the name
        seen = other.iloc[learn.dls.train_ds.items.index]
        assert ranking(Learned.of(learn), held, 5, seen=seen).equals(right)
        with pytest.raises(ValueError, match=r"any of the columns .'timestamp', 'movie'.; call one"):
            ranking(learn, held.drop(columns="stars"))


@pytest.fixture(scope="module")
def cases(learn, planted):
    """Scores, liked titles and seen titles of each user, from `predict` and plain sets."""
    learned = Learned.of(learn)
    parts = [ds.items.index for ds in (learn.dls.train_ds, learn.dls.valid_ds)]
    train, held = (planted.iloc[part] for part in parts)
    counts, bias = counts_of(learned), pd.Series(learned.movie_bias, learned.titles)
    users = {}
    for user, rows in held[held["rating"] >= 4].groupby("user"):
        seen = set(train.loc[train["user"] == user, "title"])
        open_ = [title for title in learned.titles[1:] if title not in seen]
        prediction = predict(learn, pd.DataFrame({"user": user, "title": open_})).to_numpy()
        scores = {
            "prediction": prediction,
            "bias": bias[open_].to_numpy(),
            "popularity": counts[open_].to_numpy(),
        }
        if liked := set(rows["title"]) - seen:
            users[user] = open_, scores, liked
    return held, users


@pytest.mark.parametrize("k", [1, 5, 200])
def test_ranking_is_what_scikit_learn_and_sets_say(k, learn, cases, monkeypatch):
    held, users = cases
    whole = ranking(learn, held, k)
    monkeypatch.setattr(ranked, "CHUNK", 300)  # a few users at a time
    pd.testing.assert_frame_equal(ranking(learn, held, k), whole)
    assert list(whole.index) == ["prediction", "bias", "popularity"]
    for name in whole.index:
        recall, ndcg = [], []
        for titles, scores, liked in users.values():
            order = np.argsort(-scores[name], kind="stable")
            recall.append(len({titles[i] for i in order[:k]} & liked) / len(liked))
            places = np.empty(len(order))
            places[order] = -np.arange(len(order))  # without ties
            ndcg.append(ndcg_score([[title in liked for title in titles]], [places], k=k))
        assert np.allclose(whole.loc[name], [np.mean(recall), np.mean(ndcg)]), name


def test_ranking_is_what_ranx_says(learn, cases):
    ranx = pytest.importorskip("ranx", reason="ranx is an oracle for whoever has it: 250 MB with numba")
    held, users = cases
    qrels = {str(user): dict.fromkeys(liked, 1) for user, (_, _, liked) in users.items()}
    run = {
        str(user): dict(zip(titles, each["prediction"], strict=True))
        for user, (titles, each, _) in users.items()
    }
    found = ranx.evaluate(ranx.Qrels(qrels), ranx.Run(run), ["recall@10", "ndcg@10"], make_comparable=True)
    assert np.allclose(ranking(learn, held).loc["prediction"], list(found.values()))


def test_a_floor_leaves_titles_out_and_what_is_out_counts_as_missed():
    learned = made([[1.0], [2.0], [3.0]], counts=[9, 0, 9], bias=[0.0, 0.0, 5.0])
    seen = pd.DataFrame({"user": [1, 2], "title": ["C", "A"], "rating": [5, 5]})
    held = pd.DataFrame({"user": [1, 1, 1, 2], "title": ["B", "B", "C", "B"], "rating": [4, 5, 5, 3]})
    assert ranking(learned, held, 1, seen=seen).loc["prediction"].tolist() == [1, 1]  # C was seen
    assert list(ranking(learned, held, seen=seen)) == ["recall@10", "ndcg@10"]
    assert ranking(learned, held, 1, seen=seen).loc["popularity"].tolist() == [0, 0]  # A
    for k in (1, 3):
        assert ranking(learned, held, k, seen=seen, min_ratings=5).to_numpy().max() == 0  # B is out
    assert ranking(learned, held, 1, liked=3, seen=seen).loc["prediction"].tolist() == [0.5, 0.5]
    assert "bias" not in ranking(replace(learned, user_bias=None, movie_bias=None), held, seen=seen).index
    with pytest.raises(ValueError, match="no rating of 6 stars"):
        ranking(learned, held, liked=6, seen=seen)
    with pytest.raises(ValueError, match="k=0 is less than 1"):
        ranking(learned, held, 0, seen=seen)
    with pytest.raises(UnknownId, match="users 99"):
        ranking(learned, held.assign(user=99), seen=seen)
