"""Whether a model can be trained on ratings. What would silently give a wrong number is refused."""

import warnings
from collections.abc import Callable
from decimal import Decimal
from difflib import get_close_matches
from numbers import Real
from unicodedata import normalize

import numpy as np
import pandas as pd


class BadRatings(ValueError):
    """Ratings that a model can't be trained on: the column, the row (from 0, as in iloc) and a remedy."""


def check_ratings(
    ratings: pd.DataFrame,
    user_name: str | None = None,
    item_name: str | None = None,
    rating_name: str | None = None,
    y_range: tuple[float, float] | None = (0, 5.5),
    bs: int = 64,
    valid_pct: float = 0.2,
) -> pd.DataFrame:
    """`ratings` as three columns (user, item, rating) that fastai encodes without loss.

    The columns are the first three unless named, as in `CollabDataLoaders.from_df`, except that a column
    called `title` is the item, as in the chapter. The result keeps their names and the order of the rows,
    and is indexed from 0. `from_df` needs no names for it: `user, item, rating = checked.columns`. The input
    is not changed.

    Ids become integers, text (object) or categories that are all in use. Floats that are whole numbers
    become integers: fastai would make them float32, in which ids above 2**24 coincide. For integer ids,
    fastai's vocabulary holds the training rows only, and it silently reads an id that only validation has
    as `#na#`; for text and categories the vocabulary holds all rows. Ratings are unchanged, or become
    float64 if they were bool, Decimal, nullable or Arrow numbers.

    A user may rate an item more than once. `.attrs["duplicates"]` counts the extra rows, and a warning gives
    the number unless the input's `.attrs` already had it.

    Raises `BadRatings` for ids that are missing, nearly alike or of mixed types, for ratings that are not
    finite numbers strictly inside `y_range`, where the sigmoid's output lies (None: no bounds), and for
    fewer training rows than `bs`, which fastai would drop.
    """
    names = _column_names(list(ratings.columns), user_name, item_name, rating_name)
    user, item, rating = names
    n_train = len(ratings) - int(valid_pct * len(ratings))
    if bs < 1 or n_train < bs:
        problem = f"{len(ratings)} rows leave {n_train} to train on, fewer than a batch of {bs}"
        raise BadRatings(f"{problem}; give more ratings or a smaller bs")
    checked = ratings[names].reset_index(drop=True)
    checked[user], users = _check_ids(checked[user])
    checked[item], items = _check_ids(checked[item], fold=str.casefold)
    checked[rating] = _check_stars(checked[rating], y_range)
    pairs = users * (items.max() + 1) + items
    pairs.sort()
    duplicates = int((pairs[1:] == pairs[:-1]).sum())
    if duplicates and duplicates != ratings.attrs.get("duplicates"):
        count = f"{duplicates:,} of {len(checked):,} rows repeat a pair of {user} and {item}"
        effect = "each row counts, and a pair may be in both training and validation"
        warnings.warn(f"{count}: {effect}", stacklevel=2)
    checked.attrs = {**ratings.attrs, "duplicates": duplicates}
    return checked


def check_split(split: object, ratings: pd.DataFrame, bs: int = 64) -> list[int]:
    """The positions (as in iloc) of the validation rows that `split` names, in its order.

    `split` is a mask, one True or False for each row of `ratings`, or a list of positions. Raises
    `BadRatings`, naming the first bad entry, for anything else: labels of an index that isn't 0, 1, 2, ...,
    a position twice or outside the rows, no row at all, or fewer than `bs` rows left to train on.
    """
    n, rows = len(ratings), np.asarray(split)
    default = ratings.index.equals(pd.RangeIndex(n))
    if rows.ndim != 1 or not len(rows):
        raise BadRatings(f"split={_show(split)} names no row; give a seed, a mask or a list of positions")
    if rows.dtype == object and pd.api.types.infer_dtype(rows, skipna=False) in ("boolean", "integer"):
        rows = rows.astype(bool if isinstance(rows[0], bool | np.bool_) else int)
    if rows.dtype.kind == "b":
        if len(rows) != n or (isinstance(split, pd.Series) and not split.index.equals(ratings.index)):
            raise BadRatings(
                f"split is a mask of {len(rows):,} rows, not of the {n:,} ratings in their order"
            )
        rows = np.flatnonzero(rows)
    elif rows.dtype.kind not in "iu":
        raise BadRatings(f"split, entry 0: {_show(rows.tolist()[0])} is no position, which is a whole number")
    elif isinstance(split, pd.Index | pd.Series) and not default:
        remedy = "give np.flatnonzero(ratings.index.isin(split))"
        raise BadRatings(f"split holds labels, but positions as in iloc are meant; {remedy}")
    wrong = (rows < 0) | (rows >= n) | pd.Index(rows).duplicated()
    if wrong.any():
        at = int(wrong.argmax())
        raise BadRatings(f"split, entry {at}: {rows[at]} comes twice or is not from 0 to {n - 1}")
    if n - len(rows) < max(bs, 1) or not len(rows):
        left = f"{len(rows):,} rows to validate on and {n - len(rows):,} to train on"
        raise BadRatings(f"split leaves {left}, fewer than a batch of {bs}")
    return rows.tolist()


