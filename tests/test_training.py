"A Learner from seeds, its curve, and a clear end when the loss stops being a number."

import random

import numpy as np
import pytest
import torch
from fastai.collab import EmbeddingDotBias
from fastai.tabular.model import get_emb_sz

from collab_repro.checks import BadRatings
from collab_repro.fast import FusedAdam
from collab_repro.loaders import RatingsDL
from collab_repro.models import CollabNN, DotProduct, DotProductBias, DotProductBiasParams
from collab_repro.training import DivergedError, big_batch, curve, fit, learner

SMALL = {"n_factors": 5}


def split_of(learn) -> list:
    return learn.dls.train.items.index.tolist()


def order_of(learn) -> list:
    "The rows of the first two epochs in the order of training, as row numbers of the ratings."
    return [learn.dls.train.items.index[i] for dl in (learn.dls.train,) for e in (0, 1) for i in epoch(dl, e)]


def epoch(dl, number: int) -> list[int]:
    dl.epoch_no = number
    found = dl.get_idxs().tolist()
    dl.epoch_no = 0
    return found


def weights_of(learn) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in learn.model.parameters()])


def fitted(ratings, **kwargs):
    learn = learner(ratings, **{**SMALL, **kwargs})
    fit([learn], epochs=1)
    return learn


def test_a_learner_is_what_the_chapter_makes(planted):
    learn = learner(planted)
    assert isinstance(learn.model, DotProductBias) and isinstance(learn.loss_func.func, torch.nn.MSELoss)
    assert learn.opt_func is FusedAdam and isinstance(learn.dls.train, RatingsDL)
    assert learn.dls.train.bs == 64 and learn.model.y_range == (0, 5.5)
    assert learn.model.user_factors.weight.shape == (121, 50)
    assert list(learn.dls.classes) == ["user", "title"] and learn.dls.classes["title"][0] == "#na#"
    assert len(learn.dls.train_ds) == 3200 and len(learn.dls.valid_ds) == 800
    assert learn.dls.train.shuffle and not learn.dls.valid.shuffle


def test_the_same_seed_gives_the_same_run_whatever_random_numbers_were_drawn_before(planted):
    first = fitted(planted, seed=3)
    torch.manual_seed(11), np.random.seed(11), random.seed(11)
    again = fitted(planted, seed=3)
    assert torch.equal(weights_of(first), weights_of(again))
    assert [list(row) for row in first.recorder.values] == [list(row) for row in again.recorder.values]


def test_training_loss_and_weights_are_the_same_with_two_threads(planted):
    first = fitted(planted, seed=3)
    torch.set_num_threads(2)
    assert torch.equal(weights_of(first), weights_of(fitted(planted, seed=3)))


@pytest.mark.parametrize("own", ["split", "init", "order"])
def test_split_weights_and_order_each_have_a_seed_of_their_own(planted, own):
    base, other = learner(planted, seed=3, **SMALL), learner(planted, seed=3, **{own: 4}, **SMALL)
    if own == "split":  # another split holds other rows, so that orders are compared as positions
        assert epoch(base.dls.train, 0) == epoch(other.dls.train, 0)
    else:
        assert (order_of(base) != order_of(other)) == (own == "order")
    assert (split_of(base) != split_of(other)) == (own == "split")
    assert torch.equal(weights_of(base), weights_of(other)) == (own != "init")


def test_seed_stands_for_all_three(planted):
    base, other = learner(planted, seed=3, **SMALL), learner(planted, split=3, init=3, order=3, **SMALL)
    assert split_of(base) == split_of(other) and order_of(base) == order_of(other)
    assert torch.equal(weights_of(base), weights_of(other))
    third = learner(planted, seed=4, **SMALL)
    assert split_of(base) != split_of(third) and not torch.equal(weights_of(base), weights_of(third))


def test_models_of_one_seed_share_split_and_order(planted):
    first, second = (learner(planted, m, seed=2, **SMALL) for m in (DotProductBias, DotProductBiasParams))
    assert split_of(first) == split_of(second) and order_of(first) == order_of(second)


