"""What a dot-product model learned, apart from Learner and device, and kept in a plain file.

`Learned.of(learn)` copies it out of a Learner; `save` and `Learned.load` keep it as numbers and text
alone, so that reading a file never runs what is in it, and needs neither PyTorch nor fastai.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TypeAlias

import numpy as np

from ..interpret import Movies, movies
from ..sources.files import FileError, read_whole, write_whole

FORMAT = "collab_repro.learned/1"
NA = "#na#"  # fastai's row 0, for whatever the vocabulary doesn't hold
BIASES = "user_bias", "movie_bias"
ARRAYS = "n_ratings", "user_factors", "movie_factors", *BIASES
TEXTS = "users", "titles", "y_range", "names", "note"
INF = float("inf")
Learn: TypeAlias = "Learner | Learned"  # noqa: F821, fastai's Learner, not imported for its name alone
Learns: TypeAlias = "Learn | Iterable[Learn]"


class LearnedFileError(FileError):
    """A file that `Learned.save` didn't write, or that was changed since."""


@dataclass(frozen=True, eq=False)
class Learned:
    """The tables of a dot-product model with the vocabularies of their rows, as NumPy arrays.

    `users`, `titles`: ids or text, row 0 is '#na#'; users without a training row are left out. `n_ratings`
    (n_titles,): each title's training rows. The factors, (n_users, k) and (n_titles, k), and the biases,
    (n_users,) and (n_titles,), are float32; `DotProduct` has no biases. `y_range`: the sigmoid's, None
    without one. `names`: the ratings' columns of users and titles. `note`: data, source, model, versions
    and what else the caller wants to keep, as text.
    """

    users: list
    titles: list
    n_ratings: np.ndarray
    user_factors: np.ndarray
    user_bias: np.ndarray | None
    movie_factors: np.ndarray
    movie_bias: np.ndarray | None
    y_range: tuple[float, float] | None = (0.0, 5.5)
    names: tuple[str, str] = ("user", "title")
    note: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, learn: Learn, **note: object) -> "Learned":
        """A copy of what `learn` holds now; a `Learned` comes back as it is.

        `learn` is a Learner of `CollabDataLoaders` with any of the dot-product models. `note` goes into the
        note, as text, beside the ratings' `.attrs` name and source. An exported Learner has no training rows
        left: its `n_ratings` are 0. Raises TypeError for another model, ValueError for tables that aren't
        finite.
        """
        if isinstance(learn, Learned):
            return learn
        import fastai
        import torch

        from ..models import tables

        known, held = movies(learn), tables(learn.model)
        user, users = next(iter(learn.dls.classes.items()))
        items, y_range = learn.dls.train_ds.items, learn.model.y_range
        kept = np.isin(np.arange(len(users)), [0, *items[user].unique()]) | (not len(items))
        shapes = {"user_factors": (len(users), -1), "user_bias": -1}
        copied = dict.fromkeys(shapes) | {
            name: held[name].detach().cpu().float().numpy().reshape(shape)[kept]
            for name, shape in shapes.items()
            if name in held
        }
        copied |= {"movie_factors": known.factors, "movie_bias": known.bias}
        for name, table in copied.items():
            if table is not None and not np.isfinite(table).all():
                raise ValueError(f"{name} isn't finite: training diverged")
        origin = {"data": items.attrs.get("name", ""), "source": items.attrs.get("source", "")}
        made_by = {"model": type(learn.model).__name__, "torch": torch.__version__}
        note = {**origin, **made_by, "fastai": fastai.__version__, **note}
        return cls(
            users=[plain(one) for one in np.array(users, object)[kept]],
            titles=known.titles,
            n_ratings=known.n_ratings,
            **copied,
            y_range=None if y_range is None else (float(y_range[0]), float(y_range[1])),
            names=(plain(user), plain(known.column)),
            note={name: str(value) for name, value in note.items()},
        )

    @property
    def movies(self) -> Movies:
        """The movies' half, which the functions of `interpret` read."""
        seed = f"seed {self.note['seed']}" if "seed" in self.note else ""
        about = self.note.get("source") or self.note.get("data"), self.note.get("model"), seed
        source = ", ".join(filter(None, about))
        tables = self.n_ratings, self.movie_factors, self.movie_bias
        return Movies(self.titles, *tables, column=self.names[1], source=source)

    def save(self, path: str | Path) -> None:
        """Write an .npz of arrays and JSON text at `path`, whole or not at all.

        One model makes one file, to the byte. Raises OSError; an older file then still stands.
        """
        arrays = {name: getattr(self, name) for name in ARRAYS if getattr(self, name) is not None}
        text = {"format": FORMAT, **{name: getattr(self, name) for name in TEXTS}}
        buffer = BytesIO()
        np.savez(buffer, text=np.frombuffer(json.dumps(text).encode(), np.uint8), **arrays)
        write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Learned":
        """Read what `save` wrote, running no code, and check all of it.

        Raises OSError when it can't be read, `LearnedFileError` for anything but such a file.
        """
        content = read_whole(path)
        try:
            with np.load(BytesIO(content), allow_pickle=False) as file:
                packed = any(member.compress_type for member in file.zip.infolist())
                _check(not packed, "it is compressed, which save never does")
                arrays = dict(file)
            text = json.loads(arrays.pop("text").tobytes())
            version = text.pop("format")
            _check(version == FORMAT, f"its format is {version!r}, not {FORMAT!r}")
            text["names"] = tuple(text["names"])
            text["y_range"] = None if text["y_range"] is None else tuple(text["y_range"])
            learned = cls(**{**dict.fromkeys(BIASES), **arrays, **text})
            _check_tables(learned)
        except Exception as error:  # a foreign file may provoke any
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            message = f"{path} isn't a file that Learned.save wrote, or was changed since"
            raise LearnedFileError(f"{message} ({reason})") from error
        return learned


def plain(one: object) -> object:
    """A NumPy number as Python's own."""
    return one.item() if isinstance(one, np.generic) else one


def _check_tables(learned: Learned) -> None:
    """Raise ValueError unless names, sizes and numbers read from a file are those of a model."""
    users, titles, k = learned.users, learned.titles, learned.movie_factors.shape[-1]
    for rows in users, titles:
        _check(rows and rows[0] == NA, f"a vocabulary's row 0 isn't {NA!r}")
        _check(all(isinstance(row, int | float | str) for row in rows), "an id isn't text or number")
        _check(len(set(rows)) == len(rows), "a vocabulary names something twice")
    _check((learned.user_bias is None) == (learned.movie_bias is None), "one bias without the other")
    shapes = {"n_ratings": (len(titles),), "user_factors": (len(users), k), "movie_factors": (len(titles), k)}
    if learned.movie_bias is not None:
        shapes |= {"user_bias": (len(users),), "movie_bias": (len(titles),)}
    for name, shape in shapes.items():
        array = getattr(learned, name)
        _check(array.shape == shape, f"{name} is {array.shape}, not {shape}")
        _check(array.dtype == (np.int64 if name == "n_ratings" else np.float32), f"{name} is {array.dtype}")
        _check(np.isfinite(array).all(), f"{name} isn't finite: training diverged")
    _check((learned.n_ratings >= 0).all(), "n_ratings aren't counts")
    if learned.y_range is not None:
        low, high = learned.y_range
        _check(-INF < low < high < INF, f"y_range is {learned.y_range}")
    texts = [*learned.note, *learned.note.values()]
    _check(all(isinstance(text, str) for text in texts), "a note isn't text")
    named = len(learned.names) == 2 and all(isinstance(name, str | int | float) for name in learned.names)
    _check(named, "a column's name isn't text or number")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
