"""Files written whole or not at all, and tables read back to the last bit."""

import glob
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from io import StringIO
from pathlib import Path

import pandas as pd

__all__ = ["FileError", "read_losses", "write_table", "write_whole"]

STALE = 3600  # seconds after which an unfinished file's writer is surely dead


class FileError(ValueError):
    "A file that is not what this package wrote there."


def write_whole(path: str | Path, content: bytes) -> None:
    """Write `content` at `path` whole or not at all: on failure what stood there still stands.

    Clears away what killed writers of the same file left an hour ago or more. Raises OSError.
    """
    path = Path(path)
    for stale in path.parent.glob(f".{glob.escape(path.name)}.*.part"):
        with suppress(FileNotFoundError):  # another process may be faster
            if time.time() - stale.stat().st_mtime > STALE:
                stale.unlink()
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_table(path: str | Path, table: pd.DataFrame) -> None:
    "`table` as CSV, whole or not at all; floats in full. Raises OSError."
    text = StringIO()
    table.to_csv(text, index=False)
    write_whole(path, text.getvalue().encode())


def read_losses(path: str | Path, columns: Sequence[str]) -> pd.DataFrame:
    """A table that `write_table` wrote, with just `columns`, its losses to the last bit.

    Raises `FileError` for any other content, OSError when it can't be read.
    """
    losses = {name: str for name in columns if name.endswith("_loss")}
    try:
        table = pd.read_csv(path, dtype=losses)  # its own reading of floats may be one bit off
        table = table.astype(dict.fromkeys(losses, float)) if list(table.columns) == list(columns) else table
    except (ValueError, UnicodeDecodeError) as error:
        raise FileError(f"{path} is no table of losses: {' '.join(str(error).split())}") from error
    if list(table.columns) != list(columns):
        raise FileError(f"{path} has columns {list(table.columns)}, not {list(columns)}")
    return table
