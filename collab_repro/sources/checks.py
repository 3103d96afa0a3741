"""Whether a model can be trained on ratings. What would silently give a wrong number is refused."""

from bisect import bisect_right
from collections.abc import Callable
from unicodedata import normalize

import numpy as np
import pandas as pd

from .notes import BadRatings, kept, note
from .roles import columns_of, is_named

Y_RANGE = (0, 5.5)  # the chapter's
MISSING = {"null", "(null)", r"\n", "nan", "none", "nat", "n/a", "#n/a", "<na>", "#value!", "#ref!", "#name?"}
DOUBTFUL = {"na", "n.a.", "nil", "?", "-", "--", ".", "undefined"}  # as programs write them, but maybe titles
MOST = 21  # different whole numbers in a scale of ratings, unless the column is named so


def check_ratings(
    ratings: pd.DataFrame,
    user_name: str | None = None,
    item_name: str | None = None,
    rating_name: str | None = None,
    y_range: tuple[float, float] | None = Y_RANGE,
    bs: int = 64,
    valid_pct: float = 0.2,
    alike: str | None = None,
) -> pd.DataFrame:
    """`ratings` as three columns (user, item, rating) that fastai encodes without loss.

    Columns that are not given are taken by their names, or else by place (see `columns_of`, which says so).
    The result keeps their names and the order of the rows, and is indexed from 0; the input is not changed.
    Of the input's `.attrs` it keeps `name` and `source`, as text; `.attrs["duplicates"]` counts the rows that
    repeat a pair of user and item, and a warning gives the number unless it was known of the input.

    Ids become integers, text (object) or categories that are all in use. Floats that are whole numbers
    become integers: fastai would make them float32, in which ids above 2**24 coincide. For integer ids,
    fastai's vocabulary holds the training rows only, and it silently reads an id that only validation has
    as `#na#`. Ratings are unchanged, or become float64 if they were text, bool, Decimal, nullable or Arrow
    numbers. Items that differ only in blanks, case or the form of an accent, and users that differ in
    blanks or accents, are refused, unless `alike` is "fold" (one id, as first written) or "keep".

    Raises `BadRatings` for ids that are missing, alike or of mixed types, for ratings that are not finite
    numbers inside `y_range` (None: no bounds), and for fewer training rows than `bs`, which fastai would
    drop. Ratings on the bounds of a `y_range` other than the chapter's are let in, with a warning.
    """
    try:
        user, item, rating = names = columns_of(ratings, user_name, item_name, rating_name)
        _check_settings(len(ratings), y_range, bs, valid_pct, alike)
        alike = alike or kept(ratings).get("alike")
        checked = ratings[names].reset_index(drop=True)
        about = {key: ratings.attrs.get(key) for key in ("name", "source")}
        checked.attrs = {key: str(value) for key, value in about.items() if value is not None}
        checked[user], users = _check_ids(checked[user], alike)
        checked[item], items = _check_ids(checked[item], alike, fold=str.casefold)
        sure = rating_name is not None or is_named(rating, "rating")
        checked[rating] = _check_stars(checked[rating], y_range, sure)
    except BadRatings as error:
        if error.row is not None and "lines" in kept(ratings) and ratings.index.dtype.kind == "i":
            (first, gaps), row = kept(ratings)["lines"], ratings.index[error.row]  # as the file had it
            line = first + row + bisect_right(gaps, row)
            error.args = (error.args[0].replace(f"row {error.row} ", f"row {error.row}, line {line:,} ", 1),)
        raise
    duplicates = repeated(users, items)
    if duplicates and duplicates != kept(ratings).get("duplicates"):
        told = f"{duplicates:,} of {len(checked):,} rows repeat a pair of {user} and {item}"
        note(f"{told}: each row counts, and a pair may be in both training and validation")
    checked.attrs["duplicates"] = duplicates
    kept(checked, columns=names, duplicates=duplicates, alike=alike)
    return checked


def repeated(users: np.ndarray, items: np.ndarray) -> int:
    """How many rows repeat an earlier pair of these codes (int64, from 0), in little memory."""
    pairs = users * (items.max() + 1) + items
    pairs.sort()
    return int((pairs[1:] == pairs[:-1]).sum())


def _check_settings(n: int, y_range: object, bs: int, valid_pct: float, alike: str | None) -> None:
    if not 0 <= valid_pct < 1:
        raise BadRatings(f"valid_pct={valid_pct}: it is a share from 0 to 1, .2 for a fifth")
    if (n_train := n - int(valid_pct * n)) < bs or bs < 1:
        problem = f"{n} rows leave {n_train} to train on, fewer than a batch of {bs}"
        raise BadRatings(f"{problem}; give more ratings or a smaller bs")
    if y_range is not None and not (len(y_range) == 2 and -np.inf < y_range[0] < y_range[1] < np.inf):
        raise BadRatings(f"y_range={tuple(y_range)}: it is two finite numbers, the lower one first")
    if alike not in (None, "fold", "keep"):
        raise BadRatings(f"alike={alike!r}: it is 'fold' or 'keep'")


