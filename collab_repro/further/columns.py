"""From the columns of ratings to the bags of `DotProductColumns`."""

from collections.abc import Callable, Iterable, Mapping

import numpy as np
import pandas as pd
from scipy import sparse

from ..models import N_FACTORS, Y_RANGE, YRange
from ..sources import BadRatings
from .bags import Clock, DotProductColumns

# Each column's weight in the sum, chosen like `SETTINGS` on parts of the training rows of MovieLens 100K.
USER_COLUMNS = {"rated": 0.4, "age": 0.5, "sex": 0.5, "occupation": 0.5}
MOVIE_COLUMNS = {"raters": 1.2, "genres": 1.6, "year": 1.6}
COLUMNS = MOVIE_COLUMNS | USER_COLUMNS | {"time": 0.3}
SETTINGS = {"bs": 512, "epochs": 8, "lr": 3e-3, "wd": 0.9}  # with few columns QUICK will do
QUICK = {"bs": 1024, "epochs": 5, "lr": 8e-3, "wd": 1.2}
SOURCES = {"raters": None, "rated": None, "time": "timestamp"}  # where a column has another name, or none
IMPLICIT = {"raters", "rated"}  # of the rows of training alone, whatever their ratings
SPREAD = {"age": 5.0, "year": 3.0}  # a number is near its neighbours: sd, in years
YEARS = 3_000  # that no age and no year reaches


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
    - "time": when the row was rated, from `timestamp`, in 30 spans; also of the rows held out.

    Text is split at "|", lists and sets into their values; a number is spread over its neighbours. A mapping
    gives other weights than `COLUMNS` does. With a `rank`, the bags "raters" and "rated" are cut down to so
    many main directions: for millions of ratings, where reading the whole bags in each step takes too long.

    Raises `BadRatings` for an unknown, missing or unfit column, ValueError for a `rank` below 1.
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
            numeric = pd.api.types.is_numeric_dtype(column)
            number = column.to_numpy(float, na_value=np.nan) if numeric else np.full(1, np.nan)
            if np.isnan(number).all() or (name == "time" and not np.isfinite(number).all()):
                raise BadRatings(f"column {column.name!r} does not hold numbers, which {name!r} needs")
            if name != "time" and (wrong := np.abs(number) >= YEARS).any():
                where = f"column {column.name!r}, row {(row := wrong.argmax())} ({number[row]:g})"
                raise BadRatings(f"{where}: no {name} within {YEARS:,} years; correct it, or leave it empty")

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
    known = ratings.drop_duplicates(by).set_index(by, drop=False)[name if name in ratings else "title"]
    known.index = known.index.astype(object)  # it may be a category
    known = known.reindex(vocab)
    return _values(known if name in ratings else _years(known), SPREAD.get(name))


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
        known = known.map(lambda cell: "|".join(map(str, cell)) if pd.api.types.is_list_like(cell) else cell)
        entries = known.astype(str).where(known.notna(), "").str.get_dummies().to_numpy(float)
    else:
        number = known.to_numpy(float)[:, None]
        low, high = np.nan_to_num(pd.Series(number[:, 0]).agg(["min", "max"]))  # of training rows none may be
        grid = np.arange(low, high + spread, spread)
        entries = np.nan_to_num(np.exp(-0.5 * ((number - grid) / spread) ** 2))
        entries[entries < 0.01] = 0
    length = np.sqrt((entries**2).sum(axis=1, keepdims=True))
    return sparse.csr_matrix(entries / np.where(length, length, 1))