def test_global_random_states_of_torch_and_numpy_are_left_as_they_were(planted):
    torch.manual_seed(5), np.random.seed(5)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    fitted(planted, seed=3)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


@pytest.mark.parametrize(
    "model", [DotProduct, DotProductBias, DotProductBiasParams, EmbeddingDotBias, "function"]
)
def test_every_model_trains_and_takes_its_settings(planted, model):
    if model == "function":
        learn = fitted(planted, model=lambda dls: CollabNN(*get_emb_sz(dls), n_act=9))
        assert isinstance(learn.model, CollabNN)
    else:
        learn = fitted(planted, model=model, n_factors=9, y_range=(0, 6))
        assert isinstance(learn.model, model) and learn.model.y_range == (0, 6)
        assert {p.shape[1] for p in learn.model.parameters() if p.ndim > 1} <= {9, 1}
    assert learn.recorder.values[0][0] < 3


def test_other_column_names_batch_sizes_and_shares_are_honoured(planted):
    named = planted.rename(columns={"user": "who", "movie": "what", "rating": "stars"})
    names = {"user_name": "who", "item_name": "what", "rating_name": "stars"}
    learn = learner(named[["stars", "what", "who"]], bs=100, valid_pct=0.5, **names, **SMALL)
    assert list(learn.dls.classes) == ["who", "what"]
    assert [len(ds) for ds in (learn.dls.train_ds, learn.dls.valid_ds)] == [2000, 2000]
    assert learn.dls.train.bs == 100
    fit([learn], 1)
    assert curve(learn)["valid_loss"].between(0, 3).all()


@pytest.mark.parametrize("wrong", [float("nan"), 5.5, 0, 99])
def test_bad_ratings_are_refused_at_the_door(planted, wrong):
    ratings = planted.astype({"rating": float})
    ratings.loc[7, "rating"] = wrong
    with pytest.raises(BadRatings, match=r"rating.*row 7"):
        learner(ratings, **SMALL)


def test_a_missing_column_is_refused_by_name(planted):
    with pytest.raises(BadRatings, match="stars"):
        learner(planted, rating_name="stars")


def test_a_curve_has_its_labels_first_and_one_row_an_epoch(planted):
    learn = learner(planted, **SMALL)
    fit([learn], epochs=2)
    found = curve(learn, data="planted", model="DotProductBias", seed=0)
    assert list(found.columns) == [
        "data",
        "model",
        "seed",
        "epoch",
        "train_loss",
        "valid_loss",
        "seconds",
    ]
    assert found["epoch"].tolist() == [0, 1]
    assert found["train_loss"].tolist() == [row[0] for row in learn.recorder.values]
    assert found["valid_loss"].tolist() == [row[1] for row in learn.recorder.values]
    assert found["seconds"].gt(0).all() and found["seconds"].sum() < 60
    assert list(curve(learn).columns) == ["epoch", "train_loss", "valid_loss", "seconds"]


def test_the_curves_losses_are_mse(planted):
    learn = fitted(planted)
    found = curve(learn)
    with learn.no_bar():
        preds, targets = learn.get_preds()
    mse = ((preds.view(-1) - targets.view(-1)) ** 2).mean().item()
    assert found["valid_loss"].item() == pytest.approx(mse, rel=1e-5)


@pytest.mark.parametrize("together", [1, 2])
def test_fit_honours_epochs_lr_and_wd(planted, together):
    def end(**changed):
        learns = [learner(planted, seed=s, **SMALL) for s in range(together)]
        fit(learns, **{"epochs": 1, "lr": 5e-3, "wd": 0.1, **changed})
        return weights_of(learns[-1])

    usual = end()
    assert torch.equal(usual, end())
    for changed in ({"epochs": 2}, {"lr": 6e-3}, {"wd": 0.2}):
        assert not torch.equal(usual, end(**changed)), changed


