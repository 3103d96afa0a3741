"""MovieLens by name: from the user's folder or zip, from fastai's folders, from GroupLens or from PyPI.

An archive's hash is checked before it is opened. It is read in memory; nothing is unpacked. The ratings
of MovieLens 100K are checked against `SHA256`, so that all ways give the same; those of the other sets,
their users and their movies are counted.
"""

import csv
import hashlib
import os
import re
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from itertools import compress
from pathlib import Path
from typing import BinaryIO
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from .archives import Archive, download, fastai_path, keep, pip_download
from .checks import repeated
from .notes import RatingsUnavailable, kept, reason

VARIABLE = "COLLAB_REPRO_DATA"
UNREADABLE = OSError, ValueError, KeyError, BadZipFile, HTTPException  # by what a place lacks or damaged
SHA256 = "9721e38d7794f29811ceabab2f13b77ac1b3ef0ca93f6ea33cbd1c46fc98d5d4"  # see frame_sha256
NUMBERS = ["user", "movie", "rating", "timestamp"]
NARROW = dict(zip(NUMBERS, ("int32", "int32", "float32", "int64"), strict=True))  # 25 million fit in memory
GENRES = """unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir
    Horror Musical Mystery Romance Sci-Fi Thriller War Western"""
GENRES = GENRES.split()
Opener = Callable[[str], BinaryIO]  # by a file's name

MOVIE = ["movie", "title", "genres"]
TEXT = dict(dtype=dict.fromkeys(("title", "year", "genres"), str), keep_default_na=False)
PLAIN = dict(**TEXT, quoting=csv.QUOTE_NONE)  # quotation marks are a title's own
PEOPLE = dict(names=["user", "age", "sex", "occupation", "zip"], dtype={"occupation": str})
COLONS = dict(sep="::", engine="python")

# The file of each table in the four formats, and how pandas reads it
HUNDRED = {
    "ratings": ("u.data", dict(sep="\t", names=NUMBERS, dtype="int64")),
    "movies": ("u.item", dict(sep="|", encoding="latin-1", names=[*MOVIE[:2], *"abc", *GENRES], **PLAIN)),
    "users": ("u.user", dict(sep="|", **PEOPLE)),
}
RECBOLE = {  # a title's last brackets have a column of their own
    "ratings": ("ml-100k.inter", dict(sep="\t", header=0, names=NUMBERS, dtype="int64")),
    "movies": ("ml-100k.item", dict(sep="\t", header=0, names=["movie", "title", "year", "genres"], **PLAIN)),
    "users": ("ml-100k.user", dict(sep="\t", header=0, **PEOPLE)),
}
DAT = {
    encoding: {  # a single colon is what pandas reads fast
        "ratings": ("ratings.dat", dict(sep=":", names=["user", 1, "movie", 2, "rating", 3, "timestamp"],
                                        usecols=NUMBERS, dtype=NARROW)),
        "movies": ("movies.dat", dict(names=MOVIE, encoding=encoding, **COLONS, **PLAIN)),
        "users": ("users.dat", dict(names=["user", "sex", "age", "occupation", "zip"], **COLONS)),
    }
    for encoding in ("latin-1", "utf-8")
}  # fmt: skip
CSV = {
    "ratings": ("ratings.csv", dict(header=0, names=NUMBERS, dtype=NARROW)),
    "movies": ("movies.csv", dict(header=0, names=MOVIE, **TEXT)),
}


def _label(name: str) -> str:
    return "MovieLens 100K" if name == "ml-100k" else f"MovieLens {name}"


def _grouplens(name: str, *counts: int, hash: str, tables: dict, folder: str = "", **more) -> Archive:
    file, source = f"{name}.zip", f"{_label(name)}, GroupLens' {name}.zip"
    return Archive(file, hash, f"{folder or name}/", tables, source, partial(download, file), counts, **more)


