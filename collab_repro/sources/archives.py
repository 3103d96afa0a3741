"""Published archives: fetched from GroupLens or by pip, kept where fastai keeps its own, checked by hash."""

import configparser
import hashlib
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, NamedTuple

from tqdm import tqdm

from .files import write_whole
from .notes import reason

SITE = "https://files.grouplens.org/datasets/movielens"  # as in fastai's URLs.ML_100k
TIMEOUT, DEADLINE, RATE = 10, 120, 1e5  # seconds without a byte, and for a download; bytes a second beside it
MOST = 400_000_000  # bytes: the largest archive is smaller


class Archive(NamedTuple):
    """A zip file in whose `folder` a set's tables lie: the file of each, and how pandas reads it."""

    file: str
    hash: str  # SHA-256, or MD5 where that alone is published
    folder: str
    tables: dict[str, tuple[str, dict]]
    source: str  # a sentence for reports
    fetch: Callable[[], bytes]
    counts: tuple[int, ...] = ()  # of ratings, users and rated movies, where no hash of them is known
    place: str = "GroupLens"
    changing: bool = False  # published anew now and then

    def opener(self, content: bytes) -> Callable[[str], BinaryIO]:
        """What opens a file in `folder`. Raises ValueError, before the zip is opened, for any other zip.

        Where the archive is a `changing` one, that is a warning.
        """
        digest = hashlib.md5 if len(self.hash) == 32 else hashlib.sha256
        if digest(content).hexdigest() != self.hash:
            problem = f"{len(content):,} bytes that are not the published {self.file}"
            if not self.changing:
                raise ValueError(problem)
            warnings.warn(f"{problem} of 2018: GroupLens has changed it, or it is damaged", stacklevel=5)
        archive = zipfile.ZipFile(BytesIO(content))
        return lambda name: archive.open(self.folder + name)


def download(file: str) -> bytes:
    """GroupLens' `file`, with a progress bar. Raises OSError, ValueError and HTTPException."""
    body, started = bytearray(), time.monotonic()
    with urllib.request.urlopen(f"{SITE}/{file}", timeout=TIMEOUT) as response:
        total = int(response.headers.get("Content-Length") or 0)
        seconds = DEADLINE + total / RATE
        bar = {"desc": file, "total": total or None, "unit": "B", "unit_scale": True, "leave": False}
        with tqdm(**bar, disable=None) as progress:
            while chunk := response.read1(1 << 16):
                body += chunk
                progress.update(len(chunk))
                if len(body) > MOST or time.monotonic() > started + seconds:
                    raise ValueError(f"not finished after {seconds:.1f} seconds or {MOST:,} bytes")
    return bytes(body)


def pip_download(requirement: str, file: str) -> bytes:
    """The wheel `file` of `requirement`, by the user's pip settings. Nothing is installed or run."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", requirement, "--no-deps"]
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
        return (Path(folder) / file).read_bytes()


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
