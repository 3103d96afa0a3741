"""Figures: data in, Axes out. Each function draws one, on `ax` or on a new figure of its own.

A model keeps its colour, line and marker in all of them, so that they read in grey too. What the
data is stands small under each figure: `source`, or else what the data itself says. Nothing is
shown or closed, no global setting stays changed, and no input is. `save_figure` writes the PNG.
"""

import re
import textwrap
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator
from sklearn.isotonic import isotonic_regression

from .compare import difference
from .files import write_whole

__all__ = [
    "LOOKS",
    "plot_bias",
    "plot_bias_vs_mean",
    "plot_chapter",
    "plot_cost",
    "plot_curves",
    "plot_difference",
    "plot_factors",
    "plot_initial",
    "plot_neighbours",
    "save_figure",
    "short_title",
]

# Colour (Okabe and Ito's, safe for the colour-blind), line, marker, and that marker in text.
LOOKS = {
    "DotProductBias": ("#0072B2", "-", "o", "●○"),
    "DotProductBiasParams": ("#D55E00", (0, (4, 1.5)), "s", "■□"),
    "EmbeddingDotBias": ("#009E73", "-.", "^", "▲△"),
    "DotProduct": ("#CC79A7", ":", "v", "▼▽"),
    "CollabNN": ("#B8860B", (0, (6, 1, 1, 1)), "D", "◆◇"),
    "EmbeddingNN": ("#56B4E9", (0, (1, 1)), "p", "★☆"),
}
INK, GREY = "0.2", "0.45"  # what belongs to no model
STYLE = {
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.titlesize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "figure.constrained_layout.use": True,
}
style = mpl.rc_context(STYLE)
OFFSET = {"textcoords": "offset points", "parse_math": False}  # a title may hold dollars
HOLLOW = {"linestyle": "", "markerfacecolor": "none", "markeredgewidth": 1.2}
LOSSES = {"train_loss": "training MSE (smoothed)", "valid_loss": "validation MSE"}


def save_figure(ax: Axes | Sequence[Axes], path: str | Path, dpi: int = 150) -> None:
    """Write the whole figure of `ax` as a PNG, whole or not at all; nothing that sticks out is cut.

    One figure makes one file, to the byte: it says neither when nor with what it was made.
    """
    content = BytesIO()
    figure = _root(np.ravel(ax)[0])
    figure.savefig(content, format="png", dpi=dpi, bbox_inches="tight", metadata={"Software": None})
    write_whole(path, content.getvalue())


@style
def plot_curves(
    curves: pd.DataFrame,
    published: pd.DataFrame | None = None,
    ax: Axes | Sequence[Axes] | None = None,
    source: str = "",
) -> Axes | np.ndarray:
    """Training and validation MSE by epoch: seeds thin, their mean thick, the book's points hollow.

    `curves` as `compare` returns them, `published` as `chapter.published` does. `ax` is two Axes, or
    one for validation alone; so is what comes back.
    """
    ax = plt.subplots(1, 2, figsize=(9, 4))[1] if ax is None else ax
    axes = np.ravel(ax)
    for panel, loss in zip(axes, list(LOSSES)[-len(axes) :], strict=True):
        labels, looks = [], _looks(curves["model"])
        for model, runs in curves.groupby("model", sort=False):
            colour, line, marker, signs = looks[model]
            wide = runs.pivot_table(index="epoch", columns="seed", values=loss)
            mean = wide.mean(axis=1)
            panel.plot(wide, color=colour, linewidth=0.6, alpha=0.4)
            panel.plot(mean, color=colour, linestyle=line, marker=marker, markersize=4, linewidth=2)
            labels.append((mean.iloc[-1], f"{signs[0]} {model} {mean.iloc[-1]:.3f}", colour))
            if published is not None and (published["model"] == model).any():
                book = published[published["model"] == model].sort_values("epoch")
                panel.plot(
                    book["epoch"], book[loss], color=colour, marker=marker, zorder=4, markersize=7, **HOLLOW
                )
                last = book[loss].iloc[-1]
                labels.append((last, f"{signs[1]} book {last:.3f}", colour))
        _epochs(panel, LOSSES[loss])
    _end_labels(axes[-1], labels)
    _foot(axes[-1], source or _about(curves, "seed"))
    return ax