SETS = [
    _grouplens("ml-100k", tables=HUNDRED,
        hash="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229"),
    _grouplens("ml-latest-small", 100_836, 610, 9_724, tables=CSV, changing=True,
        hash="696d65a3dfceac7c45750ad32df2c259311949efec81f0f144fdfb91ebc9e436"),
    _grouplens("ml-1m", 1_000_209, 6_040, 3_706, tables=DAT["latin-1"],
        hash="a6898adb50b9ca05aa231689da44c217cb524e7ebd39d264c56e2832f2c54e20"),
    _grouplens("ml-10m", 10_000_054, 69_878, 10_677, tables=DAT["utf-8"], folder="ml-10M100K",
        hash="ce571fd55effeba0271552578f2648bd"),
    _grouplens("ml-20m", 20_000_263, 138_493, 26_744, tables=CSV,
        hash="96f243c338a8665f6bcc89c53edf6ee39162a846940de6b7c8c48aeada765ff3"),
    _grouplens("ml-25m", 25_000_095, 162_541, 59_047, tables=CSV,
        hash="8b21cfb7eb1706b4ec0aac894368d90acf26ebdfb6aced3ebd4ad5bd1eb9c6aa"),
    _grouplens("ml-32m", 32_000_204, 200_948, 84_432, tables=CSV,
        hash="e4a68655d7386b8f95f2f2424b2ff975dfdd15ffd59e0d864a14dca43e99d6ee"),
]  # fmt: skip
SETS = {archive.file.removesuffix(".zip"): [archive] for archive in SETS}
WHEEL = "recbole-1.2.1-py3-none-any.whl"
BY_PIP = {"fetch": partial(pip_download, "recbole==1.2.1", WHEEL), "place": "RecBole 1.2.1 by pip"}
SETS["ml-100k"].append(Archive(
    WHEEL, "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    "recbole/dataset_example/ml-100k/", RECBOLE,
    "MovieLens 100K as the RecBole 1.2.1 package carries it", **BY_PIP))  # fmt: skip


def load_movielens(
    name: str, path: str | Path | None = None, users: bool = False, fold: int | None = None
) -> pd.DataFrame:
    """The set `name`, as `load_ratings` describes it, with `genres`. Raises `RatingsUnavailable`."""
    archives, read = SETS[name], partial(_read, name, users=users, fold=fold)
    if path := path or os.environ.get(VARIABLE):
        place = Path(path).expanduser()
        try:
            return read(archives[0], *_at(place, name))
        except UNREADABLE as error:
            remedy = f"give {name}.zip, or a folder that holds it or {archives[0].folder}"
            for own in (place, place / "ratings.csv", place / "ratings.dat"):
                if own.is_file() and own.suffix not in ("", ".zip"):
                    remedy = f"other ratings than {name} are read by load_ratings({str(own)!r})"
            raise RatingsUnavailable(f"{path}: {reason(error)}; {remedy}") from error
    with suppress(*UNREADABLE):  # where there is no intact copy, the next place is tried
        opener, _ = _at(fastai_path("data", archives[0].folder), name)
        return read(archives[0], opener, f"{_label(name)}, unpacked by fastai")
    for fetch in (False, True):
        failures = []
        for archive in archives:
            try:
                content = archive.fetch() if fetch else fastai_path("archive", archive.file).read_bytes()
                ratings = read(archive, archive.opener(content), archive.source)
            except UNREADABLE as error:
                failures.append(f"{archive.place}: {reason(error)}")
            else:
                if fetch:
                    keep(archive.file, content)
                return ratings
    raise RatingsUnavailable(
        f"{_label(name)} is not available. path= and {VARIABLE}: not given; fastai's folders: no intact "
        f"copy; {'; '.join(failures)}. What to do: try again later, or give {name}.zip from "
        f"https://grouplens.org/datasets/movielens/ as path= or {VARIABLE}, or use 'synthetic'"
    )


def _at(place: Path, name: str) -> tuple[Opener, str]:
    """What opens a file of the set at `place` (its zip, its folder, or one that holds either); its source."""
    archive = SETS[name][0]
    folder, zipped = place / archive.folder, place if place.is_file() else place / archive.file
    if zipped.is_file() and not folder.is_dir():
        return archive.opener(zipped.read_bytes()), f"{_label(name)}, {zipped.name}"
    folder = folder if folder.is_dir() else place
    return lambda member: (folder / member).open("rb"), f"{_label(name)}, the folder {folder}"


