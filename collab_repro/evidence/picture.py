"""The picture of a lookup: rows copied out of a table, and gradients added back to them."""

from collections.abc import Sequence
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.patches import Rectangle

from ..looks import GREY, INK, LOOKS, style

HIGH, LETTER = 0.26, 0.075  # inches: the height of a cell, the width of a letter
NAME, ARROW, ASKED, SIGN, GAP = 0.55, 1.3, 0.85, 0.36, 0.3  # inches: what stands beside the cells
TINTS = 0.36, 0.16, 0.26  # by turns, so that the rows differ in grey too


@style
def plot_gather_scatter(table: Sequence, idx: Sequence, upstream: Sequence) -> Axes:
    """A lookup and its derivative, with the numbers that are given.

    `table` (n, k), `idx` (bs,) and `upstream` (bs, k) are tensors, arrays or lists; more than 8 rows, 8 ids
    or 4 columns are hard to read. On the left the rows `table[idx]` are copied out, on the right `upstream`
    is added up to the table's gradient; below, the same two as products with the one-hot matrix. Each row
    that is looked up keeps its colour and line. Raises ValueError and IndexError as NumPy does.
    """
    given = table, idx, upstream
    table, idx, upstream = (np.asarray(t.detach() if hasattr(t, "detach") else t) for t in given)
    (n, k), every = table.shape, np.arange(len(table))
    idx, grad = every[idx], np.zeros(table.shape)
    np.add.at(grad, idx, upstream)
    hot = np.eye(n)[idx]
    looks = dict(zip(dict.fromkeys(idx), cycle(zip(LOOKS.values(), TINTS * 2, strict=True)), strict=False))
    near, far = (table, "table", every), (table[idx], "table[idx]", idx)
    back, came = (grad, "gradient", every), (upstream, "upstream", idx)

    longest = max(len(_number(v)) for values, *_ in (near, far, back, came) for v in values.flat)
    wide, tall = max(0.42, 0.14 + LETTER * longest), max(n, len(idx)) * HIGH
    panel = max(NAME + ARROW + ASKED, max(n * HIGH, 14 * LETTER) + 2 * SIGN) + 2 * k * wide
    width, height = 2 * max(panel, 4.3) + GAP, 2 * tall + 1.45
    _, ax = plt.subplots(figsize=(width, height))
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.set_axis_off()
    head = {"color": INK, "fontsize": 9.5, "va": "top"}
    upper, lower, right = height - 0.6 - tall / 2, tall / 2 + 0.15, width / 2 + GAP / 2
    ax.text(0, height, "forward: each row asked for is copied (gather)", **head)
    _moves(ax, near, far, looks, (NAME, upper), wide, forward=True)
    _product(ax, [(hot, "one_hot(idx)", idx), near, far], looks, (0, lower), wide)
    ax.text(right, height, "backward: gradients are added up (scatter-add)", **head)
    _moves(ax, back, came, looks, (right + NAME, upper), wide, forward=False)
    _product(ax, [(hot.T, "one_hot(idx).T", every), came, back], looks, (right, lower), wide)
    return ax


def _number(value: float) -> str:
    return f"{value:.3g}".replace("-", "−")


def _heights(middle: float, n: int) -> np.ndarray:
    """The middles of `n` rows of cells whose common middle is given."""
    return middle + (n / 2 - np.arange(n) - 0.5) * HIGH


def _block(ax: Axes, block: tuple, looks: dict, left: float, middle: float, wide: float, zeros=True) -> None:
    """A named matrix, each line tinted as the row it belongs to; without `zeros` only the other cells."""
    values, name, rows = block
    heights, centred = _heights(middle, len(values)), {"ha": "center", "fontsize": 8}
    for (i, j), value in np.ndenumerate(values):
        x, tinted = left + j * wide, rows[i] in looks and (value or zeros)
        (colour, *_), tint = looks.get(rows[i], (("white",), 1))
        look = {"facecolor": to_rgba(colour, tint) if tinted else "white", "edgecolor": "0.6"}
        ax.add_patch(Rectangle((x, heights[i] - HIGH / 2), wide, HIGH, linewidth=0.6, **look))
        ink = INK if value or tinted else GREY
        ax.text(x + wide / 2, heights[i] - 0.01, _number(value), va="center", color=ink, **centred)
    at = left + values.shape[1] * wide / 2, heights[0] + HIGH / 2 + 0.04
    ax.text(*at, name, va="bottom", family="monospace", color=INK, **centred)


def _moves(ax: Axes, table: tuple, batch: tuple, looks: dict, at: tuple, wide: float, forward: bool) -> None:
    """A table, a batch, and an arrow for each id: from the table or to it."""
    (left, middle), (values, _, idx) = at, batch
    near = left + values.shape[1] * wide
    far = near + ARROW
    rows, asked = _heights(middle, len(table[0])), _heights(middle, len(idx))
    _block(ax, table, looks, left, middle, wide)
    _block(ax, batch, looks, far, middle, wide)
    small = {"va": "center", "color": GREY, "fontsize": 8}
    for row, y in enumerate(rows):
        ax.text(left - 0.08, y, f"row {row}", ha="right", **small)
    for i, row in enumerate(idx):
        ends = [(near, rows[row]), (far, asked[i])]
        (colour, line, *_), _ = looks[row]
        look = {"arrowstyle": "-|>", "color": colour, "linestyle": line, "linewidth": 1.5, "shrinkA": 3}
        ax.annotate(
            "", ends[forward], ends[not forward], arrowprops=look | {"shrinkB": 3, "mutation_scale": 11}
        )
        ax.text(far + near - left + 0.08, asked[i], f"idx[{i}] = {row}", **small)


def _product(ax: Axes, blocks: list[tuple], looks: dict, at: tuple[float, float], wide: float) -> None:
    """one_hot @ matrix = matrix, from left to right."""
    hot, *others = blocks
    (left, middle), cells = at, hot[0].shape[1] * HIGH
    room = max(14 * LETTER, cells)  # for its name
    _block(ax, hot, looks, left + (room - cells) / 2, middle, HIGH, zeros=False)
    left += room
    for sign, block in zip("@=", others, strict=True):
        ax.text(left + SIGN / 2, middle, sign, ha="center", va="center", color=INK, fontsize=10)
        _block(ax, block, looks, left + SIGN, middle, wide)
        left += SIGN + block[0].shape[1] * wide
