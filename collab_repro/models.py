"""The chapter's models in the chapter's order, side by side.

Every model takes a batch `x` of shape `(bs, 2)` (user row, movie row: int64) and returns predicted
ratings. Source: fastbook chapter 8, "Collaborative Filtering from Scratch" onwards.
"""

import torch
from fastai.collab import EmbeddingDotBias
from fastai.layers import Embedding, sigmoid_range
from torch import Tensor, nn

YRange = tuple[float, float] | None
Y_RANGE = (0, 5.5)  # a little more than five stars, since a sigmoid never reaches its bounds
N_FACTORS = 50


def squash(scores: Tensor, y_range: YRange) -> Tensor:
    """`scores` of any shape moved inside `y_range` by a sigmoid, or left alone when it is None."""
    return scores if y_range is None else sigmoid_range(scores, *y_range)


class DotProduct(nn.Module):
    """A rating is the dot product of a user's and a movie's factors ("Creating the model from scratch").

    Tables: `user_factors` (n_users, n_factors), `movie_factors` (n_movies, n_factors).
    With `y_range=None` it is the section's first version, without the sigmoid.
    """

    def __init__(self, n_users: int, n_movies: int, n_factors: int, y_range: YRange = (0, 5.5)):
        super().__init__()
        self.user_factors = Embedding(n_users, n_factors)
        self.movie_factors = Embedding(n_movies, n_factors)
        self.y_range = y_range

    def forward(self, x: Tensor) -> Tensor:
        users = self.user_factors(x[:, 0])  # (bs, n_factors)
        movies = self.movie_factors(x[:, 1])  # (bs, n_factors)
        return squash((users * movies).sum(dim=1), self.y_range)  # (bs,)


class DotProductBias(nn.Module):
    """`DotProduct` plus one number a user and one a movie, all four tables `nn.Embedding`s.

    Tables: the factors as in `DotProduct`; `user_bias` (n_users, 1), `movie_bias` (n_movies, 1).
    Each is drawn from a normal of sd .01 cut at two sd (fastai's `Embedding`).
    """

    def __init__(self, n_users: int, n_movies: int, n_factors: int, y_range: YRange = (0, 5.5)):
        super().__init__()
        self.user_factors = Embedding(n_users, n_factors)
        self.user_bias = Embedding(n_users, 1)
        self.movie_factors = Embedding(n_movies, n_factors)
        self.movie_bias = Embedding(n_movies, 1)
        self.y_range = y_range

    def forward(self, x: Tensor) -> Tensor:
        users = self.user_factors(x[:, 0])  # (bs, n_factors)
        movies = self.movie_factors(x[:, 1])  # (bs, n_factors)
        scores = (users * movies).sum(dim=1, keepdim=True)  # (bs, 1)
        scores = scores + self.user_bias(x[:, 0]) + self.movie_bias(x[:, 1])  # (bs, 1)
        return squash(scores, self.y_range)  # (bs, 1)


def create_params(size: list[int], sd: float = 0.01) -> nn.Parameter:
    """A trainable tensor of shape `size`, normal with standard deviation `sd`.

    Being an `nn.Parameter` is what makes it trainable: a bare tensor set on a module is not
    among its `parameters()`, and no optimizer ever sees it ("Creating Our Own Embedding Module").
    """
    return nn.Parameter(torch.zeros(*size).normal_(0, sd))


class DotProductBiasParams(nn.Module):
    """`DotProductBias` without `nn.Embedding`: plain parameters, looked up with square brackets.

    Tables: `user_factors` (n_users, n_factors), `user_bias` (n_users,),
    `movie_factors` (n_movies, n_factors), `movie_bias` (n_movies,).
    """

    def __init__(self, n_users: int, n_movies: int, n_factors: int, y_range: YRange = (0, 5.5)):
        super().__init__()
        self.user_factors = create_params([n_users, n_factors])
        self.user_bias = create_params([n_users])
        self.movie_factors = create_params([n_movies, n_factors])
        self.movie_bias = create_params([n_movies])
        self.y_range = y_range

    def forward(self, x: Tensor) -> Tensor:
        users = self.user_factors[x[:, 0]]  # (bs, n_factors)
        movies = self.movie_factors[x[:, 1]]  # (bs, n_factors)
        scores = (users * movies).sum(dim=1)  # (bs,)
        scores = scores + self.user_bias[x[:, 0]] + self.movie_bias[x[:, 1]]  # (bs,)
        return squash(scores, self.y_range)  # (bs,)


class CollabNN(nn.Module):
    """Both embeddings side by side through two linear layers ("Deep Learning for Collaborative Filtering").

    `user_sz`, `item_sz`: (rows, factors) as `get_emb_sz(dls)` gives them; `n_act`: hidden units.
    """

    def __init__(self, user_sz: tuple, item_sz: tuple, y_range: YRange = (0, 5.5), n_act: int = 100):
        super().__init__()
        self.user_factors = Embedding(*user_sz)
        self.item_factors = Embedding(*item_sz)
        self.layers = nn.Sequential(nn.Linear(user_sz[1] + item_sz[1], n_act), nn.ReLU(), nn.Linear(n_act, 1))
        self.y_range = y_range

    def forward(self, x: Tensor) -> Tensor:
        embs = self.user_factors(x[:, 0]), self.item_factors(x[:, 1])  # (bs, n_user), (bs, n_item)
        return squash(self.layers(torch.cat(embs, dim=1)), self.y_range)  # (bs, 1)


# Models made from the sizes of their tables: `model(n_users, n_movies, n_factors, y_range)`.
FROM_SIZES = (DotProduct, DotProductBias, DotProductBiasParams)
# The chapter's names for the tables, and those of fastai's own model.
FASTAI_NAMES = {"user_factors": "u_weight", "user_bias": "u_bias"}
FASTAI_NAMES |= {"movie_factors": "i_weight", "movie_bias": "i_bias"}


def tables(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that `model` looks up by row, under the chapter's names.

    Works on `DotProduct`, `DotProductBias`, `DotProductBiasParams` and fastai's `EmbeddingDotBias`.
    A bias is (n, 1) in an Embedding and (n,) in a Parameter. Raises TypeError for any other model.
    """
    if not isinstance(model, (*FROM_SIZES, EmbeddingDotBias)):
        raise TypeError(f"{type(model).__name__} is not one of the dot-product models")
    fastai = isinstance(model, EmbeddingDotBias)
    named = {ours: getattr(model, theirs if fastai else ours, None) for ours, theirs in FASTAI_NAMES.items()}
    return {
        name: table.weight if isinstance(table, nn.Embedding) else table
        for name, table in named.items()
        if table is not None
    }


def copy_weights(source: nn.Module, target: nn.Module) -> None:
    """Copy the tables of `source` into `target`, for any two of the dot-product models.

    A bias of shape (n, 1) fits one of shape (n,) and the other way round. Raises ValueError where a
    table is missing or has another size, TypeError as `tables` does; `target` is then unchanged.
    """
    ours, theirs = tables(source), tables(target)
    if ours.keys() != theirs.keys():
        raise ValueError(f"tables differ: {sorted(ours)} against {sorted(theirs)}")
    for name, table in theirs.items():
        if ours[name].numel() != table.numel() or len(ours[name]) != len(table):
            raise ValueError(f"{name}: {tuple(ours[name].shape)} does not fit {tuple(table.shape)}")
    with torch.no_grad():
        for name, table in theirs.items():
            table.copy_(ours[name].reshape(table.shape))
