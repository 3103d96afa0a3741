"""The chapter's figures: data in, Axes out. Each function draws on `ax` or on a new figure of its own.

Where the data comes from stands small under each figure: `source`, or else what the data itself says.
Nothing is shown or closed, and neither the data nor a global setting is changed.
"""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from . import looks
from .curves import difference


@looks.style
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
    for panel, loss in zip(axes, list(looks.LOSSES)[-len(axes) :], strict=True):
        labels, look = [], looks.looks_of(curves["model"])
        for model, runs in curves.groupby("model", sort=False):
            colour, line, marker, signs = look[model]
            wide = runs.pivot_table(index="epoch", columns="seed", values=loss)
            mean = wide.mean(axis=1)
            panel.plot(wide, color=colour, linewidth=0.8, alpha=0.5)
            panel.plot(mean, color=colour, linestyle=line, marker=marker, markersize=4, linewidth=2)
            labels.append((mean.iloc[-1], f"{signs[0]} {model} {mean.iloc[-1]:.3f}", colour))
            if published is not None and (published["model"] == model).any():
                book = published[published["model"] == model].sort_values("epoch")
                hollow = {"color": colour, "marker": marker, "markersize": 7, "zorder": 4} | looks.HOLLOW
                panel.plot(book["epoch"], book[loss], **hollow)
                last = book[loss].iloc[-1]
                labels.append((last, f"{signs[1]} book {last:.3f}", colour))
        looks.epochs_axis(panel, looks.LOSSES[loss])
    looks.end_labels(axes[-1], labels)
    looks.foot(axes[-1], source or looks.about(curves, "seed"))
    return ax


@looks.style
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
    ax.axhline(0, color=looks.GREY, linewidth=0.8)
    ax.plot(wide[second] - wide[first], color=looks.GREY, linewidth=0.9, alpha=0.7)
    ax.fill_between(mean.index, mean["low"], mean["high"], color="0.85", linewidth=0)
    ax.plot(mean["mean"], color="black", marker="o", markersize=4, linewidth=2)
    looks.epochs_axis(ax, f"difference in {looks.LOSSES[loss]}\n{second} − {first}")
    last = mean.iloc[-1]
    labels = [(last["mean"], f"mean {last['mean']:+.4f}", "black")]
    if last["n"] > 1:
        interval = f"its 95% interval\n{last['low']:+.4f} to {last['high']:+.4f}"
        labels.append((last["high"], interval, looks.GREY))
    labels = [(y, text.replace("-", "−"), colour) for y, text, colour in labels]
    looks.end_labels(ax, labels, lines=2)
    looks.foot(ax, source or looks.about(curves, "seed"))
    return ax


@looks.style
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
        ax.hlines(at, table["low"], table["high"], color=looks.INK, linewidth=1.2)
    ax.plot(table["mean"], at, color=looks.INK, marker="o", markersize=5, linestyle="")
    if "best_rank" in table:
        ranks = table[["best_rank", "worst_rank"]].astype(int)
        look = {"color": looks.GREY, "fontsize": 7, "transform": ax.get_yaxis_transform()}
        for y, (best, worst) in zip(at, ranks.to_numpy(), strict=True):
            rank = f"{best:,}" if best == worst else f"{best:,} to {worst:,}"
            ax.text(1.02, y, rank, va="center_baseline", **look)
        ax.text(1.02, at[-1] + 1, "rank over seeds", va="center_baseline", **look)
    ax.axvline(0, color=looks.GREY, linewidth=0.8, zorder=0)
    ax.set_yticks(at, looks.short_titles(table.index, 48), parse_math=False)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.9")
    ax.set_axisbelow(True)
    ax.set_xlabel("movie bias (added to the score under the sigmoid)")
    looks.foot(ax, source or bias.attrs.get("source", ""))
    return ax


@looks.style
def plot_factors(
    pca: pd.DataFrame, x: int = 0, y: int = 2, n: int = 50, ax: Axes | None = None, source: str = ""
) -> Axes:
    """A map of the first `n` titles of `factor_pca` by components `x` and `y`, all of them labelled.

    Labels move aside rather than overlap; one that finds no free place at all is left out.
    """
    shown = pca.head(n)
    ax = plt.subplots(figsize=(10, 8))[1] if ax is None else ax
    ax.plot(shown[x], shown[y], color=looks.INK, marker="o", markersize=3.5, linestyle="")
    ax.margins(0.1)
    shares = dict(enumerate(pca.attrs.get("explained_variance", [])))
    for axis, component in ((ax.xaxis, x), (ax.yaxis, y)):
        share = f" ({shares[component]:.0%} of the variance)" if component in shares else ""
        axis.set_label_text(f"component {component}{share}")
    looks.foot(ax, source or pca.attrs.get("source", ""))
    looks.label_points(ax, shown[x], shown[y], looks.short_titles(shown.index, 32, year=False))
    return ax
