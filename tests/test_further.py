"""More columns and ratings as classes: what the models know, and from which rows; what judges them."""

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from fastai.collab import CollabDataLoaders
from fastai.tabular.core import TabDataLoader
from scipy import sparse

from collab_repro import BadRatings, fit, learner, predict, with_columns
from collab_repro.further import bags, classes, columns, figures
from collab_repro.further.classes import HEADS, judge, reliability, stars_learner, validated

ALL = tuple(columns.COLUMNS)


@pytest.fixture(scope="module")
def told(few):
    """`few` with a column of every kind; each is a function of the user or of the title."""
    user, movie = few["user"], few["movie"]
    return few.assign(
        title=few["title"] + " (" + (1950 + movie).astype(str) + ")",
        genres=np.where(movie % 2, "Drama|War", "Comedy"),
        age=20 + user,
        sex=np.where(user % 3, "F", "M"),
        occupation="job " + (user % 4).astype(str),
    )


@pytest.fixture(scope="module")
def fitted(told):
    """A Learner with all columns but the time, and one with the time, after an epoch."""
    learns = [learner(told, with_columns(told, names, 4), seed=1) for names in (ALL[:-1], ALL)]
    fit(learns, 1, wd=0.2, processes=1)
    return learns


@pytest.fixture(scope="module")
def starred(told):
    """A Learner for each head, after a few epochs."""
    learns = {head: stars_learner(told, head, seed=1, n_factors=4) for head in HEADS}
    fit(learns.values(), 5, lr=0.02, processes=1)
    return learns


def test_sums_of_bags_have_the_derivative_of_pytorchs_own():
    torch.manual_seed(0)
    entries = sparse.random(7, 5, 0.2, format="csr", random_state=0)
    summed = bags.Bags(entries, 3)
    dense = torch.tensor(entries.toarray(), dtype=torch.float32)
    given = torch.randn(7, 3)
    summed().backward(given)
    assert torch.allclose(summed(), dense @ summed.table) and (entries.getnnz(axis=1) == 0).any()
    assert torch.allclose(summed.table.grad, dense.T @ given, atol=1e-6)
    own = summed.table.detach().requires_grad_()
    index, starts, weights = (getattr(summed, f"rows_{part}") for part in ("index", "starts", "weights"))
    F.embedding_bag(index, own, starts, mode="sum", per_sample_weights=weights).backward(given)
    assert torch.allclose(own.grad, summed.table.grad, atol=1e-6)


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # stock fastai's loader
@pytest.mark.parametrize("dl_type", [None, TabDataLoader])
def test_held_out_rows_enter_neither_bags_nor_counts(told, dl_type):
    if dl_type:
        dls = CollabDataLoaders.from_df(told, item_name="title", seed=1, bs=64, dl_type=dl_type)
    else:
        dls = learner(told, seed=1).dls
    model = with_columns(told, ["raters", "rated"], 4)(dls)
    training = told.iloc[dls.train.dataset.items.index]
    assert len(training) == len(told) * 4 // 5
    for side_bags, own, other, name in (
        (model.movie_bags, "title", "user", "raters"),
        (model.user_bags, "user", "title", "rated"),
    ):
        sizes = training.groupby(own)[other].nunique()
        for row, key in enumerate(dls.classes[own]):
            start, *end = side_bags.rows_starts[row : row + 2].tolist()
            part = slice(start, end[0] if end else None)
            who = {dls.classes[other][i] for i in side_bags.rows_index[part].tolist()}
            assert who == set(training.loc[training[own] == key, other])
            if who:
                weight = columns.COLUMNS[name] / sizes[key] ** 0.5
                assert torch.allclose(side_bags.rows_weights[part], torch.tensor(weight, dtype=torch.float32))


