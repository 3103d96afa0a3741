"""Every kind of call that chapter 8's code cells make works on today's fastai with this package beside it.

The calls are the chapter's, on planted ratings and in words of our own; each test runs once on the
loader that fastai makes by itself and once with `dl_type=RatingsDL`.
"""

import numpy as np
import pandas as pd
import pytest
import torch
from fastai.collab import CollabDataLoaders, EmbeddingDotBias, EmbeddingNN, collab_learner, get_emb_sz
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from fastai.torch_core import to_detach
from torch import nn

import collab_repro
from collab_repro import (
    CollabNN,
    DotProduct,
    DotProductBias,
    DotProductBiasParams,
    FastLoop,
    FusedAdam,
    RatingsDL,
    movie_bias,
)

# Said by fastai's own loader under pandas 3, not ours to mend:
pytestmark = pytest.mark.filterwarnings("ignore:The given NumPy array is not writable:UserWarning")

OWN_MODELS = {
    "DotProduct": lambda dls, *sizes: DotProduct(*sizes, 50),
    "DotProduct without range": lambda dls, *sizes: DotProduct(*sizes, 50, y_range=None),
    "DotProductBias": lambda dls, *sizes: DotProductBias(*sizes, 50),
    "DotProductBiasParams": lambda dls, *sizes: DotProductBiasParams(*sizes, 50),
    "CollabNN": lambda dls, *sizes: CollabNN(*get_emb_sz(dls)),
}


@pytest.fixture(scope="module", params=["fastai's loader", "RatingsDL"])
def dls(request, planted):
    settings = {"dl_type": RatingsDL} if request.param == "RatingsDL" else {}
    return CollabDataLoaders.from_df(planted, item_name="title", bs=64, seed=42, **settings)


def quietly(learn, epochs=1, lr=5e-3, **settings):
    """The chapter's `fit_one_cycle` without the progress bar; the rows of its table."""
    with learn.no_bar(), learn.no_logging():
        learn.fit_one_cycle(epochs, lr, **settings)
    return learn.recorder.values


@pytest.fixture(scope="module")
def fitted(dls):
    """The chapter's `collab_learner`, fitted for an epoch with weight decay."""
    torch.set_num_threads(1)
    learn = collab_learner(dls, n_factors=50, y_range=(0, 5.5))
    quietly(learn, wd=0.1)
    return learn


def test_a_name_from_the_package_does_not_hide_one_of_fastais_collab():
    """`from fastai.collab import *` and `from collab_repro import *` may stand in one notebook."""
    import fastai.collab
    import fastai.tabular.all as tabular

    public = set(collab_repro.__all__)
    for module in (fastai.collab, tabular):
        theirs = {name for name in vars(module) if not name.startswith("_")}
        shared = public & theirs
        assert all(getattr(collab_repro, name) is getattr(module, name) for name in shared), shared


def test_titles_are_merged_and_crossed_as_in_the_first_look(planted):
    titles = planted[["movie", "title"]].drop_duplicates()
    merged = planted.drop(columns="title").merge(titles)
    by = ["user", "movie"]  # before pandas 2.2 a merge changes the order of the rows
    assert np.array_equal(merged.sort_values(by), planted[merged.columns].sort_values(by))
    crossed = pd.crosstab(planted["user"], planted["title"], planted["rating"], aggfunc="mean")
    assert crossed.notna().to_numpy().sum() == len(planted)


