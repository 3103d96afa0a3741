"""What the main command found, as Markdown that reads well in a terminal too."""

import platform
from collections.abc import Iterable, Sequence
from importlib.metadata import version

import pandas as pd

from .chapter import published
from .checks import check_ratings
from .compare import SameStart, difference, summary
from .interpret import UnknownTitle, movie_bias, similar_movies, suggest
from .learned import Learned

__all__ = ["chapter_report", "report", "table", "title_to_show", "versions"]


def table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    "A Markdown table whose columns line up; cells that look like numbers stand to the right."
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(cell[:1] in "0123456789+-.± " for cell in column[1:]) for column in zip(*cells, strict=True)]
    lines = [
        "| " + " | ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
        for row in cells
    ]
    rule = (
        "|" + "|".join("-" * (w + 1) + (":" if r else "-") for w, r in zip(widths, right, strict=True)) + "|"
    )
    return "\n".join([lines[0] + " |", rule, *(line + " |" for line in lines[1:])])


def versions() -> str:
    "The versions that a number may depend on, on one line."
    names = ("fastai", "torch", "pandas", "numpy")
    return ", ".join([f"Python {platform.python_version()}", *(f"{name} {version(name)}" for name in names)])


def report(
    curves: pd.DataFrame,
    learned: dict[str, Learned],
    same: SameStart,
    source: str,
    settings: str,
    title: str,
    book: bool = True,
) -> str:
    """The main command's report: training, identity, biases, neighbours of `title`.

    `learned` holds one inspected model for each model name; `book` sets the published values beside.
    """
    seeds = curves["seed"].nunique()
    parts = [
        "# fastbook chapter 8: both DotProductBias models",
        f"Ratings: {source}.\\\nSettings: {settings}.\\\nVersions: {versions()}.",
        f"## Training and validation MSE, mean ± sd over {seeds} seed{'s' * (seeds > 1)}",
        _training(curves, book),
        "## The same derivative?",
        f"{str(same)[0].upper()}{str(same)[1:]}.",
        *_paired(curves),
        "## Movie bias, seed " + str(curves["seed"].iloc[0]),
        _biases(learned),
        f"## Nearest to {title}",
        _neighbours(learned, title),
    ]
    return "\n\n".join(parts) + "\n"


def _training(curves: pd.DataFrame, book: bool) -> str:
    printed = published(4, 5).set_index(["model", "epoch"])
    header = ["model", "epoch", "train", "valid"]
    header = [*header[:3], "book", header[3], "book"] if book else header
    rows = []
    for (model, epoch), losses in summary(curves).iterrows():
        row = [model, epoch]
        for loss in ("train_loss", "valid_loss"):
            sd = losses[loss, "std"]
            row.append(f"{losses[loss, 'mean']:.4f}" + ("" if pd.isna(sd) else f" ± {sd:.4f}"))
            if book:
                known = (model, epoch) in printed.index
                row.append(f"{printed.loc[(model, epoch), loss]:.4f}" if known else "")
        rows.append(row)
    return table(header, rows)


def _paired(curves: pd.DataFrame) -> list[str]:
    last = difference(curves).iloc[-1]
    if last["n"] < 2:
        return []
    first, second = dict.fromkeys(curves["model"])
    return [
        f"Each from its own initial weights, {second} minus {first} ends at a validation MSE of "
        f"{last['mean']:+.4f} (95 % interval {last['low']:+.4f} to {last['high']:+.4f}, "
        f"{last['n']:.0f} paired seeds)."
    ]


def _biases(learned: dict[str, Learned], n: int = 5) -> str:
    columns = {}
    for name, what in learned.items():
        bias = movie_bias(what)
        columns[f"{name}, lowest {n}"] = bias.head(n)
        columns[f"{name}, highest {n}"] = bias.iloc[::-1].head(n)
    cells = [[f"{title} {value:+.2f}" for title, value in column.items()] for column in columns.values()]
    half = len(columns) // 2 * 2
    blocks = [
        table(list(columns)[at : at + 2], zip(*cells[at : at + 2], strict=True)) for at in range(0, half, 2)
    ]
    return "\n\n".join(blocks)


def _neighbours(learned: dict[str, Learned], title: str, n: int = 5) -> str:
    blocks = []
    for name, what in learned.items():
        near = similar_movies(what, title, n)
        rows = [(other, f"{row['cosine']:.2f}", int(row["n_ratings"])) for other, row in near.iterrows()]
        blocks.append(
            table([name, "cosine", "ratings"], rows) if rows else f"{name}: no title is rated enough"
        )
    return "\n\n".join(blocks)


def title_to_show(ratings: pd.DataFrame, wanted: str | None, usual: str) -> object:
    """The item that reads `wanted`, or without one the `usual` title where it is rated, else the most rated.

    Raises `UnknownTitle`, suggesting others, for an item that the ratings don't have, and `BadRatings`.
    """
    checked = check_ratings(ratings)
    known = checked[checked.columns[1]].value_counts().index
    named = {str(item): item for item in known}
    if wanted is not None and wanted not in named:
        raise UnknownTitle(f"no title {wanted!r}{suggest(wanted, known)}")
    return named[wanted] if wanted is not None else named.get(usual, known[0])


def chapter_report(against: pd.DataFrame, names: dict[int, str], splits: int, source: str) -> str:
    "The `chapter` command's report: a table a run, as `against_the_book` made them."
    parts = [f"Ratings: {source}. Mean ± sd over {splits} splits; z = (book - mean) / sd.\n{versions()}."]
    for run, rows in against.groupby(level="run"):
        lines = []
        for (_, epoch), row in rows.iterrows():
            cells = [epoch]
            for loss in ("train_loss", "valid_loss"):
                ours = row[loss]
                cells += [
                    f"{ours['book']:.3f}",
                    f"{ours['mean']:.3f} ± {ours['sd']:.3f}",
                    f"{ours['z']:+.1f}",
                ]
            lines.append([*cells, row["verdict", ""]])
        header = ["epoch", "train: book", "ours", "z", "valid: book", "ours", "z", "verdict"]
        parts.append(f"## Run {run}: {names[run]}\n\n{table(header, lines)}")
    return "\n\n".join(parts) + "\n"
