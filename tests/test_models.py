"The chapter's models: shapes, range, initial weights, gradients, and the tables that others read."

import pytest
import torch
from fastai.collab import EmbeddingDotBias
from torch import nn

from collab_repro.models import (
    CollabNN,
    DotProduct,
    DotProductBias,
    DotProductBiasParams,
    create_params,
    squash,
    tables,
)

N_USERS, N_MOVIES, N_FACTORS = 30, 20, 5
SIZES = N_USERS, N_MOVIES, N_FACTORS
FROM_SIZES = [DotProduct, DotProductBias, DotProductBiasParams]
BOTH = [DotProductBias, DotProductBiasParams]
TABLES = {
    "user_factors": (N_USERS, N_FACTORS),
    "user_bias": (N_USERS,),
    "movie_factors": (N_MOVIES, N_FACTORS),
    "movie_bias": (N_MOVIES,),
}


@pytest.fixture
def x():
    "Every user once, with movies in turn: (30, 2)."
    users = torch.arange(N_USERS)
    return torch.stack([users, users % N_MOVIES], dim=1)


def drawn_wide(model: nn.Module, sd: float = 1.0) -> nn.Module:
    "The model with tables wide enough that scores spread."
    torch.manual_seed(3)
    for p in model.parameters():
        nn.init.normal_(p, 0, sd)
    return model


def by_hand(model: nn.Module, x) -> torch.Tensor:
    "Scores computed a second way, one row at a time and in float64: (bs,)."
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


@pytest.mark.parametrize(
    "model, shape", [(DotProduct, (30,)), (DotProductBias, (30, 1)), (DotProductBiasParams, (30,))]
)
def test_predictions_have_the_documented_shape(model, shape, x):
    assert model(*SIZES)(x).shape == shape
    assert model(*SIZES)(x[:1]).shape == (1, *shape[1:])


@pytest.mark.parametrize("model", [*FROM_SIZES, EmbeddingDotBias])
def test_predictions_are_the_sigmoid_of_dot_product_and_biases(model, x):
    sizes = (N_FACTORS, N_USERS, N_MOVIES) if model is EmbeddingDotBias else SIZES
    net = drawn_wide(model(*sizes, y_range=(0, 5.5)))
    expected = 5.5 / (1 + torch.exp(-by_hand(net, x)))
    torch.testing.assert_close(net(x).view(-1).double(), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", FROM_SIZES)
def test_without_y_range_predictions_are_the_bare_scores(model, x):
    net = drawn_wide(model(*SIZES, y_range=None))
    torch.testing.assert_close(net(x).view(-1).double(), by_hand(net, x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("model", FROM_SIZES)
def test_predictions_stay_inside_y_range_however_large_the_scores(model, x):
    net = drawn_wide(model(*SIZES, y_range=(1, 4)), sd=100)
    assert net(x).min() >= 1 and net(x).max() <= 4
    assert net(x).min() < 1.1 and net(x).max() > 3.9, "nothing was squashed: the test shows nothing"


@pytest.mark.parametrize("model", FROM_SIZES)
def test_y_range_defaults_to_the_chapters(model):
    assert model(*SIZES).y_range == (0, 5.5)


def test_squash_without_range_returns_the_scores_themselves():
    scores = torch.randn(3)
    assert squash(scores, None) is scores


@pytest.mark.parametrize("model", FROM_SIZES)
def test_one_backward_reaches_the_rows_of_every_table_that_were_looked_up_and_no_other(model, x):
    net = drawn_wide(model(*SIZES))
    net(x[:7]).sum().backward()
    for name, table in tables(net).items():
        touched = table.grad.view(len(table), -1).abs().sum(dim=1) > 0
        assert touched[:7].all() and not touched[7:].any(), name


@pytest.mark.parametrize("model", FROM_SIZES)
def test_every_table_is_among_the_parameters_that_an_optimizer_sees(model):
    net = model(*SIZES)
    assert {id(p) for p in net.parameters()} == {id(t) for t in tables(net).values()}


def test_embedding_tables_are_drawn_from_a_normal_cut_at_two_sd():
    torch.manual_seed(0)
    for name, table in tables(DotProductBias(4000, 3000, 50)).items():
        assert table.abs().max() <= 0.02, name
        assert table.std().item() == pytest.approx(0.0087, abs=4e-4), name


def test_create_params_tables_are_drawn_from_the_whole_normal():
    torch.manual_seed(0)
    for name, table in tables(DotProductBiasParams(4000, 3000, 50)).items():
        assert table.abs().max() > 0.03, name
        assert table.std().item() == pytest.approx(0.01, abs=4e-4), name


def test_create_params_takes_size_and_sd_and_is_trainable():
    torch.manual_seed(0)
    table = create_params([2000, 3], sd=2.0)
    assert isinstance(table, nn.Parameter) and table.requires_grad and table.shape == (2000, 3)
    assert table.std().item() == pytest.approx(2, abs=0.1)


@pytest.mark.parametrize("model", FROM_SIZES)
def test_the_same_seed_gives_the_same_initial_weights_and_another_seed_others(model):
    def drawn(seed):
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in model(*SIZES).parameters()])

    assert torch.equal(drawn(1), drawn(1))
    assert not torch.equal(drawn(1), drawn(2))


@pytest.mark.parametrize(
    "model, bias", [(DotProductBias, (N_MOVIES, 1)), (DotProductBiasParams, (N_MOVIES,))]
)
def test_tables_give_a_bias_in_the_shape_it_is_held_in(model, bias):
    assert tables(model(*SIZES))["movie_bias"].shape == bias


def test_tables_have_the_chapters_names_on_every_model():
    fastais = EmbeddingDotBias(N_FACTORS, N_USERS, N_MOVIES)
    for net in (*(model(*SIZES) for model in BOTH), fastais):
        held = {name: t.view(len(t), -1).squeeze(1).shape for name, t in tables(net).items()}
        assert held == TABLES
    assert tables(DotProduct(*SIZES)).keys() == {"user_factors", "movie_factors"}


def test_tables_are_the_parameters_themselves_not_copies():
    for net in (*(model(*SIZES) for model in FROM_SIZES), EmbeddingDotBias(N_FACTORS, N_USERS, N_MOVIES)):
        assert {id(t) for t in tables(net).values()} == {id(p) for p in net.parameters()}


@pytest.mark.parametrize("model", [CollabNN((30, 4), (20, 3)), nn.Linear(2, 1)])
def test_tables_refuses_a_model_not_made_of_tables_alone_and_names_it(model):
    with pytest.raises(TypeError, match=type(model).__name__):
        tables(model)


def test_collab_nn_joins_embeddings_of_different_widths(x):
    net = drawn_wide(CollabNN((N_USERS, 7), (N_MOVIES, 4), n_act=13))
    assert [tuple(layer.weight.shape) for layer in net.layers[::2]] == [(13, 11), (1, 13)]
    assert net(x).shape == (N_USERS, 1)
    joined = torch.cat([net.user_factors.weight[x[:, 0]], net.item_factors.weight[x[:, 1]]], dim=1)
    first, _, last = net.layers
    hidden = (joined @ first.weight.T + first.bias).clamp(min=0)
    expected = 5.5 * torch.sigmoid(hidden @ last.weight.T + last.bias)
    torch.testing.assert_close(net(x), expected)


def test_collab_nn_trains_both_embeddings_and_both_layers(x):
    net = drawn_wide(CollabNN((N_USERS, 7), (N_MOVIES, 4)))
    net(x).sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in net.parameters())
