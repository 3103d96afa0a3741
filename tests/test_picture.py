"""The picture of gather and scatter-add: it draws what it is given, and the sums are PyTorch's."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from matplotlib.patches import Rectangle
from test_plots import overlaps, texts

from collab_repro.command.folder import save_figure
from collab_repro.evidence.lookups import LOOKUPS, gradient
from collab_repro.evidence.picture import plot_gather_scatter

TABLE = torch.arange(8.0).view(4, 2)
IDX = torch.tensor([2, 0, 2])
UPSTREAM = torch.tensor([[1.0, 1], [10, 10], [100, 100]])


@st.composite
def cases(draw):
    "A table, ids and gradients within the limits; numbers of one to nine characters."
    n, bs, k = (draw(st.integers(1, most)) for most in (8, 8, 4))
    idx = torch.tensor(draw(st.lists(st.integers(0, n - 1), min_size=bs, max_size=bs)))
    random = torch.Generator().manual_seed(draw(st.integers(0, 999)))
    scale = draw(st.sampled_from([0, 1e-7, 1, 1e5]))
    return scale * torch.randn(n, k, generator=random), idx, scale * torch.randn(bs, k, generator=random)


def number(value):
    return f"{float(value):.3g}".replace("-", "−")


def blocks(ax):
    "The matrices drawn, name to the list of their numbers as text, in the order of drawing."
    cells = [p.get_bbox() for p in ax.patches if isinstance(p, Rectangle)]
    inside, names = [], []
    for text in ax.texts:
        x, y = text.get_position()
        if text.get_text() and any(box.x0 < x < box.x1 and box.y0 < y < box.y1 for box in cells):
            inside.append(text.get_text())
        elif text.get_family() == ["monospace"]:
            names.append((text.get_text(), inside))
            inside = []
    return names


def expected(table, idx, upstream):
    "The same from PyTorch: nn.Embedding's rows and gradient, and the one-hot matrix."
    rows, grad = F.embedding(idx, table), gradient(LOOKUPS["Embedding"], table, idx, upstream)
    hot = F.one_hot(idx, len(table))
    forward = [("table", table), ("table[idx]", rows)]
    backward = [("gradient", grad), ("upstream", upstream)]
    products = [("one_hot(idx)", hot), *forward], [("one_hot(idx).T", hot.T), *backward[::-1]]
    return [*forward, *products[0], *backward, *products[1]]


def check(table, idx, upstream):
    ax = plot_gather_scatter(table, idx, upstream)
    drawn, right = blocks(ax), expected(table, idx, upstream)
    assert [name for name, _ in drawn] == [name for name, _ in right]
    for (name, numbers), (_, values) in zip(drawn, right, strict=True):
        assert numbers == [number(value) for value in values.flatten()], name
    assert overlaps(ax) == []
    return ax


def test_the_notebooks_picture_shows_pytorchs_numbers():
    ax = check(TABLE, IDX, UPSTREAM)
    assert dict(blocks(ax))["gradient"] == ["10", "10", "0", "0", "101", "101", "0", "0"]
    assert min(text.get_fontsize() for text in texts(ax)) >= 8
    assert ax.figure.get_figwidth() < 9.5  # a page


@settings(max_examples=6, deadline=None)
@given(cases())
def test_any_numbers_are_drawn_as_pytorch_computes_them(case):
    table, idx, upstream = (t.double() if t.is_floating_point() else t for t in case)
    check(table, idx, upstream)
    plt.close("all")


def test_an_arrow_for_each_lookup_there_and_back():
    ax = plot_gather_scatter(TABLE, IDX, UPSTREAM)
    arrows = [t for t in ax.texts if getattr(t, "arrow_patch", None) is not None]
    ends = [(a.xyann, a.xy) for a in arrows]  # from, to
    assert len(ends) == 6
    assert all(start[0] < end[0] for start, end in ends[:3]) and all(s[0] > e[0] for s, e in ends[3:])
    heights = {t.get_text(): t.get_position()[1] for t in ax.texts if t.get_text().startswith("row ")}
    for i, row in enumerate(IDX.tolist()):
        assert ends[i][0][1] == pytest.approx(heights[f"row {row}"]) == pytest.approx(ends[3 + i][1][1])
    styles = [(a.arrow_patch.get_edgecolor(), str(a.arrow_patch.get_linestyle())) for a in arrows]
    assert styles[0] == styles[2] == styles[3] and styles[0] != styles[1]


def test_rows_are_told_apart_in_grey():
    ax = plot_gather_scatter(TABLE, IDX, UPSTREAM)
    shades = {
        round(float(a * np.dot(rgb, (0.299, 0.587, 0.114)) + 1 - a), 3)
        for *rgb, a in (patch.get_facecolor() for patch in ax.patches)
    }
    assert len(shades) == 3 and np.diff(sorted(shades)).min() > 0.05  # white, and the two rows asked for


def test_parameters_lists_and_eight_different_rows_will_do():
    weight = torch.nn.Parameter(TABLE.clone())
    ax = plot_gather_scatter(weight, IDX.tolist(), UPSTREAM.numpy())
    assert blocks(ax) == blocks(plot_gather_scatter(TABLE, IDX, UPSTREAM))
    assert weight.grad is None and torch.equal(weight, TABLE)
    check(torch.arange(8.0)[:, None], torch.arange(8).flip(0), torch.ones(8, 1))


@pytest.mark.parametrize("idx", [[2, 0], [2, 0, 4], [2.0, 0, 1]])
def test_what_cannot_be_drawn_is_refused(idx):
    with pytest.raises((ValueError, IndexError)):
        plot_gather_scatter(TABLE, idx, UPSTREAM)
    assert not plt.get_fignums()


def test_nothing_is_cut_and_no_setting_changes(tmp_path):
    before = dict(mpl.rcParams)
    save_figure(plot_gather_scatter(TABLE, IDX, UPSTREAM), tmp_path / "a.png", dpi=80)
    assert dict(mpl.rcParams) == before
    pixels = imread(tmp_path / "a.png")[..., :3]
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (edge == 1).all()
