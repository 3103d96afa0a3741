"""The chapter's models: shapes, range, initial weights, gradients; the tables that others read and copy."""

import pytest
import torch
from fastai.collab import EmbeddingDotBias
from torch import nn

from collab_repro.models import (
    FROM_SIZES,
    CollabNN,
    DotProduct,
    DotProductBias,
    DotProductBiasParams,
    copy_weights,
    create_params,
    squash,
    tables,
)

SIZES = N_USERS, N_MOVIES, N_FACTORS = 30, 20, 5
ALL = [*FROM_SIZES, EmbeddingDotBias]
WITH_BIAS = ALL[1:]
each_model = pytest.mark.parametrize("model", ALL)


def made(model, sizes=SIZES, y_range=(0, 5.5)) -> nn.Module:
    n_users, n_movies, n_factors = sizes
    sizes = (n_factors, n_users, n_movies) if model is EmbeddingDotBias else sizes
    return model(*sizes, y_range=y_range)


@pytest.fixture
def x():
    """Every user once, with movies in turn: (30, 2)."""
    users = torch.arange(N_USERS)
    return torch.stack([users, users % N_MOVIES], dim=1)


def drawn_wide(model: nn.Module, sd: float = 1.0) -> nn.Module:
    """The model with tables wide enough that scores spread."""
    torch.manual_seed(3)
    for p in model.parameters():
        nn.init.normal_(p, 0, sd)
    return model


def by_hand(model: nn.Module, x) -> torch.Tensor:
    """Scores computed a second way, one row at a time and in float64: (bs,)."""
    held = {name: t.detach().double() for name, t in tables(model).items()}
    scores = []
    for user, movie in x.tolist():
        score = sum(
            a * b for a, b in zip(held["user_factors"][user], held["movie_factors"][movie], strict=True)
        )
        if "user_bias" in held:
            score += held["user_bias"].view(-1)[user] + held["movie_bias"].view(-1)[movie]
        scores.append(score)
    return torch.stack(scores)


@each_model
def test_predictions_are_the_dot_product_and_biases_through_the_sigmoid_if_any(model, x):
    bare, squashed = (drawn_wide(made(model, y_range=y_range)) for y_range in (None, (0, 5.5)))
    scores = by_hand(bare, x)
    torch.testing.assert_close(bare(x).view(-1).double(), scores, atol=1e-5, rtol=1e-5)
    expected = 5.5 / (1 + torch.exp(-scores))
    torch.testing.assert_close(squashed(x).view(-1).double(), expected, atol=1e-5, rtol=1e-5)
    wide = drawn_wide(made(model, y_range=(1, 4)), sd=100)(x)
    assert 1 <= wide.min() < 1.1 and 3.9 < wide.max() <= 4


@pytest.mark.parametrize(("model", "shape"), [*zip(FROM_SIZES, [(30,), (30, 1), (30,)], strict=True)])
def test_predictions_have_the_documented_shape_and_the_chapters_range(model, shape, x):
    net = model(*SIZES)
    assert net(x).shape == shape and net(x[:1]).shape == (1, *shape[1:])
    assert net.y_range == (0, 5.5)


def test_squash_without_range_returns_the_scores_themselves():
    scores = torch.randn(3)
    assert squash(scores, None) is scores


@each_model
def test_one_backward_reaches_the_rows_of_every_table_that_were_looked_up_and_no_other(model, x):
    net = drawn_wide(made(model))
    net(x[:7]).sum().backward()
    for name, table in tables(net).items():
        touched = table.grad.view(len(table), -1).abs().sum(dim=1) > 0
        assert touched[:7].all() and not touched[7:].any(), name


