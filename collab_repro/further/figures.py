"""Figures of further research: what a column brings and where, reliability, and users' scales."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from .. import looks


@looks.style
def plot_effects(effects: pd.DataFrame, source: str = "") -> Axes:
    """Each row's change of the RMSE with its interval: `mean`, `low`, `high`, by name; below 0 is better."""
    _, ax = plt.subplots(figsize=(7, 0.8 + 0.3 * len(effects)))
    at, look = np.arange(len(effects))[::-1], {"color": looks.INK, "marker": "o", "markersize": 5}
    clear = (effects["high"] < 0) | (effects["low"] > 0)
    ax.hlines(at, effects["low"], effects["high"], color=looks.INK, linewidth=1.4)
    ax.plot(effects["mean"][clear], at[clear], linestyle="", **look)
    ax.plot(effects["mean"][~clear], at[~clear], **look, **looks.HOLLOW)
    ax.axvline(0, color=looks.GREY, linewidth=0.8)
    ax.set_yticks(at, effects.index)
    ax.tick_params(axis="y", length=0)
    ax.grid(axis="x", color="0.9")
    xlabel = "change of the validation RMSE (stars), mean and 95% interval; hollow: it includes 0"
    ax.set(xlabel=xlabel, axisbelow=True)
    looks.foot(ax, source)
    return ax


@looks.style
def plot_gain(gain: pd.DataFrame, source: str = "") -> Axes:
    """RMSE by how often a film was rated: a line for each column of `gain` but `rows`, which stands below."""
    _, ax = plt.subplots(figsize=(8, 4))
    at, labels = np.arange(len(gain)), []
    shades = (("0.55", "--", "s"), (looks.INK, "-", "o"), ("0.4", ":", "^"))
    for name, (colour, line, marker) in zip(gain.columns.drop("rows"), shades, strict=False):
        ax.plot(at, gain[name], color=colour, linestyle=line, marker=marker, markersize=5)
        labels.append((gain[name].iloc[-1], name, colour))
    ax.set_xticks(at, [f"{name}\n{rows:,}" for name, rows in gain["rows"].items()])
    ax.set(xlabel="training ratings of the film (below: validation rows)", axisbelow=True)
    ax.set_ylabel("validation RMSE (stars)")
    ax.grid(axis="y", color="0.9")
    looks.end_labels(ax, labels)
    looks.foot(ax, source)
    return ax


@looks.style
def plot_reliability(tables: dict[str, pd.DataFrame], source: str = "") -> np.ndarray:
    """`reliability`'s tables, a panel each: what came against what was said; on the diagonal it is true."""
    size = 2.6 * len(tables), 3.2
    axes = plt.subplots(1, len(tables), figsize=size, sharey=True, squeeze=False)[1][0]
    for ax, (name, table) in zip(axes, tables.items(), strict=True):
        ax.plot([0, 1], [0, 1], color=looks.GREY, linewidth=0.8)
        size = 4 + 60 * table["rows"] / table["rows"].sum()
        ax.plot(table["probability"], table["share"], color=looks.INK, linewidth=0.8)
        ax.scatter(table["probability"], table["share"], s=size, color=looks.INK, zorder=3)
        ax.set(xlim=(0, 1), ylim=(0, 1), aspect="equal", xlabel="probability given")
        ax.set_title(name.replace(", ", ",\n"))
    axes[0].set_ylabel("share that came true")
    looks.foot(axes[-1], source)
    return axes


@looks.style
def plot_cut_points(cuts: np.ndarray, names: list[str], source: str = "") -> Axes:
    """Users' scales: a bar for each row of `cuts` (n, n_stars - 1), divided into stars at the cut points.

    The shade is the star, from one (light) to the highest (dark).
    """
    _, ax = plt.subplots(figsize=(8, 0.9 + 0.26 * len(cuts)))
    low, high, at = cuts.min() - 1.5, cuts.max() + 1.5, np.arange(len(cuts))[::-1]
    edges = np.pad(cuts, ((0, 0), (1, 1)), constant_values=((0, 0), (low, high))).T  # (n_stars + 1, n)
    for star, shade in enumerate(np.linspace(0.93, 0.3, len(edges) - 1)):
        left, right = edges[star], edges[star + 1]
        ax.barh(at, right - left, left=left, color=str(shade), edgecolor="white", height=0.8)
        middle = (left[0] + right[0]) / 2
        ax.text(middle, at[0] + 0.65, f"{star + 1}", ha="center", va="bottom", color=looks.GREY)
    ax.set_yticks(at, names)
    ax.tick_params(axis="y", length=0)
    ax.set(xlim=(low, high), ylim=(-0.6, len(cuts) + 0.2), xlabel="score of the film for the user (log-odds)")
    looks.foot(ax, source)
    return ax
