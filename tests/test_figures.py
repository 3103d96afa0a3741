"""The figures of the evidence: the same checks as in test_plots, and the data shown is the data given."""

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from matplotlib.image import imread
from test_plots import BIAS, check_figure, drawn, lines, texts, titles

mpl.use("Agg")
import matplotlib.pyplot as plt

from collab_repro.chapter import published
from collab_repro.command.folder import save_figure
from collab_repro.evidence.diagnosis import LOADERS, spread
from collab_repro.evidence.figures import (
    plot_bias_vs_mean,
    plot_chapter,
    plot_cost,
    plot_neighbours,
    plot_over_band,
)
from collab_repro.looks import LOOKS

rng = np.random.default_rng(0)
MEAN = pd.Series(3 + BIAS + rng.normal(0, 0.2, 40), BIAS.index)
NEAR = pd.DataFrame({"cosine": [0.9, 0.8, 0.1], "n_ratings": [1234, 5, 60]}, titles(3))
BOOK = published()
CHAPTER = pd.concat(
    [BOOK.assign(split=s, valid_loss=BOOK.valid_loss + s / 100, data="made up") for s in range(4)]
)
BENCH = pd.DataFrame(
    [
        (way, n, n**0.5 * f * t)
        for f, way in enumerate(("nn.Embedding", "p[i]", "one-hot"), 1)
        for n in (10, 100, 1000)
        for t in (1, 2, 9)
    ],
    columns=["way", "rows", "us"],
).assign(data="made up")
FIGURES = {
    "neighbours": (plot_neighbours, NEAR, "Film, The (1950)"),
    "bias_vs_mean": (plot_bias_vs_mean, BIAS, MEAN, pd.Series(range(1, 41), BIAS.index)),
    "chapter": (plot_chapter, CHAPTER, BOOK),
    "cost": (plot_cost, BENCH, "rows", "us", "way"),
    "over_band": (plot_over_band, BOOK[BOOK["run"] == 7], 7),
}


SHAPES = {"chapter": (2, 4), "over_band": (1, 2)}


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_legible_repeatable_and_leaves_all_else_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a figure shows itself"))
    plot, *data = FIGURES[name]
    words = {"chapter": ["made up", "4 splits"], "cost": ["made up"]}.get(name, [])
    check_figure(plot, data, tmp_path, SHAPES.get(name, (1, 1)), words)


