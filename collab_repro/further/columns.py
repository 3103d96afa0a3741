"""`DotProductBias` with more columns: who has rated a film, its genres and year, who the user is, and when.

A user's vector is that of the id plus those of all else that is known of the user, and so is a film's. What
is known of a row is a bag of values, so its vector is a sum over the bag: an `nn.EmbeddingBag`. Sources:
SVD++ (Koren, KDD 2008) for the bag of films that a user has rated; factorization machines (Rendle, ICDM 2010)
for one vector for each value of each column.
"""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from fastai.layers import Embedding
from scipy import sparse
from torch import Tensor, nn

from ..models import N_FACTORS, Y_RANGE, DotProductBias, YRange, squash
from ..sources import BadRatings
from ..speed.fitting import KNOWN_MODULES

# Each column's weight in the sum, chosen like `SETTINGS` on parts of the training rows of MovieLens 100K.
USER_COLUMNS = {"rated": 0.4, "age": 0.5, "sex": 0.5, "occupation": 0.5}
MOVIE_COLUMNS = {"raters": 1.2, "genres": 1.6, "year": 1.6}
COLUMNS = MOVIE_COLUMNS | USER_COLUMNS | {"time": 0.3}
SETTINGS = {"bs": 512, "epochs": 8, "lr": 3e-3, "wd": 0.9}  # with few columns QUICK will do
SPANS = 30  # of time; in MovieLens 100K one is a week
QUICK = {"bs": 1024, "epochs": 5, "lr": 8e-3, "wd": 1.2}
SOURCES = {"raters": None, "rated": None, "time": "timestamp"}  # where a column has another name, or none
SPREAD = {"age": 5.0, "year": 3.0}  # a number is near its neighbours: sd, in years


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