@style
def plot_difference(
    curves: pd.DataFrame, loss: str = "valid_loss", ax: Axes | None = None, source: str = ""
) -> Axes:
    """The second model's MSE minus the first's on the same seed, by epoch: seeds thin, mean thick,
    and the 95% t interval of the mean shaded. Raises ValueError as `compare.difference` does.
    """
    mean = difference(curves, loss)
    first, second = curves["model"].unique()
    wide = curves.pivot(index="epoch", columns=["model", "seed"], values=loss)
    ax = plt.subplots(figsize=(6, 4))[1] if ax is None else ax
    ax.axhline(0, color=GREY, linewidth=0.8)
    ax.plot(wide[second] - wide[first], color=GREY, linewidth=0.6, alpha=0.7)
    ax.fill_between(mean.index, mean["low"], mean["high"], color="0.85", linewidth=0)
    ax.plot(mean["mean"], color="black", marker="o", markersize=4, linewidth=2)
    _epochs(ax, f"difference in {LOSSES[loss]}\n{second} − {first}")
    last = mean.iloc[-1]
    labels = [(last["mean"], f"mean {last['mean']:+.4f}", "black")]
    if last["n"] > 1:
        interval = f"its 95% interval\n{last['low']:+.4f} to {last['high']:+.4f}"
        labels.append((last["high"], interval, GREY))
    labels = [(y, text.replace("-", "−"), colour) for y, text, colour in labels]
    _end_labels(ax, labels, lines=2)
    _foot(ax, source or _about(curves, "seed"))
    return ax


