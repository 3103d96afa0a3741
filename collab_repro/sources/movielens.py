"""MovieLens 100K from a folder of the user's, from fastai's folders, from GroupLens or from PyPI.

The hash of an archive is checked before the archive is opened. It is read in memory; nothing is unpacked.
The DataFrame is checked against `SHA256` whichever way it came, so all ways give the same one.
"""

import configparser
import csv
import hashlib
import http.client
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from itertools import compress
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
from tqdm import tqdm

from .files import write_whole
from .notes import RatingsUnavailable, reason

VARIABLE = "COLLAB_REPRO_DATA"
URL = "https://files.grouplens.org/datasets/movielens/ml-100k.zip"  # fastai's URLs.ML_100k
SHA256 = "9721e38d7794f29811ceabab2f13b77ac1b3ef0ca93f6ea33cbd1c46fc98d5d4"  # see frame_sha256
TIMEOUT, DEADLINE = 10, 120  # seconds without a byte from a server, and for a whole download
MAX_BYTES = 20_000_000  # both archives are smaller than 5 MB
NUMBERS = ["user", "movie", "rating", "timestamp"]
GENRES = """unknown Action Adventure Animation Children's Comedy Crime Documentary Drama Fantasy Film-Noir
    Horror Musical Mystery Romance Sci-Fi Thriller War Western"""
GENRES = GENRES.split()
RAW_TEXT = {"dtype": {"title": str}, "quoting": csv.QUOTE_NONE, "keep_default_na": False}


def load_movielens(
    path: str | Path | None = None, users: bool = False, fold: int | None = None
) -> pd.DataFrame:
    """MovieLens 100K, as `load_ratings` describes it, with `genres`. Raises `RatingsUnavailable`."""
    wanted = users, fold
    if path := path or os.environ.get(VARIABLE):
        try:
            return _read_folder(Path(path).expanduser(), f"MovieLens 100K from the folder {path}", *wanted)
        except (OSError, ValueError) as error:
            remedy = "give the folder that holds ml-100k/, freshly unpacked from ml-100k.zip"
            for own in (Path(path), Path(path, "ratings.csv"), Path(path, "ratings.dat")):
                if own.is_file() and own.suffix:
                    remedy = f"other ratings than MovieLens 100K are read by load_ratings({str(own)!r})"
            raise RatingsUnavailable(f"{path}: {reason(error)}; {remedy}") from error
    with suppress(OSError, ValueError):  # where there is no intact copy, the next place is tried
        return _read_folder(fastai_path("data", "ml-100k"), "MovieLens 100K, unpacked by fastai", *wanted)
    for archive in GROUPLENS, RECBOLE:
        with suppress(OSError, ValueError):
            return archive.read(fastai_path("archive", archive.file).read_bytes(), *wanted)
    failures = []
    for place, archive in {"GroupLens": GROUPLENS, "RecBole 1.2.1 by pip": RECBOLE}.items():
        try:
            content = archive.fetch()
            ratings = archive.read(content, *wanted)
        except (OSError, ValueError, http.client.HTTPException) as error:
            failures.append(f"{place}: {reason(error)}")
        else:
            keep(archive.file, content)
            return ratings
    raise RatingsUnavailable(
        f"MovieLens 100K is not available. path= and {VARIABLE}: not given; fastai's folders: no intact "
        f"copy; {'; '.join(failures)}. What to do: try again later, or unpack ml-100k.zip from "
        "https://grouplens.org/datasets/movielens/100k/ and give its folder as path= or "
        f"{VARIABLE}, or use 'synthetic'"
    )


# Reading the two formats; anything but the published ratings is a ValueError


def _read_folder(folder: Path, source: str, users: bool, fold: int | None) -> pd.DataFrame:
    """The ratings in the folder that ml-100k.zip unpacks to, or in a folder that holds it."""
    if (folder / "ml-100k").is_dir():
        folder = folder / "ml-100k"
    return _read(lambda name: (folder / name).read_bytes(), GROUPLENS, source, users, fold)


