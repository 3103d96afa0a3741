"""What somebody should see next: the best titles that they have not rated, each with a reason."""

from collections.abc import Iterable, Mapping

import numpy as np
import pandas as pd

from ..sources import column_names
from .folding import Stars, fold, lifts, rated
from .learned import Learned
from .predicting import Together, several

FLOOR = 50  # see recommend
COLUMNS = ["title", "prediction", "n_ratings", "because"]


def recommend(
    learn: "Learner | Learned | Iterable[Learner | Learned]",  # noqa: F821
    who: "Stars | object | Iterable[object]",
    n: int = 10,
    seen: pd.DataFrame | None = None,
    min_ratings: int = FLOOR,
    **settings: float,
) -> pd.DataFrame:
    """The `n` titles with the highest predictions among those that `who` has not rated, best first.

    `who` is somebody new, as a dict or Series of stars by title (see `fold_in`, which gets `settings`), or a
    user the model knows, or a list of such users. What a known user rated is left out, and is found in `seen`,
    ratings under the columns' names of the training; by default in all rows of a Learner, of training and of
    validation. Several models make an ensemble: the mean of their predictions.

    Columns: the user, for a list; title; prediction (stars); n_ratings, training ratings; because, the rated
    title that lifts it most: without that rating the score would be lowest. It is None where none lifts it.
    Only titles with `min_ratings` training ratings or more are listed.

    Raises what `fold_in` does, `UnknownId`, ValueError where `seen` is missing or `n` negative.
    """
    if n < 0:
        raise ValueError(f"n={n} is negative")
    models = Together.of(learn)
    often = models.n_ratings >= min_ratings
    if isinstance(who, Mapping | pd.Series):
        rows, stars = rated(models, who)
        people = [fold(side, rows, stars, **settings) for side in models.sides]
        return _best(models, people, rows, stars, often, n, settings)
    users = [who] if isinstance(who, str) or not np.iterable(who) else list(who)
    everyone, known = zip(*models.users(users), strict=True), seen_rows(learn, seen)
    known = known.assign(row=models.titles.get_indexer(known["title"])).query("row >= 0")
    at = known.groupby("user", sort=False).indices
    row, star = known["row"].to_numpy(), known["stars"].to_numpy(float)
    parts = {}
    for user, people in zip(users, everyone, strict=True):
        own = at.get(user, [])
        parts[user] = _best(models, people, row[own], star[own], often, n, settings)
    if len(users) == 1 and users[0] is who:
        return parts[who]
    name = models.learned[0].names[0]
    return pd.concat(parts, names=[name]).reset_index(name).reset_index(drop=True)


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


def seen_rows(learn, seen: pd.DataFrame | None, *parts: str) -> pd.DataFrame:
    """Who rated what, as columns user, title and stars: `seen`, or the rows of the first Learner.

    `parts` are its datasets, by default both. Raises ValueError where neither holds it, `BadRatings`.
    """
    learns = several(learn)
    if seen is not None:
        names = column_names(list(seen.columns), *Learned.of(learns[0]).names, None)
        return seen[names].set_axis(["user", "title", "stars"], axis=1)
    dls = next((one.dls for one in learns if hasattr(one, "dls")), None)
    if dls is None:
        raise ValueError("tables alone do not say who rated what: pass the ratings as seen=")
    rows = pd.concat([getattr(dls, part).items for part in parts or ("train_ds", "valid_ds")])
    columns = {
        column: np.array(list(ids), dtype=object)[rows[name]]
        for column, (name, ids) in zip(("user", "title"), dls.classes.items(), strict=True)
    }
    return pd.DataFrame({**columns, "stars": rows[dls.train_ds.y_names[0]].to_numpy()})