@style
def plot_bias(bias: pd.Series | pd.DataFrame, n: int = 10, ax: Axes | None = None, source: str = "") -> Axes:
    """The `n` lowest and the `n` highest movie biases, the highest on top.

    `bias` is `movie_bias`'s Series or `bias_table`'s frame, whose interval and range of ranks over
    the seeds are drawn too.
    """
    table = bias.rename("mean").to_frame() if isinstance(bias, pd.Series) else bias
    table = table.sort_values("mean", kind="stable")
    table = table if len(table) <= 2 * n else pd.concat([table.head(n), table.tail(n)])
    cut = min(n, len(table) // 2)
    at = np.arange(len(table)) + 1.0 * (np.arange(len(table)) >= cut)  # a gap between both ends
    ax = plt.subplots(figsize=(7, 1 + 0.21 * len(table)))[1] if ax is None else ax
    if "low" in table:
        ax.hlines(at, table["low"], table["high"], color=INK, linewidth=1.2)
    ax.plot(table["mean"], at, color=INK, marker="o", markersize=5, linestyle="")
    if "best_rank" in table:
        ranks = table[["best_rank", "worst_rank"]].astype(int)
        look = {"color": GREY, "fontsize": 7, "transform": ax.get_yaxis_transform()}
        for y, (best, worst) in zip(at, ranks.to_numpy(), strict=True):
            rank = f"{best:,}" if best == worst else f"{best:,} to {worst:,}"
            ax.text(1.02, y, rank, va="center_baseline", **look)
        ax.text(1.02, at[-1] + 1, "rank over seeds", va="center_baseline", **look)
    ax.axvline(0, color=GREY, linewidth=0.8, zorder=0)
    ax.set_yticks(at, [short_title(title, 48) for title in table.index], parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.set_xlabel("movie bias (added to the score under the sigmoid)")
    _foot(ax, source or bias.attrs.get("source", ""))
    return ax


@style
def plot_factors(
    pca: pd.DataFrame, x: int = 0, y: int = 2, n: int = 50, ax: Axes | None = None, source: str = ""
) -> Axes:
    """A map of the first `n` titles of `factor_pca` by components `x` and `y`, all of them labelled.

    Labels move aside rather than overlap; one that finds no free place at all is left out.
    """
    shown = pca.head(n)
    ax = plt.subplots(figsize=(10, 8))[1] if ax is None else ax
    ax.plot(shown[x], shown[y], color=INK, marker="o", markersize=3.5, linestyle="")
    ax.margins(0.1)
    shares = dict(enumerate(pca.attrs.get("explained_variance", [])))
    for axis, component in ((ax.xaxis, x), (ax.yaxis, y)):
        share = f" ({shares[component]:.0%} of the variance)" if component in shares else ""
        axis.set_label_text(f"component {component}{share}")
    _foot(ax, source or pca.attrs.get("source", ""))
    _label_points(ax, shown[x], shown[y], [short_title(t, 32, year=False) for t in shown.index])
    return ax


@style
def plot_neighbours(near: pd.DataFrame, title: str = "", ax: Axes | None = None, source: str = "") -> Axes:
    """The titles nearest to `title`, as `similar_movies` returns them, the nearest on top."""
    by = near.columns[0]
    measure = {"cosine": "cosine similarity", "euclidean": "Euclidean distance"}.get(by, by)
    ax = plt.subplots(figsize=(7, 1.2 + 0.25 * len(near)))[1] if ax is None else ax
    at = np.arange(len(near))
    ax.hlines(at, 0, near[by], color="0.8", linewidth=1)
    ax.plot(near[by], at, color=INK, marker="o", markersize=5, linestyle="")
    for y, (value, count) in enumerate(zip(near[by], near["n_ratings"], strict=True)):
        ax.annotate(f"{count:,} ratings", (value, y), (7, 0), color=GREY, fontsize=7, va="center", **OFFSET)
    ax.set_yticks(at, [short_title(other, 48) for other in near.index], parse_math=False)
    ax.set_ylim(len(near) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.2)
    ax.set_xlim(left=min(0, near[by].min()))
    ax.set_xlabel(f"{measure} to {short_title(title, 48)}" if title else measure, parse_math=False)
    _foot(ax, source or near.attrs.get("source", ""))
    return ax


@style
def plot_bias_vs_mean(
    bias: pd.Series,
    mean_rating: pd.Series,
    n_ratings: pd.Series | None = None,
    n: int = 12,
    ax: Axes | None = None,
    source: str = "",
) -> Axes:
    """Each title's bias against its mean rating, and the line between them.

    The `n` titles farthest off it are labelled, half of them above. All Series are by title; one
    that is missing anywhere, or has no rating, is left out. With `n_ratings` a point's area goes
    by it, and so does how much being off the line counts (by its square root).
    """
    both = pd.concat({"bias": bias, "mean": mean_rating}, axis=1, join="inner").astype(float)
    both["n"] = 1.0 if n_ratings is None else n_ratings
    both = both.dropna().query("n > 0")
    slope, at_zero = np.polyfit(both["mean"], both["bias"], 1, w=np.sqrt(both["n"]))
    off = (both["bias"] - at_zero - slope * both["mean"]) * np.sqrt(both["n"])
    off = off.sort_values(kind="stable").index
    far = both.loc[off if len(off) <= n else [*off[: n // 2], *off[len(off) - (n + 1) // 2 :]]]
    ax = plt.subplots(figsize=(8, 6))[1] if ax is None else ax
    size = 8 if n_ratings is None else 3 + 60 * both["n"] / both["n"].max()
    ax.scatter(both["mean"], both["bias"], s=size, color="0.7", edgecolor="white", linewidth=0.3)
    ends = both["mean"].agg(["min", "max"])
    ax.plot(ends, at_zero + slope * ends, color=GREY, linewidth=0.8)
    ax.plot(far["mean"], far["bias"], color=INK, marker="o", markersize=4, linestyle="")
    ax.set_xlabel("mean rating (stars)")
    ax.set_ylabel("movie bias (added to the score under the sigmoid)")
    _foot(ax, source or bias.attrs.get("source", ""))
    _label_points(ax, far["mean"], far["bias"], [short_title(t, 34) for t in far.index])
    return ax


@style
def plot_chapter(
    chapter: pd.DataFrame,
    published: pd.DataFrame,
    ax: Sequence[Axes] | None = None,
    source: str = "",
) -> np.ndarray:
    """All runs of the chapter, a panel each: MSE by epoch over the splits, and the book's points.

    `chapter`: run, model, split, epoch, train_loss, valid_loss; `published`: as
    `chapter.published` returns it. Each panel says how both end in validation.
    """
    runs = list(published.groupby("run", sort=False))
    if ax is None:
        rows, columns = -(-len(runs) // 4), min(4, len(runs))
        ax = plt.subplots(rows, columns, figsize=(11, 0.7 + 2.6 * rows), sharex=True, squeeze=False)[1]
    axes = np.ravel(ax)
    for panel, (run, book) in zip(axes, runs, strict=False):
        ours, model = chapter[chapter["run"] == run], book["model"].iloc[0]
        colour, _, marker, _ = _look(model)
        for loss, line in (("train_loss", (0, (1, 0.7))), ("valid_loss", "-")):
            wide = ours.pivot(index="epoch", columns="split", values=loss)
            panel.plot(wide, color=colour, linewidth=0.6, alpha=0.5)
            panel.plot(wide.mean(axis=1), color=colour, linestyle=line, linewidth=2)
            panel.plot(book["epoch"], book[loss], color="black", marker=marker, markersize=5, **HOLLOW)
        final, printed = ours.loc[ours["epoch"] == ours["epoch"].max(), "valid_loss"], book["valid_loss"]
        ends = f"{final.mean():.3f} ± {final.std():.3f}, book {printed.iloc[-1]:.3f}"
        panel.text(0.03, 0.04, f"validation ends at\n{ends}", transform=panel.transAxes, fontsize=7)
        panel.set_title(textwrap.fill(f"{run}. {book['name'].iloc[0]}", 30))
        panel.xaxis.set_major_locator(MaxNLocator(integer=True))
    for panel in axes[len(runs) :]:
        panel.set_visible(False)
    for panel in np.atleast_2d(ax)[:, 0]:
        panel.set_ylabel("MSE")
    for panel in np.atleast_2d(ax)[-1]:
        panel.set_xlabel("epoch")
    key = "solid: validation, dotted: training (smoothed), hollow: the book"
    foot = f"{key}; {source or _about(chapter, 'split')}"
    _root(axes[0]).supxlabel(foot, x=0.99, ha="right", fontsize=7, color=GREY)
    return ax


@style
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
    """Column `y` against column `x`, both on log scales, a line for each value of `by`.

    Where several rows share `x` and `by` the line goes through their median; all are drawn small.
    `xlabel` and `ylabel` say what the columns hold, with units; they default to the names.
    """
    ax = plt.subplots(figsize=(7, 4.5))[1] if ax is None else ax
    labels = []
    looks = dict(zip(dict.fromkeys(bench[by]), [*LOOKS.values(), _look("")] * len(bench), strict=False))
    for name, rows in bench.groupby(by, sort=False):
        colour, line, marker, signs = LOOKS.get(name, looks[name])
        median = rows.groupby(x)[y].median()
        ax.plot(rows[x], rows[y], color=colour, marker=".", markersize=3, linestyle="", alpha=0.5)
        ax.plot(median, color=colour, linestyle=line, marker=marker, markersize=5, linewidth=1.8)
        labels.append((median.iloc[-1], f"{signs[0]} {name}", colour))
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.grid(color="0.9")
    ax.set_axisbelow(True)
    ax.set_xlabel(xlabel or x)
    ax.set_ylabel(ylabel or y)
    _end_labels(ax, labels)
    _foot(ax, source or (_about(bench) if "data" in bench else ""))
    return ax


@style
def plot_initial(tables: dict[str, np.ndarray], ax: Axes | None = None, source: str = "") -> Axes:
    """How the initial weights of each model, name to array of any shape, are distributed."""
    weights = {name: np.ravel(table) for name, table in tables.items()}
    edges = np.histogram_bin_edges(np.concatenate(list(weights.values())), 80)
    ax = plt.subplots(figsize=(7, 4))[1] if ax is None else ax
    for row, (name, values) in enumerate(weights.items()):
        colour, line, *_ = _look(name)
        ax.hist(values, edges, density=True, histtype="step", color=colour, linestyle=line, linewidth=1.8)
        top = 0.95 - 0.16 * row
        text = f"{name}\nsd {values.std():.4f}, at most {np.abs(values).max():.4f}"
        ax.text(1.1, top, text, color=colour, va="top", transform=ax.transAxes)
        key = {"color": colour, "linestyle": line, "linewidth": 1.8, "clip_on": False}
        ax.plot([1.02, 1.08], [top - 0.025] * 2, transform=ax.transAxes, **key)
    ax.set_xlabel("initial weight")
    ax.set_ylabel("density")
    _foot(ax, source)
    return ax


def short_title(title: object, width: int = 40, year: bool = True) -> str:
    """A title for a label: 'Seventh Seal, The (Sjunde inseglet, Det) (1957)' as 'The Seventh Seal (1957)'.

    Without `year` that goes too, and '…' stands for what is over `width` characters.
    """
    found = re.fullmatch(r"(.*?)((?: \([^()]*\))*?)( \(\d{4}\))?", str(title).strip(), re.DOTALL)
    name, released = found[1], (found[3] or "") if year else ""
    if article := re.fullmatch(r"(.+), (The|An?|Les?|La|L'|Das|Der|Die|El|Il)", name):
        name = f"{article[2]} {article[1]}".replace("L' ", "L'")
    if len(name) > (room := max(width - len(released), 2)):
        words = name[:room].rpartition(" ")[0]
        name = (words if len(words) > room // 2 else name[: room - 1]).rstrip(" ,:") + "…"
    return name + released


def _look(model: str) -> tuple:
    """A model's colour, line, marker, and its marker in text, filled and hollow."""
    return LOOKS.get(model, ("0.35", (0, (2, 1)), "X", "✖✖"))


def _looks(names: Sequence[str]) -> dict[str, tuple]:
    """The look of each of `names`: a model's own; what is no model gets shades, dark to light."""
    others = [name for name in dict.fromkeys(names) if name not in LOOKS]
    if len(others) < 2:
        return LOOKS | {name: _look(name) for name in others}
    shades = map(mpl.colors.to_hex, mpl.colormaps["viridis"](np.linspace(0, 0.8, len(others))))
    forms = [form for _, *form in LOOKS.values()] * len(others)
    return LOOKS | {name: (shade, *form) for name, shade, form in zip(others, shades, forms, strict=False)}


def _about(curves: pd.DataFrame, repeat: str = "") -> str:
    """The data's name, and how many seeds or splits there are."""
    data = ", ".join(map(str, curves["data"].unique())) if "data" in curves else ""
    n = curves[repeat].nunique() if repeat else 0
    return ", ".join(filter(None, [data, f"{n} {repeat}{'s' * (n != 1)} (thin)" if repeat else ""]))


def _foot(ax: Axes, source: str) -> None:
    """`source`, small, under the right end of `ax`."""
    look = {"fontsize": 6.5, "color": GREY, "ha": "right", "va": "top"}
    ax.annotate(source, (1, 0), (0, -34), xycoords="axes fraction", **look, **OFFSET)


def _epochs(ax: Axes, ylabel: str) -> None:
    ax.set_xlabel("epoch")
    ax.set_ylabel(ylabel)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)


def _root(ax: Axes) -> mpl.figure.Figure:
    return ax.figure.canvas.figure  # of a subfigure too


def _end_labels(ax: Axes, labels: Sequence[tuple[float, str, str]], lines: int = 1) -> None:
    """Texts, as (height, text, colour), right of `ax`: as near to their heights as they fit."""
    ax.set_ylim(ax.get_ylim())
    _root(ax).draw_without_rendering()  # lays the figure out
    labels = sorted(labels, key=lambda label: label[0])
    at = ax.transData.transform([(1, y) for y, *_ in labels])[:, 1] * 72 / _root(ax).dpi
    steps = np.arange(len(labels)) * 11.5 * lines
    free = isotonic_regression(at - steps) + steps  # least squares, each a step above the last
    look = {"xycoords": ax.get_yaxis_transform(), "fontsize": 8, "va": "center"}
    for (y, text, colour), up in zip(labels, free - at, strict=True):
        ax.annotate(text, (1, y), (6, up), color=colour, **look, **OFFSET)


def _label_points(ax: Axes, x: Sequence[float], y: Sequence[float], labels: Sequence[str]) -> None:
    """Label points one by one at the nearest place where nothing is yet, in `ax` as it is laid out."""
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    _root(ax).draw_without_rendering()
    px = _root(ax).dpi / 72  # pixels a point
    points = ax.transData.transform(np.column_stack([x, y]))
    taken = np.hstack([points - 3.5 * px, points + 3.5 * px])  # boxes: left, bottom, right, top
    angle = np.radians([0, 180, 90, 270, *range(15, 360, 15)])
    towards = np.column_stack([np.cos(angle), np.sin(angle)])
    gaps = np.arange(5, 160, 3)[:, None, None] * px
    look = {"fontsize": 7, "ha": "center", "va": "center"}
    look["path_effects"] = [withStroke(linewidth=2, foreground="white")]
    for xy, point, label in zip(zip(x, y, strict=True), points, labels, strict=True):
        text = ax.annotate(label, xy, (0, 0), **look, **OFFSET)
        half = text.get_window_extent().size / 2 + px
        centres = (point + towards * (half + gaps)).reshape(-1, 2)  # nearest first
        boxes = np.hstack([centres - half, centres + half])
        apart = (boxes[:, None, :2] >= taken[:, 2:]) | (boxes[:, None, 2:] <= taken[:, :2])
        inside = (boxes[:, :2] >= ax.bbox.min) & (boxes[:, 2:] <= ax.bbox.max)
        free = apart.any(axis=2).all(axis=1) & inside.all(axis=1)
        if not free.any():
            text.remove()
            continue
        centre, box = centres[free.argmax()], boxes[free.argmax()]
        text.set_position((centre - point) / px)
        taken = np.vstack([taken, box])
        end = np.clip(point, box[:2], box[2:])  # of the label, where it is nearest
        if np.hypot(*(end - point)) > 7 * px:
            leader = ax.transData.inverted().transform([point, end])
            ax.plot(*leader.T, color="0.6", linewidth=0.5, zorder=1)


@style
def plot_penalty(
    wds: Sequence[float] = (0, 0.1, 0.3, 1), ax: Sequence[Axes] | None = None, source: str = ""
) -> np.ndarray:
    """Weight decay on a single weight x: the penalty wd x² of each of `wds`, and the loss (x − 1)² with
    that penalty added, its minimum marked. `ax` is two Axes.
    """
    ax = plt.subplots(1, 2, figsize=(9, 3.6))[1] if ax is None else ax
    x = np.linspace(-1.5, 2, 200)
    looks = _looks([f"wd {wd}" for wd in wds])
    labels = []
    for wd in wds:
        colour, line, marker, signs = looks[f"wd {wd}"]
        for panel, loss in zip(ax, (0, (x - 1) ** 2), strict=True):
            panel.plot(x, loss + wd * x**2, color=colour, linestyle=line, linewidth=1.8)
        lowest = 1 / (1 + wd)
        ax[1].plot(lowest, (lowest - 1) ** 2 + wd * lowest**2, color=colour, marker=marker, markersize=6)
        labels.append((1 + 4 * wd, f"{signs[0]} wd {wd}: minimum at {lowest:.2f}", colour))
    for panel, what in zip(ax, ("penalty alone: wd x²", "loss and penalty: (x − 1)² + wd x²"), strict=True):
        panel.set_xlabel("weight x")
        panel.set_ylabel(what)
    _end_labels(ax[1], labels)
    _foot(ax[1], source)
    return ax
