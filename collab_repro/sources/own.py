"""The user's own ratings, from a .csv or .tsv file."""

import re
from pathlib import Path

import pandas as pd

from .movielens import RatingsUnavailable, reason


def load_own(path: str | Path) -> pd.DataFrame:
    """The table in a .csv or .tsv file (UTF-8 with a header row), with its columns as they are.

    Only an empty field is a missing value: a film may be called NA. `.attrs` holds the file's `name` and a
    sentence on its `source`. Raises `RatingsUnavailable`.
    """
    file = Path(path).expanduser()
    form = {"sep": "\t" if file.suffix.lower() == ".tsv" else ",", "encoding": "utf-8-sig"}
    try:
        ratings = pd.read_csv(file, **form, low_memory=False, keep_default_na=False, na_values=[""])
    except UnicodeDecodeError as error:
        problem = f"byte {error.start:,} is not UTF-8; save the file as UTF-8"
        raise RatingsUnavailable(f"{file}: {problem}") from error
    except (OSError, ValueError) as error:
        raise RatingsUnavailable(f"{file}: {reason(error)}; correct the file or its path") from error
    if not isinstance(ratings.index, pd.RangeIndex):
        raise RatingsUnavailable(f"{file}: rows have more fields than the header; correct the file")
    if any(re.fullmatch(r"[-+\d.]+", column) for column in ratings.columns):
        line = ", ".join(ratings.columns)
        raise RatingsUnavailable(f"{file}: no header row; put one above the first line ({line})")
    ratings.attrs.update(name=file.name, source=f"{file.name}, {len(ratings):,} ratings")
    return ratings
