"""Predicted ratings from a model's tables."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from ..interpret import UnknownId, UnknownTitle
from .learned import Learned


def predict(
    learn: "Learner | Learned | Sequence[Learner | Learned]",  # noqa: F821
    rows: pd.DataFrame,
    unknown: str = "error",
) -> pd.Series:
    """Predicted ratings of `rows`, float64 on the index of `rows`; all lie inside y_range.

    `rows` has the columns of users and titles that `learn` was trained on. Several models make an
    ensemble: the mean of their predictions.

    fastai sends whom it doesn't know to the row '#na#', silently. Here `unknown="error"` raises,
    and "average" predicts with the mean factors and bias of all users or of all rated titles
    ("Bootstrapping a Collaborative Filtering Model"). Ids are compared exactly: 7 is not "7".

    Raises `UnknownId` naming the first few (`UnknownTitle` when it is titles alone), ValueError
    for missing columns or another `unknown`.
    """
    if isinstance(learn, list | tuple):
        return sum(predict(one, rows, unknown) for one in learn) / len(learn)
    learned = Learned.of(learn)
    if unknown not in ("error", "average"):
        raise ValueError(f"unknown={unknown!r}: it is 'error' or 'average'")
    if missing := [name for name in learned.names if name not in rows]:
        raise ValueError(f"rows have no column {missing[0]!r}; they need {list(learned.names)}")
    user, title = (rows[name].astype(object) for name in learned.names)
    users, titles = _codes(learned.users, user), _codes(learned.titles, title)
    if unknown == "error" and not (users.all() and titles.all()):
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
    rated = learned.n_ratings > 0
    rated[1:] |= not rated.any()  # an exported learner doesn't know
    everyone = np.arange(len(learned.users)) > 0
    user_factors = _averaged(learned.user_factors, everyone)[users]
    score = np.einsum("ij,ij->i", user_factors, _averaged(learned.movie_factors, rated)[titles])
    if learned.movie_bias is not None:
        score += _averaged(learned.user_bias, everyone)[users]
        score += _averaged(learned.movie_bias, rated)[titles]
    return score


def _codes(vocabulary: list, ids: pd.Series) -> np.ndarray:
    """The row of each id, 0 for one that isn't there; '#na#' itself is nobody's id."""
    return pd.Index(vocabulary[1:], dtype=object).get_indexer(pd.Index(ids, dtype=object)) + 1


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
