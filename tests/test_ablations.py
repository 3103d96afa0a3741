"""Each difference between the chapter's two models, reverted: the outcomes that notebook 01 shows."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from fastai.losses import MSELossFlat
from torch import nn

from collab_repro.evidence.ablations import (
    CHANGES,
    OUTCOMES,
    Params,
    ablate,
    bare_factors,
    columns,
    columns_in_place,
    cut_normal,
    keepdim,
    mse,
    own_backward,
)
from collab_repro.models import DotProductBias, DotProductBiasParams, tables
from collab_repro.training import fit, learner

SMALL = {"seeds": range(2), "epochs": 2, "n_factors": 8, "bs": 64, "wd": 0.1}
BASES = DotProductBias, DotProductBiasParams


@pytest.fixture(scope="module")
def small(planted):
    torch.set_num_threads(1)
    return ablate(planted, **SMALL)


@pytest.fixture(scope="module")
def real(ml100k):
    torch.set_num_threads(1)
    return ablate(ml100k, seeds=[0], epochs=3)


@pytest.mark.parametrize("data", ["small", "real"])
def test_every_change_has_its_outcome(data, request):
    rows = request.getfixturevalue(data)
    assert rows["change"].tolist() == ["as in the chapter"] * 2 + [c.change for c in CHANGES]
    assert rows["of"].tolist() == [m.__name__ for m in (*BASES, *(c.of for c in CHANGES))]
    assert rows["outcome"].tolist() == ["", ""] + [c.expected for c in CHANGES]
    for row in rows.itertuples():
        assert (row.detail != "") == (row.outcome == "raises") == math.isnan(row.mse), row


def test_the_losses_on_the_real_ratings(real):
    own = real[:2].set_index("of")["mse"]
    assert own.between(0.80, 0.88).all()
    rise = real["mse"] - real["of"].map(own)
    assert (rise[real["outcome"] == "nothing changes"] == 0).all()
    assert rise[real["outcome"] == "same quality"].abs().max() < 0.01
    assert rise[real["outcome"].isin(["trains worse", "never trains", "silently wrong"])].min() > 0.015


def test_every_change_is_listed_once_with_an_outcome():
    assert {c.expected for c in CHANGES} == set(OUTCOMES)
    assert len({c.change for c in CHANGES}) == len(CHANGES)
    of_embeddings = [c.change for c in CHANGES if c.of is DotProductBias]
    assert of_embeddings == [
        "call replaced by brackets on .weight",
        "init not cut, as create_params'",
        "nn.Embedding with its own init, N(0, 1)",
        "brackets on an Embedding",
        "Embedding given one list",
    ]
    assert {c.of for c in CHANGES} == set(BASES)
    made = {c.change: c.model(300, 200, 20) for c in CHANGES if "N(0, 1)" in c.change}
    spread = [table.std().item() for model in made.values() for table in tables(model).values()]
    assert len(spread) == 4 and spread == pytest.approx([1] * 4, abs=0.2)
    read = own_backward(2, 2, 2).lookup(torch.ones(2, 2, requires_grad=True), torch.tensor([0]))
    assert "GatherScatter" in read.grad_fn.name()


WRONG_LOOKUPS = {
    "detached": lambda table, idx: table.detach()[idx] + 0 * table.sum(),
    "scaled": lambda table, idx: 2 * table[idx] - table[idx].detach(),
}


def test_the_outcome_comes_from_the_training_and_not_from_the_list(planted):
    changes = [replace(CHANGES[0], expected="raises")]
    changes += [replace(CHANGES[0], model=partial(Params, lookup=wrong)) for wrong in WRONG_LOOKUPS.values()]
    outcomes = ablate(planted, changes, **SMALL)["outcome"].tolist()
    assert outcomes[:2] == ["", "nothing changes"]
    assert "nothing changes" not in outcomes[2:], "a wrong backward was taken for no change"


def test_seeds_give_means_and_sds(planted, small):
    each = []
    for seed in SMALL["seeds"]:
        learn = learner(planted, DotProductBiasParams, seed, n_factors=8)
        fit([learn], 2)
        each.append(learn.recorder.values[-1][1])
    each = torch.tensor(each, dtype=torch.float64)
    row = small.iloc[1]
    assert row["mse"] == pytest.approx(each.mean().item(), rel=1e-5) == pytest.approx(row["loss"], rel=1e-5)
    assert row["sd"] == pytest.approx(each.std().item(), rel=1e-3)


# The parts of the table one by one


def test_the_distribution_and_the_number_of_draws_are_all_that_separates_the_starts():
    def cut_and_twice(size):
        torch.empty(*size).normal_()
        return cut_normal(size)

    starts = []
    for model in (*BASES, partial(Params, create=cut_and_twice)):
        torch.manual_seed(0)
        starts.append(tables(model(120, 90, 5)))
    for name, table in starts[0].items():
        assert torch.equal(table, starts[2][name].reshape(table.shape))
        assert not torch.equal(table, starts[1][name].reshape(table.shape))


@pytest.mark.parametrize("model", [columns, keepdim])
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


def test_which_loss_notices_other_shapes():
    square, pred, y = torch.randn(8, 8), torch.randn(8), torch.randn(8, 1)
    with pytest.warns(UserWarning, match="target size"), pytest.raises(RuntimeError, match="must match"):
        MSELossFlat()(square, y)
    with pytest.warns(UserWarning, match="target size"):
        assert nn.MSELoss()(square, y) == mse(square, y)
    assert mse(square, y).ndim == 0  # in silence
    right = ((pred - y.flatten()) ** 2).mean()
    assert MSELossFlat()(pred, y) == MSELossFlat()(pred[:, None], y) == right == mse(pred[:, None], y)
    with pytest.warns(UserWarning, match="target size"):
        assert nn.MSELoss()(pred, y) != right
    assert mse(pred, y) != right


def test_in_place_the_sum_cannot_become_a_square():
    with pytest.raises(RuntimeError, match="broadcast shape"):
        columns_in_place(9, 7, 4)(torch.zeros(6, 2, dtype=torch.int64))


def test_a_bare_tensor_gets_a_gradient_and_no_step(planted):
    learn = learner(planted, lambda dls: bare_factors(*map(len, dls.classes.values()), 5))
    model = learn.model
    assert len(list(model.parameters())) == 3 and "movie_factors" not in model.state_dict()
    start = model.movie_factors.detach().clone()
    fit([learn], 1)
    assert torch.equal(model.movie_factors, start)
    assert model.movie_factors.grad.abs().sum() > 0


def test_a_model_of_bare_tensors_has_nothing_to_train():
    bare = nn.Module()
    bare.factors = torch.randn(4, 3)
    assert not list(bare.parameters())
    with pytest.raises(ValueError, match="empty parameter list"):
        torch.optim.Adam(bare.parameters())
    with pytest.raises(RuntimeError, match="does not require grad"):
        bare.factors[torch.tensor([1])].sum().backward()
