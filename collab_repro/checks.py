"""One's own ratings, checked at the door: what would train to a quietly wrong number is refused."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from numbers import Real
from unicodedata import normalize

import numpy as np
import pandas as pd


class BadRatings(ValueError):
    """Ratings that can't be trained on: the column, the row (from 0, as in iloc) and a remedy."""


def check_ratings(
    ratings: pd.DataFrame,
    user_name: str | None = None,
    item_name: str | None = None,
    rating_name: str | None = None,
    y_range: tuple[float, float] | None = (0, 5.5),
    bs: int = 64,
    valid_pct: float = 0.2,
) -> pd.DataFrame:
    """`ratings` as three columns, user, item and rating, that fastai encodes without loss.

    Columns not named are the first three, as in `CollabDataLoaders.from_df`, but the item is
    `title` where there is such a column, as in the chapter. The frame returned keeps their names
    and the rows' order, and is numbered from 0, so that `from_df` takes it with no names at all:
    `user, item, rating = checked.columns`. The input is never changed.

    Ids come back as integers, text (object) or categories in use. Whole floats become integers,
    for fastai would shrink them to float32, where ids above 2**24 run together. Integer ids have
    a vocabulary of the training rows alone: in validation fastai takes an id not seen there for
    `#na#`, silently, while text and categories have all rows' vocabulary. Ratings come back as
    they are, or as float64 where they were bool, Decimal, nullable or Arrow numbers.

    A user and item that occur together more than once are allowed; `.attrs["duplicates"]` counts
    the rows too many, and a warning says so unless the input's `.attrs` told that number already.

    Raises `BadRatings`, among much else for a rating on or beyond `y_range`, which the sigmoid
    can't reach (None: no bounds), and for fewer training rows than `bs`, which fastai would drop.
    """
    names = _names(list(ratings.columns), user_name, item_name, rating_name)
    user, item, rating = names
    n_train = len(ratings) - int(valid_pct * len(ratings))
    if n_train < max(bs, 1):
        what = f"{len(ratings)} rows leave {n_train} to train on, fewer than a batch of {bs}"
        raise BadRatings(f"{what}; give more ratings or a smaller bs")
    checked = ratings[names].reset_index(drop=True)
    checked[user], users = _ids(checked[user])
    checked[item], items = _ids(checked[item], fold=str.casefold)
    checked[rating] = _stars(checked[rating], y_range)
    pairs = users * (items.max() + 1) + items
    pairs.sort()
    duplicates = int((pairs[1:] == pairs[:-1]).sum())
    if duplicates and duplicates != ratings.attrs.get("duplicates"):
        said = f"{duplicates:,} of {len(checked):,} rows repeat a pair of {user} and {item}"
        warnings.warn(f"{said}: each counts, and pairs may fall in both splits", stacklevel=2)
    checked.attrs = {**ratings.attrs, "duplicates": duplicates}
    return checked


def _names(columns: list, *given: str | None) -> list:
    """The user, item and rating columns."""
    item = "title" if "title" in columns else None
    defaults = [*columns[:1], *([item] if item else columns[1:2]), *columns[2:3], None, None, None]
    names = [default if name is None else name for name, default in zip(given, defaults, strict=False)]
    for role, name in zip(("user", "item", "rating"), names, strict=True):
        if columns.count(name) != 1:
            close = get_close_matches(str(name), map(str, columns), 1)
            hint = f"did you mean {close[0]!r}?" if close and name not in columns else "rename it"
            called = "" if name is None else f" called {name!r}"
            what = f"{columns.count(name) or 'no'} columns{called} for the {role}"
            raise BadRatings(f"{what}; there are {columns}: {hint}, or pass {role}_name=")
    if len(set(names)) < 3:
        what = f"user, item and rating can't be {names}"
        raise BadRatings(f"{what}; pass user_name=, item_name= and rating_name=")
    return names