def test_fits_defaults_are_the_chapters(planted):
    usual, chapters = learner(planted, **SMALL), learner(planted, **SMALL)
    fit([usual])
    with chapters.no_bar(), chapters.no_logging():
        chapters.fit_one_cycle(5, 5e-3, wd=0.1)
    assert torch.equal(weights_of(usual), weights_of(chapters))


def test_fit_of_nothing_does_nothing():
    fit([])


def test_the_users_threads_come_back_after_a_fit(planted):
    torch.set_num_threads(2)
    fitted(planted)
    assert torch.get_num_threads() == 2


@pytest.mark.parametrize("together", [1, 2])
@pytest.mark.parametrize("y_range", [None, (0, 5.5)])
def test_a_huge_learning_rate_ends_with_epoch_batch_and_cause(planted, y_range, together):
    learns = [learner(planted, seed=s, y_range=y_range, **SMALL) for s in range(together)]
    with pytest.raises(DivergedError, match=r"epoch 0, batch \d+ .*learning rate"):
        fit(learns, epochs=2, lr=1e30)


@pytest.mark.parametrize("at", [0, 49, 50, 77])
def test_the_first_bad_batch_is_named(planted, at):
    learn = learner(planted, **SMALL)
    calls = 0
    mse = learn.loss_func

    def poisoned(pred, y):
        nonlocal calls
        if torch.is_grad_enabled():
            calls += 1
            return mse(pred, y) * (float("nan") if calls == at + 1 else 1)
        return mse(pred, y)

    learn.loss_func = poisoned
    with pytest.raises(DivergedError, match=f"epoch {at // 50}, batch {at % 50} on"):
        fit([learn], epochs=3)


def test_a_bad_batch_of_one_of_several_models_is_named(planted):
    learns = [learner(planted, seed=s, y_range=None, **SMALL) for s in range(3)]
    with torch.no_grad():
        learns[1].model.movie_bias.weight.fill_(float("inf"))
    with pytest.raises(DivergedError, match="epoch 0, batch 0 on"):
        fit(learns, epochs=1)


@pytest.mark.parametrize("together", [1, 2])
def test_a_run_that_diverges_in_its_last_step_is_no_curve_with_a_gap(planted, together):
    "One batch an epoch: the training loss is still a number, the weights it leads to are not."
    learns = [learner(planted, seed=s, y_range=None, bs=3200, **SMALL) for s in range(together)]
    with pytest.raises(DivergedError, match="epoch 0"):
        fit(learns, epochs=1, lr=1e30)


@pytest.mark.filterwarnings("ignore:Constructing a Categorical")  # fastai's way of finding the unknown
def test_an_integer_item_seen_only_in_validation_falls_on_the_unknown_row(planted):
    ids = planted[["user", "movie", "rating"]].copy()
    ids.loc[ids.index[::100], "movie"] = 10_000 + np.arange(40)
    learn = learner(ids, **SMALL)
    unseen = ids.loc[learn.dls.valid.items.index, "movie"].pipe(
        lambda m: ~m.isin(ids.loc[split_of(learn), "movie"])
    )
    assert unseen.sum() > 2
    assert (learn.dls.valid.items["movie"][unseen] == 0).all()


@pytest.mark.parametrize("n, bs", [(100, 64), (80_000, 1024), (800_000, 4096), (20_000_000, 65_536)])
def test_big_batches_grow_with_the_rows_but_slower(n, bs):
    assert big_batch(n)["bs"] == bs


def test_on_movielens_big_batches_end_where_the_chapters_do(ml100k):
    settings = big_batch(80_000)
    bs = settings.pop("bs")
    big = [learner(ml100k, seed=seed, bs=bs) for seed in range(2)]
    chapters = [learner(ml100k, seed=seed) for seed in range(2)]
    fit(big, **settings)
    fit(chapters)
    ends = [np.mean([learn.recorder.values[-1][1] for learn in learns]) for learns in (big, chapters)]
    assert ends[0] == pytest.approx(ends[1], abs=0.008)  # .003 measured; the splits differ by .011