def _column_names(columns: list, *given: str | None) -> list:
    """The names of the user, item and rating columns."""
    first, second, third = [*columns, None, None, None][:3]
    defaults = first, "title" if "title" in columns else second, third
    names = [default if name is None else name for name, default in zip(given, defaults, strict=True)]
    for role, name in zip(("user", "item", "rating"), names, strict=True):
        if (count := columns.count(name)) != 1:
            problem = f"{count or 'no'} columns{'' if name is None else f' called {name!r}'} for the {role}"
            close = [] if count else get_close_matches(str(name), map(str, columns), 1)
            remedy = f"did you mean {close[0]!r}? If not," if close else "rename one or"
            raise BadRatings(f"{problem}; the columns are {columns}; {remedy} pass {role}_name=")
    if len(set(names)) < 3:
        problem = f"user, item and rating can't be {names}"
        raise BadRatings(f"{problem}; pass user_name=, item_name= and rating_name=")
    return names


def _check_ids(column: pd.Series, fold: Callable[[str], str] = str) -> tuple[pd.Series, np.ndarray]:
    """A column of ids, and its codes: 0, 1, ... in order of appearance."""
    codes, uniques = pd.factorize(column)
    values = np.asarray(uniques)
    if (codes < 0).any():
        raise _bad(column, codes < 0, "no id", "drop such rows with dropna() or fill them")
    if len(values) < 2:
        raise _bad(column, codes == 0, "the only id", "give ratings with at least two")
    kind = pd.api.types.infer_dtype(values)
    if kind == "string":
        folded = pd.Series([fold(" ".join(normalize("NFC", text).split())) for text in values], dtype=object)
        for text, problem in (("", "a blank id"), ("#na#", "fastai's unknown id")):
            if (folded == text).any():
                code = int((folded == text).argmax())
                raise _bad(column, codes == code, problem, "drop such rows or rename it")
        if folded.duplicated().any():
            code = int(folded.duplicated().argmax())
            like = values[(folded == folded[code]).argmax()]
            problem = f"differs from {like!r} only in blanks, case or the form of an accent"
            raise _bad(column, codes == code, problem, "write them alike, or rename one")
        exact = values.astype(object)
    elif kind in ("integer", "floating"):
        exact = values
        if kind == "floating":
            exact = values.astype(np.float64) if values.dtype == object else values
            whole = (np.abs(exact) <= 2.0 ** (np.finfo(exact.dtype).nmant + 1)) & (exact == np.floor(exact))
            if not whole.all():
                problem = "not a whole number that floats hold exactly"
                raise _bad(column, codes == whole.argmin(), problem, "read the column as int64 or as text")
            exact = exact.astype(np.int64)
        if exact.dtype == object:
            numbers = [int(value) for value in exact]
            least, most = min(numbers), max(numbers)
            if least < -(2**63) or most >= (2**63 if least < 0 else 2**64):
                code = numbers.index(most if most >= 2**63 else least)
                raise _bad(column, codes == code, "does not fit 64 bits", "use astype(str)")
            exact = np.array(numbers, dtype=np.int64 if most < 2**63 else np.uint64)
    else:
        code = next((i for i, v in enumerate(values) if type(v) is not type(values[0])), 0)
        problem = f"one of {kind} ids, the first of which is {_show(values[0])}"
        raise _bad(column, codes == code, problem, "make all of them text with astype(str)")
    if isinstance(column.dtype, pd.CategoricalDtype):
        return column.cat.remove_unused_categories(), codes
    if column.dtype == exact.dtype:
        return column, codes
    return pd.Series(exact[codes], dtype=exact.dtype), codes


def _check_stars(column: pd.Series, y_range: tuple[float, float] | None) -> pd.Series:
    """A column of finite numbers that lie inside `y_range` also in float32, the precision of training."""
    if not (isinstance(column.dtype, np.dtype) and column.dtype.kind in "iuf"):
        codes, uniques = pd.factorize(column)
        if (codes < 0).any():
            raise _bad(column, codes < 0, "not a rating", "drop such rows with dropna()")
        values = np.asarray(uniques, dtype=object)
        number = (Real, Decimal, np.bool_)
        wrong = np.array([not (isinstance(v, number) and abs(v) < 1e300) for v in values])
        if wrong.any():
            raise _bad(column, wrong[codes], "not a finite number", "correct it or try pd.to_numeric")
        column = pd.Series(values.astype(np.float64)[codes], name=column.name)
    values = column.to_numpy()
    with np.errstate(over="ignore"):
        low, high = np.float32(values.min()), np.float32(values.max())
        if not (np.isfinite(low) and np.isfinite(high)):
            wrong = ~np.isfinite(values.astype(np.float32))
            raise _bad(column, wrong, "not a finite number in float32", "drop or correct such rows")
    if y_range and (low <= np.float32(y_range[0]) or high >= np.float32(y_range[1])):
        stars = values.astype(np.float32)
        wrong = (stars <= np.float32(y_range[0])) | (stars >= np.float32(y_range[1]))
        problem = f"not strictly inside y_range {tuple(y_range)}, so the sigmoid can't reach it"
        raise _bad(column, wrong, problem, f"y_range=({low - 0.5:g}, {high + 0.5:g}) would hold all ratings")
    return column


def _bad(column: pd.Series, wrong: np.ndarray, problem: str, remedy: str) -> BadRatings:
    """The error for the first row where `wrong` is true."""
    row = int(wrong.argmax())
    return BadRatings(f"column {column.name!r}, row {row} ({_show(column[row])}): {problem}; {remedy}")


def _show(value: object) -> str:
    """A value as a message shows it: text in quotes, no more than 60 characters."""
    return (repr(value) if isinstance(value, str) else str(value))[:60]
