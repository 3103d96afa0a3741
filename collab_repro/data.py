"""The chapter's ratings in one DataFrame. How they are found and read is in `sources`."""

import os
from pathlib import Path

import pandas as pd

from . import sources


def load_ratings(
    name: str = "ml-100k",
    path: str | Path | None = None,
    genres: bool = False,
    users: bool = False,
    fold: int | None = None,
) -> pd.DataFrame:
    """The ratings called `name`, as the DataFrame of the chapter's "A First Look at the Data".

    "ml-100k": MovieLens 100K, 100,000 rows in GroupLens' order, indexed from 0. The columns are int64
    `user` (943 different ones), `movie` (1,682), `rating` (1 to 5 stars) and `timestamp` (seconds since
    1970), and text `title` (1,664, without blanks at either end). The first of these that has them is read:

    - `path`, or else what the environment variable COLLAB_REPRO_DATA names: GroupLens' ml-100k.zip, the
      folder in it, or a folder that holds either. If one is given, nothing else is tried.
    - the folders in which fastai (`untar_data(URLs.ML_100k)`) and earlier runs keep downloads;
    - GroupLens, and then the RecBole 1.2.1 wheel, fetched with pip.

    "ml-latest-small", "ml-1m", "ml-10m", "ml-20m", "ml-25m", "ml-32m": the other sets, found likewise. They
    have the same columns in narrower types, and titles as a category. Films that share a title are one item,
    as in the chapter, unless `item_name="movie"` goes to `learner`.
    "synthetic": `planted_ratings()`, with the same columns.

    The path of a file: your own ratings, a table as text with any usual separator, also packed (.gz, .bz2,
    .xz, .zip), or Parquet; see `check_ratings`.

    `genres=True` adds MovieLens' `genres`, like "Animation|Children's|Comedy", which `.str.get_dummies()`
    takes apart; `users=True` adds `age`, `sex` and `occupation` (ml-100k and ml-1m). `fold` (1 to 5) is one
    of GroupLens' own splits of ml-100k, where its archive is at hand: `held_out` marks its test rows.

    `.attrs` holds `name`, `source` (a sentence) and, for ml-100k, `duplicates` (how many rows repeat a user
    and title). Raises `RatingsUnavailable`; other ratings are never returned instead.
    """
    if path and name not in sources.SETS:
        raise sources.RatingsUnavailable(f"path= goes with MovieLens sets only: leave it out for {name!r}")
    if users and name not in ("ml-100k", "ml-1m"):
        raise sources.RatingsUnavailable(f"users=True: only ml-100k and ml-1m tell of users, not {name!r}")
    if fold is not None and (name != "ml-100k" or fold not in range(1, 6)):
        raise sources.RatingsUnavailable(f"fold={fold!r} of {name!r}: only 'ml-100k' has folds, 1 to 5")
    if name in sources.SETS:
        ratings = sources.load_movielens(name, path, users, fold)
    elif name == "synthetic":
        ratings, _ = sources.planted_ratings()
        ratings.attrs["source"] = "synthetic ratings, planted_ratings(seed=0)"
    elif Path(name).suffix.lower() in sources.SUFFIXES or Path(name).name != name or os.path.lexists(name):
        ratings = sources.load_own(name)
    else:
        choices = ", ".join(map(repr, [*sources.SETS, "synthetic"])) + ", or the path of a file"
        raise sources.RatingsUnavailable(f"no ratings called {name!r}: give {choices}")
    if genres and "genres" not in ratings:
        raise sources.RatingsUnavailable(f"{name!r} has no column 'genres'; leave genres=True out")
    return ratings if genres or name not in sources.SETS else ratings.drop(columns="genres")
