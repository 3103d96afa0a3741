"""What the commands print: Markdown that reads well in a terminal too."""

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version

import pandas as pd

from ..chapter import published
from ..curves import difference, summary
from ..interpret import UnknownTitle, movie_bias, similar_movies, suggest
from ..looks import one_line
from ..recommending.learned import Learned
from ..sources.files import DATA

LOSSES = "train_loss", "valid_loss"


def table(header: Sequence[str], rows: Iterable[Sequence[object]], numbers: bool = True) -> str:
    """A Markdown table whose columns line up; with `numbers`, all but the first are right-aligned."""
    align = ["left", *["right" if numbers else "left"] * (len(header) - 1)]
    header, *rows = [[one_line(cell, 120).replace("|", r"\|") for cell in row] for row in (header, *rows)]
    frame = pd.DataFrame(rows, columns=header)
    return frame.to_markdown(index=False, disable_numparse=True, colalign=align)


def versions() -> str:
    """The versions that a number may depend on, on one line."""
    names = ("fastai", "torch", "pandas", "numpy")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def report(
    curves: pd.DataFrame, learned: dict[str, Learned], same: str, about: str, title: object, constant: float
) -> str:
    """The main command's report: training, beside the book's losses if on its ratings, biases, neighbours.

    `learned` holds a model for each name, `same` is what `same_start` showed, `about` the ratings and
    settings, `title` whose neighbours to show, `constant` the MSE of always predicting the mean.
    """
    seeds = curves["seed"].nunique()
    best = curves[curves["epoch"] == curves["epoch"].max()].groupby("model")["valid_loss"].mean().min()
    warning = "" if best < constant else " No model is better: what follows means nothing."
    parts = [
        "# fastbook chapter 8: both DotProductBias models",
        f"{about}\\\nVersions: {versions()}.",
        f"## Training and validation MSE, mean ± sd over {seeds} seed{'s' * (seeds > 1)}",
        _training(curves, book=set(curves["data"]) == {DATA}),
        f"Always predicting the mean training rating gives a validation MSE of {constant:.4f}." + warning,
        "## The same derivative?",
        f"{same[0].upper()}{same[1:]}.",
        *_paired(curves),
        "## Movie bias, seed " + str(curves["seed"].iloc[0]),
        *(_biases(name, tables) for name, tables in learned.items()),
        f"## Nearest to {one_line(title)}",
        *(_neighbours(name, tables, title) for name, tables in learned.items()),
    ]
    return "\n\n".join(parts) + "\n"


def _training(curves: pd.DataFrame, book: bool) -> str:
    printed = published(4, 5).set_index(["model", "epoch"])
    rows = []
    for key, losses in summary(curves).iterrows():
        row = [*key]
        for loss in LOSSES:
            mean, sd = losses[loss]
            row.append(f"{mean:.4f}" if pd.isna(sd) else f"{mean:.4f} ± {sd:.4f}")
            row += [f"{printed.loc[key, loss]:.4f}" if key in printed.index else ""] * book
        rows.append(row)
    return table(["model", "epoch", "train", *["book"] * book, "valid", *["book"] * book], rows)


def _paired(curves: pd.DataFrame) -> list[str]:
    last = difference(curves).iloc[-1]
    if last["n"] < 2:
        return []
    first, second = dict.fromkeys(curves["model"])
    between = f"95 % interval {last['low']:+.4f} to {last['high']:+.4f}, {last['n']:.0f} paired seeds"
    told = f"Each from its own initial weights, {second} minus {first} ends at a validation MSE of"
    return [f"{told} {last['mean']:+.4f} ({between})."]


def _biases(name: str, learned: Learned, n: int = 5) -> str:
    bias = movie_bias(learned)
    ends = bias.head(n), bias.iloc[::-1].head(n)
    cells = [[f"{one_line(title)} {value:+.2f}" for title, value in end.items()] for end in ends]
    return table([f"{name}, lowest {n}", f"{name}, highest {n}"], zip(*cells, strict=True), numbers=False)


def _neighbours(name: str, learned: Learned, title: str) -> str:
    try:
        near = similar_movies(learned, title)
    except UnknownTitle as error:  # all of its ratings are validation rows
        return f"{name}: {one_line(error, 200)}"
    rows = [(other, f"{row['cosine']:.2f}", int(row["n_ratings"])) for other, row in near.iterrows()]
    return table([name, "cosine", "ratings"], rows) if rows else f"{name}: no title is rated enough"


def title_to_show(ratings: pd.DataFrame, wanted: str | None, usual: str) -> object:
    """The item called `wanted`; by default the `usual` title, or the most rated item where it is missing.

    `ratings` are checked. Raises `UnknownTitle`, suggesting others, for an item that they don't have.
    """
    known = ratings.iloc[:, 1].value_counts().index
    named = {str(item): item for item in known}
    if wanted is not None and wanted not in named:
        raise UnknownTitle(f"no title {wanted!r}{suggest(wanted, known)}")
    return named[wanted] if wanted is not None else named.get(usual, known[0])


def chapter_report(
    against: pd.DataFrame, names: dict[int, str], splits: int, source: str, book: bool = True
) -> str:
    """The `chapter` command's report: a table for each run, from `against_the_book`.

    Without `book`, for ratings that are not the book's, our own losses alone.
    """
    z = "; z = (book - mean) / sd" if book else ""
    parts = [f"Ratings: {source}. Mean ± sd over {splits} splits{z}.\n{versions()}."]
    header = ["epoch", "train: book", "ours", "z", "valid: book", "ours", "z", "verdict"]
    header = header if book else ["epoch", "train", "valid"]
    for run, epochs in against.groupby(level="run"):
        rows = []
        for (_, epoch), row in epochs.iterrows():
            cells = [epoch]
            for ours in (row[loss] for loss in LOSSES):
                cell = f"{ours['mean']:.3f} ± {ours['sd']:.3f}"
                cells += [f"{ours['book']:.3f}", cell, f"{ours['z']:+.1f}"] if book else [cell]
            rows.append([*cells, row["verdict", ""]] if book else cells)
        parts.append(f"## Run {run}: {names[run]}\n\n{table(header, rows)}")
    return "\n\n".join(parts) + "\n"
