"""Files that are written whole or not at all, and tables of losses that are read back to the last bit."""

import os
import platform
import re
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryFile

import numpy as np
import pandas as pd

HOST = platform.node().replace(".", "-")  # this machine
KEYS = ("data", "model", "run", "seed", "split", "size", "epoch")  # what tells two rows of losses apart
DATA = "ml-100k"  # the only `data` that the book's numbers are set beside, see `data_name`
TEXTS = ("data", "model", "size")  # the columns that hold no numbers
OURS = r"(curves|difference|chapter|effects|spread|report|(bench|learned|bias|factors)-.+)\.(csv|md|npz|png)"
STALE = 3600  # seconds after which an unfinished file counts as abandoned, whoever wrote it


class FileError(ValueError):
    """The content of a file is not what this package writes there."""


def write_whole(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` whole or not at all: if that fails, the old file stays as it was.

    Calls `sweep` on the folder first. Raises OSError, which names `path`.
    """
    path = Path(path)
    sweep(path.parent)
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.{HOST}.{os.getpid()}.collab_repro.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def check_folder(folder: Path) -> None:
    """Raise `FileError` unless this package can write a megabyte in `folder`, and under each of its names."""
    try:
        (folder / ".lock").touch()  # where that fails the lock would wait for nobody
        with TemporaryFile(dir=folder) as probe:
            probe.write(bytes(1 << 20))
    except OSError as error:
        told = f"nothing can be written in {folder} ({error.strerror}); give another --out"
        raise FileError(told) from error
    for file in folder.iterdir():
        if re.fullmatch(OURS, file.name) and file.exists() and not file.is_file():
            raise FileError(f"{file} is not a regular file; remove it or give another folder")


def sweep(folder: Path) -> None:
    """Delete the unfinished files that killed processes of this package left in `folder`.

    A file goes once it is an hour old, or once the process that wrote it on this machine has ended.
    """
    for file in folder.glob(".*.collab_repro.part"):
        with suppress(OSError, ValueError, OverflowError):  # gone, in use, or with another kind of name
            *_, host, pid, _, _ = file.name.split(".")
            if time.time() - file.stat().st_mtime > STALE:
                file.unlink()
            elif host == HOST and os.name == "posix":  # on Windows os.kill would end the process
                try:
                    os.kill(int(pid), 0)  # sends nothing, but fails if there is no such process
                except ProcessLookupError:
                    file.unlink()


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    """Write `table` as CSV, whole or not at all, with floats in full. Raises OSError."""
    write_whole(path, table.to_csv(index=False).encode())


def read_whole(path: str | Path, limit: int = 1 << 30) -> bytes:
    """The content of the regular file at `path`. Raises OSError, and `FileError` for a folder, a pipe or
    a file of more than `limit` bytes.
    """
    path = Path(path)
    if path.stat().st_size > limit or not path.is_file():
        problem = f"is not a regular file of at most {limit:,} bytes"
        raise FileError(f"{path} {problem}; remove it or give another folder")
    return path.read_bytes()


def read_losses(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """Read a table that `write_table` wrote with these `columns`; its losses are exact to the last bit.

    Raises `FileError` for any other content, with the first bad row, and OSError if it can't be read.
    """
    losses = [name for name in columns if name.endswith("_loss")]
    counts = [name for name in ("run", "seed", "split", "epoch") if name in columns]
    content = read_whole(path, limit=1 << 26)
    try:  # losses as text first: pandas' own floats may be one bit off
        table = pd.read_csv(BytesIO(content), dtype=dict.fromkeys(losses, str))
        if list(table.columns) != list(columns) or table.empty or not content.endswith(b"\n"):
            raise ValueError(f"it is cut off, or its columns are not {list(columns)}")
        table = table.astype({name: float for name in columns if name not in TEXTS})
    except ValueError as error:
        told = " ".join(str(error).split())
        raise FileError(f"{path} is not a table of losses: {told}; delete it") from error
    numbers = table[[*losses, *counts]]
    wrong = ~np.isfinite(numbers).all(axis=1) | (numbers[counts] % 1 != 0).any(axis=1)
    wrong |= (numbers[counts].abs() > 2**53).any(axis=1)
    wrong |= table.duplicated([name for name in columns if name in KEYS])
    if wrong.any():
        row = int(wrong.to_numpy().argmax())
        raise FileError(f"{path}, row {row}: a number is missing, or the row comes twice; delete the file")
    return table.astype(dict.fromkeys(counts, int))
