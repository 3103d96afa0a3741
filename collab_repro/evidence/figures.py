"""Figures of the evidence. Each function draws one, on `ax` or on a new figure of its own, and returns Axes.

`source` says in small print where the data comes from; where it is left out, the data itself says it.
Nothing is shown or closed, and neither global settings nor inputs are changed.
"""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from .. import looks
from ..chapter import published
from .diagnosis import LOADERS, pasted, spread

HATCHED = {"facecolor": "none", "hatch": "////", "edgecolor": "0.65"}


@looks.style
def plot_neighbours(near: pd.DataFrame, title: str = "", ax: Axes | None = None, source: str = "") -> Axes:
    """The titles nearest to `title`, the nearest on top. `near` is what `similar_movies` returns."""
    by = near.columns[0]
    measure = {"cosine": "cosine similarity", "euclidean": "Euclidean distance"}.get(by, by)
    ax = plt.subplots(figsize=(7, 1.2 + 0.25 * len(near)))[1] if ax is None else ax
    at = np.arange(len(near))
    ax.hlines(at, 0, near[by], color="0.6", linewidth=1)
    ax.plot(near[by], at, color=looks.INK, marker="o", markersize=5, linestyle="")
    small = {"color": looks.GREY, "fontsize": 7, "va": "center"} | looks.OFFSET
    for y, (value, count) in enumerate(zip(near[by], near["n_ratings"], strict=True)):
        ax.annotate(f"{count:,} ratings", (value, y), (7, 0), **small)
    ax.set_yticks(at, looks.short_titles(near.index, 48), parse_math=False)
    ax.set_ylim(len(near) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.2)
    ax.set_xlim(left=min(0, near[by].min()))
    ax.set_xlabel(f"{measure} to {looks.short_title(title, 48)}" if title else measure, parse_math=False)
    looks.foot(ax, source or near.attrs.get("source", ""))
    return ax


