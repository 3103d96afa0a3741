"""Paired curves of both models, and the same start, bit by bit: on planted and on the real ratings."""

import numpy as np
import pandas as pd
import pytest
import torch

from collab_repro import (
    DotProduct,
    DotProductBias,
    DotProductBiasParams,
    compare,
    fit,
    learner,
    loader,
    planted_ratings,
    same_start,
)
from collab_repro.comparison import BOTH, SameStart, curves_of, learners, train
from collab_repro.models import copy_weights, tables
from collab_repro.speed import big_batch

SMALL = {"n_factors": 5}
NAMES = ["DotProductBias", "DotProductBiasParams"]


def test_compare_gives_each_learners_numbers_alone_in_a_row_for_each_model_seed_and_epoch(few):
    found = compare(few, seeds=[3, 8], epochs=2, **SMALL)
    columns = ["data", "model", "seed", "epoch", "train_loss", "valid_loss", "seconds"]
    assert list(found.columns) == columns and set(found["data"]) == {"synthetic"}
    assert list(found.index) == list(range(len(found)))
    rows = []
    for model in BOTH:
        for seed in (3, 8):
            learn = learner(few, model, seed, **SMALL)
            with learn.no_bar(), learn.no_logging():
                learn.fit_one_cycle(2, 5e-3, wd=0.1)
            rows += [(model.__name__, seed, e, *losses) for e, losses in enumerate(learn.recorder.values)]
    assert list(found[columns[1:-1]].itertuples(index=False, name=None)) == rows
    assert found["seconds"].gt(0).all()
    assert found[["train_loss", "valid_loss"]].nunique().eq(8).all(), "runs repeat each other"


def test_no_seed_no_model_and_models_of_one_name_are_refused(few):
    for models, seeds in ((BOTH, []), (BOTH, iter(())), ([], [0]), ([BOTH[0]] * 2, [0])):
        with pytest.raises(
            ValueError, match=r"^give a seed and a model at least, models by different names: s"
        ):
            compare(few, models, seeds)


def test_a_seeds_models_share_split_and_batch_order_and_seeds_do_not(few):
    learns = train(few, seeds=range(2), epochs=1, **SMALL)
    assert list(learns) == [(name, seed) for name in NAMES for seed in range(2)]
    assert set(curves_of(learns, data="mine")["data"]) == {"mine"}
    loaders = {key: learn.dls.train for key, learn in learns.items()}
    for (_, seed), one in loaders.items():
        for other in range(2):
            same = loaders[NAMES[1], other]
            assert one.items.index.equals(same.items.index) == (seed == other)
            assert torch.equal(one.get_idxs(), same.get_idxs()) == (seed == other)


def test_settings_reach_the_learners_and_the_fit(few):
    learn = train(few, [DotProduct], [0], 1, n_factors=3, bs=100, y_range=(0, 6))["DotProduct", 0]
    assert learn.dls.train.bs == 100 and learn.model.y_range == (0, 6)
    assert learn.model.user_factors.weight.shape[1] == 3
    found = [
        compare(few, [DotProduct], [0], **{"epochs": 1, **SMALL, **own})["valid_loss"].iloc[-1]
        for own in ({}, {"lr": 1e-2}, {"wd": 1.0}, {"epochs": 2})
    ]
    assert len(set(found)) == 4


def test_models_of_one_name_are_refused_not_merged(few):
    with pytest.raises(ValueError, match="name"):
        train(few, [DotProduct, DotProduct], [0], 1, **SMALL)


@pytest.mark.parametrize("models", [BOTH, BOTH[::-1]])
def test_copied_weights_train_identically_to_the_bit(few, models):
    found = same_start(few, models, seed=1, epochs=2, **SMALL)
    assert found.identical and found.steps == found.equal_losses == 32
    names = ["user_factors", "user_bias", "movie_factors", "movie_bias"]
    assert found.equal_tables == dict.fromkeys(names, True)
    assert "32 of 32 training losses and 4 of 4 final tables are equal to the bit" in str(found)
    assert set(found.curves["data"]) == {"synthetic"} and set(found.curves["seed"]) == {1}
    assert list(found.curves.index) == [0, 1, 2, 3]
    first, second = (found.curves.loc[found.curves["model"] == m.__name__, "valid_loss"] for m in models)
    assert first.tolist() == second.tolist() and len(first) == 2
    alone = compare(few, models[:1], [1], epochs=2, **SMALL)["valid_loss"]
    assert first.tolist() == alone.tolist(), "the first model does not start from its own weights"


