"""The picture of a lookup: rows copied out of a table, and gradients added back to them."""

from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from ..looks import GREY, INK, LOOKS, foot, style

MOST = 8, 8, 4  # rows of the table, ids, columns: a picture of more could not be read
HIGH, LETTER = 0.26, 0.075  # inches: the height of a cell, the width of a letter
NAME, ARROW, ASKED, SIGN, GAP = 0.55, 1.3, 0.85, 0.36, 0.3  # inches: what stands beside the cells
TINTS = 0.36, 0.16, 0.26  # by turns, so that the rows differ in grey too


@style
def plot_gather_scatter(
    table: Sequence, idx: Sequence, upstream: Sequence, ax: Axes | None = None, source: str = ""
) -> Axes:
    """A lookup and its derivative, with the numbers that are given.

    `table` (n, k), `idx` (bs,) and `upstream` (bs, k) are tensors, arrays or lists. On the left the rows
    `table[idx]` are copied out, on the right `upstream` is added up to the table's gradient; below, the
    same two as products with the one-hot matrix. Each row that is looked up keeps its colour and line.
    Raises ValueError for shapes that don't fit together, an id outside the table, and more than 8 rows,
    8 ids or 4 columns.
    """
    table, idx, upstream = _arrays(table, idx, upstream)
    n, k, bs = *table.shape, len(idx)
    rows, grad, hot = table[idx], np.zeros(table.shape), np.eye(n)[idx]
    np.add.at(grad, idx, upstream)

    looks = dict(zip(dict.fromkeys(idx.tolist()), zip(LOOKS.values(), TINTS * 2, strict=True), strict=False))
    own, asked = [looks.get(row) for row in range(n)], [looks.get(row) for row in idx.tolist()]
    near, far = (table, "table", own), (rows, "table[idx]", asked)
    back, came = (grad, "gradient", own), (upstream, "upstream", asked)
    products = [(hot, "one_hot(idx)", asked), near, far], [(hot.T, "one_hot(idx).T", own), came, back]

    longest = max(len(_number(v)) for block in (table, rows, upstream, grad) for v in block.flat)
    wide, tall = max(0.42, 0.14 + LETTER * longest), max(n, bs) * HIGH
    panel = max(NAME + ARROW + ASKED, max(n * HIGH, 14 * LETTER) + 2 * SIGN) + 2 * k * wide
    width, height = 2 * max(panel, 4.3) + GAP, 2 * tall + 1.45
    ax = plt.subplots(figsize=(width, height))[1] if ax is None else ax
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    heads = "forward: each row asked for is copied (gather)", "backward: gradients are added up (scatter-add)"
    for left, head in zip((0, width / 2 + GAP / 2), heads, strict=True):
        ax.text(left, height, head, color=INK, fontsize=9.5, va="top")
    _moves(ax, near, far, idx, (NAME, height - 0.6 - tall / 2), wide, forward=True)
    _moves(ax, back, came, idx, (width / 2 + GAP / 2 + NAME, height - 0.6 - tall / 2), wide, forward=False)
    for left, blocks in zip((0, width / 2 + GAP / 2), products, strict=True):
        _product(ax, blocks, (left, tall / 2 + 0.15), wide)
    foot(ax, source)
    return ax


def _arrays(table: Sequence, idx: Sequence, upstream: Sequence) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    tensors = (t.detach().cpu().numpy() if hasattr(t, "detach") else t for t in (table, idx, upstream))
    table, idx, upstream = map(np.asarray, tensors)
    if table.ndim != 2 or not table.size or idx.ndim != 1 or upstream.shape != (len(idx), table.shape[1]):
        shapes = f"{table.shape}, {idx.shape} and {upstream.shape}"
        raise ValueError(f"table, idx and upstream have to be (n, k), (bs,) and (bs, k), not {shapes}")
    if not len(idx) or idx.dtype.kind not in "iu" or idx.min() < 0 or idx.max() >= len(table):
        raise ValueError(f"idx has to hold row numbers from 0 to {len(table) - 1}, not {idx.tolist()}")
    if any(size > most for size, most in zip((len(table), len(idx), table.shape[1]), MOST, strict=True)):
        raise ValueError("at most {} rows, {} ids and {} columns can be drawn".format(*MOST))
    return table, idx.astype(int), upstream


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _height(middle: float, row: int, of: int) -> float:
    """The middle of row `row` in a block of `of` rows whose middle is given."""
    return middle + (of / 2 - row - 0.5) * HIGH


def _block(ax: Axes, block: tuple, left: float, middle: float, wide: float, zeros: bool = True) -> None:
    """A named matrix, each row tinted in its look; without `zeros` only the cells that are not zero."""
    values, name, looks = block
    for (i, j), value in np.ndenumerate(values):
        at = left + j * wide, _height(middle, i, len(values)) - HIGH / 2
        tint = to_rgba(looks[i][0][0], looks[i][1]) if looks[i] and (value or zeros) else "white"
        ax.add_patch(Rectangle(at, wide, HIGH, facecolor=tint, edgecolor="0.6", linewidth=0.6))
        colour = INK if value or (looks[i] and zeros) else GREY
        look = {"ha": "center", "va": "center", "fontsize": 8, "color": colour}
        ax.text(at[0] + wide / 2, at[1] + HIGH / 2 - 0.01, _number(value), **look)
    look = {"ha": "center", "va": "bottom", "fontsize": 8, "family": "monospace", "color": INK}
    ax.text(left + values.shape[1] * wide / 2, middle + len(values) * HIGH / 2 + 0.04, name, **look)


def _moves(
    ax: Axes, table: tuple, batch: tuple, idx: Sequence, at: tuple, wide: float, forward: bool
) -> None:
    """A table, a batch, and an arrow for each id: from the table or to it."""
    (left, middle), k = at, table[0].shape[1]
    right = left + k * wide + ARROW
    _block(ax, table, left, middle, wide)
    _block(ax, batch, right, middle, wide)
    look = {"va": "center", "color": GREY, "fontsize": 8}
    for row in range(len(table[0])):
        ax.text(left - 0.08, _height(middle, row, len(table[0])), f"row {row}", ha="right", **look)
    for i, row in enumerate(idx):
        ends = [(left + k * wide, _height(middle, row, len(table[0]))), (right, _height(middle, i, len(idx)))]
        start, end = ends if forward else ends[::-1]
        colour, line, *_ = batch[2][i][0]
        props = {"arrowstyle": "-|>", "color": colour, "linestyle": line, "linewidth": 1.5, "shrinkA": 3}
        ax.annotate("", end, start, arrowprops={**props, "shrinkB": 3, "mutation_scale": 11})
        ax.text(right + k * wide + 0.08, _height(middle, i, len(idx)), f"idx[{i}] = {row}", **look)


def _product(ax: Axes, blocks: list[tuple], at: tuple[float, float], wide: float) -> None:
    """one_hot @ matrix = matrix, from left to right."""
    hot, *others = blocks
    (left, middle), cells = at, hot[0].shape[1] * HIGH
    room = max(14 * LETTER, cells)  # for its name
    _block(ax, hot, left + (room - cells) / 2, middle, HIGH, zeros=False)
    left += room
    for sign, block in zip("@=", others, strict=True):
        ax.text(left + SIGN / 2, middle, sign, ha="center", va="center", color=INK, fontsize=10)
        _block(ax, block, left + SIGN, middle, wide)
        left += SIGN + block[0].shape[1] * wide