def _read(
    name: str, archive: Archive, opener: Opener, source: str, users: bool, fold: int | None
) -> pd.DataFrame:
    """The ratings that `opener` opens, with titles and genres. Raises ValueError for any others."""

    def table(of: str, file: str | None = None) -> pd.DataFrame:
        usual, form = archive.tables[of]
        with opener(file or usual) as stream:
            return pd.read_csv(stream, **form)

    ratings, movies = table("ratings")[NUMBERS], table("movies").drop_duplicates("movie")
    if "year" in movies:
        titles = movies["title"] + " (" + movies["year"] + ")"
        movies["title"] = titles.replace("unkonwn (unkonwn)", "unknown")
        movies["genres"] = movies["genres"].str.replace(" ", "|")
    elif "genres" not in movies:
        if not np.isin(flags := movies[GENRES].to_numpy(), (0, 1)).all():
            raise ValueError("not the published u.item: its last 19 columns are not 0 or 1")
        movies["genres"] = ["|".join(compress(GENRES, row)) for row in flags]
    movies = movies.dropna(subset=MOVIE)
    rows = pd.Index(movies["movie"]).get_indexer(ratings["movie"])
    if (rows < 0).any():
        movie = ratings["movie"].iloc[int((rows < 0).argmax())]
        raise ValueError(f"not the published {archive.tables['movies'][0]}: no title for movie {movie}")
    for column in ("title", "genres"):
        codes, texts = pd.factorize(movies[column].str.strip())
        used = pd.Categorical.from_codes(codes[rows].astype(np.int32), texts)
        ratings[column] = used.remove_unused_categories()
    _check(archive, ratings, opener)
    duplicates = repeated(ratings["user"].to_numpy(np.int64), ratings["title"].cat.codes.to_numpy(np.int64))
    if name == "ml-100k":
        ratings = ratings.astype({"title": str, "genres": str})
    if users:
        people = table("users").drop_duplicates("user").set_index("user")[["age", "sex", "occupation"]]
        if not ratings["user"].isin(people.index).all():
            raise ValueError(f"not the published {archive.tables['users'][0]}: {len(people):,} users")
        ratings = ratings.join(people, on="user")
    if fold is not None:
        test = table("ratings", f"u{fold}.test")
        keys = [frame["user"] * 10_000 + frame["movie"] for frame in (ratings, test)]
        ratings["held_out"] = keys[0].isin(keys[1])
        if len(test) != ratings["held_out"].sum() or len(test) != len(ratings) // 5:
            raise ValueError(f"not the published u{fold}.test ({len(test):,} rows read)")
    ratings.attrs.update(name=name, source=source, duplicates=duplicates)
    kept(ratings, duplicates=duplicates)
    return ratings


def _check(archive: Archive, ratings: pd.DataFrame, opener: Opener) -> None:
    """Raise ValueError unless `ratings` are as published: to the letter, or in their numbers."""
    if not archive.counts and frame_sha256(ratings) != SHA256:
        raise ValueError(f"not the published 100,000 ratings ({len(ratings):,} rows read)")
    counts = len(ratings), ratings["user"].nunique(), ratings["movie"].nunique()
    wanted = archive.counts or counts
    if counts != wanted and archive.changing:  # two of them stand in its README.txt
        with opener("README.txt") as stream:
            text = stream.read().decode("utf-8", "replace")
        told = [re.search(rf"(\d+) {what}", text) for what in ("ratings", "users")]
        if not all(told):
            raise ValueError("README.txt does not say how many ratings and users there are")
        wanted = (*(int(match[1]) for match in told), counts[2])
    if counts != wanted:
        told = "{:,} ratings, {:,} users and {:,} rated movies".format(*counts)
        raise ValueError(f"{told} are not the published {', '.join(map('{:,}'.format, wanted))}")


def frame_sha256(ratings: pd.DataFrame) -> str:
    """SHA-256 of the numbers, column by column as little-endian int64, then of the titles."""
    numbers = ratings[NUMBERS].to_numpy("<i8").tobytes("F")
    return hashlib.sha256(numbers + "\n".join(map(str, ratings["title"])).encode()).hexdigest()