@looks.style
def plot_bias_vs_mean(
    bias: pd.Series, mean: pd.Series, counts: pd.Series, n: int = 12, ax: Axes | None = None, source: str = ""
) -> Axes:
    """Each title's bias against its mean rating (stars), with the straight line fitted to them.

    All are by title; titles that one lacks, or without a rating, are left out. A point's area is its number
    of ratings (`counts`), and its distance from the line weighs the square root of that. The `n` titles
    farthest from the line are labelled, half of them above it.
    """
    both = pd.concat({"bias": bias, "mean": mean, "n": counts}, axis=1, join="inner")
    both = both.astype(float).dropna().query("n > 0")
    slope, at_zero = np.polyfit(both["mean"], both["bias"], 1, w=np.sqrt(both["n"]))
    off = (both["bias"] - at_zero - slope * both["mean"]) * np.sqrt(both["n"])
    off = off.sort_values(kind="stable").index
    far = both.loc[off if len(off) <= n else [*off[: n // 2], *off[len(off) - (n + 1) // 2 :]]]
    ax = plt.subplots(figsize=(8, 6))[1] if ax is None else ax
    size = 3 + 60 * both["n"] / both["n"].max()
    ax.scatter(both["mean"], both["bias"], s=size, color="0.6", edgecolor="white", linewidth=0.3)
    ends = both["mean"].agg(["min", "max"])
    ax.plot(ends, at_zero + slope * ends, color=looks.GREY, linewidth=0.8)
    ax.plot(far["mean"], far["bias"], color=looks.INK, marker="o", markersize=4, linestyle="")
    ax.set(xlabel="mean rating (stars)", ylabel="movie bias (added to the score under the sigmoid)")
    looks.foot(ax, source or bias.attrs.get("source", ""))
    looks.label_points(ax, far["mean"], far["bias"], looks.short_titles(far.index, 34))
    return ax


@looks.style
def plot_chapter(
    chapter: pd.DataFrame, published: pd.DataFrame, ax: Sequence[Axes] | None = None, source: str = ""
) -> np.ndarray:
    """A panel for each run of the chapter: MSE by epoch, the book's points, both ends in words.

    `chapter` is what `reproduce` returns, `published` what `chapter.published` returns.
    """
    runs = list(published.groupby("run", sort=False))
    if ax is None:
        rows, columns = -(-len(runs) // 4), min(4, len(runs))
        ax = plt.subplots(rows, columns, figsize=(11, 0.7 + 2.6 * rows), sharex=True, squeeze=False)[1]
    axes = np.ravel(ax)
    for panel, (run, book) in zip(axes, runs, strict=False):
        ours, model = chapter[chapter["run"] == run], book["model"].iloc[0]
        colour, _, marker, _ = looks.look_of(model)
        for loss, line in (("train_loss", (0, (1, 0.7))), ("valid_loss", "-")):
            wide = ours.pivot(index="epoch", columns="split", values=loss)
            panel.plot(wide, color=colour, linewidth=0.8, alpha=0.7)
            panel.plot(wide.mean(axis=1), color=colour, linestyle=line, linewidth=2)
            panel.plot(book["epoch"], book[loss], color="black", marker=marker, markersize=5, **looks.HOLLOW)
        final, printed = ours.loc[ours["epoch"] == ours["epoch"].max(), "valid_loss"], book["valid_loss"]
        ends = f"{final.mean():.3f} ± {final.std():.3f}"
        ends += f", book {printed.iloc[-1]:.3f}" if printed.notna().any() else ""
        panel.text(0.03, 0.04, f"validation ends at\n{ends}", transform=panel.transAxes, fontsize=8)
        panel.set_title(textwrap.fill(f"{run}. {book['name'].iloc[0]}", 30))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes[len(runs) :]:
        panel.set_visible(False)
    plt.setp(np.atleast_2d(ax)[:, 0], ylabel="MSE")
    plt.setp(np.atleast_2d(ax)[-1], xlabel="epoch")
    key = "solid: validation, dotted: training (smoothed), hollow: the book"
    text = f"{key}; {source or looks.about(chapter, 'split')}"
    looks.root(axes[0]).supxlabel(text, x=0.99, ha="right", parse_math=False, fontsize=8, color=looks.GREY)
    return ax


@looks.style
def plot_over_band(
    losses: object, run: int = 4, ax: Axes | Sequence[Axes] | None = None, source: str = ""
) -> Axes | np.ndarray:
    """Your own losses over the chapter's run `run`: MSE by epoch, the book's points hollow.

    `losses` is a fitted Learner, or a table as `diagnose` reads it. The bands are two standard deviations
    between splits about the mean: plain with every training row once an epoch, hatched with rows drawn with
    replacement, as by fastai's default loader. `ax` is two Axes, or one for validation alone.
    """
    losses, (means, covariance) = pasted(losses), spread()
    ax = plt.subplots(1, 2, figsize=(9, 4))[1] if ax is None else ax
    sd, book = np.sqrt(np.diag(covariance)).reshape(2, 5), published(run)
    colour, _, marker, signs = looks.look_of(book["model"].iloc[0])
    axes = np.ravel(ax)
    for panel, (which, loss) in zip(axes, list(enumerate(looks.LOSSES))[-len(axes) :], strict=True):
        labels = [(losses[-1, which], f"✖ yours {losses[-1, which]:.3f}", "black")]
        for way, look in enumerate(({"color": colour, "alpha": 0.3}, HATCHED)):
            mean = means.loc[(run, way)].to_numpy().reshape(2, 5)[which]
            low, high = mean - 2 * sd[which], mean + 2 * sd[which]
            panel.fill_between(range(5), low, high, linewidth=0, **look)
            labels.append((mean[-1], f"{LOADERS[way]} {mean[-1]:.3f}", looks.GREY if way else colour))
        look = {"color": colour, "marker": marker, "markersize": 7, "zorder": 4} | looks.HOLLOW
        panel.plot(book["epoch"], book[loss], **look)
        labels.append((book[loss].iloc[-1], f"{signs[1]} book {book[loss].iloc[-1]:.3f}", colour))
        panel.plot(losses[:, which], color="black", marker="X", markersize=5, linewidth=1.8, zorder=5)
        looks.epochs_axis(panel, looks.LOSSES[loss])
    looks.end_labels(axes[-1], labels)
    looks.foot(axes[-1], source or f"run {run}: {book['name'].iloc[0]}; bands: 20 splits, mean ± 2 sd")
    return ax


@looks.style
def plot_cost(
    bench: pd.DataFrame,
    x: str,
    y: str,
    by: str,
    ax: Axes | None = None,
    xlabel: str = "",
    ylabel: str = "",
    source: str = "",
) -> Axes:
    """Column `y` against column `x` on log scales, a line for each value of column `by`.

    Where several rows share `x` and `by`, the line goes through their median. `xlabel` and `ylabel` say what
    the columns hold, with units.
    """
    ax = plt.subplots(figsize=(7, 4.5))[1] if ax is None else ax
    labels = []
    others = [*looks.LOOKS.values(), looks.look_of("")] * len(bench)
    look = dict(zip(bench[by].unique(), others, strict=False)) | looks.LOOKS
    for name, rows in bench.groupby(by, sort=False):
        colour, line, marker, signs = look[name]
        median = rows.groupby(x)[y].median()
        ax.plot(rows[x], rows[y], color=colour, marker=".", markersize=3, linestyle="", alpha=0.5)
        ax.plot(median, color=colour, linestyle=line, marker=marker, markersize=5, linewidth=1.8)
        labels.append((median.iloc[-1], f"{signs[0]} {name}", colour))
    ax.set(xscale="log", yscale="log", xlabel=xlabel or x, ylabel=ylabel or y, axisbelow=True)
    ax.grid(color="0.9")
    looks.end_labels(ax, labels)
    looks.foot(ax, source or (looks.about(bench) if "data" in bench else ""))
    return ax
