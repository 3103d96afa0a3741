"""What somebody should see next: the best titles that they have not rated, each with a reason."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from ..interpret import MIN_RATINGS, trained
from ..sources.roles import is_named
from .folding import Stars, fold, lifts, rated
from .learned import Learned, Learns
from .predicting import Together, check_columns, several

COLUMNS = ["title", "prediction", "n_ratings", "because"]


def recommend(
    learn: Learns,
    who: "Stars | object | Iterable[object]",
    n: int = 10,
    seen: pd.DataFrame | None = None,
    min_ratings: int = MIN_RATINGS,
    **settings: float,
) -> pd.DataFrame:
    """The `n` titles with the highest predictions among those that `who` has not rated, best first.

    `who` is somebody new, as a dict or Series of stars by title (see `fold_in`, which gets `settings`), or
    a user the model knows, or a list of such users. What known users rated is read from `seen`, ratings with
    the column names of the training, by default all rows of the first Learner. Several models predict their
    mean.

    Columns: the user (for a list); title; prediction (stars); n_ratings (training ratings); because, the
    rated title without which its score would be lowest, None where none lifts it. Only titles with
    `min_ratings` training ratings or more are listed, and at least 1. In MovieLens 100K (three seeds, ten
    titles for each user) the validation stars of what is listed are 4.43 with no floor and with 50, and nDCG
    rises from .134 to .139; with 200 it is .178, but the stars are 4.24, and 67 titles are ever listed
    instead of 329 (notebook 06).

    Raises what `fold_in` does, `UnknownId`, ValueError where `seen` is missing or `n` negative.
    """
    if n < 0:
        raise ValueError(f"n={n} is negative")
    models = Together.of(learn := several(learn))
    often = models.n_ratings >= max(min_ratings, 1)
    if isinstance(who, Mapping | pd.Series):
        rows, stars = rated(models, who)
        people = [fold(side, rows, stars, **settings) for side in models.sides]
        return _best(models, people, rows, stars, often, n, settings)
    users = [who] if isinstance(who, str) or not np.iterable(who) else list(who)
    everyone, known = zip(*models.users(users), strict=True), seen_rows(learn, seen)
    known = known.assign(row=models.titles.get_indexer(known["title"])).query("row >= 0")
    known = known[trained(models.n_ratings)[known["row"]]]
    at, row, star = known.groupby("user").indices, known["row"].to_numpy(), known["stars"].to_numpy(float)
    name, parts = models.learned[0].names[0], []
    for user, people in zip(users, everyone, strict=True):
        own = at.get(user, [])
        parts.append(_best(models, people, row[own], star[own], often, n, settings))
        if user is who:
            return parts[0]
        parts[-1].insert(0, name, user)
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=[name, *COLUMNS])


def _best(models: Together, people, rows, stars, often: np.ndarray, n: int, settings: dict) -> pd.DataFrame:
    """`recommend` for one person, whom each of the models holds as one of `people`, (d,) each."""
    left = often.copy()
    left[rows] = False
    predictions, left = models.predictions(people), np.flatnonzero(left)
    best = left[np.argsort(-predictions[left], kind="stable")[:n]]
    because = [None] * len(best)
    if len(rows):
        each = zip(models.sides, people, strict=True)
        lift = sum(lifts(side, rows, stars, person, best, **settings) for side, person in each)
        because = np.where(lift.max(axis=1) > 0, models.titles[rows[lift.argmax(axis=1)]], None)
    columns = models.titles[best], predictions[best], models.n_ratings[best], because
    return pd.DataFrame(dict(zip(COLUMNS, columns, strict=True)))


def seen_rows(learn: list, seen: pd.DataFrame | None, *parts: str) -> pd.DataFrame:
    """Who rated what, as columns user, title and stars: `seen`, or the rows of the first Learner in `learn`.

    The stars of `seen` are the column that a Learner was trained on, else the one whose name says so, or the
    only one left. `parts` are datasets of the Learner, by default both. Raises ValueError for missing or
    doubled columns, and where there is no Learner to ask.
    """
    dls = next((one.dls for one in learn if hasattr(one, "dls")), None)
    if seen is not None:
        check_columns(seen, names := list(Learned.of(learn[0]).names))
        left, own = [name for name in seen if name not in names], dls and dls.train_ds.y_names[0]
        stars = [n for n in left if n == own] or [n for n in left if is_named(n, "rating")] or left
        if len(stars) != 1:
            raise ValueError(f"the stars may be any of the columns {stars}; call one of them 'rating'")
        return seen[names + stars].set_axis(["user", "title", "stars"], axis=1)
    if dls is None:
        raise ValueError("tables alone do not say who rated what: pass the ratings as seen=")
    rows = pd.concat([getattr(dls, part).items for part in parts or ("train_ds", "valid_ds")])
    user, title = (np.array(list(ids), dtype=object)[rows[name]] for name, ids in dls.classes.items())
    return pd.DataFrame({"user": user, "title": title, "stars": rows[dls.train_ds.y_names[0]].to_numpy()})
