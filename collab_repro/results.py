"""The folder of results: what a run found, kept whole, and every figure drawn from it again."""

from pathlib import Path

import pandas as pd

from . import plots
from .chapter import published
from .files import read_losses, write_table, write_whole
from .interpret import factor_pca, movie_bias
from .learned import Learned
from .reproduce import COLUMNS

__all__ = ["ResultsError", "draw", "save"]

CURVES = ["data", "model", "seed", "epoch", "train_loss", "valid_loss", "seconds"]
BOOK_DATA = "ml-100k"  # the only ratings that the book's numbers are set beside


class ResultsError(ValueError):
    "A results folder without what is needed, or with something else in it."


def save(out: Path, curves: pd.DataFrame, learned: dict[str, Learned], report: str) -> list[Path]:
    """Write curves.csv, learned-MODEL.npz, report.md and the figures into `out`, each whole or not at all.

    Raises OSError.
    """
    out.mkdir(parents=True, exist_ok=True)
    files = [out / "curves.csv", out / "report.md"]
    write_table(files[0], curves)
    for name, what in learned.items():
        files.append(out / f"learned-{name}.npz")
        what.save(files[-1])
    write_whole(files[1], report.encode())
    return files + draw(out)


def draw(out: Path) -> list[Path]:
    """Draw every figure that the files in `out` allow, without training anything.

    From curves.csv: curves.png, difference.png; from each learned-MODEL.npz: bias-MODEL.png and
    factors-MODEL.png; from chapter.csv: chapter.png. Raises `ResultsError` when there is nothing to
    draw or a file is not what it should be, OSError.
    """
    figures = {}
    if (out / "curves.csv").exists():
        curves = read_losses(out / "curves.csv", CURVES)
        book = published(4, 5) if set(curves["data"]) == {BOOK_DATA} else None
        figures["curves"] = plots.plot_curves(curves, book)
        if curves["model"].nunique() == 2:
            figures["difference"] = plots.plot_difference(curves)
    for file in sorted(out.glob("learned-*.npz")):
        learned = Learned.load(file)
        name = file.stem.removeprefix("learned-")
        figures[f"bias-{name}"] = plots.plot_bias(movie_bias(learned), source=learned.note["source"])
        figures[f"factors-{name}"] = plots.plot_factors(factor_pca(learned), source=learned.note["source"])
    if (out / "chapter.csv").exists():
        losses = read_losses(out / "chapter.csv", COLUMNS)
        figures["chapter"] = plots.plot_chapter(losses, published(*dict.fromkeys(losses["run"])))
    if not figures:
        raise ResultsError(f"{out} holds no curves.csv, learned-*.npz or chapter.csv to draw")
    files = [out / f"{name}.png" for name in figures]
    for file, axes in zip(files, figures.values(), strict=True):
        plots.save_figure(axes, file)
    return files
