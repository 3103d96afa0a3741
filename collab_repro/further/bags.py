"""`DotProductBias` whose users and movies are sums: of the id's vector and of all else that is known.

What is known of a row is a bag of values, so its vector is a sum over the bag: an `nn.EmbeddingBag`. Sources:
SVD++ (Koren, KDD 2008) for the bag of films that a user has rated; factorization machines (Rendle, ICDM 2010)
for one vector for each value of each column.
"""

import numpy as np
import torch
import torch.nn.functional as F
from fastai.layers import Embedding
from torch import Tensor, nn

from ..models import DotProductBias, YRange, squash
from ..speed.fitting import KNOWN_MODULES

SPANS = 30  # of time; in MovieLens 100K one is a week


class SumOfBags(torch.autograd.Function):
    """A bag's sum for each row, whose derivative is the sum of each value's rows: a bag again, transposed.

    PyTorch's own backward of `F.embedding_bag` gives the same numbers in twenty times the time.
    """

    @staticmethod
    def forward(ctx, table: Tensor, *bags: Tensor) -> Tensor:
        ctx.transposed = bags[3:]
        return _bag_sums(table, *bags[:3])

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple:
        return _bag_sums(grad.contiguous(), *ctx.transposed), *[None] * 6


def _bag_sums(table: Tensor, values: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    return F.embedding_bag(values, table, starts, mode="sum", per_sample_weights=weights)


class Bags(nn.Module):
    """Row r of the result is the sum of `weight` x the vector of `value` over the entries (r, value, weight).

    `entries` is a SciPy sparse matrix (n_rows, n_values). Table: (n_values, n_factors), drawn from N(0, .01).
    The result is (n_rows, n_factors).
    """

    def __init__(self, entries, n_factors: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(entries.shape[1], n_factors).normal_(0, 0.01))
        for name, csr in (("rows", entries.tocsr()), ("values", entries.T.tocsr())):
            parts = (
                csr.indices.astype(np.int64),
                csr.indptr[:-1].astype(np.int64),
                csr.data.astype(np.float32),
            )
            for part, array in zip(("index", "starts", "weights"), parts, strict=True):
                self.register_buffer(f"{name}_{part}", torch.from_numpy(array), persistent=False)

    def forward(self) -> Tensor:
        return SumOfBags.apply(self.table, *self.buffers())


class Directions(nn.Module):
    """What is left of large bags when they are cut down to their main directions.

    `features` is (n_rows, rank): a truncated SVD's U x S. The vectors are `features @ table`, and the table,
    (rank, n_factors), stands for one of (n_values, n_factors) that lies in these directions.
    """

    def __init__(self, features: np.ndarray, n_factors: int):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(features.shape[1], n_factors).normal_(0, 0.01))
        self.register_buffer("features", torch.from_numpy(features.astype(np.float32)), persistent=False)

    def forward(self, rows: Tensor, start: Tensor) -> Tensor:
        """`start` (n, n_factors) plus the vectors of `rows` (n,)."""
        return torch.addmm(start, F.embedding(rows, self.features), self.table)


class Clock(nn.Module):
    """A vector for each span of time, looked up by the pair (user, movie): when was it rated?

    `keys`, user x `n_movies` + movie (int64), and `times` are (n,), an entry for each rating. Times are cut
    into `SPANS` equally long spans. A pair that isn't among the ratings gets zeros.
    """

    def __init__(self, keys: np.ndarray, times: np.ndarray, n_movies: int, n_factors: int, weight: float):
        super().__init__()
        spans = 1 + (times - times.min()) * SPANS // (np.ptp(times) + 1)  # the 1 is lost in nanoseconds
        spans = spans.clip(max=SPANS).astype(np.int8)
        order = keys.argsort(kind="stable")
        keys, spans = keys[order], spans[order]
        first = np.append(True, keys[1:] > keys[:-1])
        self.table = Embedding(SPANS + 1, n_factors)
        self.n_movies, self.weight = n_movies, weight
        self.register_buffer("keys", torch.from_numpy(keys[first]), persistent=False)
        self.register_buffer("spans", torch.from_numpy(spans[first]), persistent=False)

    def span(self, x: Tensor) -> Tensor:
        """The span of each pair, from 1, or 0: (bs, 2) -> (bs,)."""
        key, order = (x[:, 0] * self.n_movies + x[:, 1]).sort()  # sorted keys are found sooner
        at = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return torch.empty_like(order).scatter_(0, order, self.spans[at].long() * (self.keys[at] == key))

    def forward(self, x: Tensor) -> Tensor:
        # A one-hot product: for so few rows its backward is quicker than a lookup's.
        spans = torch.zeros(len(x), SPANS + 1, device=x.device)
        spans.scatter_(1, self.span(x)[:, None], self.weight)
        spans[:, 0] = 0  # which is no span
        return spans @ self.table.weight  # (bs, n_factors)


