"""A Learner from seeds, its settings, and its curve."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from fastai.collab import CollabDataLoaders, EmbeddingDotBias, EmbeddingNN, collab_learner
from fastai.tabular.model import get_emb_sz

from collab_repro import (
    BadRatings,
    CollabNN,
    DotProduct,
    DotProductBias,
    DotProductBiasParams,
    FusedAdam,
    RatingsDL,
    curve,
    fit,
    learner,
)

SMALL = {"n_factors": 5}


def fitted(ratings, epochs=1, **kwargs):
    learn = learner(ratings, **{**SMALL, **kwargs})
    fit([learn], epochs)
    return learn


@pytest.fixture(scope="module")
def learn(few):
    """A Learner of seed 3 after two epochs, to look at only."""
    return fitted(few, 2, seed=3)


def split_of(learn) -> list:
    return learn.dls.train.items.index.tolist()


def order_of(learn) -> list:
    """The positions of the first two epochs' rows among the training rows, in the order of training."""
    dl, found = learn.dls.train.new(), []
    for dl.epoch_no in (0, 1):
        found += dl.get_idxs().tolist()
    return found


def weights_of(learn) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def test_a_learner_is_what_the_chapter_makes(planted):
    learn = learner(planted)
    assert isinstance(learn.model, DotProductBias) and isinstance(learn.loss_func.func, torch.nn.MSELoss)
    assert learn.opt_func is FusedAdam and isinstance(learn.dls.train, RatingsDL)
    assert learn.model.user_factors.weight.shape == (121, 50) and learn.model.y_range == (0, 5.5)
    assert list(learn.dls.classes) == ["user", "title"] and learn.dls.classes["title"][0] == "#na#"
    assert [(dl.n, dl.bs, dl.shuffle, dl.drop_last) for dl in learn.dls] == [
        (3200, 64, True, False), (800, 64, False, False)
    ]  # fmt: skip