def test_collab_nn_joins_embeddings_of_different_widths_and_trains_all(x):
    net = drawn_wide(CollabNN((N_USERS, 7), (N_MOVIES, 4), n_act=13))
    assert [tuple(layer.weight.shape) for layer in net.layers[::2]] == [(13, 11), (1, 13)]
    joined = torch.cat([net.user_factors.weight[x[:, 0]], net.item_factors.weight[x[:, 1]]], dim=1)
    first, _, last = net.layers
    hidden = (joined @ first.weight.T + first.bias).clamp(min=0)
    predicted = net(x)
    assert predicted.shape == (N_USERS, 1)
    torch.testing.assert_close(predicted, 5.5 * torch.sigmoid(hidden @ last.weight.T + last.bias))
    predicted.sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())


@pytest.mark.parametrize(
    "model, sd, low, high", [(DotProductBias, 0.0087, 0.019, 0.02), (DotProductBiasParams, 0.01, 0.03, 0.1)]
)
def test_tables_are_drawn_from_a_normal_cut_at_two_sd_or_from_the_whole_one(model, sd, low, high):
    torch.manual_seed(0)
    for name, table in tables(model(4000, 3000, 50)).items():
        assert low < table.abs().max() <= high, name
        assert table.std().item() == pytest.approx(sd, abs=4e-4), name


def test_create_params_takes_size_and_sd():
    torch.manual_seed(0)
    table = create_params([2000, 3], sd=2.0)
    assert table.shape == (2000, 3) and table.std().item() == pytest.approx(2, abs=0.1)


@each_model
def test_tables_are_the_parameters_themselves_under_the_chapters_names(model):
    net = made(model)
    bias = () if model is DotProductBiasParams else (1,)
    expected = {"user_factors": (N_USERS, N_FACTORS), "movie_factors": (N_MOVIES, N_FACTORS)}
    if model is not DotProduct:
        expected |= {"user_bias": (N_USERS, *bias), "movie_bias": (N_MOVIES, *bias)}
    assert {name: tuple(table.shape) for name, table in tables(net).items()} == expected
    assert {id(t) for t in tables(net).values()} == {id(p) for p in net.parameters()}


@pytest.mark.parametrize("source", WITH_BIAS)
@pytest.mark.parametrize("target", WITH_BIAS)
def test_copied_weights_give_the_same_predictions_and_stay_their_own(source, target, x):
    torch.manual_seed(1)
    first, second = made(source), made(target)
    held = [(id(p), p.shape) for p in second.parameters()]
    assert not torch.allclose(first(x).view(-1), second(x).view(-1), atol=1e-7)
    copy_weights(first, second)
    torch.testing.assert_close(first(x).view(-1), second(x).view(-1), rtol=0, atol=1e-6)
    for name, table in tables(first).items():
        assert torch.equal(table, tables(second)[name].reshape(table.shape)), name
        table.data.zero_()
        assert tables(second)[name].abs().sum() > 0, "the two share memory"
    assert [(id(p), p.shape) for p in second.parameters()] == held
    assert all(p.requires_grad and p.is_leaf for p in second.parameters())


@pytest.mark.parametrize(
    "first, second, error, why",
    [
        (
            DotProductBias(*SIZES),
            DotProductBiasParams(31, 20, 5),
            ValueError,
            r"_(factors|bias): \(.*\) does not",
        ),
        (
            DotProductBias(*SIZES),
            DotProductBiasParams(30, 21, 5),
            ValueError,
            r"_(factors|bias): \(.*\) does not",
        ),
        (
            DotProductBias(*SIZES),
            DotProductBiasParams(30, 20, 6),
            ValueError,
            r"_factors: \(.*\) does not fit \(",
        ),
        (DotProduct(4, 2, 3), DotProduct(6, 3, 2), ValueError, "does not fit"),  # as many numbers
        (DotProduct(*SIZES), DotProductBias(*SIZES), ValueError, "movie_bias"),
        (DotProductBias(*SIZES), CollabNN((30, 5), (20, 5)), TypeError, "CollabNN"),
        (nn.Linear(2, 1), DotProductBias(*SIZES), TypeError, "Linear"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_copied(first, second, error, why):
    before = [p.detach().clone() for p in second.parameters()]
    with pytest.raises(error, match=why):
        copy_weights(first, second)
    assert all(map(torch.equal, before, second.parameters()))