def check_split(split: object, ratings: pd.DataFrame, bs: int = 64) -> list[int]:
    """The positions (as in iloc) of the validation rows that `split` names, in its order.

    `split` is a mask, one True or False for each row of `ratings`, or a list of positions. Raises
    `BadRatings`, naming the first bad entry, for anything else: labels of an index that isn't 0, 1, 2, ...,
    a position twice or outside the rows, no row at all, or fewer than `bs` rows left to train on.
    """
    n = len(ratings)
    try:
        rows = np.empty(0, object) if np.ma.is_masked(split) else np.asarray(split)
        rows = np.array(rows.tolist()) if rows.dtype == object else rows
    except ValueError:  # lists of different lengths
        rows = np.empty(0, object)
    ordered = not isinstance(split, pd.Series) or split.index.equals(ratings.index)
    if rows.dtype.kind == "b" and rows.shape == (n,) and ordered:
        rows = np.flatnonzero(rows)
    elif rows.dtype.kind not in "iu" or rows.ndim != 1:
        odd = ((at, entry) for at, entry in enumerate(rows.ravel().tolist()) if not isinstance(entry, int))
        which = next((f", entry {at}: {_show(entry)}," for at, entry in odd), f"={_show(split)}")
        problem = f"split{which} is neither a mask of the {n:,} ratings in their order"
        raise BadRatings(f"{problem}, nor a list of their positions as in iloc, nor a seed")
    elif isinstance(split, pd.Index | pd.Series) and not ratings.index.equals(pd.RangeIndex(n)):
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


def check_reach(ratings: pd.DataFrame, y_range: tuple[float, float] | None) -> None:
    """Raise `BadRatings` where checked `ratings` lie outside the `y_range` that a model was made with."""
    if y_range is not None:
        stars, problem = ratings.iloc[:, 2], f"outside the model's own y_range {tuple(y_range)}"
        _refuse(stars, ~stars.between(*y_range).to_numpy(), problem, "make the model with another")


def tell_untrained(train: pd.DataFrame, valid: pd.DataFrame, columns: list) -> None:
    """Warn, once for ratings of these columns and sizes, of validation rows that nothing is learned for.

    Their user or item has no training row: it is `#na#` (code 0) if ids are integers, else has a row of its
    own, of which fewer than 1 % of the validation rows are passed over.
    """
    lost = np.any([~np.isin(valid[name], train[name].unique()) for name in columns], axis=0).sum()
    unread = int((valid[columns] == 0).any(axis=1).sum())
    if unread or lost > 0.01 * len(valid):
        rows = f"{lost:,} of {len(valid):,} validation rows have a user or item without a training row"
        why = f"{unread:,} of them fall on '#na#', and " * bool(unread)
        about = (*columns, len(train), len(valid))
        note(f"{rows}; {why}all count in valid_loss; other splits are alike", about, stacklevel=4)


def _check_ids(
    column: pd.Series, alike: str | None, fold: Callable[[str], str] = str
) -> tuple[pd.Series, np.ndarray]:
    """A column of ids, and its codes: 0, 1, ... in order of appearance."""
    try:
        codes, uniques = pd.factorize(column)
    except (TypeError, NotImplementedError):  # of pandas and of Arrow
        lists = column.map(pd.api.types.is_list_like).to_numpy(bool)
        _refuse(column, lists, "several values, not one id", "make it text with astype(str)")
        raise
    values = np.asarray(uniques)
    _refuse(column, codes < 0, "no id", "drop such rows with dropna() or fill them")
    if len(values) < 2:
        _refuse(column, codes == 0, "the only id", "give ratings with at least two")
    kind = pd.api.types.infer_dtype(values)
    if kind == "string":
        exact = values.astype(object)
        folded = pd.Series([fold(" ".join(normalize("NFC", text).split())) for text in values], dtype=object)
        plain = folded.str.casefold()
        missing, doubtful = plain.isin(MISSING), plain.isin(DOUBTFUL)
        sure = fold is str or (missing | doubtful | plain.str.fullmatch(r"\d+")).all()  # all others numbers
        wrongs = {"a blank id": plain == "", "fastai's unknown id": plain == "#na#"}
        wrongs["no id as it seems, but what programs write for a missing one"] = missing | (doubtful & sure)
        for problem, wrong in wrongs.items():
            _refuse(column, wrong, problem, "drop such rows or rename it", codes)
        again = folded.duplicated()
        if alike is None:
            like = values[(folded == folded[again.argmax()]).argmax()]
            problem = f"differs from {like!r} only in blanks, case or the form of an accent"
            remedy = "check_ratings(ratings, alike='fold') takes such ids as one, alike='keep' as different"
            _refuse(column, again, f"{problem} (such ids: {again.sum():,})", remedy, codes)
        elif alike == "fold" and again.any():
            codes, exact = pd.factorize(folded)[0][codes], exact[~again]
            return pd.Series(exact[codes], dtype=object), codes
    elif kind == "floating":
        exact = values.astype(np.float64) if values.dtype == object else values
        whole = (np.abs(exact) <= 2.0 ** (np.finfo(exact.dtype).nmant + 1)) & (exact == np.floor(exact))
        problem = "not a whole number that floats hold exactly"
        _refuse(column, ~whole, problem, "read the column as int64 or as text", codes)
        exact = exact.astype(np.int64)
    elif kind == "integer":
        low, high = int(values.min()), int(values.max())
        if values.dtype == object:
            outside = (values < -(2**63)) | (values >= (2**63 if low < 0 else 2**64))
            _refuse(column, outside.astype(bool), "does not fit 64 bits", "use astype(str)", codes)
            values = values.astype(np.int64 if high < 2**63 else np.uint64)
        exact = values
    else:
        others = np.array([type(value) is not type(values[0]) for value in values])
        problem = f"one of {kind} ids, the first of which is {_show(values[0])}"
        remedy = "make all of them text with astype(str)"
        _refuse(column, others if others.any() else ~others, problem, remedy, codes)
    if isinstance(column.dtype, pd.CategoricalDtype):
        unused = len(column.cat.categories) > len(values)
        return column.cat.remove_unused_categories() if unused else column, codes
    if column.dtype == exact.dtype:
        return column, codes
    return pd.Series(exact[codes], dtype=exact.dtype), codes