class DotProductColumns(nn.Module):
    """`DotProductBias` in which `bags` and `features` add to the factors and biases of users and of movies.

    Both are pairs, of users and of movies. `bags` holds SciPy sparse matrices (n_rows, n_values) for `Bags`,
    `features` arrays (n_rows, rank) for `Directions`; None where there are none. `clock` gives a rating's
    time a vector and a bias too, which is added to both sides.
    """

    def __init__(
        self,
        n_users: int,
        n_movies: int,
        n_factors: int,
        y_range: YRange,
        bags: tuple = (None, None),
        features: tuple = (None, None),
        clock: Clock | None = None,
    ):
        super().__init__()
        width = n_factors + 1  # the last factor is the bias
        self.users, self.movies = Embedding(n_users, width), Embedding(n_movies, width)
        self.user_bags, self.movie_bags = (None if each is None else Bags(each, width) for each in bags)
        made = (None if each is None else Directions(each, width) for each in features)
        self.user_directions, self.movie_directions = made
        self.clock, self.y_range = clock, y_range

    def vectors(self, x: Tensor) -> list[Tensor]:
        """The factors and biases of a batch's users, and of its movies: (bs, 2) -> two of (bs, k + 1)."""
        user_side = self.users, self.user_bags, self.user_directions
        movie_side = self.movies, self.movie_bags, self.movie_directions
        both = []
        for rows, (ids, bags, directions) in zip(x.T, (user_side, movie_side), strict=True):
            vectors = F.embedding(rows, ids.weight if bags is None else ids.weight + bags())
            both.append(vectors if directions is None else directions(rows, vectors))
        return both

    def forward(self, x: Tensor) -> Tensor:
        user, movie = self.vectors(x)
        if self.clock is not None:
            time = self.clock(x)  # (bs, k + 1)
            user, movie = user + time, movie + time
        (user, user_bias), (movie, movie_bias) = (v.split([v.shape[1] - 1, 1], dim=1) for v in (user, movie))
        score = (user * movie).sum(dim=1, keepdim=True)  # (bs, 1)
        return squash(score + user_bias + movie_bias, self.y_range)  # (bs, 1)

    @torch.no_grad()
    def folded(self) -> DotProductBias:
        """The same predictions from a plain `DotProductBias`, for `predict`, `movie_bias` and the like.

        A column is a function of the user or of the movie, so its vectors can be added up once and for all.
        Raises ValueError for a model that knows the time, which is a function of neither.
        """
        if self.clock is not None:
            raise ValueError("a model with the column 'time' can't be folded; predict with learn.get_preds")
        n_users, n_movies = len(self.users.weight), len(self.movies.weight)
        rows = torch.arange(max(n_users, n_movies), device=self.users.weight.device)
        users, movies = self.vectors(torch.stack([rows % n_users, rows % n_movies], dim=1))
        model = DotProductBias(n_users, n_movies, users.shape[1] - 1, self.y_range)
        model.user_factors.weight.copy_(users[:n_users, :-1])
        model.user_bias.weight.copy_(users[:n_users, -1:])
        model.movie_factors.weight.copy_(movies[:n_movies, :-1])
        model.movie_bias.weight.copy_(movies[:n_movies, -1:])
        return model


# `fit` may train them in processes of their own:
KNOWN_MODULES.update({DotProductColumns, Bags, Directions, Clock})