class Clock(nn.Module):
    """A vector for each span of time, looked up by the pair (user, movie): when was it rated?

    `pairs` (n, 2) int64 and `times` (n,): one of them for each rating. Times are cut into `SPANS` equally
    long spans. A pair that isn't among them gets zeros.
    """

    def __init__(self, pairs: np.ndarray, times: np.ndarray, n_movies: int, n_factors: int, weight: float):
        super().__init__()
        spans = 1 + ((times - times.min()) * SPANS // (np.ptp(times) + 1)).astype(np.int64)
        keys, first = np.unique(pairs @ [n_movies, 1], return_index=True)
        self.table = Embedding(SPANS + 1, n_factors)
        self.n_movies, self.weight = n_movies, weight
        self.register_buffer("keys", torch.from_numpy(keys), persistent=False)
        self.register_buffer("spans", torch.from_numpy(spans[first]), persistent=False)

    def span(self, x: Tensor) -> Tensor:
        """The span of each pair, from 1, or 0: (bs, 2) -> (bs,)."""
        key = x[:, 0] * self.n_movies + x[:, 1]
        at = torch.searchsorted(self.keys, key).clamp(max=len(self.keys) - 1)
        return self.spans[at] * (self.keys[at] == key)

    def forward(self, x: Tensor) -> Tensor:
        span = self.span(x)
        return self.weight * (span > 0)[:, None] * self.table(span)  # (bs, n_factors)


class DotProductColumns(nn.Module):
    """`DotProductBias` in which `user_bags` and `movie_bags` add to a row's factors and bias.

    Both are SciPy sparse matrices, (n_users, n_values) and (n_movies, n_values), or None. `clock` gives a
    rating's time a vector and a bias too, which is added to both sides.
    """

    def __init__(
        self,
        n_users: int,
        n_movies: int,
        n_factors: int,
        y_range: YRange,
        user_bags=None,
        movie_bags=None,
        clock: Clock | None = None,
    ):
        super().__init__()
        self.users = Embedding(n_users, n_factors + 1)  # the last factor is the bias
        self.movies = Embedding(n_movies, n_factors + 1)
        self.user_bags = None if user_bags is None else Bags(user_bags, n_factors + 1)
        self.movie_bags = None if movie_bags is None else Bags(movie_bags, n_factors + 1)
        self.clock, self.y_range = clock, y_range

    def vectors(self) -> tuple[Tensor, Tensor]:
        """All users' and all movies' factors with their biases: (n_users, k + 1), (n_movies, k + 1)."""
        users, movies = self.users.weight, self.movies.weight
        users = users if self.user_bags is None else users + self.user_bags()
        return users, movies if self.movie_bags is None else movies + self.movie_bags()

    def forward(self, x: Tensor) -> Tensor:
        users, movies = self.vectors()
        user, movie = F.embedding(x[:, 0], users), F.embedding(x[:, 1], movies)  # (bs, k + 1) each
        if self.clock is not None:
            time = self.clock(x)  # (bs, k + 1)
            user, movie = user + time, movie + time
        score = (user[:, :-1] * movie[:, :-1]).sum(dim=1, keepdim=True)  # (bs, 1)
        return squash(score + user[:, -1:] + movie[:, -1:], self.y_range)  # (bs, 1)

    @torch.no_grad()
    def folded(self) -> DotProductBias:
        """The same predictions from a plain `DotProductBias`, for `predict`, `movie_bias` and the like.

        A column is a function of the user or of the movie, so its vectors can be added up once and for all.
        Raises ValueError for a model that knows the time, which is a function of neither.
        """
        if self.clock is not None:
            raise ValueError("a model with the column 'time' can't be folded; predict with learn.get_preds")
        users, movies = self.vectors()
        model = DotProductBias(len(users), len(movies), users.shape[1] - 1, self.y_range)
        for table, factors, bias in ((users, model.user_factors, model.user_bias),
                                     (movies, model.movie_factors, model.movie_bias)):  # fmt: skip
            factors.weight.copy_(table[:, :-1])
            bias.weight.copy_(table[:, -1:])
        return model


KNOWN_MODULES.update({DotProductColumns, Bags, Clock})  # `fit` may train them in processes of their own


def with_columns(
    ratings: pd.DataFrame,
    columns: Iterable[str] | Mapping[str, float] = tuple(MOVIE_COLUMNS),
    n_factors: int = N_FACTORS,
    y_range: YRange = Y_RANGE,
) -> Callable[..., DotProductColumns]:
    """A `model` for `learner(ratings, model)`: `DotProductColumns` with these `columns` of `ratings`.

    - "raters": who rated the movie at all, "rated": which movies the user rated. Both come from the
      Learner's training rows alone; each bag is divided by the root of its size.
    - "genres", "year" (a column, or the last brackets of the title): what the movie is.
    - "age", "sex", "occupation": who the user is.
    - "time": when the row was rated, from `timestamp`, in `SPANS` spans; also of the rows held out.

    Text is split at "|", a number is spread over its neighbours. A mapping gives other weights than `COLUMNS`
    does. Raises `BadRatings` for a column that isn't known or isn't there.
    """
    weights = dict(columns) if isinstance(columns, Mapping) else {name: COLUMNS.get(name) for name in columns}
    there = columns_in(ratings)
    for name in weights:
        if name not in COLUMNS:
            raise BadRatings(f"no column {name!r} is known here; choose from {list(COLUMNS)}")
        if name not in there:
            source = SOURCES.get(name, name)
            remedy = "see what load_ratings(genres=True, users=True) gives"
            raise BadRatings(f"the ratings have no column {source!r}: leave {name!r} out, or {remedy}")

    def model(dls) -> DotProductColumns:
        train = dls.train.dataset
        names, classes = list(train.cat_names), [list(vocab) for vocab in dls.classes.values()]
        sizes = list(map(len, classes))
        pairs = np.unique(train.items[names].to_numpy(np.int64), axis=0)
        sides = []
        for side, own in enumerate((USER_COLUMNS, MOVIE_COLUMNS)):
            blocks = []
            for name in filter(own.__contains__, weights):
                if name in ("raters", "rated"):
                    entries = _who_with_whom(pairs[:, side], pairs[:, 1 - side], sizes[side], sizes[1 - side])
                elif name in ratings:
                    known = ratings.drop_duplicates(names[side]).set_index(names[side])[name]
                    known.index = known.index.astype(object)  # it may be a category
                    entries = _values(known.reindex(classes[side]), SPREAD.get(name))
                else:
                    entries = _values(_years(classes[side]), SPREAD[name])
                blocks.append(weights[name] * entries)
            sides.append(sparse.hstack(blocks).tocsr() if blocks else None)
        clock = None
        if "time" in weights:
            codes = [pd.Index(c).get_indexer(ratings[n]) for c, n in zip(classes, names, strict=True)]
            known = np.min(codes, axis=0) >= 0  # integer ids that validation alone has are in no vocabulary
            times = ratings["timestamp"].to_numpy(float)[known]
            clock = Clock(np.stack(codes, axis=1)[known], times, sizes[1], n_factors + 1, weights["time"])
        return DotProductColumns(*sizes, n_factors, y_range, *sides, clock)

    return model


def columns_in(ratings: pd.DataFrame) -> list[str]:
    """The `COLUMNS` that `with_columns` finds in `ratings`."""
    there = {None, *ratings.columns}
    if "title" in there and _years(ratings["title"].unique()).notna().any():
        there.add("year")
    return [name for name in COLUMNS if SOURCES.get(name, name) in there]


def _years(titles: Iterable[str]) -> pd.Series:
    """The years in the last brackets of titles."""
    titles = pd.Series(list(titles), dtype=object).astype(str)
    return titles.str.extract(r"\((\d{4})[^()]*\)\s*$", expand=False).astype(float)


def _who_with_whom(rows: np.ndarray, values: np.ndarray, n_rows: int, n_values: int) -> sparse.csr_matrix:
    """(n_rows, n_values): 1 / root of the row's entries for each of the (row, value) pairs."""
    share = np.bincount(rows, minlength=n_rows)[rows] ** -0.5
    return sparse.csr_matrix((share, (rows, values)), shape=(n_rows, n_values))


def _values(known: pd.Series, spread: float | None) -> sparse.csr_matrix:
    """(rows, values) of length 1 in each row that has a value: text split at "|", or a number `spread`."""
    if spread is None:
        entries = known.astype(str).where(known.notna(), "").str.get_dummies().to_numpy(float)
    else:
        number = known.to_numpy(float)[:, None]
        grid = np.arange(np.nanmin(number), np.nanmax(number) + spread, spread)
        entries = np.nan_to_num(np.exp(-0.5 * ((number - grid) / spread) ** 2))
        entries[entries < 0.01] = 0
    length = np.sqrt((entries**2).sum(axis=1, keepdims=True))
    return sparse.csr_matrix(entries / np.where(length, length, 1))