def test_the_data_shows_a_batch_and_knows_its_titles(dls, planted, monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    dls.show_batch()
    assert all(f"<th>{column}</th>" in shown[0].data for column in ("user", "title", "rating"))
    assert shown[0].data.count("Film ") == 10
    titles = dls.classes["title"]
    assert titles[0] == "#na#" and set(titles[1:]) == set(planted["title"])
    assert len(dls.classes["user"]) == planted["user"].nunique() + 1
    x, y = dls.one_batch()
    assert x.shape == (64, 2) and y.shape == (64, 1)


def test_hand_made_factors_and_one_hot_lookups(dls):
    n_users, n_movies = len(dls.classes["user"]), len(dls.classes["title"])
    user_factors, movie_factors = torch.randn(n_users, 5), torch.randn(n_movies, 5)
    picked = nn.functional.one_hot(torch.tensor(3), n_users).float()
    assert torch.equal(user_factors.t() @ picked, user_factors[3])
    x, _ = dls.one_batch()
    assert (user_factors[x[:, 0]] * movie_factors[x[:, 1]]).sum(dim=1).shape == (64,)


@pytest.mark.parametrize("name", OWN_MODELS)
def test_own_models_train_in_a_plain_learner(dls, name):
    model = OWN_MODELS[name](dls, *map(len, dls.classes.values()))
    learn = Learner(dls, model, loss_func=MSELossFlat())
    with_decay = "Bias" in name  # without it, fastai's default is a hundredth
    ((train_loss, valid_loss, *_),) = quietly(learn, **({"wd": 0.1} if with_decay else {}))
    assert np.isfinite([train_loss, valid_loss]).all()
    assert learn.opt.hypers[-1]["wd"] == (0.1 if with_decay else 0.01)
    predictions, actual = learn.get_preds()
    assert predictions.numel() == actual.numel() == len(dls.valid_ds)


def test_fastais_model_trains_and_its_tables_are_read(fitted, dls):
    assert isinstance(fitted.model, EmbeddingDotBias)
    shown = repr(fitted.model)
    assert all(name in shown for name in ("u_weight", "i_weight", "u_bias", "i_bias", "Embedding("))
    assert len(fitted.recorder.values) == 1 and np.isfinite(fitted.recorder.values[0]).all()
    users = to_detach(fitted.model.u_weight.weight)
    assert users.shape == (len(dls.classes["user"]), 50) and not users.requires_grad
    assert to_detach(fitted.model.u_bias.weight).shape == (len(dls.classes["user"]), 1)


def test_biases_sorted_and_named_and_the_same_from_the_package(fitted, dls):
    bias = fitted.model.i_bias.weight.squeeze()
    assert bias.shape == (len(dls.classes["title"]),)
    lowest, highest = bias.argsort()[:5], bias.argsort(descending=True)[:5]
    named = [dls.classes["title"][i] for i in lowest]
    assert len(set(named)) == 5 and all(isinstance(title, str) for title in named)
    assert bias[lowest].max() < bias[highest].min()
    by_title = pd.Series(to_detach(bias).numpy(), list(dls.classes["title"]))
    ours = movie_bias(fitted)
    assert np.array_equal(ours, by_title[ours.index])


@pytest.mark.parametrize("model", [DotProductBias, DotProductBiasParams])
def test_biases_of_own_models_are_read_as_the_chapter_reads_them(dls, model):
    own = model(*map(len, dls.classes.values()), 50)
    bias = own.movie_bias if model is DotProductBiasParams else own.movie_bias.weight
    assert bias.squeeze().argsort()[:5].shape == (5,)


def test_factors_of_the_most_rated_titles_in_three_components(fitted, dls, planted):
    top = planted.groupby("title")["rating"].count().sort_values(ascending=False).index.to_numpy()[:60]
    rows = torch.tensor([dls.classes["title"].o2i[title] for title in top])
    factors = fitted.model.i_weight.weight[rows].cpu().detach()
    components = factors.pca(3)
    assert components.shape == (60, 3)
    first, _, third = components.t()
    centred = torch.stack([first, third])
    assert (centred @ centred.t())[0, 1].abs() < 1e-3 * (centred @ centred.t()).diag().max()


def test_fastai_reads_weights_and_biases_by_title(fitted, planted):
    titles = planted["title"].unique()[:7]
    assert fitted.model.bias(titles, is_item=True).shape == (7,)
    assert fitted.model.weight(titles, is_item=True).shape == (7, 50)


def test_nearest_title_by_cosine_similarity(fitted, dls, planted):
    factors = fitted.model.i_weight.weight
    at = dls.classes["title"].o2i[planted["title"][0]]
    similarity = nn.CosineSimilarity(dim=1)(factors, factors[at][None])
    order = similarity.argsort(descending=True)
    assert order[0] == at and dls.classes["title"][order[1]] != planted["title"][0]


def test_embedding_sizes_and_the_network_made_from_them(dls):
    sizes = get_emb_sz(dls)
    assert [rows for rows, _ in sizes] == [len(vocabulary) for vocabulary in dls.classes.values()]
    x, _ = dls.one_batch()
    assert CollabNN(*sizes)(x).shape == (64, 1)


def test_collab_learner_makes_a_network(dls):
    learn = collab_learner(dls, use_nn=True, y_range=(0, 5.5), layers=[100, 50])
    assert isinstance(learn.model, EmbeddingNN)
    ((train_loss, valid_loss, *_),) = quietly(learn, wd=0.1)
    assert np.isfinite([train_loss, valid_loss]).all() and "in_features=100" in repr(learn.model)


def test_fast_loop_serves_either_loader_with_the_losses_of_fastais_own(dls):
    """The loader story compares both loaders in this loop: it must not change either."""

    def losses(cbs):
        np.random.seed(0)
        dls.train.epoch_no = 0
        torch.manual_seed(0)
        model = DotProductBias(*map(len, dls.classes.values()), 50)
        learn = Learner(dls, model, loss_func=MSELossFlat(), opt_func=FusedAdam, cbs=cbs)
        return [row[:2] for row in quietly(learn, epochs=2, wd=0.1)]

    assert losses(FastLoop) == losses(None)
