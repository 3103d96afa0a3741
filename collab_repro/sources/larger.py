"""The other MovieLens sets by name: from the user's folder or zip, kept by an earlier run, from GroupLens.

A zip is known by its hash before it is opened, and the ratings, users and movies are counted in the end.
"""

import hashlib
import http.client
import io
import os
import re
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import pandas as pd

from .movielens import NUMBERS, VARIABLE, RatingsUnavailable, download, fastai_path, keep, reason

SITE = "https://files.grouplens.org/datasets/movielens"
DTYPES = dict(zip(NUMBERS, ("int32", "int32", "float32", "int64"), strict=True))  # 25 million fit in memory
Open = Callable[[str], BinaryIO]


class Edition(NamedTuple):
    """A set as GroupLens publishes it: counts of ratings, of users and of movies that were rated."""

    ratings: int
    users: int
    movies: int
    most: int  # bytes of the zip, at most
    hash: str  # of the zip: SHA-256, or MD5 where that alone is published


SETS = {
    "ml-latest-small": Edition(100_836, 610, 9_724, 5_000_000,
        "696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"),
    "ml-1m": Edition(1_000_209, 6_040, 3_706, 10_000_000,
        "a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),
    "ml-10m": Edition(10_000_054, 69_878, 10_677, 100_000_000, "ce571fd55effeba0271552578f2648bd"),
    "ml-20m": Edition(20_000_263, 138_493, 26_744, 300_000_000,
        "96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3"),
    "ml-25m": Edition(25_000_095, 162_541, 59_047, 400_000_000,
        "8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"),
    "ml-32m": Edition(32_000_204, 200_948, 84_432, 400_000_000,
        "e4a68655d7386b8f95f2f2424b2ff975dfdd15ffd59e0d864a14dca43e99d6ee"),
}  # fmt: skip
FOLDERS = {"ml-10m": "ml-10M100K"}  # inside the zip, where it isn't the set's name
CHANGING = "ml-latest-small"  # GroupLens replaces it now and then


def load_larger(name: str, path: str | Path | None = None, users: bool = False) -> pd.DataFrame:
    """The set `name`, as `load_ratings` describes it, with `genres`. Raises `RatingsUnavailable`."""
    if path := path or os.environ.get(VARIABLE):
        try:
            return _read_place(name, Path(path).expanduser(), users)
        except (OSError, ValueError, zipfile.BadZipFile, KeyError) as error:
            remedy = f"give {name}.zip, or a folder that holds it or {FOLDERS.get(name, name)}/"
            raise RatingsUnavailable(f"{path}: {reason(error)}; {remedy}") from error
    file = f"{name}.zip"
    with suppress(OSError, ValueError, zipfile.BadZipFile, KeyError):
        return _read_zip(name, fastai_path("archive", file), users)
    try:
        content = download(f"{SITE}/{file}", SETS[name].most)
        ratings = _read_zip(name, io.BytesIO(content), users)
    except (OSError, ValueError, zipfile.BadZipFile, KeyError, http.client.HTTPException) as error:
        raise RatingsUnavailable(
            f"{name} is not available. path= and {VARIABLE}: not given; kept by an earlier run: no intact "
            f"copy; GroupLens: {reason(error)}. What to do: try again later, or give a {file} from "
            f"https://grouplens.org/datasets/movielens/ as path= or {VARIABLE}"
        ) from error
    keep(file, content)
    return ratings


def _read_place(name: str, place: Path, users: bool) -> pd.DataFrame:
    """From a zip, from a folder that holds one, or from the set's folder or a folder that holds it."""
    folder = place / FOLDERS.get(name, name)
    if place.is_dir() and not folder.is_dir() and (place / f"{name}.zip").is_file():
        place = place / f"{name}.zip"
    if place.is_file():
        return _read_zip(name, place, users)
    folder = folder if folder.is_dir() else place
    return _read(name, lambda member: (folder / member).open("rb"), users, f"the folder {folder}")


def _read_zip(name: str, file: Path | io.BytesIO, users: bool) -> pd.DataFrame:
    edition, own = SETS[name], file.name if isinstance(file, Path) else f"GroupLens' {name}.zip"
    digest = hashlib.md5() if len(edition.hash) == 32 else hashlib.sha256()
    with file.open("rb") if isinstance(file, Path) else file as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
        if digest.hexdigest() != edition.hash:
            problem = f"{stream.tell():,} bytes that are not the published {name}.zip"
            if name != CHANGING:
                raise ValueError(problem)
            warnings.warn(f"{problem} of 2018: GroupLens has changed it, or it is damaged", stacklevel=5)
        with zipfile.ZipFile(stream) as archive:
            folder = FOLDERS.get(name, name)
            return _read(name, lambda member: archive.open(f"{folder}/{member}"), users, own)


def _read(name: str, open_: Open, users: bool, source: str) -> pd.DataFrame:
    """The ratings of the set whose files `open_` opens, with titles and genres; counted."""
    dat = name in ("ml-1m", "ml-10m")
    if dat:
        form = {"sep": ":", "names": [*"0123456"], "usecols": [*"0246"], "header": None}
        form["dtype"] = dict(zip("0246", DTYPES.values(), strict=True))
    else:
        form = {"header": 0, "names": NUMBERS, "dtype": DTYPES}
    with open_("ratings.dat" if dat else "ratings.csv") as stream:
        ratings = pd.read_csv(stream, **form)
    ratings.columns = NUMBERS
    counts = len(ratings), ratings["user"].nunique(), ratings["movie"].nunique()
    if counts != (wanted := SETS[name][:3]):
        if name == CHANGING:
            wanted = _counts_in_readme(open_)
        if counts[: len(wanted)] != wanted:
            what = "{:,} ratings, {:,} users and {:,} rated movies".format(*counts)
            raise ValueError(f"{what} are not the published {name}: {', '.join(f'{n:,}' for n in wanted)}")
    movies = _dat_movies(open_, name) if dat else _csv_movies(open_)
    rows = pd.Index(movies["movie"]).get_indexer(ratings["movie"])
    if (rows < 0).any():
        raise ValueError(f"no title for movie {ratings['movie'].iloc[int((rows < 0).argmax())]}")
    for column in ("title", "genres"):
        codes, texts = pd.factorize(movies[column].str.strip())
        used = pd.Categorical.from_codes(codes[rows].astype(np.int32), texts)
        ratings[column] = used.remove_unused_categories()
    if users:
        ratings = ratings.join(_dat_users(open_, name), on="user")
    pairs = ratings["user"].to_numpy(np.int64) * len(movies) + ratings["title"].cat.codes.to_numpy()
    pairs.sort()
    duplicates = int((pairs[1:] == pairs[:-1]).sum())
    ratings.attrs.update(name=name, source=f"MovieLens {name}, {source}", duplicates=duplicates)
    return ratings


def _counts_in_readme(open_: Open) -> tuple[int, ...]:
    """How many ratings and users the set's README.txt says there are."""
    with open_("README.txt") as stream:
        text = stream.read().decode("utf-8", "replace")
    found = [re.search(rf"(\d+) {what}", text) for what in ("ratings", "users")]
    if not all(found):
        raise ValueError("its README.txt does not say how many ratings and users there are")
    return tuple(int(match[1]) for match in found)


def _csv_movies(open_: Open) -> pd.DataFrame:
    with open_("movies.csv") as stream:
        names = {"names": ["movie", "title", "genres"], "header": 0}
        return pd.read_csv(stream, **names, keep_default_na=False)


def _dat_rows(open_: Open, file: str, encoding: str, columns: list[str]) -> pd.DataFrame:
    with open_(file) as stream:
        lines = stream.read().decode(encoding).splitlines()
    rows = [line.split("::") for line in lines]
    if any(len(row) != len(columns) for row in rows):
        raise ValueError(f"{file}: not {len(columns)} fields in each line")
    return pd.DataFrame(rows, columns=columns)


def _dat_movies(open_: Open, name: str) -> pd.DataFrame:
    encoding = "latin-1" if name == "ml-1m" else "utf-8"
    movies = _dat_rows(open_, "movies.dat", encoding, ["movie", "title", "genres"])
    return movies.astype({"movie": "int32"})


def _dat_users(open_: Open, name: str) -> pd.DataFrame:
    """Columns age, sex and occupation by user; an age is the first of GroupLens' span."""
    if name != "ml-1m":
        raise ValueError(f"{name} says nothing of its users; leave users=True out")
    people = _dat_rows(open_, "users.dat", "latin-1", ["user", "sex", "age", "occupation", "zip"])
    people = people.astype({"user": "int32", "age": "int64"}).set_index("user")
    return people[["age", "sex", "occupation"]]
