"""Ratings as chapter 8's merged DataFrame: user, movie, rating, timestamp, title.

MovieLens 100K is looked for where the user says, then among what earlier runs kept, then at
GroupLens and on the package index. An archive is known by its hash before it is opened, its two
files are read in memory (nothing is unpacked), and every route must end in the one frame of
`SHA256`: which of them answered never changes a number.
"""

from __future__ import annotations

import configparser
import csv
import hashlib
import http.client
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.error
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
from fastai.data.external import URLs, fastai_cfg

from .files import write_whole
from .synthetic import planted_ratings

VARIABLE = "COLLAB_REPRO_DATA"
SEPARATORS = {".csv": ",", ".tsv": "\t"}
NUMBERS = ["user", "movie", "rating", "timestamp"]
GENRES = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
]  # fmt: skip
AS_IT_STANDS = {"dtype": {"title": str}, "quoting": csv.QUOTE_NONE, "keep_default_na": False}
SHA256 = "9721e38d7794f29811ceabab2f13b77ac1b3ef0ca93f6ea33cbd1c46fc98d5d4"  # see frame_sha256
TIMEOUT, PATIENCE = 10, 120  # seconds: of a server's silence, of a whole download
MAX_BYTES = 20_000_000  # both archives are smaller than 5 MB


class RatingsUnavailable(RuntimeError):
    """No ratings: one line that says what was tried, what went wrong and what to do."""


def load_ratings(name: str = "ml-100k", path: str | Path | None = None, genres: bool = False) -> pd.DataFrame:
    """The ratings called `name`, as the frame chapter 8 builds ("A First Look at the Data").

    "ml-100k": 100,000 rows in GroupLens' order, indexed from 0: int64 `user` (943 of them), `movie`
    (1,682), `rating` (1 to 5 stars) and `timestamp` (seconds since 1970), and text `title` (1,664),
    without blanks at its ends. They come from `path`, or else the folder that the environment
    variable COLLAB_REPRO_DATA names, which holds `ml-100k/` as GroupLens ships it or is that
    folder; with neither, from what fastai or an earlier run kept, from GroupLens, or from the
    RecBole 1.2.1 wheel, fetched with pip. Archives are kept where fastai keeps its own: its
    `untar_data(URLs.ML_100k)` then needs no network.

    "synthetic": `planted_ratings()`, the same columns. A file ending in .csv or .tsv: one's own
    ratings, UTF-8 with a header row, as they are; `check_ratings` tells whether they will do.

    `genres=True` keeps a sixth column of ml-100k: the film's `genres` in GroupLens' words and order,
    with bars between, as newer MovieLens sets write them and `.str.get_dummies()` takes apart:
    "Animation|Children's|Comedy". An own file has such a column or is refused.

    `.attrs` holds `name`, `source` (a sentence) and, for ml-100k, `duplicates` (how many rows
    repeat a user and title). Raises `RatingsUnavailable`; never falls back on other ratings.
    """
    if path and name != "ml-100k":
        raise RatingsUnavailable(f"path= goes with 'ml-100k' only: leave it out for {name!r}")
    if name == "ml-100k":
        ratings, source = _movielens(path)
    elif name == "synthetic":
        ratings, source = planted_ratings()[0], "synthetic ratings, planted_ratings(seed=0)"
    elif Path(name).suffix.lower() in SEPARATORS:
        ratings, name = _own(Path(name).expanduser()), Path(name).name
        source = f"{name}, {len(ratings):,} ratings"
    else:
        known = "'ml-100k', 'synthetic', or a .csv or .tsv file"
        raise RatingsUnavailable(f"no ratings called {name!r}: there are {known}")
    if genres and "genres" not in ratings:
        raise RatingsUnavailable(f"{name!r} has no column 'genres'; leave genres=True out")
    if name == "ml-100k" and not genres:
        ratings = ratings.drop(columns="genres")
    ratings.attrs.update(name=name, source=source)
    return ratings


def frame_sha256(ratings: pd.DataFrame) -> str:
    """SHA-256 of the numbers, column by column as little-endian int64, then of the titles."""
    digest = hashlib.sha256()
    for column in NUMBERS:
        digest.update(ratings[column].to_numpy("<i8").tobytes())
    digest.update("\n".join(map(str, ratings["title"])).encode())
    return digest.hexdigest()


# Two forms the ratings come in: each pair of files to the one frame, or ValueError