def test_nothing_is_cut_on_axes_that_leave_no_room(tmp_path):
    save_figure(plot_cost(BENCH, "rows", "us", "way", ax=plt.subplots(figsize=(4, 3))[1]), tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")[..., :3]
    assert (pixels[:, -2:] == 1).all() and pixels.shape[1] > 4 * 150


def test_neighbours_stand_nearest_on_top():
    ax = plot_neighbours(NEAR, "Film, The (1950)")
    heights = {label.get_text(): label.get_window_extent().y0 for label in ax.get_yticklabels() if drawn(ax)}
    assert sorted(heights, key=heights.get, reverse=True) == list(NEAR.index)
    assert np.array_equal(ax.get_lines()[0].get_xdata(), NEAR["cosine"])
    assert ax.get_xlabel() == "cosine similarity to The Film (1950)"
    assert "1,234 ratings" in [text.get_text() for text in ax.texts]
    assert plot_neighbours(NEAR.rename(columns={"cosine": "euclidean"})).get_xlabel() == "Euclidean distance"
    assert plot_neighbours(NEAR.assign(cosine=[0.5, 0.1, -0.4])).get_xlim()[0] == -0.4


def test_bias_against_mean_labels_the_farthest_on_both_sides():
    mean = pd.Series(np.linspace(1, 5, 40), BIAS.index)
    bias = (mean - 3) / 10
    bias.iloc[[3, 30]] += [0.2, -0.2]
    bias.iloc[[10, 11]] += [0.1, -0.1]
    counts = pd.Series(1, BIAS.index)
    ax = plot_bias_vs_mean(bias, mean, counts, n=2)
    assert {text.get_text() for text in ax.texts} - {""} == set(BIAS.index[[3, 30]])
    counts.iloc[[10, 11]], counts.iloc[5] = 30, 0
    ax = plot_bias_vs_mean(bias, mean, counts, n=2)
    assert {text.get_text() for text in ax.texts} - {""} == set(BIAS.index[[10, 11]])
    assert len(ax.collections[0].get_offsets()) == 39  # one was never rated
    assert len(plot_bias_vs_mean(bias.head(4), mean, counts, n=9).texts) == 5  # all four, and the foot


def test_chapter_shows_every_run_with_the_book_on_it():
    axes = plot_chapter(CHAPTER, BOOK)
    assert axes.shape == (2, 4)
    for ax, (run, book) in zip(axes.flat, BOOK.groupby("run"), strict=True):
        assert ax.get_title("left").replace("\n", " ") == f"{run}. {book['name'].iloc[0]}"
        mean = CHAPTER[CHAPTER.run == run].groupby("epoch")[["train_loss", "valid_loss"]].mean().T
        assert np.allclose(lines(ax, 2), mean) and len(lines(ax, 0.8)) == 8
        hollow = [line.get_ydata() for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
        assert np.allclose(hollow, book[["train_loss", "valid_loss"]].T)
        last = book.valid_loss.iloc[-1]
        assert f"{last + 0.015:.3f} ± 0.013, book {last:.3f}" in ax.texts[0].get_text()
    labels = [(ax.get_ylabel(), ax.get_xlabel()) for ax in axes.flat]
    assert labels == [("MSE", ""), *[("", "")] * 3, ("MSE", "epoch"), *[("", "epoch")] * 3]
    assert drawn(axes) and min(ax.bbox.height / ax.figure.dpi for ax in axes.flat) > 1.5  # inches
    hidden = plot_chapter(CHAPTER, published(3, 4, 5, 6, 7))
    assert [ax.get_visible() for ax in hidden.flat] == [True] * 5 + [False] * 3


def test_losses_lie_over_the_bands_of_both_loaders():
    book, (means, covariance) = BOOK[BOOK["run"] == 7], spread()
    axes, sd = plot_over_band(book, 7), np.sqrt(np.diag(covariance)).reshape(2, 5)
    for which, ax in enumerate(axes):
        assert np.allclose(lines(ax, 1.8)[0], book.iloc[:, 4 + which]), "the losses given"
        assert [bool(band.get_hatch()) for band in ax.collections] == [False, True]
        for way, band in enumerate(ax.collections):
            mean = means.loc[(7, way)].to_numpy().reshape(2, 5)[which]
            ends = (mean - 2 * sd[which]).min(), (mean + 2 * sd[which]).max()
            assert np.allclose(band.get_datalim(ax.transData).intervaly, ends)
            assert (f"{LOADERS[way]} {mean[-1]:.3f}" in {text.get_text() for text in ax.texts}) == which
        hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
        assert [line.get_color() for line in hollow] == [LOOKS["CollabNN"][0]]
        assert np.allclose(hollow[0].get_ydata(), book.iloc[:, 4 + which])


def test_cost_goes_through_medians_on_log_scales():
    ax = plot_cost(BENCH, "rows", "us", "way", xlabel="rows of the table", ylabel="time (µs)")
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert np.allclose(lines(ax, 1.8)[1], 2 * 2 * np.sqrt([10, 100, 1000]))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rows of the table", "time (µs)")
    named = {text.get_text()[2:] for text in ax.texts}
    assert {"nn.Embedding", "p[i]", "one-hot"} <= named
    models = plot_cost(BENCH.replace({"way": {"p[i]": "CollabNN"}}), "rows", "us", "way")
    assert LOOKS["CollabNN"][0] in {line.get_color() for line in models.get_lines()}


def test_dollars_in_titles_are_text():
    index = ["$9.99 or 10$ (1990)", "a_b^c $x_1$ (1991)", "Film"]
    ax = plot_neighbours(NEAR.set_index(pd.Index(index)), index[0])
    dollars = [t for t in texts(ax) if "$" in t.get_text()]
    assert len(dollars) == 3 and not any(t.get_parse_math() for t in dollars)
