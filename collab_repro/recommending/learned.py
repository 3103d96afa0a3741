"""What a dot-product model learned, apart from Learner and device, and kept in a plain file.

`Learned.of(learn)` copies it out of a Learner; `save` and `Learned.load` keep it as numbers and text
alone, so that reading a file never runs what is in it, and needs neither PyTorch nor fastai.
"""

import json
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

import numpy as np

from ..interpret import Movies, movies
from ..sources.files import FileError, read_whole, write_whole

FORMAT = "collab_repro.learned/1"
NA = "#na#"  # fastai's row 0, for whatever the vocabulary doesn't hold
BIASES = "user_bias", "movie_bias"
ARRAYS = "n_ratings", "user_factors", "movie_factors", *BIASES
TEXTS = "users", "titles", "y_range", "names", "note"
INF = float("inf")


class LearnedFileError(FileError):
    """A file that `Learned.save` didn't write, or that was changed since."""


@dataclass(frozen=True, eq=False)
class Learned:
    """The tables of a dot-product model with the vocabularies of their rows, as NumPy arrays.

    `users`, `titles`: ids or text, row 0 is '#na#'; users without a training row are left out.
    `n_ratings` (n_titles,): each title's training rows. `user_factors` (n_users, k), `movie_factors`
    (n_titles, k), `user_bias` (n_users,) and `movie_bias` (n_titles,) are float32; both biases are None
    for `DotProduct`, which has none. `y_range`: the range of the sigmoid, None without one. `names`: the
    ratings' columns of users and titles. `note`: data, source, model, versions and what else the caller
    wants to keep, as text.
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
    def of(cls, learn: "Learner | Learned", **note: object) -> "Learned":  # noqa: F821
        """What `learn` holds now; a `Learned` comes back as it is.

        Takes a Learner of `CollabDataLoaders` with any of the dot-product models; copies, and
        leaves the Learner's device, training mode and parameters alone. `note` goes into the note,
        as text, beside the ratings' `.attrs` name and source. A Learner that was exported
        has no training rows left: its `n_ratings` are 0.
        Raises TypeError for another model, ValueError for tables that aren't finite.
        """
        if isinstance(learn, Learned):
            return learn
        import fastai
        import torch

        from ..models import tables

        known, held = movies(learn), tables(learn.model)
        user, users = next(iter(learn.dls.classes.items()))
        copied = {
            name: held[name].detach().cpu().float().clone().numpy().reshape(shape)
            for name, shape in {"user_factors": (len(users), -1), "user_bias": -1}.items()
            if name in held
        }
        rows = learn.dls.train_ds.items[user]
        kept = np.isin(np.arange(len(users)), [0, *rows.unique()]) | (not len(rows))
        users, copied = np.array(users, object)[kept], {name: table[kept] for name, table in copied.items()}
        for name, table in {**copied, "movie_factors": known.factors, "movie_bias": known.bias}.items():
            if table is not None and not np.isfinite(table).all():
                raise ValueError(f"{name} isn't finite: training diverged")
        y_range, attrs = learn.model.y_range, learn.dls.train_ds.items.attrs
        origin = {"data": attrs.get("name", ""), "source": attrs.get("source", "")}
        made_by = {"model": type(learn.model).__name__, "torch": torch.__version__}
        note = {**origin, **made_by, "fastai": fastai.__version__, **note}
        return cls(
            users=[getattr(one, "item", lambda one=one: one)() for one in users],
            titles=known.titles,
            n_ratings=known.n_ratings,
            user_factors=copied["user_factors"],
            user_bias=copied.get("user_bias"),
            movie_factors=known.factors,
            movie_bias=known.bias,
            y_range=None if y_range is None else (float(y_range[0]), float(y_range[1])),
            names=tuple(getattr(name, "item", lambda name=name: name)() for name in (user, known.column)),
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


def _check_tables(learned: Learned) -> None:
    """Raise ValueError unless names, sizes and numbers read from a file are those of a model."""
    for rows in learned.users, learned.titles:
        _check(rows and rows[0] == NA, f"a vocabulary's row 0 isn't {NA!r}")
        _check(all(isinstance(row, int | float | str) for row in rows), "an id isn't text or number")
        _check(len(set(rows)) == len(rows), "a vocabulary names something twice")
    k = learned.movie_factors.shape[-1]
    _check((learned.user_bias is None) == (learned.movie_bias is None), "one bias without the other")
    for name, rows in {"user": learned.users, "movie": learned.titles}.items():
        for table, shape in {f"{name}_factors": (len(rows), k), f"{name}_bias": (len(rows),)}.items():
            array = getattr(learned, table)
            if array is not None:
                _check(array.dtype == np.float32, f"{table} isn't float32")
                _check(array.shape == shape, f"{table} is {array.shape}, not {shape}")
                _check(np.isfinite(array).all(), f"{table} isn't finite: training diverged")
    counts, y_range = learned.n_ratings, learned.y_range
    _check(counts.shape == (len(learned.titles),), "n_ratings isn't one number a title")
    _check(counts.dtype == np.int64 and (counts >= 0).all(), "n_ratings aren't counts")
    _check(
        y_range is None or (len(y_range) == 2 and -INF < y_range[0] < y_range[1] < INF),
        f"y_range is {y_range}",
    )
    texts = [*learned.note, *learned.note.values()]
    _check(all(isinstance(text, str) for text in texts), "a note isn't text")
    named = len(learned.names) == 2 and all(isinstance(name, str | int | float) for name in learned.names)
    _check(named, "a column's name isn't text or number")


def _check(holds: bool, otherwise: str) -> None:
    if not holds:
        raise ValueError(otherwise)
