"""What is said of ratings: why they can't be used, and notes, each said once."""

import warnings

SAID: set[object] = set()


class BadRatings(ValueError):
    """Ratings that a model can't be trained on: the column, the row (from 0, as in iloc) and a remedy."""

    row: int | None = None


def note(text: str, about: object = None, stacklevel: int = 3) -> None:
    """Warn of `text`, unless this process has already said it, or something `about` the same.

    Python's own memory of warnings is lost whenever a library changes the filters.
    """
    key = text if about is None else about
    if key not in SAID:
        SAID.add(key)
        warnings.warn(text, stacklevel=stacklevel)