@pytest.mark.filterwarnings("ignore:.*rows repeat a pair")
def test_what_a_held_out_row_says_changes_nothing(told, fitted):
    held = fitted[0].dls.valid.dataset.items.index
    other = told.copy()
    other.loc[held, "rating"] = 6 - other.loc[held, "rating"]
    other.loc[held, "user"] = other.loc[held, "user"].to_numpy()[::-1]  # other people rated these films
    learn = learner(other, with_columns(other, ("raters", "rated"), 4), seed=1)
    same = learner(told, with_columns(told, ("raters", "rated"), 4), seed=1)
    for ours, theirs in zip(learn.model.buffers(), same.model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_main_directions_keep_what_the_bags_say_most(told):
    dls = learner(told, seed=1).dls
    names = ("raters", "rated", "genres")
    whole = with_columns(told, names, 4)(dls).movie_bags
    with torch.no_grad():
        raters = torch.eye(len(whole.table))[:, : len(dls.classes["user"])]  # its other values are genres
        whole.table = torch.nn.Parameter(raters)
        bags = whole()  # (n_movies, n_users)
    best = torch.linalg.svdvals(bags)
    for rank in (5, 10_000):
        model = with_columns(told, names, 4, rank=rank)(dls)
        features = model.movie_directions.features
        assert features.shape == (len(bags), min(rank, *bags.shape))
        missed = (bags @ bags.T - features @ features.T).norm()
        least = (best[rank:] ** 2).norm()  # no features of so many columns miss less
        assert 0.99 * least <= missed <= 1.1 * least + 0.002
        assert model.user_directions.features.shape[0] == len(dls.classes["user"])
        assert model.user_bags is None and model.movie_bags is not None
        x = torch.tensor([[3, 2], [1, 7]])
        movie = model.vectors(x)[1]
        assert torch.allclose(
            movie,
            model.movies(x[:, 1]) + features[x[:, 1]] @ model.movie_directions.table
            + model.movie_bags()[x[:, 1]], atol=1e-6,
        )  # fmt: skip
        assert torch.allclose(model.folded()(x), model(x), atol=1e-6)
    for name, values in {
        "age": "20",
        "year": np.nan,
        "timestamp": [np.nan, *[1.0] * (len(told) - 1)],
    }.items():
        with pytest.raises(BadRatings, match=f"column '{name}' does not hold numbers"):
            with_columns(told.assign(**{name: values}), ["time" if name == "timestamp" else name])
    with pytest.raises(ValueError, match="rank=0"):
        with_columns(told, names, rank=0)


def test_each_column_can_be_on_alone_and_moves_the_predictions(told):
    plain = learner(told, with_columns(told, (), 4), seed=1)
    for name in ALL:
        learn = learner(told, with_columns(told, [name], 4), seed=1)
        extra = {
            k: v
            for k, v in dict(learn.model.named_parameters()).items()
            if k not in ("users.weight", "movies.weight")
        }
        assert len(extra) == 1, name
        x = learn.dls.train.rows(torch.arange(50))[0]
        before = learn.model(x)
        with torch.no_grad():
            next(iter(extra.values())).add_(0.5)
        assert not torch.allclose(before, learn.model(x)), name
    assert len(dict(plain.model.named_parameters())) == 2


def test_values_of_a_column():
    text = columns._values(pd.Series(["a|b", "b", None]), None).toarray()
    assert np.allclose(text, [[0.5**0.5, 0.5**0.5], [0, 1], [0, 0]])
    number = columns._values(pd.Series([1990.0, 1991, 2010, np.nan]), 3.0).toarray()
    assert np.allclose((number**2).sum(axis=1), [1, 1, 1, 0])
    near, far = number[0] @ number[1], number[0] @ number[2]
    assert near > 0.9 and far < 0.01
    spread = np.exp([0, -1 / 2, -4 / 2])  # 0, 1 and 2 sd of 3 years away
    two = columns._values(pd.Series([1990.0, 1996]), 3.0).toarray()
    assert np.allclose(two, [spread, spread[::-1]] / np.linalg.norm(spread))


def test_folded_predicts_the_same(told, fitted):
    learn, timed = fitted
    assert np.isfinite(learn.recorder.values[-1]).all() and np.isfinite(timed.recorder.values[-1]).all()
    own = validated([learn])
    rows = learn.dls.valid.dataset.items.index
    with pytest.raises(ValueError, match="'time' can't be folded"):
        timed.model.folded()
    columned, learn.model = learn.model, learn.model.folded()
    assert np.allclose(predict(learn, told.loc[rows], unknown="average"), own, atol=1e-5)
    learn.model = columned


def test_time_is_looked_up_by_the_pair(told, fitted):
    clock = fitted[1].model.clock
    dls = fitted[1].dls
    x = dls.valid.rows(torch.arange(30))[0]
    rows = told.loc[dls.valid.dataset.items.index[:30]]
    times = rows["timestamp"].to_numpy(float)
    first, last = told["timestamp"].min(), told["timestamp"].max()
    spans = torch.tensor(1 + (times - first) * bags.SPANS // (last - first + 1)).long()
    assert torch.equal(clock(x), clock.weight * clock.table(spans))
    unrated = torch.tensor([[0, 0]])
    assert (clock(unrated) == 0).all()


@pytest.mark.parametrize("unit", [1, 10**3, 10**6, 10**9])
def test_time_in_any_unit_has_the_same_spans(told, unit):
    times = told["timestamp"] * unit  # 2**53 nanoseconds are 104 days: floats lose their unit
    made = told.assign(timestamp=times), told.assign(timestamp=times.astype(float)), told
    *found, seconds = (learner(one, with_columns(one, ["time"], 4), seed=1).model for one in made)
    for one in found:
        assert one.clock.spans.min() == 1 and one.clock.spans.max() == bags.SPANS == 30
        assert (one.clock.spans != seconds.clock.spans).float().mean() < 0.01
        assert torch.isfinite(one(torch.tensor(told[["user", "movie"]].to_numpy()) // 2)).all()


def test_the_columns_found_are_those_that_are_there(few, told):
    assert columns.columns_in(told) == list(ALL)
    untold = few[["user", "rating"]].assign(title="film " + few["movie"].astype(str))
    assert columns.columns_in(untold) == ["raters", "rated"]


def test_titles_may_be_categories_and_ids_integers(told):
    """As in the larger sets, and in ratings without titles."""
    text = with_columns(told, ("genres", "year"), 4)(learner(told, seed=1).dls)
    category = told.assign(title=told["title"].astype("category"), genres=told["genres"].astype("category"))
    same = with_columns(category, ("genres", "year"), 4)(learner(category, seed=1).dls)
    for ours, theirs in zip(text.buffers(), same.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    numbers = told.drop(columns="title").assign(year=1950.0 + told["movie"])
    learn = learner(numbers, with_columns(numbers, ALL, 4), seed=1, item_name="movie")
    bags, movies = learn.model.movie_bags, learn.dls.classes["movie"]
    assert (
        len(bags.rows_starts) == len(movies) and torch.isfinite(learn.model(learn.dls.one_batch()[0])).all()
    )


def test_the_year_of_a_title_is_known_by_the_movies_number_too(told):
    by_title, by_movie = (
        with_columns(told, ["year"], 4)(learner(told, seed=1, item_name=name).dls).movie_bags
        for name in ("title", "movie")
    )
    named = told.assign(year=1950.0 + told["movie"])  # the same years, in a column
    given = with_columns(named, ["year"], 4)(learner(named, seed=1, item_name="movie").dls).movie_bags
    assert torch.equal(by_movie.rows_index, given.rows_index)
    assert torch.allclose(by_movie.rows_weights, given.rows_weights)
    assert len(by_movie.table) == len(by_title.table) and len(by_movie.rows_index) > 100


@pytest.mark.parametrize("form", [list, set, tuple, np.array])
def test_genres_may_be_lists_or_sets(told, form):
    text = with_columns(told, ["genres"], 4)(learner(told, seed=1).dls)
    cells = told["genres"].str.split("|").map(form)
    same = with_columns(told.assign(genres=cells), ["genres"], 4)(learner(told, seed=1).dls)
    assert len(same.movie_bags.table) == 3
    for ours, theirs in zip(text.buffers(), same.buffers(), strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", ["age", "year"])
@pytest.mark.parametrize("value", [np.inf, -np.inf, 10.0**10, -9999.0])
def test_a_number_of_years_that_none_can_be_is_refused_with_its_row(told, name, value):
    wrong = told.assign(**{name: 20.0 + told["user"]}).set_index(told.index + 7)
    wrong.loc[wrong.index[5:7], name] = np.nan, value
    with pytest.raises(
        BadRatings, match=rf"column '{name}', row 6 \({value:g}\): no {name}".replace("+", r"\+")
    ):
        with_columns(wrong, [name])


@pytest.mark.filterwarnings("ignore:Constructing a Categorical", "ignore:.*validation rows have a user")
def test_ages_of_held_out_users_alone_say_nothing(told):
    ids = told[["user", "movie", "rating"]]
    some = ids.assign(age=np.where(ids["user"] < 4, 30.0, np.nan))
    learn = learner(some, with_columns(some, ["age"], 4), split=(ids["user"] < 4).to_numpy())
    assert len(learn.model.user_bags.rows_index) == 0 and 3 not in learn.dls.classes["user"]


def test_bad_columns_are_one_clear_line(few, told):
    for names, words in (
        (["genre"], "no column 'genre' is known here; choose from"),
        (["genres"], "the ratings have no column 'genres': leave 'genres' out, or see"),
        (["age"], "no column 'age'"),
    ):
        with pytest.raises(BadRatings, match=words):
            with_columns(few, names)
    with pytest.raises(BadRatings, match="no column 'timestamp': leave 'time' out"):
        with_columns(told.drop(columns="timestamp"), ["time"])
    with pytest.raises(ValueError, match="no head 'cardinal': choose from"):
        stars_learner(told, "cardinal")
    with pytest.raises(ValueError, match="takes no columns"):
        stars_learner(told, "logits for each star", columns=["genres"])


@pytest.mark.parametrize("star", [0.25, 3.5, 5.25])
def test_a_rating_that_only_held_out_rows_have_is_refused(told, star):
    held = told.assign(rating=told["rating"].where(told.index % 50 != 7, star))
    split = np.flatnonzero(told.index % 10 == 7)
    said = rf"26 of 128 validation rows have a rating \(first {star}\) that no training row has"
    for head in HEADS:
        with pytest.raises(BadRatings, match=said):
            stars_learner(held, head, split=split)
    both = held.assign(rating=held["rating"].where(told.index > 0, star))
    assert star in stars_learner(both, split=split, n_factors=4).loss_func.stars


def test_ratings_that_are_all_alike_or_all_different_are_no_classes(told):
    rng = np.random.default_rng(0)
    with pytest.raises(BadRatings, match="all training rows are rated 3; classes need two"):
        stars_learner(told.assign(rating=3))
    with pytest.raises(BadRatings, match=r"256 of 256 validation rows have a rating \(first \d\.\d+\)"):
        stars_learner(told.assign(rating=rng.uniform(1, 5, len(told))))


def test_every_head_gives_probabilities_and_learns(starred):
    for head, learn in starred.items():
        stars = learn.loss_func.stars.numpy()
        assert list(stars) == [1, 2, 3, 4, 5]
        given = validated([learn])
        assert given.shape == (256, 5) and np.allclose(given.sum(axis=1), 1, atol=1e-4), head
        rated = learn.dls.valid.tensors[1][:, 0].numpy()
        shares = np.bincount(learn.dls.train.tensors[1][:, 0].int(), minlength=6)[1:] / 1024
        found = judge(given, stars, rated)
        uninformed = -np.log(shares[rated.astype(int) - 1]).mean()
        assert found["log_loss"] < uninformed + 0.1, head
        score = getattr(learn.model, "score", None)  # stars for the linear layer, else without bounds
        assert score is None or score.y_range == ((0, 5.5) if "linear" in head else None), head
        assert found["log_loss"] == pytest.approx(
            F.nll_loss(torch.tensor(given).log(), torch.tensor(rated - 1).long()).item()
        )


def test_cut_points_are_in_order_and_start_at_the_shares(told, starred):
    fresh = stars_learner(told, "ordinal", seed=1, n_factors=4)
    rated = fresh.dls.train.tensors[1][:, 0].numpy()
    with torch.no_grad():
        fresh.model.moves.weight.zero_()
        cuts = fresh.model.cuts(torch.tensor([3]))[0]
        for user in (0, 5, 9):
            own = starred["ordinal, cut points of each user"].model.cuts(torch.tensor([user]))[0]
            assert (own.diff() > 0).all()
        one, other = starred["ordinal, cut points of each user"].model.cuts(torch.tensor([1, 2]))
        same, too = starred["ordinal"].model.cuts(torch.tensor([1, 2]))
    assert np.allclose(cuts.sigmoid(), [(rated <= star).mean() for star in (1, 2, 3, 4)], atol=1e-5)
    assert not torch.equal(one, other) and torch.equal(same, too)


def test_ordinal_is_the_difference_of_sigmoids(starred):
    model = starred["ordinal"].model
    x = starred["ordinal"].dls.valid.rows(torch.arange(20))[0]
    with torch.no_grad():
        score = classes.SCORE * model.score(x).view(-1)
        below = [(cut - score).sigmoid() for cut in model.cuts(x[:1, 0])[0]]
        three = (below[2] - below[1]).log()
        assert torch.allclose(model(x)[:, 2], three, atol=1e-4)


def test_judge_by_hand():
    stars, rated = np.array([1.0, 2, 3]), np.array([1.0, 3, 3, 2])
    given = np.array([[0.8, 0.1, 0.1], [0.1, 0.2, 0.7], [0.45, 0.1, 0.45], [0.2, 0.6, 0.2]])
    found = judge(given, stars, rated)
    expected = np.array([1.3, 2.6, 2.0, 2.0])
    assert found["rmse"] == pytest.approx(np.sqrt(np.mean((expected - rated) ** 2)))
    assert found["mae"] == pytest.approx((0 + 0 + 1 + 0) / 4)  # medians 1, 3, 2, 2
    assert found["accuracy"] == 0.75
    assert found["log_loss"] == pytest.approx(-np.log([0.8, 0.7, 0.45, 0.6]).mean())
    assert found["calibration"] == pytest.approx((0.2 + 0.3 + 0.45 + 0.4) / 4)
    plain = judge(np.array([1.2, 2.4, 3.3, 1.9]), stars, rated)
    assert plain["accuracy"] == 0.75 and np.isnan(plain["log_loss"]) and np.isnan(plain["calibration"])
    table = reliability(np.array([0.05, 0.55, 0.5, 1.0]), np.array([0, 1, 0, 1]))
    assert table["rows"].tolist() == [1, 2, 1] and table["share"].tolist() == [0, 0.5, 1]


def test_fit_in_processes_gives_the_same(told):
    def made():
        return [learner(told, with_columns(told, n_factors=4), seed=s) for s in (0, 1)] + [
            stars_learner(told, seed=s, n_factors=4) for s in (0, 1)
        ]

    apart, together = made(), made()
    fit(apart, 1, processes=1)
    fit(together, 1, processes=2)
    for one, other in zip(apart, together, strict=True):
        for ours, theirs in zip(one.model.parameters(), other.model.parameters(), strict=True):
            assert torch.equal(ours, theirs)


def test_figures_show_their_tables():
    effects = {"mean": [-0.2, 0.1, 0.4], "low": [-0.3, -0.1, 0.2], "high": [-0.1, 0.3, 0.6]}
    effects = pd.DataFrame(effects, ["raters", "sex", "age"])
    ax = figures.plot_effects(effects)
    full, hollow, _ = ax.lines
    assert list(full.get_xdata()) == [-0.2, 0.4] and list(hollow.get_xdata()) == [0.1]
    assert hollow.get_markerfacecolor() == "none" != full.get_markerfacecolor()
    assert [label.get_text() for label in ax.get_yticklabels()] == ["raters", "sex", "age"]
    assert full.get_ydata()[0] > hollow.get_ydata()[0] > full.get_ydata()[1], "the first row is on top"

    cuts = np.array([[-1.0, 0, 2], [-2.0, -1, 0]])
    ax = figures.plot_cut_points(cuts, ["ada", "bob"])
    ends = np.array([bar.get_x() + bar.get_width() for bar in ax.patches]).reshape(4, 2)
    assert np.allclose(ends[:3].T, cuts)
    tall = figures.plot_cut_points(np.repeat(cuts, 9, axis=0), [*"abcdefghijklmnopqr"])
    assert tall.figure.get_figheight() > 3 * ax.figure.get_figheight(), "there is room for each bar"
