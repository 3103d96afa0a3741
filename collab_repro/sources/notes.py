"""What is said of ratings: why there are none, why they can't be used, and notes, each said once."""

import warnings
from pathlib import Path
from urllib.error import URLError

import pandas as pd

SAID: set[object] = set()


class RatingsUnavailable(RuntimeError):
    """There are no ratings. One line says what was tried, what went wrong and what to do."""


class BadRatings(ValueError):
    """Ratings that a model can't be trained on: the column, the row (from 0, as in iloc) and a remedy."""

    row: int | None = None


def kept(ratings: pd.DataFrame, **more: object) -> dict[str, object]:
    """What this package keeps in `ratings.attrs["collab_repro"]`, after adding `more`."""
    own = {**ratings.attrs.get("collab_repro", {}), **more}
    ratings.attrs |= {"collab_repro": own} if more else {}
    return own


def reason(error: Exception) -> str:
    """What went wrong, on one line."""
    cause = error.reason if type(error) is URLError else error
    if isinstance(cause, FileNotFoundError):
        return f"no file {Path(cause.filename or '').name}"
    text = getattr(cause, "strerror", None) or str(cause) or type(cause).__name__
    return " ".join(text.split())


def note(text: str, about: object = None, stacklevel: int = 3) -> None:
    """Warn of `text`, unless this process has already said it, or something `about` the same.

    Python's own memory of warnings is lost whenever a library changes the filters.
    """
    key = text if about is None else about
    if key not in SAID:
        SAID.add(key)
        warnings.warn(text, stacklevel=stacklevel)
