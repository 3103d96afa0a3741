"""What a dot-product model learned, apart from Learner and device, and kept in a plain file.

`Learned.of(learn)` copies it out of a Learner, `save` and `Learned.load` keep it: numbers and text
alone, so that reading a file never runs what is in it.
"""

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import fastai
import numpy as np
import torch
from fastai.learner import Learner

from .files import FileError, write_whole
from .models import tables

__all__ = ["Learned", "LearnedFileError"]

FORMAT = "collab_repro.learned/1"
NA = "#na#"  # fastai's row 0: whatever the vocabulary doesn't hold
BIASES = "user_bias", "movie_bias"
ARRAYS = "n_ratings", "user_factors", "movie_factors", *BIASES
TEXTS = "users", "titles", "y_range", "names", "note"
INF = float("inf")


class LearnedFileError(FileError):
    """A file that `Learned.save` didn't write, or not as it stands now."""


@dataclass(frozen=True, eq=False)
class Learned:
    """The tables of a dot-product model with the vocabularies of their rows, as NumPy arrays.

    `users`, `titles`: ids or text, row 0 is '#na#'; `n_ratings` (n_titles,): each title's training
    rows. `user_factors` (n_users, k), `movie_factors` (n_titles, k), `user_bias` (n_users,) and
    `movie_bias` (n_titles,) are float32; both biases are None for `DotProduct`, which has none.
    `y_range`: what the sigmoid spans, None without one. `names`: the ratings' columns of users and
    titles. `note`: data, source, model, versions and what else the caller wants to keep, as text.

    Raises ValueError when sizes don't fit or numbers aren't finite: such a model learned nothing.
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

    def __post_init__(self):
        for rows in self.users, self.titles:
            _check(rows and rows[0] == NA, f"a vocabulary's row 0 isn't {NA!r}")
            known = all(isinstance(row, int | float | str) for row in rows)
            _check(known, "an id isn't text or number")
            _check(len(set(rows)) == len(rows), "a vocabulary names something twice")
        k = self.movie_factors.shape[-1]
        _check((self.user_bias is None) == (self.movie_bias is None), "one bias without the other")
        for name, rows in {"user": self.users, "movie": self.titles}.items():
            shapes = {f"{name}_factors": (len(rows), k), f"{name}_bias": (len(rows),)}
            for table, shape in shapes.items():
                array = getattr(self, table)
                if array is not None:
                    _check(array.dtype == np.float32, f"{table} isn't float32")
                    _check(array.shape == shape, f"{table} is {array.shape}, not {shape}")
                    _check(np.isfinite(array).all(), f"{table} isn't finite: training diverged")
        counts, y_range = self.n_ratings, self.y_range
        _check(counts.shape == (len(self.titles),), "n_ratings isn't one number a title")
        _check(counts.dtype == np.int64 and (counts >= 0).all(), "n_ratings aren't counts")
        _check(y_range is None or -INF < y_range[0] < y_range[1] < INF, f"y_range is {y_range}")
        texts = [*self.names, *self.note, *self.note.values()]
        _check(len(self.names) == 2 and all(isinstance(t, str) for t in texts), "a note isn't text")

    @classmethod
    def of(cls, learn: "Learner | Learned", **note: object) -> "Learned":
        """What `learn` holds now; a `Learned` comes back as it is.

        Takes a Learner of `CollabDataLoaders` with any of the dot-product models; copies, and
        leaves the learner's device, training mode and parameters alone. `note` goes into the note,
        as text, beside the ratings' `.attrs` name and source. A Learner that was exported
        has no training rows left: its `n_ratings` are 0.
        Raises TypeError for another model, ValueError for tables that don't fit or aren't finite.
        """
        if isinstance(learn, Learned):
            return learn
        (user, item), (users, titles) = zip(*learn.dls.classes.items(), strict=True)
        held = {
            name: table.detach().to("cpu", torch.float32, copy=True).numpy()
            for name, table in tables(learn.model).items()
        }
        rows = learn.dls.train_ds.items
        y_range = learn.model.y_range
        origin = {"data": rows.attrs.get("name", ""), "source": rows.attrs.get("source", "")}
        model = {"model": type(learn.model).__name__, "torch": torch.__version__}
        note = {**origin, **model, "fastai": fastai.__version__, **note}
        return cls(
            users=_plain(users),
            titles=_plain(titles),
            n_ratings=np.bincount(rows[item], minlength=len(titles)).astype(np.int64),
            **{name: held[name] for name in ("user_factors", "movie_factors")},
            **{name: held[name].reshape(-1) if name in held else None for name in BIASES},
            y_range=None if y_range is None else (float(y_range[0]), float(y_range[1])),
            names=(user, item),
            note={name: str(value) for name, value in note.items()},
        )

    @property
    def origin(self) -> str:
        """Where it all comes from, for a figure's foot: the ratings' source, the model, the seed."""
        seed = f"seed {self.note['seed']}" if "seed" in self.note else ""
        about = self.note.get("source") or self.note.get("data"), self.note.get("model"), seed
        return ", ".join(filter(None, about))

    def save(self, path: str | Path) -> None:
        """Write an .npz of arrays and JSON text at `path`, whole or not at all.

        One model makes one file, to the byte. Raises OSError; an older file then still stands.
        """
        held = {name: getattr(self, name) for name in ARRAYS}
        text = {"format": FORMAT, **{name: getattr(self, name) for name in TEXTS}}
        arrays = {name: array for name, array in held.items() if array is not None}
        buffer = BytesIO()
        np.savez(buffer, text=np.frombuffer(json.dumps(text).encode(), np.uint8), **arrays)
        write_whole(path, buffer.getvalue())

    @classmethod
    def load(cls, path: str | Path) -> "Learned":
        """Read what `save` wrote, running no code, and check all of it.

        Raises OSError when it can't be read, `LearnedFileError` for anything but such a file.
        """
        content = Path(path).read_bytes()
        try:
            with np.load(BytesIO(content), allow_pickle=False) as file:
                arrays = dict(file)
            text = json.loads(arrays.pop("text").tobytes())
            version = text.pop("format")
            _check(version == FORMAT, f"its format is {version!r}, not {FORMAT!r}")
            text["names"] = tuple(text["names"])
            text["y_range"] = None if text["y_range"] is None else tuple(text["y_range"])
            return cls(**{**dict.fromkeys(BIASES), **arrays, **text})
        except Exception as error:  # a foreign file may provoke any
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            what = f"{path} isn't a file that Learned.save wrote, or was changed since"
            raise LearnedFileError(f"{what} ({reason})") from error


def _plain(rows: Iterable) -> list:
    """A vocabulary without NumPy's scalars."""
    return [row.item() if isinstance(row, np.generic) else row for row in rows]


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