def test_the_same_seed_gives_the_same_run_whatever_was_drawn_before_and_draws_nothing_itself(few, learn):
    torch.manual_seed(11), np.random.seed(11), random.seed(11)
    torch.set_num_threads(2)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    again = fitted(few, 2, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()
    assert torch.get_num_threads() == 2, "the user's threads did not come back"
    assert torch.equal(weights_of(learn), weights_of(again))
    assert [list(row) for row in learn.recorder.values] == [list(row) for row in again.recorder.values]


@pytest.mark.parametrize("own", ["split", "init", "order"])
def test_split_weights_and_order_each_have_a_seed_of_their_own(few, own):
    base, other = learner(few, seed=3, **SMALL), learner(few, seed=3, **{own: 4}, **SMALL)
    assert (split_of(base) != split_of(other)) == (own == "split")
    assert (order_of(base) != order_of(other)) == (own == "order")
    assert torch.equal(weights_of(base), weights_of(other)) == (own != "init")


def test_seed_stands_for_all_three(few):
    base, other = learner(few, seed=3, **SMALL), learner(few, split=np.int64(3), init=3, order=3, **SMALL)
    assert split_of(base) == split_of(other) and order_of(base) == order_of(other)
    assert torch.equal(weights_of(base), weights_of(other))


def test_a_split_may_list_the_rows_to_validate_on(few):
    learn = learner(few, split=range(0, 1280, 8), **SMALL)
    assert learn.dls.valid.items.index.tolist() == [*range(0, 1280, 8)]
    assert sorted(split_of(learn)) == [row for row in range(1280) if row % 8]
    assert list(learn.dls.classes) == ["user", "title"] and learn.dls.train.bs == 64
    fit([learn], 1)
    assert curve(learn)["valid_loss"].item() < 3


@pytest.mark.parametrize(
    "model", [DotProduct, DotProductBias, DotProductBiasParams, EmbeddingDotBias, "function"]
)
def test_every_model_trains_and_takes_its_settings(few, model):
    if model == "function":
        learn = fitted(few, model=lambda dls: CollabNN(*get_emb_sz(dls), n_act=9))
        assert isinstance(learn.model, CollabNN)
    else:
        learn = fitted(few, model=model, n_factors=9, y_range=(0, 6))
        assert isinstance(learn.model, model) and learn.model.y_range == (0, 6)
        assert {p.shape[1] for p in learn.model.parameters() if p.ndim > 1} <= {9, 1}
    assert learn.recorder.values[0][0] < 3


def test_other_column_names_batch_sizes_and_shares_are_honoured(few):
    named = few.rename(columns={"user": "who", "movie": "what", "rating": "stars"})
    names = {"user_name": "who", "item_name": "what", "rating_name": "stars"}
    learn = learner(named[["stars", "what", "who"]], bs=100, valid_pct=0.5, **names, **SMALL)
    assert list(learn.dls.classes) == ["who", "what"]
    assert [(dl.n, dl.bs) for dl in learn.dls] == [(640, 100)] * 2
    fit([learn], 1)
    assert curve(learn)["valid_loss"].between(0, 3).all()


def of_its_own(dls):
    return DotProductBias(*map(len, dls.classes.values()), 3, (0, 5.5))


def network(dls):
    return EmbeddingNN(get_emb_sz(dls), [5], y_range=(0, 5.5))


@pytest.mark.parametrize("model", [of_its_own, network])
def test_a_model_that_cannot_reach_the_ratings_is_refused(few, model):
    twice = few.assign(rating=few["rating"] * 2.0)
    with pytest.raises(BadRatings, match=r"'rating', row \d+ \(.*outside the model's own y_range \(0, 5.5\)"):
        learner(twice, model, y_range=(0, 11))
    learner(few, model)
    learner(twice, lambda dls: CollabNN(*get_emb_sz(dls), y_range=None), y_range=None)


def test_bad_ratings_are_refused_at_the_door(few):
    with pytest.raises(BadRatings, match=r"rating.*row 7"):
        learner(few.assign(rating=few["rating"].where(few.index != 7, 99)), **SMALL)
    with pytest.raises(BadRatings, match="stars"):
        learner(few, rating_name="stars")
    with pytest.raises(BadRatings, match="ratings of type ndarray"):
        learner(few.to_numpy(), split=[0, 1])
    for own in ("seed", "order"):
        with pytest.raises(ValueError, match="seed -1 of the batch order: it is a non-negative whole number"):
            learner(few, **{own: -1})


@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # fastai's way of finding the unknown
def test_an_integer_item_seen_only_in_validation_falls_on_the_unknown_row(few):
    ids = few[["user", "movie", "rating"]].copy()
    ids.loc[ids.index[::40], "movie"] = 10_000 + np.arange(32)
    with pytest.warns(UserWarning, match="validation rows have a user or item without") as said:
        learn = learner(ids, **SMALL)
    movies = ids.loc[learn.dls.valid.items.index, "movie"]
    unseen = ~movies.isin(ids.loc[split_of(learn), "movie"])
    assert unseen.sum() > 2 and (learn.dls.valid.items["movie"][unseen] == 0).all()
    assert any(str(one.message).startswith(f"{unseen.sum()} of 256 ") for one in said)


WARNED = """
import warnings
warnings.simplefilter("error")
import collab_repro
warnings.filterwarnings("ignore", "1 of 2 validation rows")  # our own
ratings = collab_repro.planted_ratings(60, 45, 1280, seed=1)[0][["user", "movie", "rating"]]
ratings["movie"] = ratings["movie"].where(ratings.index > 0, 10_000)  # only held out
collab_repro.fit([collab_repro.learner(ratings, split=[0, 5], n_factors=5)], 1)
"""


def test_nothing_that_fastai_sets_off_reaches_the_reader():
    said = subprocess.run([sys.executable, "-c", WARNED], capture_output=True, text=True)
    assert said.returncode == 0, said.stderr


def test_a_curve_has_its_labels_first_and_one_row_an_epoch(learn):
    found = curve(learn, data="planted", model="DotProductBias", seed=0)
    losses = ["epoch", "train_loss", "valid_loss", "seconds"]
    assert list(found.columns) == ["data", "model", "seed", *losses]
    assert list(curve(learn).columns) == losses
    assert found["epoch"].tolist() == [0, 1]
    assert found[["train_loss", "valid_loss"]].to_numpy().tolist() == [list(r) for r in learn.recorder.values]
    assert found["seconds"].tolist() == learn.stopwatch.seconds and found["seconds"].between(0, 60).all()


def test_labels_are_not_called_as_the_curves_own_columns_are(learn):
    for name in ("epoch", "train_loss", "valid_loss", "seconds"):
        with pytest.raises(
            ValueError, match=rf"labels \['model', '{name}'\]: epoch, train_loss, valid_loss, sec"
        ):
            curve(learn, model="mine", **{name: 3})


@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")  # fastai's
def test_fastais_own_learner_has_a_curve_without_seconds(few):
    plain = collab_learner(CollabDataLoaders.from_df(few, item_name="title"), n_factors=4, y_range=(0, 5.5))
    with plain.no_bar(), plain.no_logging():
        plain.fit_one_cycle(2)
    found = curve(plain, seed=3)
    assert found[["train_loss", "valid_loss"]].to_numpy().tolist() == [list(r) for r in plain.recorder.values]
    assert found["epoch"].tolist() == [0, 1] and found["seconds"].isna().all() and found["seed"].eq(3).all()


def test_the_curves_losses_are_mse(learn):
    x, y = (torch.cat(parts) for parts in zip(*learn.dls.valid, strict=True))
    mse = ((learn.model(x) - y) ** 2).mean().item()
    assert curve(learn)["valid_loss"].iloc[-1] == pytest.approx(mse, rel=1e-5)


def test_without_a_recorded_fit_there_is_no_curve(few):
    learn = fitted(few)
    with learn.no_bar():
        learn.get_preds()  # clears the record
    for without in (learn, learner(few, **SMALL)):
        with pytest.raises(ValueError, match="no fit is recorded"):
            curve(without)
