"""Predicted ratings from a model's tables."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd

from ..interpret import UnknownId, UnknownTitle, trained
from ..sources import BadRatings
from .learned import Learned, Learns, plain

CHUNK = 1 << 16  # rows scored at a time, so that memory does not grow with the rows


def predict(learn: Learns, rows: pd.DataFrame, unknown: str = "error") -> pd.Series:
    """Predicted ratings of `rows`, float64 on the index of `rows`; all lie inside y_range.

    `rows` has the columns of users and titles that `learn` was trained on. Several models predict their
    mean. fastai sends whom it doesn't know to the row '#na#', silently. Here `unknown="error"` raises, also
    for those without a training row, and "average" predicts with the mean factors and bias of all users or
    titles that have one ("Bootstrapping a Collaborative Filtering Model"). Ids are compared exactly: 7 is
    not "7". Raises `UnknownId` naming the first few (`UnknownTitle` when it is titles alone), ValueError for
    no model, for missing or doubled columns, or another `unknown`.
    """
    learns = several(learn)
    if len(learns) > 1:
        return sum(predict(one, rows, unknown) for one in learns) / len(learns)
    learned = Learned.of(*learns)
    if unknown not in ("error", "average"):
        raise ValueError(f"unknown={unknown!r}: it is 'error' or 'average'")
    check_columns(rows, list(learned.names))
    user, title = (rows[name] for name in learned.names)
    users, titles = codes(learned.users, user), codes(learned.titles, title)
    titles[~trained(learned.n_ratings)[titles]] = 0
    if unknown == "error" and not (users.all() and titles.all()):
        strangers = {"users": user[users == 0], "titles": title[titles == 0]}
        named = "; ".join(f"{kind} {_few(ids)}" for kind, ids in strangers.items() if len(ids))
        error = UnknownTitle if users.all() else UnknownId
        raise error(f"not in the training data: {named} (unknown='average' predicts for the average one)")
    side = Sides.of(learned)
    score = np.empty(len(users))
    for at in range(0, len(users), CHUNK):
        part = slice(at, at + CHUNK)
        np.einsum("ij,ij->i", side.people[users[part]], side.films[titles[part]], out=score[part])
    score = squash(score + side.offset[titles], side.y_range)
    return pd.Series(score, rows.index, name="prediction")


def check_columns(rows: pd.DataFrame, names: list) -> None:
    """Raise ValueError unless `rows` have one column of each of `names`."""
    for name in names:
        if (count := list(rows.columns).count(name)) != 1:
            raise ValueError(f"rows have {count or 'no'} columns {name!r}; they need {names}")


def several(learn: Learns) -> list:
    """One model, or several, as a list. Raises ValueError for none."""
    one = hasattr(learn, "dls") or isinstance(learn, Learned)
    if not (learns := [learn] if one else list(learn)):
        raise ValueError("no models; give one model at least")
    return learns


def squash(scores: np.ndarray, y_range: tuple[float, float] | None) -> np.ndarray:
    """`scores` of any shape moved inside `y_range` by a sigmoid, or left alone when it is None."""
    if y_range is None:
        return scores
    from scipy.special import expit

    low, high = y_range
    return np.clip(low + (high - low) * expit(scores), low, high)


class Sides(NamedTuple):
    """A model's tables as the two sides of one product: scores are people @ films.T + offset, all float64.

    `people` (n_users, d): factors, then the bias; `films` (n_titles, d): factors, then 1; `offset`
    (n_titles,): the films' biases. Without biases d is the number of factors, and the offset 0. Row 0 is the
    average of all users, or of the titles with training ratings. `n_rows`: how many rows it was trained on.
    """

    people: np.ndarray
    films: np.ndarray
    offset: np.ndarray
    y_range: tuple[float, float] | None
    n_rows: int

    @classmethod
    def of(cls, learned: Learned) -> "Sides":
        people, films, offset = learned.user_factors, learned.movie_factors, np.zeros(len(learned.titles))
        if learned.movie_bias is not None:
            people = np.column_stack([people, learned.user_bias])
            films = np.column_stack([films, np.ones(len(films), np.float32)])
            offset = learned.movie_bias
        people, films, offset = (table.astype(float) for table in (people, films, offset))
        rated = trained(learned.n_ratings)[1:]
        people[0] = people[1:].mean(axis=0)
        films[0], offset[0] = films[1:][rated].mean(axis=0), offset[1:][rated].mean()
        return cls(people, films, offset, learned.y_range, int(learned.n_ratings.sum()))


@dataclass(frozen=True)
class Together:
    """One model or several over the titles that all of them know: row i of each side's films is `titles[i]`.

    `learned`: their tables; `titles` (n,); `n_ratings` (n,): training ratings, the fewest of the models.
    Raises `BadRatings` for a model that does not know its training ratings, as an exported Learner, and
    ValueError for models without a title in common.
    """

    learned: list[Learned]
    titles: pd.Index
    n_ratings: np.ndarray
    sides: list[Sides]

    @classmethod
    def of(cls, learn: Learns) -> "Together":
        learned = [Learned.of(one) for one in several(learn)]
        titles = pd.Index(learned[0].titles[1:], dtype=object)
        for one in learned[1:]:
            titles = titles[titles.isin(one.titles)]
        if titles.empty:
            raise ValueError("the models have no title in common")
        sides, counts = [Sides.of(one) for one in learned], []
        if not all(side.n_rows for side in sides):
            remedy = "keep Learned.of(learn).save(path) instead"
            raise BadRatings(f"an exported Learner doesn't know what it was trained on; {remedy}")
        for i, one in enumerate(learned):
            rows = codes(one.titles, titles.to_series())
            sides[i] = sides[i]._replace(films=sides[i].films[rows], offset=sides[i].offset[rows])
            counts.append(one.n_ratings[rows])
        return cls(learned, titles, np.min(counts, axis=0), sides)

    def users(self, ids: Iterable) -> list[np.ndarray]:
        """What each model learned of the users `ids`, (n_ids, d). Raises `UnknownId`."""
        ids = pd.Series(list(ids), dtype=object)
        rows = [codes(one.users, ids) for one in self.learned]
        if len(strangers := ids[np.min(rows, axis=0) == 0]):
            raise UnknownId(f"not in the training data: users {_few(strangers)}")
        return [side.people[at] for side, at in zip(self.sides, rows, strict=True)]

    def predictions(self, people: Iterable[np.ndarray]) -> np.ndarray:
        """The mean predictions for all titles, (..., n), of `people`, (..., d) for each model."""
        pairs = zip(self.sides, people, strict=True)
        each = (squash(person @ side.films.T + side.offset, side.y_range) for side, person in pairs)
        return sum(each) / len(self.sides)


def codes(vocabulary: list, ids: pd.Series) -> np.ndarray:
    """The row of each id, 0 for one that isn't there; '#na#' itself is nobody's id."""
    codes, different = pd.factorize(ids)  # -1 for a missing one
    rows = pd.Index(vocabulary[1:], dtype=object).get_indexer(pd.Index(different, dtype=object)) + 1
    return np.append(rows, 0)[codes]


def _few(ids: pd.Series, n: int = 3) -> str:
    """The first `n` different ids, and how many more there are."""
    ids = ids.unique()
    more = f" and {len(ids) - n:,} more" if len(ids) > n else ""
    return ", ".join(repr(plain(one)) for one in ids[:n]) + more