def _check_stars(column: pd.Series, y_range: tuple[float, float] | None, sure: bool = True) -> pd.Series:
    """A column of finite numbers that lie inside `y_range` also in float32, the precision of training.

    `sure`: the column is the ratings by its name or as the caller says.
    """
    values = column.to_numpy()
    if values.dtype.kind not in "iuf" or not isinstance(column.dtype, np.dtype):
        values = np.fromiter(map(_number, column), float, len(column))
    with np.errstate(over="ignore"):
        stars = values.astype(np.float32)
    _refuse(column, ~np.isfinite(stars), "not a finite number in float32", "correct it or drop such rows")
    column = column if column.dtype == values.dtype else pd.Series(values, name=column.name)
    if y_range is None:
        if not sure and stars.min() >= 1e8 and (values % 1 == 0).all():
            _refuse(column, stars > 0, "a timestamp or an id, no rating", "pass rating_name=")
        if stars.min() in (0, -1) and (unrated := _unrated(*np.unique(values, return_counts=True))):
            note(f"{unrated} before training", stacklevel=4)
        return column
    low, high = np.float32(y_range)
    on = (stars == low) | (stars == high)
    outside = (stars < low) | (stars > high) | (on & (tuple(y_range) == Y_RANGE))
    if outside.any():
        problem = f"not strictly inside y_range {tuple(y_range)}, so the sigmoid can't reach it"
        _refuse(column, outside, problem, _range_for(values, sure))
    if on.any():
        where = f"{on.sum():,} of {len(on):,} ratings lie on the bounds of y_range {tuple(y_range)}"
        note(f"{where}, which the sigmoid comes near but never reaches", stacklevel=4)
    return column


def _number(value: object) -> float:
    """`value` as a float, NaN for what is no number."""
    try:
        return np.nan if isinstance(value, complex) else float(value)
    except (TypeError, ValueError, OverflowError):
        return np.nan


def _range_for(values: np.ndarray, sure: bool) -> str:
    """The remedy for ratings outside y_range: the range that holds them, where they look like ratings."""
    scale, counts = np.unique(values, return_counts=True)
    if not sure and (scale % 1 == 0).all() and (len(scale) > MOST or scale[-1] >= 1e8):
        return "such numbers look like ids, counts or timestamps; for the column of ratings pass rating_name="
    if np.abs(scale).max() >= 1e6:  # where float32 is coarse
        return "divide the ratings by a number that makes them smaller"
    margin = max(0.5, 10.0 ** np.floor(np.log10(np.ptp(scale) or 1)) / 20)
    low, high = (round(float(end), 2) for end in (scale[0] - margin, scale[-1] + margin))
    hint = f"y_range=({low}, {high}) would hold all ratings"
    unrated = _unrated(scale, counts)
    return f"{unrated}; otherwise {hint}" if unrated else hint


def _unrated(scale: np.ndarray, counts: np.ndarray) -> str:
    """What to ask where the lowest rating is 0 or -1 and all others are positive."""
    odd = scale[0] in (0, -1) and len(scale) > 2 and scale[1] > 0
    rows = f"the {counts[0]:,} rows with {scale[0]:g}, beside positive ratings,"
    return f"if {rows} mean unrated, drop them" if odd else ""


def _refuse(column: pd.Series, wrong: np.ndarray, problem: str, remedy: str, codes=slice(None)) -> None:
    """Raise `BadRatings` for the first row where `wrong` is true, if any.

    `wrong` has an entry for each row or, with the rows' `codes`, one for each different value.
    """
    if wrong.any():
        row = int(np.asarray(wrong)[codes].argmax())
        error = BadRatings(f"column {column.name!r}, row {row} ({_show(column[row])}): {problem}; {remedy}")
        error.row = row
        raise error


def _show(value: object) -> str:
    """A value as a message shows it: text in quotes, no more than 60 characters."""
    return (repr(value) if isinstance(value, str) else str(value))[:60]
