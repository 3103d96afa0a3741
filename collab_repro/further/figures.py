"""Figures of further research: what each column brings, and users' scales."""

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
