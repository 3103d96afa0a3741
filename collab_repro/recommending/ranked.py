"""How well a model orders the titles that somebody has not seen: ranking is not rating."""

import numpy as np
import pandas as pd

from .learned import Learns
from .predicting import Together, several
from .unseen import seen_rows

CHUNK = 1 << 22  # predictions made at a time, so that memory does not grow with the users


def ranking(
    learn: Learns,
    held: pd.DataFrame,
    k: int = 10,
    liked: float = 4,
    seen: pd.DataFrame | None = None,
    min_ratings: int = 0,
) -> pd.DataFrame:
    """How many of the titles that users liked in `held` are among the `k` ranked first, and how high.

    `held` has ratings that the model was not trained on, under the columns' names of the training; those of
    `liked` stars or more are to be found. Titles in `seen`, by default a Learner's training rows, are left
    out, as are those with fewer than `min_ratings` training ratings. Several models rank by their mean.

    Rows: ranked by "prediction", "bias" and "popularity" (training ratings). Columns, from 0 to 1, means over
    the users who liked anything: recall@k, the share of their liked titles among the first k; ndcg@k, where
    place i counts 1 / log2(i + 1), divided by the best there can be. A liked title that the models do not
    know counts as not found. Raises `UnknownId`, and ValueError for missing columns, a missing `seen`, `k`
    under 1, or where nobody liked anything.
    """
    models = Together.of(learn := several(learn))
    held, seen = seen_rows(learn, held), seen_rows(learn, seen, "train_ds")
    held = held[held["stars"] >= liked].drop_duplicates(["user", "title"])
    pairs, met = (pd.MultiIndex.from_frame(rows[["user", "title"]]) for rows in (held, seen))
    held = held[~pairs.isin(met)]  # a title may have two ids, one of them seen
    user, users = pd.factorize(held["user"])
    if k < 1 or not len(users):
        raise ValueError(f"k={k} is less than 1" if k < 1 else f"held has no rating of {liked} stars or more")
    title, people = models.titles.get_indexer(held["title"]), models.users(users)
    seen_user = pd.Index(users).get_indexer(seen["user"])
    seen_title = models.titles.get_indexer(seen["title"])
    same = {"popularity": models.n_ratings.astype(float)}
    if models.learned[0].movie_bias is not None:
        same = {"bias": sum(side.offset for side in models.sides), **same}

    discount = 1 / np.log2(np.arange(k) + 2)
    best = np.append(0, discount.cumsum())[np.minimum(np.bincount(user), k)]
    found = {name: [] for name in ("prediction", *same)}
    for first in range(0, len(users), step := max(1, CHUNK // len(models.titles))):
        scores = models.predictions([person[first : first + step] for person in people])
        out, wanted = np.tile(models.n_ratings < min_ratings, (len(scores), 1)), np.zeros(scores.shape, bool)
        for table, who, what in ((out, seen_user, seen_title), (wanted, user, title)):
            here = (first <= who) & (who < first + step) & (what >= 0)
            table[who[here] - first, what[here]] = True
        for name, score in {"prediction": scores, **same}.items():
            order = np.where(out, np.inf, -score).argsort(axis=1, kind="stable")[:, :k]
            found[name].append(np.take_along_axis(wanted & ~out, order, axis=1))
    table = {}
    for name, parts in found.items():
        hits = np.concatenate(parts)  # (n_users, k)
        ndcg = hits @ discount[: hits.shape[1]] / best
        table[name] = {f"recall@{k}": (hits.sum(axis=1) / np.bincount(user)).mean(), f"ndcg@{k}": ndcg.mean()}
    return pd.DataFrame(table).T.rename_axis("ranked by")
