"""Predicted ratings from a model's tables."""

from collections.abc import Iterable

import numpy as np
import pandas as pd

from ..interpret import UnknownId, UnknownTitle, trained
from .learned import Learned

CHUNK = 1 << 16  # rows scored at a time, so that memory does not grow with the rows


def predict(
    learn: "Learner | Learned | Iterable[Learner | Learned]",  # noqa: F821
    rows: pd.DataFrame,
    unknown: str = "error",
) -> pd.Series:
    """Predicted ratings of `rows`, float64 on the index of `rows`; all lie inside y_range.

    `rows` has the columns of users and titles that `learn` was trained on. Several models make an
    ensemble: the mean of their predictions.

    fastai sends whom it doesn't know to the row '#na#', silently. Here `unknown="error"` raises,
    also for those without a training row, and "average" predicts with the mean factors and bias of all
    users or titles that have one ("Bootstrapping a Collaborative Filtering Model"). Ids are compared
    exactly: 7 is not "7".

    Raises `UnknownId` naming the first few (`UnknownTitle` when it is titles alone), ValueError
    for no model, for missing or doubled columns, or another `unknown`.
    """
    if not hasattr(learn, "dls") and not isinstance(learn, Learned):
        if not (learns := list(learn)):
            raise ValueError("predict needs one model at least")
        return sum(predict(one, rows, unknown) for one in learns) / len(learns)
    learned = Learned.of(learn)
    if unknown not in ("error", "average"):
        raise ValueError(f"unknown={unknown!r}: it is 'error' or 'average'")
    for name in learned.names:
        if (count := list(rows.columns).count(name)) != 1:
            raise ValueError(f"rows have {count or 'no'} columns {name!r}; they need {list(learned.names)}")
    users, titles = (
        _codes(v, rows[n]) for v, n in zip((learned.users, learned.titles), learned.names, strict=True)
    )
    titles[~trained(learned.n_ratings)[titles]] = 0
    if unknown == "error" and not (users.all() and titles.all()):
        user, title = (rows[name] for name in learned.names)
        strangers = {"users": user[users == 0], "titles": title[titles == 0]}
        named = "; ".join(f"{kind} {_few(ids)}" for kind, ids in strangers.items() if len(ids))
        error = UnknownTitle if users.all() else UnknownId
        raise error(f"not in the training data: {named} (unknown='average' predicts for the average one)")
    score = _scores(learned, users, titles)
    if learned.y_range is not None:
        from scipy.special import expit

        low, high = learned.y_range
        score = np.clip(low + (high - low) * expit(score), low, high)
    return pd.Series(score, rows.index, name="prediction")


def _scores(learned: Learned, users: np.ndarray, titles: np.ndarray) -> np.ndarray:
    """The scores under the sigmoid, (rows,) float64; row 0 of a vocabulary stands for the average one."""
    rated, everyone = trained(learned.n_ratings), np.ones(len(learned.users), bool)
    rated[0] = everyone[0] = False
    user_factors = _averaged(learned.user_factors, everyone)
    movie_factors = _averaged(learned.movie_factors, rated)
    score = np.empty(len(users))
    for at in range(0, len(users), CHUNK):
        part = slice(at, at + CHUNK)
        np.einsum("ij,ij->i", user_factors[users[part]], movie_factors[titles[part]], out=score[part])
    if learned.movie_bias is not None:
        score += _averaged(learned.user_bias, everyone)[users]
        score += _averaged(learned.movie_bias, rated)[titles]
    return score


def _codes(vocabulary: list, ids: pd.Series) -> np.ndarray:
    """The row of each id, 0 for one that isn't there; '#na#' itself is nobody's id."""
    codes, different = pd.factorize(ids)  # -1 for a missing one
    rows = pd.Index(vocabulary[1:], dtype=object).get_indexer(pd.Index(different, dtype=object)) + 1
    return np.append(rows, 0)[codes]


def _averaged(table: np.ndarray, trained: np.ndarray) -> np.ndarray:
    """`table` as float64 with row 0 the mean of the `trained` rows."""
    table = table.astype(float)
    table[0] = table[trained].mean(axis=0)
    return table


def _few(ids: pd.Series, n: int = 3) -> str:
    """The first `n` different ids, and how many more there are."""
    ids = ids.unique()
    more = f" and {len(ids) - n:,} more" if len(ids) > n else ""
    return ", ".join(repr(getattr(one, "item", lambda one=one: one)()) for one in ids[:n]) + more