def last_bit(number: torch.Tensor) -> torch.Tensor:
    return torch.nextafter(number, torch.tensor(torch.inf))


@pytest.mark.parametrize("table", [*tables(DotProductBias(2, 2, 2)), None])
@pytest.mark.parametrize("who", [0, 1])
def test_a_table_or_a_loss_that_differs_in_its_last_bit_is_reported(few, monkeypatch, table, who):
    def fit_and_nudge(learns, *args):
        fit(learns, *args)
        changed = tables(learns[who].model)[table].data.view(-1) if table else learns[who].recorder.losses
        changed[3] = last_bit(changed[3])

    monkeypatch.setattr("collab_repro.comparison.fit", fit_and_nudge)
    found = same_start(few, epochs=1, **SMALL)
    assert not found.identical and found.steps == 16
    assert found.equal_losses == (16 if table else 15)
    assert [name for name, equal in found.equal_tables.items() if not equal] == [table] * bool(table)
    assert f"{found.equal_losses} of 16 training losses and {3 if table else 4} of 4 final" in str(found)


class Detached(DotProductBiasParams):
    """Its movie biases are looked up, but never learn."""

    def forward(self, x):
        scores = (self.user_factors[x[:, 0]] * self.movie_factors[x[:, 1]]).sum(dim=1)
        scores = scores + self.user_bias[x[:, 0]] + self.movie_bias[x[:, 1]].detach()
        return 5.5 * torch.sigmoid(scores)


class Shifted(DotProductBiasParams):
    """It looks up the user before."""

    def forward(self, x):
        return super().forward(torch.stack([(x[:, 0] - 1).clamp(min=0), x[:, 1]], dim=1))


class Nudged(DotProductBiasParams):
    """Its predictions are off by a rounding."""

    def forward(self, x):
        return super().forward(x) * (1 + 1e-6)


@pytest.mark.parametrize("broken", [Detached, Shifted, Nudged, "no copy"])
def test_a_broken_model_and_other_weights_are_found_out(few, broken, monkeypatch):
    if broken == "no copy":
        monkeypatch.setattr("collab_repro.comparison.copy_weights", lambda source, target: None)
        broken = DotProductBiasParams
    monkeypatch.setattr("collab_repro.training.FROM_SIZES", (DotProductBias, broken))
    found = same_start(few, (DotProductBias, broken), epochs=1, **SMALL)
    assert not found.identical and found.equal_losses < found.steps
    assert not all(found.equal_tables.values())
    assert broken is not Detached or not found.equal_tables["movie_bias"]


@pytest.mark.parametrize("losses, last, identical", [(3, True, True), (2, True, False), (3, False, False)])
def test_identical_needs_all_losses_and_all_tables(losses, last, identical):
    found = SameStart(3, losses, {"movie_bias": True, "user_bias": last}, pd.DataFrame())
    assert found.identical == identical


def test_on_movielens_copied_weights_train_identically_and_all_end_where_the_book_does(ml100k):
    own, copied = learners(ml100k, BOTH, [0]), learner(ml100k, DotProductBiasParams)
    first, _ = own.values()
    copy_weights(first.model, copied.model)
    fit([*own.values(), copied])
    same = SameStart.of(first, copied, data="ml-100k", seed=0)
    assert same.identical and same.steps == 6250
    found = curves_of(own, "ml-100k").set_index("model")
    for model in NAMES:
        assert 0.80 <= found.loc[model, "valid_loss"].iloc[4] <= 0.84
        assert 0.82 <= found.loc[model, "train_loss"].iloc[1] <= 0.90, "rows drawn with replacement give .67"
    settings = big_batch(80_000)
    big = compare(ml100k, [DotProductBiasParams], [0], 5, settings["lr"], settings["wd"], bs=settings["bs"])
    chapters = found.loc[NAMES[1], "valid_loss"]
    assert big["valid_loss"].iloc[4] == pytest.approx(chapters.iloc[4], abs=0.008)  # .003 measured


def test_with_rows_drawn_with_replacement_the_fingerprint_is_another(monkeypatch):
    """The fault that the real-ratings test guards against can be seen at all."""

    def with_replacement(n, seed, epoch):
        return torch.from_numpy(np.random.default_rng((seed, epoch)).integers(0, n, n))

    ratings, ends = planted_ratings(400, 600, 20_000)[0], []
    for draw in (loader.shuffled, with_replacement):
        monkeypatch.setattr("collab_repro.loader.TensorDL.draw", staticmethod(draw))
        ends.append(compare(ratings, [DotProductBias], [0], epochs=2)["train_loss"].iloc[-1])
    assert ends[1] < ends[0] - 0.05