def _read(
    read: Callable[[str], bytes], archive: "Archive", source: str, users: bool, fold: int | None
) -> pd.DataFrame:
    """The ratings in the files that `read` gives, named as in `archive`."""
    data, item, user = archive.members
    ratings = _merge(read(data), archive.movies(read(item)), source)
    if users:
        form = {"sep": "\t", "header": 0} if archive is RECBOLE else {"sep": "|", "header": None}
        people = pd.read_csv(BytesIO(read(user)), names=["user", "age", "sex", "occupation", "zip"], **form)
        people = people.set_index("user")[["age", "sex", "occupation"]]
        if not set(ratings["user"]) <= set(people.index):
            raise ValueError(f"not the published {user}: {len(people):,} users")
        for column in people:
            ratings[column] = ratings["user"].map(people[column])
    if fold is not None:
        if archive is RECBOLE:
            raise ValueError(f"fold={fold}: the RecBole package has no folds, ml-100k.zip has")
        test = pd.read_csv(BytesIO(read(f"u{fold}.test")), sep="\t", names=NUMBERS, dtype=np.int64)
        keys = [frame["user"] * 10_000 + frame["movie"] for frame in (ratings, test)]
        ratings["held_out"] = keys[0].isin(keys[1])
        if len(test) != ratings["held_out"].sum() or len(test) != len(ratings) // 5:
            raise ValueError(f"not the published u{fold}.test ({len(test):,} rows read)")
    return ratings


def _grouplens_movies(item: bytes) -> pd.DataFrame:
    """Columns movie, title and genres, from GroupLens' u.item."""
    names = ["movie", "title", "released", "on video", "address", *GENRES]
    movies = pd.read_csv(BytesIO(item), sep="|", encoding="latin-1", names=names, **RAW_TEXT)
    flags = movies[GENRES].to_numpy()
    if not np.isin(flags, (0, 1)).all():
        raise ValueError("not the published u.item: its last 19 columns are not 0 or 1")
    return movies.assign(genres=["|".join(compress(GENRES, row)) for row in flags])


def _recbole_movies(item: bytes) -> pd.DataFrame:
    """The same from RecBole's .item, where a title's last brackets have a column of their own."""
    names = ["movie", "title", "year", "genres"]
    movies = pd.read_csv(BytesIO(item), sep="\t", names=names, header=0, **RAW_TEXT)
    titles = (movies["title"] + " (" + movies["year"] + ")").replace("unkonwn (unkonwn)", "unknown")
    return movies.assign(title=titles, genres=movies["genres"].str.replace(" ", "|"))


def _merge(data: bytes, movies: pd.DataFrame, source: str) -> pd.DataFrame:
    """The ratings in u.data or RecBole's .inter, which has a header, with titles and genres; checked."""
    header = 0 if data.startswith(b"user_id") else None
    ratings = pd.read_csv(BytesIO(data), sep="\t", names=NUMBERS, header=header, dtype=np.int64)
    for name, texts in {"title": movies["title"].str.strip(), "genres": movies["genres"]}.items():
        ratings[name] = ratings["movie"].map(dict(zip(movies["movie"], texts, strict=True)))
    if frame_sha256(ratings) != SHA256:
        raise ValueError(f"not the published 100,000 ratings ({len(ratings):,} rows read)")
    duplicates = int(ratings.duplicated(["user", "title"]).sum())
    ratings.attrs.update(name="ml-100k", source=source, duplicates=duplicates)
    return ratings


def frame_sha256(ratings: pd.DataFrame) -> str:
    """SHA-256 of the numbers, column by column as little-endian int64, then of the titles."""
    numbers = ratings[NUMBERS].to_numpy("<i8").tobytes("F")
    return hashlib.sha256(numbers + "\n".join(map(str, ratings["title"])).encode()).hexdigest()


