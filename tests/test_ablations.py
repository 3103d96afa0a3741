"""Each difference between the chapter's two models, reverted: the outcome that the notebook's table shows."""

import math
from dataclasses import replace

import pytest
import torch
from fastai.losses import MSELossFlat
from torch import nn

from collab_repro.ablations import (
    CHANGES,
    OUTCOMES,
    BareFactors,
    Columns,
    ColumnsInPlace,
    Keepdim,
    LawAndDraws,
    Params,
    ablate,
    mse,
)
from collab_repro.models import DotProductBias, DotProductBiasParams, tables
from collab_repro.training import fit, learner

SMALL = {"seeds": range(2), "epochs": 2, "n_factors": 8, "bs": 64, "wd": 0.1}
BASES = DotProductBias, DotProductBiasParams


def ids(change):
    return change.change


@pytest.fixture(scope="module")
def real(ml100k):
    return ablate(ml100k, seeds=[0], epochs=3)


@pytest.mark.parametrize("change", CHANGES, ids=ids)
def test_the_outcome_on_planted_ratings(planted, change):
    *_, found = ablate(planted, [change], **SMALL).itertuples()
    assert found.outcome == change.expected, found
    assert (found.detail != "") == (found.outcome == "raises") == math.isnan(found.mse)


def test_the_outcomes_on_the_real_ratings(real):
    assert list(real["change"]) == ["as in the chapter"] * 2 + [c.change for c in CHANGES]
    assert list(real["outcome"]) == ["", ""] + [c.expected for c in CHANGES]


def test_the_losses_on_the_real_ratings(real):
    own = real[:2].set_index("of")["mse"]
    assert own.between(0.80, 0.88).all()
    for _, row in real[2:].iterrows():
        rise = row["mse"] - own[row["of"]]
        if row["outcome"] == "nothing changes":
            assert rise == 0
        elif row["outcome"] == "trains from elsewhere":
            assert abs(rise) < 0.01
        elif row["outcome"] in ("trains worse", "never trains", "silently wrong"):
            assert rise > 0.015


def test_every_change_is_listed_once_with_an_outcome():
    assert {c.expected for c in CHANGES} == set(OUTCOMES)
    assert len({c.change for c in CHANGES}) == len(CHANGES)
    assert {c.of for c in CHANGES} == set(BASES)
    assert all(issubclass(c.model, c.of) for c in CHANGES)


def test_an_unexpected_outcome_shows(planted):
    "The word comes from the training, not from the list."
    mislabelled = [replace(CHANGES[0], expected="raises")]
    assert ablate(planted, mislabelled, **SMALL)["outcome"].tolist() == ["", "nothing changes"]


class Detached(Params):
    lookup = staticmethod(lambda table, idx: table.detach()[idx] + 0 * table.sum())


class Scaled(Params):
    lookup = staticmethod(lambda table, idx: 2 * table[idx] - table[idx].detach())


@pytest.mark.parametrize("wrong", [Detached, Scaled])
def test_a_wrong_backward_is_not_taken_for_no_change(planted, wrong):
    found = ablate(planted, [replace(CHANGES[0], model=wrong)], **SMALL)
    assert found["outcome"].iloc[-1] != "nothing changes"


def test_seeds_give_means_and_sds(planted):
    settings = SMALL | {"seeds": range(3)}
    row = ablate(planted, CHANGES[:1], **settings).iloc[0]
    each = []
    for seed in range(3):
        learn = learner(planted, DotProductBiasParams, seed, n_factors=8)
        fit([learn], 2, 5e-3, 0.1)
        each.append(learn.recorder.values[-1][1])
    each = torch.tensor(each, dtype=torch.float64)
    assert row["mse"] == pytest.approx(each.mean().item(), rel=1e-5) == pytest.approx(row["loss"], rel=1e-5)
    assert row["sd"] == pytest.approx(each.std().item(), rel=1e-3)


# The parts of the table one by one


def test_law_and_draws_are_all_that_separates_the_starts():
    starts = []
    for model in (*BASES, LawAndDraws):
        torch.manual_seed(0)
        starts.append(tables(model(120, 90, 5)))
    for name, table in starts[0].items():
        assert torch.equal(table, starts[2][name].reshape(table.shape))
        assert not torch.equal(table, starts[1][name].reshape(table.shape))


@pytest.mark.parametrize("model", [Columns, Keepdim])
def test_the_square_holds_the_right_answers_on_its_diagonal(model):
    torch.manual_seed(0)
    x = torch.stack([torch.randint(9, (6,)), torch.randint(7, (6,))], dim=1)
    square, right = model(9, 7, 4), DotProductBiasParams(9, 7, 4)
    with torch.no_grad():
        for name, table in tables(right).items():
            table.copy_(tables(square)[name].mul_(50).reshape(table.shape))
    assert square(x).shape == (6, 6) and right(x).shape == (6,)
    torch.testing.assert_close(square(x).diagonal(), right(x))
    assert not torch.allclose(square(x), right(x)[:, None].expand(6, 6))


def test_which_loss_notices_the_square():
    pred, y = torch.randn(8, 8), torch.randn(8, 1)
    with pytest.warns(UserWarning, match="target size"), pytest.raises(RuntimeError, match="must match"):
        MSELossFlat()(pred, y)
    with pytest.warns(UserWarning, match="target size"):
        assert nn.MSELoss()(pred, y) == mse(pred, y)
    assert mse(pred, y).ndim == 0  # in silence


def test_which_loss_notices_a_vector_against_a_column():
    pred, y = torch.randn(8), torch.randn(8, 1)
    right = ((pred - y.flatten()) ** 2).mean()
    assert MSELossFlat()(pred, y) == MSELossFlat()(pred[:, None], y) == right
    with pytest.warns(UserWarning, match="target size"):
        assert nn.MSELoss()(pred, y) != right
    assert mse(pred, y) != right and mse(pred[:, None], y) == right


def test_in_place_the_sum_cannot_become_a_square():
    with pytest.raises(RuntimeError, match="broadcast shape"):
        ColumnsInPlace(9, 7, 4)(torch.zeros(6, 2, dtype=torch.int64))


def test_a_bare_tensor_gets_a_gradient_and_no_step(planted):
    learn = learner(planted, lambda dls: BareFactors(*map(len, dls.classes.values()), 5))
    model = learn.model
    assert len(list(model.parameters())) == 3 and "movie_factors" not in model.state_dict()
    start = model.movie_factors.detach().clone()
    fit([learn], 1)
    assert torch.equal(model.movie_factors, start)
    assert model.movie_factors.grad.abs().sum() > 0


def test_a_model_of_bare_tensors_has_nothing_to_train():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.factors = torch.randn(4, 3)

    assert not list(Bare().parameters())
    with pytest.raises(ValueError, match="empty parameter list"):
        torch.optim.Adam(Bare().parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        Bare().factors[torch.tensor([1])].sum().backward()