def _ids(column: pd.Series, fold: Callable[[str], str] = str) -> tuple[pd.Series, np.ndarray]:
    """A column of ids, and its codes: 0, 1, ... in order of appearance."""
    codes, uniques = pd.factorize(column)
    values = np.asarray(uniques)

    def bad(code: int, what: str, remedy: str) -> BadRatings:
        row = int((codes == code).argmax())
        return BadRatings(f"column {column.name!r}, row {row}: {what}; {remedy}")

    if (codes < 0).any():
        raise bad(-1, "no id", "drop such rows with dropna() or fill them")
    if len(values) < 2:
        raise bad(0, f"{_show(values[0])} is the only id", "at least two are needed to tell apart")
    kind = pd.api.types.infer_dtype(values)
    if kind == "string":
        folded = [fold(" ".join(normalize("NFC", text).split())) for text in values]
        if "" in folded:
            raise bad(folded.index(""), "a blank id", "drop such rows or fill them")
        if "#na#" in folded:
            raise bad(folded.index("#na#"), "'#na#' is fastai's unknown id", "rename it")
        if len(set(folded)) < len(folded):
            code = int(pd.Series(folded).duplicated().argmax())
            pair = f"{values[folded.index(folded[code])]!r} and {values[code]!r}"
            remedy = "write them alike, or make them differ in more"
            raise bad(code, f"{pair} differ only in blanks, case or the form of an accent", remedy)
        exact = values.astype(object)
    elif kind in ("integer", "floating"):
        exact = values
        if kind == "floating":
            exact = exact.astype(np.float64) if exact.dtype == object else exact
            whole = np.abs(exact) <= 2.0 ** (np.finfo(exact.dtype).nmant + 1)
            whole &= exact == np.floor(exact)
            if not whole.all():
                code = int(whole.argmin())
                what = f"id {values[code]} isn't a whole number that floats hold exactly"
                raise bad(code, what, "read the column as int64 or as text")
            exact = exact.astype(np.int64)
        if exact.dtype == object:
            numbers = [int(value) for value in exact]
            least, most = min(numbers), max(numbers)
            if least < -(2**63) or most >= (2**63 if least < 0 else 2**64):
                code = numbers.index(most if most >= 2**63 else least)
                raise bad(code, f"id {numbers[code]} does not fit 64 bits", "use astype(str)")
            exact = np.array(numbers, dtype=np.int64 if most < 2**63 else np.uint64)
    else:
        code = next((i for i, v in enumerate(values) if type(v) is not type(values[0])), 0)
        what = f"{_show(values[code])} in a column of {kind} ids that starts {_show(values[0])}"
        raise bad(code, what, "make all of them text with astype(str)")
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.remove_unused_categories(), codes
    if column.dtype == exact.dtype:
        return column, codes
    return pd.Series(exact[codes], dtype=exact.dtype), codes


def _stars(column: pd.Series, y_range: tuple[float, float] | None) -> pd.Series:
    """A column of finite numbers that float32, in which models train, tells from the bounds."""

    def bad(wrong: np.ndarray, what: str, remedy: str) -> BadRatings:
        row = int(wrong.argmax())
        return BadRatings(f"column {column.name!r}, row {row}: {_show(column[row])} {what}; {remedy}")

    if not (isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf"):
        codes, uniques = pd.factorize(column)
        if (codes < 0).any():
            raise bad(codes < 0, "is no rating", "drop such rows with dropna()")
        values = np.asarray(uniques, dtype=object)
        number = (Real, Decimal, np.bool_)
        wrong = np.array([not (isinstance(v, number) and abs(v) < 1e300) for v in values])
        if wrong.any():
            raise bad(wrong[codes], "is no finite number", "mend it or try pd.to_numeric")
        column = pd.Series(values.astype(np.float64)[codes], name=column.name)
    values = column.to_numpy()
    with np.errstate(over="ignore"):
        low, high = np.float32(values.min()), np.float32(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            wrong = ~np.isfinite(values.astype(np.float32))
            raise bad(wrong, "is no finite rating in float32", "drop or mend such rows")
    if y_range and (low <= np.float32(y_range[0]) or high >= np.float32(y_range[1])):
        stars = values.astype(np.float32)
        wrong = (stars <= np.float32(y_range[0])) | (stars >= np.float32(y_range[1]))
        remedy = f"y_range=({low - 0.5:g}, {high + 0.5:g}) would hold all ratings"
        raise bad(wrong, f"can't be reached inside y_range {tuple(y_range)}", remedy)
    return column


def _show(value: object) -> str:
    """A value as a message shows it: text in quotes, no more than 60 characters."""
    return (repr(value) if isinstance(value, str) else str(value))[:60]