def _grouplens(data: bytes, item: bytes) -> pd.DataFrame:
    """From GroupLens' u.data and u.item."""
    ratings = pd.read_csv(BytesIO(data), sep="\t", names=NUMBERS, dtype=np.int64)
    form = {"sep": "|", "encoding": "latin-1"}
    form["names"] = ["movie", "title", "released", "on video", "address", *GENRES]
    items = pd.read_csv(BytesIO(item), **form, **AS_IT_STANDS)
    flags = items[GENRES].to_numpy()
    if not np.isin(flags, (0, 1)).all():
        raise ValueError("not the published u.item: its last 19 columns are not 0 or 1")
    items["genres"] = ["|".join(compress(GENRES, marked)) for marked in flags]
    return _merge(ratings, items)


def _recbole(inter: bytes, item: bytes) -> pd.DataFrame:
    """From RecBole's .inter and .item, which part a title from what its last brackets hold."""
    ratings = pd.read_csv(BytesIO(inter), sep="\t", names=NUMBERS, header=0, dtype=np.int64)
    form = {"sep": "\t", "header": 0, "names": ["movie", "title", "year", "genres"]}
    items = pd.read_csv(BytesIO(item), **form, **AS_IT_STANDS)
    titles = items["title"] + " (" + items["year"] + ")"
    items["title"] = titles.replace("unkonwn (unkonwn)", "unknown")
    items["genres"] = items["genres"].str.replace(" ", "|")
    return _merge(ratings, items)


def _merge(ratings: pd.DataFrame, items: pd.DataFrame) -> pd.DataFrame:
    """The movies' titles and genres joined to the ratings, which keep their order; checked."""
    for name, texts in {"title": items["title"].str.strip(), "genres": items["genres"]}.items():
        ratings[name] = ratings["movie"].map(dict(zip(items["movie"], texts, strict=True)))
    if frame_sha256(ratings) != SHA256:
        raise ValueError(f"not the published 100,000 ratings ({len(ratings):,} rows read)")
    ratings.attrs["duplicates"] = int(ratings.duplicated(["user", "title"]).sum())
    return ratings


# Two archives that carry them


class Archive(NamedTuple):
    """A file that carries the ratings: how it is known, fetched and read."""

    file: str
    sha256: str
    members: list[str]
    fetch: Callable[[], bytes]
    parse: Callable[[bytes, bytes], pd.DataFrame]
    source: str

    def read(self, content: bytes) -> pd.DataFrame:
        """The ratings in `content`; ValueError, before it is opened, if it isn't the real file."""
        if hashlib.sha256(content).hexdigest() != self.sha256:
            raise ValueError(f"{len(content):,} bytes that are not the published {self.file}")
        with zipfile.ZipFile(BytesIO(content)) as archive:
            return self.parse(*map(archive.read, self.members))


def _download() -> bytes:
    """What fastai's address for ml-100k.zip sends."""
    body, deadline = bytearray(), time.monotonic() + PATIENCE
    with urllib.request.urlopen(URLs.ML_100k, timeout=TIMEOUT) as response:
        expected = int(response.headers.get("Content-Length") or 0)
        while chunk := response.read1(1 << 16):
            body += chunk
            if len(body) > MAX_BYTES:
                raise ValueError(f"more than {MAX_BYTES:,} bytes: not ml-100k.zip")
            if time.monotonic() > deadline:
                raise ValueError(f"not done after {PATIENCE} seconds")
    if len(body) < expected:
        raise ValueError(f"broke off after {len(body):,} of {expected:,} bytes")
    return bytes(body)