# Fetching and keeping the two archives


def download(url: str, most: int) -> bytes:
    """What is at `url`, `most` bytes at most, with a progress bar. Larger sets get a later deadline."""
    body, seconds = bytearray(), DEADLINE * max(1, most // MAX_BYTES)
    deadline = time.monotonic() + seconds
    with urllib.request.urlopen(url, timeout=TIMEOUT) as response:
        bar = {"total": int(response.headers.get("Content-Length") or 0) or None, "leave": False}
        bar |= {"desc": url.rpartition("/")[2], "unit": "B", "unit_scale": True, "disable": None}
        with tqdm(**bar) as progress:
            while chunk := response.read1(1 << 16):
                body += chunk
                progress.update(len(chunk))
                if len(body) > most or time.monotonic() > deadline:
                    raise ValueError(f"not finished after {seconds} seconds or {most:,} bytes")
    return bytes(body)


def _pip_download() -> bytes:
    """The content of the RecBole wheel, by the user's pip settings. Nothing is installed or run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "recbole==1.2.1", "--no-deps"]
        command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
        command += ["--retries=1", f"--timeout={TIMEOUT}", f"--dest={folder}"]
        streams = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        try:
            pip = subprocess.run(command, timeout=DEADLINE, **streams)
        except subprocess.TimeoutExpired:
            raise ValueError(f"not finished after {DEADLINE} seconds") from None
        if pip.returncode:
            *_, last_line = ["nothing", *pip.stderr.strip().splitlines()]
            raise ValueError(f"pip says {last_line}")
        return (Path(folder) / RECBOLE.file).read_bytes()


class Archive(NamedTuple):
    """A zip file, members of whose `folder` hold the ratings, the movies and the users."""

    file: str
    sha256: str
    fetch: Callable[[], bytes]
    folder: str
    members: tuple[str, str, str]
    movies: Callable[[bytes], pd.DataFrame]
    source: str

    def read(self, content: bytes, users: bool = False, fold: int | None = None) -> pd.DataFrame:
        """The ratings in `content`. Raises ValueError, before opening it, for any other file."""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{len(content):,} bytes that are not the published {self.file}")
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return _read(lambda name: archive.read(self.folder + name), self, self.source, users, fold)


GROUPLENS = Archive(
    "ml-100k.zip",
    "50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    lambda: download(URL, MAX_BYTES),
    "ml-100k/",
    ("u.data", "u.item", "u.user"),
    _grouplens_movies,
    "MovieLens 100K, GroupLens' ml-100k.zip",
)
RECBOLE = Archive(
    "recbole-1.2.1-py3-none-any.whl",
    "9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    _pip_download,
    "recbole/dataset_example/ml-100k/",
    ("ml-100k.inter", "ml-100k.item", "ml-100k.user"),
    _recbole_movies,
    "MovieLens 100K as the RecBole 1.2.1 package carries it",
)


def fastai_path(folder: str, name: str) -> Path:
    """Where fastai keeps `name` in its "data" or "archive" folder. Raises OSError for broken settings."""
    from fastcore.xtras import Config

    home = os.getenv("FASTAI_HOME", "~/.fastai")
    defaults = {"data": "data", "archive": "archive", "storage": "tmp", "model": "models"}
    try:
        return Config(home, "config.ini", create=defaults, save=False).path(folder) / name
    except (KeyError, TypeError, ValueError, configparser.Error) as error:
        raise OSError(f"fastai's config.ini can't be read: {error}") from error


def keep(name: str, content: bytes) -> None:
    """Save an archive where fastai looks for it, or warn."""
    try:
        file = fastai_path("archive", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        remedy = "set FASTAI_HOME to a folder that you can write to"
        warnings.warn(f"{name} is not kept for next time: {reason(error)}; {remedy}", stacklevel=4)
