"""The folder of results: what a run measured, kept whole, and every figure drawn from it again."""

import argparse
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from io import BytesIO
from itertools import chain
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from tqdm import tqdm

from .. import plots
from ..chapter import RUNS, published
from ..evidence import figures
from ..interpret import factor_pca, movie_bias
from ..looks import one_line, root
from ..processes import in_processes, usable_cores
from ..recommending.learned import Learned
from ..sources.files import DATA, FileError, read_losses, write_table, write_whole

CURVES = ["data", "model", "seed", "epoch", "train_loss", "valid_loss", "seconds"]
CHAPTER = ["data", "run", "model", "split", "epoch", "train_loss", "valid_loss"]
SCALE = ["size", "ratings", "users", "titles", "bs", "epochs"]
SCALE += ["seconds", "ratings_per_s", "memory", "valid_loss"]
KEPT = "curves.csv", "learned-*.npz", "chapter.csv", "bench-scale.csv"  # what is drawn from
BOXES = "some letters are drawn as boxes; a font like Noto Sans CJK, once installed, has them"


def save(out: Path, curves: pd.DataFrame, learned: dict[str, Learned], report: str) -> list[Path]:
    """Write curves.csv, learned-MODEL.npz, report.md and figures, each whole or not at all (OSError)."""
    files = [out / "curves.csv", out / "report.md"]
    write_table(files[0], curves)
    for name, tables in learned.items():
        files.append(out / f"learned-{name}.npz")
        tables.save(files[-1])
    write_whole(files[1], report.encode())
    return files + draw(out, files)


def draw(out: Path, written: Sequence[Path] | None = None) -> list[Path]:
    """Draw every figure that the files in `out` allow, without training anything.

    From curves.csv: curves.png, difference.png; from each learned-MODEL.npz: bias-MODEL.png and
    factors-MODEL.png; from chapter.csv: chapter.png; from bench-scale.csv: bench-scale.png. Raises OSError,
    and `FileError` when there is nothing to draw or a file is not what it should be. After a run that has
    `written` some of the files, another bad one is only named on stderr.
    """
    drawings = {}
    for file in (file for pattern in KEPT for file in sorted(out.glob(pattern))):
        try:
            drawings |= _drawings(file)
        except (FileError, OSError) as error:
            if written is None or file in written:
                raise
            print(f"not drawn: {error}", file=sys.stderr)
    if not drawings and written is None:
        raise FileError(f"{out} holds no {', '.join(KEPT[:-1])} or {KEPT[-1]} with anything to draw")
    names = sorted(drawings, key=lambda name: not name.startswith("factors"))  # what takes longest first
    jobs = [partial(_draw_one, drawings[name], out / f"{name}.png") for name in names]
    left_out, notes = zip(*in_processes(jobs, usable_cores()), strict=True) if jobs else ((), ())
    for line in filter(None, left_out):
        print(line, file=sys.stderr)
    for note in dict.fromkeys(chain(*notes)):
        warnings.warn(note, stacklevel=2)
    return [out / f"{name}.png" for name, reason in zip(names, left_out, strict=True) if not reason]


def _drawings(file: Path) -> dict[str, Callable[[], Axes]]:
    """What draws each figure that can be drawn from `file`, by the figure's name."""
    if file.name == "curves.csv":
        curves = read_losses(file, CURVES)
        book = published(4, 5) if set(curves["data"]) == {DATA} else None
        drawings = {"curves": partial(plots.plot_curves, curves, book)}
        if curves["model"].nunique() == 2:
            drawings["difference"] = partial(plots.plot_difference, curves)
        return drawings
    if file.suffix == ".npz":
        learned, name = Learned.load(file), file.stem.removeprefix("learned-")
        source = learned.note.get("source", "")
        return {
            f"factors-{name}": lambda: plots.plot_factors(factor_pca(learned), source=source),
            f"bias-{name}": lambda: plots.plot_bias(movie_bias(learned), source=source),
        }
    if file.name == "chapter.csv":
        losses = read_losses(file, CHAPTER)
        if unknown := set(losses["run"]) - set(RUNS):
            raise FileError(f"{file}: the chapter has no run {min(unknown)}; delete the file")
        losses = losses[losses["data"] == losses["data"].iloc[-1]]  # those trained last
        book = published(*dict.fromkeys(losses["run"]))
        if set(losses["data"]) != {DATA}:  # nothing to compare with
            book[["train_loss", "valid_loss"]] = np.nan
        return {"chapter": partial(figures.plot_chapter, losses, book)}
    cost = read_losses(file, SCALE)
    cost = cost[~cost["size"].astype(str).str.contains("columns")]
    cost["per_rating"] = 1e6 / cost["ratings_per_s"]
    shown = {"seconds": "seconds an epoch", "memory": "GB of memory", "per_rating": "µs a rating"}
    cost = cost.rename(columns=shown).melt("ratings", shown.values(), "measure", "cost")
    labels = {"xlabel": "planted ratings", "ylabel": "as each line says"}
    labels["source"] = "planted ratings, DotProductBias, batches by big_batch"
    plot = partial(figures.plot_cost, cost, "ratings", "cost", "measure", **labels)
    return {"bench-scale": plot} if len(cost) else {}


def _draw_one(plot: Callable[[], Axes], file: Path, report: object = None) -> tuple[str, list[str]]:
    """Save what `plot` draws as `file`. Returns why it is left out, or "", and what was warned of."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            axes = plot()
        except ValueError as error:  # too few titles or factors, or a model without biases
            return f"{file.name} is left out: {one_line(error, 300)}", []
        save_figure(axes, file)
        plt.close(np.ravel(axes)[0].figure)
    return "", [re.sub("^Glyph.*", BOXES, str(one.message)) for one in said]


def save_figure(ax: Axes | Sequence[Axes], path: str | Path, dpi: int = 150) -> None:
    """Write the whole figure of `ax` as a PNG, whole or not at all; nothing that sticks out is cut.

    The same figure makes the same file, to the byte: neither date nor program stands in it.
    """
    content = BytesIO()
    figure = root(np.ravel(ax)[0])
    figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    write_whole(path, content.getvalue())


def plots_command(args: argparse.Namespace, ratings: None, bar: tqdm) -> None:
    """Draw all figures again from what `args.out` holds."""
    bar.close()
    files = draw(args.out)
    print(f"Drew {', '.join(f.name for f in files)} in {args.out}")