def _pip_download() -> bytes:
    """The wheel, through the user's own pip settings; nothing of it is installed or run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "recbole==1.2.1", "--no-deps"]
        command += ["--only-binary=:all:", "--no-input", "--disable-pip-version-check", "--quiet"]
        command += ["--retries=1", f"--timeout={TIMEOUT}", f"--dest={folder}"]
        io = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True}
        pip = subprocess.run(command, timeout=PATIENCE, **io)
        if pip.returncode:
            lines = pip.stderr.splitlines() or ["nothing"]
            broken = re.findall(r"connection broken by '(.+)'", pip.stderr)[-1:]
            causes = "".join(f" ({re.sub('<.*?>[:,] ', '', cause)})" for cause in broken)
            raise ValueError("pip says " + lines[-1].strip() + causes)
        return (Path(folder) / RECBOLE.file).read_bytes()


GROUPLENS = Archive(
    file="ml-100k.zip",
    sha256="50d2a982c66986937beb9ffb3aa76efe955bf3d5c6b761f4e3a7cd717c6a3229",
    members=["ml-100k/u.data", "ml-100k/u.item"],
    fetch=_download,
    parse=_grouplens,
    source="MovieLens 100K, GroupLens' ml-100k.zip",
)
RECBOLE = Archive(
    file="recbole-1.2.1-py3-none-any.whl",
    sha256="9c9948202011f37eb0a7c6768129313f00d6403ad221ec940d5e2d5d5f33a407",
    members=[f"recbole/dataset_example/ml-100k/ml-100k.{end}" for end in ("inter", "item")],
    fetch=_pip_download,
    parse=_recbole,
    source="MovieLens 100K as the RecBole 1.2.1 package carries it",
)


# The routes


def _movielens(path: str | Path | None) -> tuple[pd.DataFrame, str]:
    """The ratings and a sentence on their source, by the first route that answers."""
    if path := path or os.environ.get(VARIABLE):
        try:
            return _folder(Path(path).expanduser()), f"MovieLens 100K from the folder {path}"
        except (OSError, ValueError) as error:
            remedy = "give the folder that holds ml-100k/, freshly unpacked from ml-100k.zip"
            raise RatingsUnavailable(f"{path}: {_reason(error)}; {remedy}") from error
    with suppress(OSError, ValueError):  # a kept copy that is absent or damaged is no obstacle
        return _folder(_place("data", "ml-100k")), "MovieLens 100K, unpacked by fastai"
    for archive in GROUPLENS, RECBOLE:
        with suppress(OSError, ValueError):
            return archive.read(_place("archive", archive.file).read_bytes()), archive.source
    tried = [f"path= and {VARIABLE}: not given", "fastai's folders: no good copy"]
    for route, archive in {"GroupLens": GROUPLENS, "RecBole 1.2.1 by pip": RECBOLE}.items():
        try:
            content = archive.fetch()
            ratings = archive.read(content)
        except (OSError, ValueError, http.client.HTTPException, subprocess.TimeoutExpired) as error:
            tried.append(f"{route}: {_reason(error)}")
        else:
            _keep(archive.file, content)
            return ratings, archive.source
    raise RatingsUnavailable(
        f"MovieLens 100K can't be had. {'; '.join(tried)}. What to do: try again later, or unpack "
        "ml-100k.zip from https://grouplens.org/datasets/movielens/100k/ and give its folder as "
        f"path= or {VARIABLE}, or use 'synthetic'"
    )


def _folder(folder: Path) -> pd.DataFrame:
    """From GroupLens' unpacked folder, or the folder that holds it."""
    home = folder / "ml-100k" if (folder / "ml-100k").is_dir() else folder
    return _grouplens((home / "u.data").read_bytes(), (home / "u.item").read_bytes())


def _own(file: Path) -> pd.DataFrame:
    """One's own file. An empty field alone is a missing one: a film may be called NA."""
    form = {"sep": SEPARATORS[file.suffix.lower()], "encoding": "utf-8-sig", "low_memory": False}
    try:
        ratings = pd.read_csv(file, **form, keep_default_na=False, na_values=[""])
    except UnicodeDecodeError as error:
        raise RatingsUnavailable(f"{file}: byte {error.start:,} isn't UTF-8; save it so") from error
    except (OSError, ValueError) as error:
        raise RatingsUnavailable(f"{file}: {_reason(error)}; mend the file") from error
    if not isinstance(ratings.index, pd.RangeIndex):
        raise RatingsUnavailable(f"{file}: rows hold more fields than the header; mend the file")
    if any(re.fullmatch(r"[-+\d.]+", column) for column in ratings.columns):
        names = ", ".join(ratings.columns)
        raise RatingsUnavailable(f"{file}: no header row; put one above the line {names}")
    return ratings


def _place(key: str, name: str) -> Path:
    """Where fastai keeps the archive or data called `name`; OSError if its settings are broken."""
    try:
        return fastai_cfg().path(key) / name
    except (KeyError, TypeError, configparser.Error) as error:
        raise OSError(f"fastai's config.ini can't be read: {error}") from error


def _keep(name: str, content: bytes) -> None:
    """Keep an archive for next time, whole or not at all."""
    try:
        file = _place("archive", name)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        remedy = "let FASTAI_HOME name a folder that can be written"
        warnings.warn(f"{name} isn't kept for next time: {_reason(error)}; {remedy}", stacklevel=4)


def _reason(error: Exception) -> str:
    """What went wrong, in plain words on one line."""
    cause = error.reason if type(error) is urllib.error.URLError else error
    if isinstance(cause, ssl.SSLCertVerificationError):
        return f"the server's certificate is not valid ({cause.verify_message})"
    if isinstance(cause, TimeoutError):
        return f"no answer for {TIMEOUT} seconds"
    if isinstance(cause, subprocess.TimeoutExpired):
        return f"not done after {PATIENCE} seconds"
    if isinstance(cause, FileNotFoundError):
        return f"no file {Path(cause.filename or '').name}"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(text.split())
