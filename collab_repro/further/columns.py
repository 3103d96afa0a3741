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
IMPLICIT = {"raters", "rated"}  # of the rows of training alone, whatever their ratings
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
        spans = (1 + (times - times.min()) * SPANS // (np.ptp(times) + 1)).astype(np.int8)
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
        span = self.span(x)
        return self.weight * (span > 0)[:, None] * self.table(span)  # (bs, n_factors)


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


def with_columns(
    ratings: pd.DataFrame,
    columns: Iterable[str] | Mapping[str, float] = tuple(MOVIE_COLUMNS),
    n_factors: int = N_FACTORS,
    y_range: YRange = Y_RANGE,
    rank: int | None = None,
) -> Callable[..., DotProductColumns]:
    """A `model` for `learner(ratings, model)`: `DotProductColumns` with these `columns` of `ratings`.

    - "raters": who rated the movie at all, "rated": which movies the user rated. Both come from the
      Learner's training rows alone; each bag is divided by the root of its size.
    - "genres", "year" (a column, or the last brackets of the title): what the movie is.
    - "age", "sex", "occupation": who the user is.
    - "time": when the row was rated, from `timestamp`, in `SPANS` spans; also of the rows held out.

    Text is split at "|", a number is spread over its neighbours. A mapping gives other weights than `COLUMNS`
    does. With a `rank`, the bags "raters" and "rated" are cut down to so many main directions: for millions
    of ratings, where reading the whole bags in each step takes too long.

    Raises `BadRatings` for a column that isn't known or isn't there, ValueError for a `rank` below 1.
    """
    weights = dict(columns) if isinstance(columns, Mapping) else {name: COLUMNS.get(name) for name in columns}
    if rank is not None and rank < 1:
        raise ValueError(f"rank={rank}: give the number of main directions, 1 or more, or None for all")
    there = columns_in(ratings)
    for name in weights:
        if name not in COLUMNS:
            raise BadRatings(f"no column {name!r} is known here; choose from {list(COLUMNS)}")
        if name not in there:
            source = SOURCES.get(name, name)
            remedy = "see what load_ratings(genres=True, users=True) gives"
            raise BadRatings(f"the ratings have no column {source!r}: leave {name!r} out, or {remedy}")
        column = ratings.get(SOURCES.get(name, name)) if name in (*SPREAD, "time") else None
        if column is not None:
            numbers = pd.api.types.is_numeric_dtype(column) and np.isfinite(
                column.to_numpy(float, na_value=np.nan)
            )
            if not np.any(numbers) or (name == "time" and not np.all(numbers)):
                raise BadRatings(f"column {column.name!r} does not hold numbers, which {name!r} needs")

    def model(dls) -> DotProductColumns:
        train = dls.train.dataset
        names, classes = list(train.cat_names), [list(vocab) for vocab in dls.classes.values()]
        sizes = list(map(len, classes))
        bags, features = [None, None], [None, None]
        for side, own in enumerate((USER_COLUMNS, MOVIE_COLUMNS)):
            blocks = []
            for name in filter(weights.__contains__, own):
                if name in IMPLICIT:
                    entries = _who_with_whom([train.items[name] for name in names], sizes, side)
                else:
                    entries = _known(ratings, name, names[side], classes[side])
                if name in IMPLICIT and rank is not None:
                    features[side] = weights[name] * _main_directions(entries, rank)
                else:
                    blocks.append(weights[name] * entries)
            bags[side] = sparse.hstack(blocks).tocsr() if blocks else None
        clock = None
        if "time" in weights:
            users, movies = (pd.Index(c).get_indexer(ratings[n]) for c, n in zip(classes, names, strict=True))
            known = (users >= 0) & (movies >= 0)  # integer ids that validation alone has are in no vocabulary
            keys, times = (users * sizes[1] + movies)[known], ratings["timestamp"].to_numpy(float)[known]
            del users, movies
            clock = Clock(keys, times, sizes[1], n_factors + 1, weights["time"])
        return DotProductColumns(*sizes, n_factors, y_range, bags, features, clock)

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


def _known(ratings: pd.DataFrame, name: str, by: str, vocab: list) -> sparse.csr_matrix:
    """(len(vocab), values): what the column `name` says of each user or movie; `by` is the column of ids."""
    if name not in ratings:  # the year, from the titles
        return _values(_years(vocab), SPREAD[name])
    known = ratings.drop_duplicates(by).set_index(by)[name]
    known.index = known.index.astype(object)  # it may be a category
    return _values(known.reindex(vocab), SPREAD.get(name))


def _who_with_whom(pairs: list[pd.Series], sizes: list[int], side: int) -> sparse.csr_matrix:
    """For each row of `side` its partners among the `pairs` of codes, each 1 / root of their number.

    (n_users, n_movies) for side 0, (n_movies, n_users) for side 1; a pair counts once.
    """
    pairs = pairs[0].to_numpy(np.int64) * sizes[1] + pairs[1].to_numpy(np.int64)
    pairs.sort()  # np.unique is slower from a million on
    pairs = pairs[np.append(True, pairs[1:] > pairs[:-1])]
    rows, values = (pairs // sizes[1], pairs % sizes[1])[:: 1 - 2 * side]
    share = np.bincount(rows, minlength=sizes[side])[rows] ** -0.5
    return sparse.csr_matrix((share, (rows, values)), shape=(sizes[side], sizes[1 - side]))


def _main_directions(entries: sparse.csr_matrix, rank: int) -> np.ndarray:
    """U x S of the truncated SVD: (n_rows, rank), or fewer columns where `entries` has fewer."""
    from sklearn.utils.extmath import randomized_svd

    u, s, _ = randomized_svd(entries.astype(np.float32), min(rank, *entries.shape), n_iter=2, random_state=0)
    return u * s


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
