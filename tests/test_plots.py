"""Figures: nothing overlaps or is cut, the data shown is the data given, and none of it changes."""

from dataclasses import replace
from itertools import combinations
from unicodedata import east_asian_width

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from matplotlib.text import Text
from test_interpret import made

mpl.use("Agg")
import matplotlib.pyplot as plt

from collab_repro import Learned, looks
from collab_repro.chapter import published
from collab_repro.command import folder, report
from collab_repro.command.folder import save_figure
from collab_repro.curves import difference
from collab_repro.looks import LOOKS, short_title
from collab_repro.plots import plot_bias, plot_curves, plot_difference, plot_factors

rng = np.random.default_rng(0)
RC = dict(mpl.rcParams)  # before any figure


def curves(n_seeds=4, models=("DotProductBias", "DotProductBiasParams")) -> pd.DataFrame:
    rng = np.random.default_rng(n_seeds)
    rows = [(model, seed, epoch) for model in models for seed in range(n_seeds) for epoch in range(5)]
    frame = pd.DataFrame(rows, columns=["model", "seed", "epoch"])
    noise = rng.normal(0, 0.005, (2, len(frame)))
    losses = {
        "train_loss": 0.95 - 0.11 * frame.epoch + noise[0],
        "valid_loss": 0.95 - 0.03 * frame.epoch + noise[1],
    }
    return frame.assign(data="made up", **losses, seconds=1.0)


def titles(n: int, long=False) -> pd.Index:
    return pd.Index(
        [f"Film of {'quite a few words and ' * long}{i} (19{50 + i % 50})" for i in range(n)], name="title"
    )


def map_of(n=60, scale=1.0, seed=0, long=False) -> pd.DataFrame:
    pca = pd.DataFrame(scale * np.random.default_rng(seed).normal(size=(n, 3)), titles(n, long))
    pca.attrs = {"explained_variance": [0.25, 0.125, 0.0625], "source": "made up"}
    return pca


BIAS = pd.Series(np.linspace(-0.5, 0.6, 40), titles(40), name="bias")
TABLE = pd.DataFrame(
    {"mean": BIAS, "low": BIAS - 0.1, "high": BIAS + 0.2, "best_rank": range(40, 0, -1), "worst_rank": 40}
)
FIGURES = {
    "curves": (plot_curves, curves(), published(4, 5)),
    "difference": (plot_difference, curves()),
    "bias": (plot_bias, BIAS),
    "bias_table": (plot_bias, TABLE),
    "factors": (plot_factors, map_of(), 0, 2),
}


def drawn(ax) -> mpl.figure.Figure:
    figure = np.ravel(ax)[0].figure
    figure.draw_without_rendering()
    return figure


def texts(ax) -> list[Text]:
    """All texts of the figure that can be seen; ticks outside an axis' range exist but are never drawn."""
    figure, unseen = drawn(ax), set()
    for one in figure.axes:
        for axis, place in ((one.xaxis, 0), (one.yaxis, 1)):
            low, high = sorted(axis.get_view_interval())
            for label in [*axis.get_ticklabels(), *axis.get_ticklabels(minor=True)]:
                if not (one.get_visible() and low <= label.get_position()[place] <= high):
                    unseen.add(label)
    return [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip() and t not in unseen]


def overlaps(ax) -> list[tuple[str, str]]:
    boxes = [(t.get_text(), Text.get_window_extent(t)) for t in texts(ax)]
    return [
        (a, b)
        for (a, one), (b, other) in combinations(boxes, 2)
        if min(one.x1, other.x1) - max(one.x0, other.x0) > 0.5
        and min(one.y1, other.y1) - max(one.y0, other.y0) > 0.5
    ]


def state(one):
    """What a figure could change in its input."""
    if isinstance(one, pd.DataFrame | pd.Series):
        return one.to_csv(), str(one.attrs)
    return {name: array.tolist() for name, array in one.items()} if isinstance(one, dict) else one


def check_figure(plot, data, folder, panels=(1, 1), words=()):
    """Two figures are one PNG with white edges, a third is drawn on given axes; nothing else changes."""
    before = [state(one) for one in data]
    for file in ("a.png", "b.png"):
        plt.close("all")
        ax = plot(*data)
        assert all(isinstance(one, mpl.axes.Axes) for one in np.ravel(ax)) and len(plt.get_fignums()) == 1
        save_figure(ax, folder / file, dpi=80)
    assert sorted(file.name for file in folder.iterdir()) == ["a.png", "b.png"]
    content = (folder / "a.png").read_bytes()
    assert content == (folder / "b.png").read_bytes()
    assert b"tEXt" not in content and b"tIME" not in content
    pixels = imread(folder / "a.png")[..., :3]
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (edge == 1).all(), "something is cut at the edge"

    assert overlaps(ax) == []
    assert min(text.get_fontsize() for text in texts(ax)) >= 6.5
    inside = drawn(ax).canvas.figure.bbox.padded(1)
    assert all(
        inside.containsx(x) and inside.containsy(y)
        for text in texts(ax)
        for x, y in Text.get_window_extent(text).corners()
    ), "cut where it is shown"
    shown = [text.get_text() for text in texts(ax)]
    assert not any("$" in text and "math" not in text for text in shown)
    assert all(any(word in text for text in shown) for word in words), "the data's origin is not shown"

    plt.close("all")
    figure, axes = plt.subplots(*panels, figsize=(14, 9), squeeze=panels == (1, 1))
    assert plot(*data, ax=axes, source="drawn from planets") is axes
    assert len(figure.axes) == np.size(axes) and len(plt.get_fignums()) == 1
    assert any("drawn from planets" in text.get_text() for text in texts(axes))
    assert [state(one) for one in data] == before and dict(mpl.rcParams) == RC


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_whole_legible_repeatable_and_leaves_all_else_alone(name, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a figure shows itself"))
    plot, *data = FIGURES[name]
    words = ["made up"] if name in ("curves", "difference", "factors") else []
    words += ["4 seeds"] if name in ("curves", "difference") else []
    check_figure(plot, data, tmp_path, (1, 2) if name == "curves" else (1, 1), words)


def test_save_figure_keeps_the_old_file_when_it_fails(tmp_path, monkeypatch):
    (tmp_path / "a.png").write_bytes(b"old")
    with pytest.raises(TypeError):
        save_figure(plot_bias(BIAS), tmp_path / "a.png", dpi="many")
    assert (tmp_path / "a.png").read_bytes() == b"old"
    with pytest.raises(FileNotFoundError):
        save_figure(plot_bias(BIAS), tmp_path / "none" / "a.png")
    monkeypatch.setattr(type(tmp_path), "replace", lambda *_: (_ for _ in ()).throw(OSError("full")))
    with pytest.raises(OSError, match="full"):
        save_figure(plot_bias(BIAS), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


# What the figures show


def lines(ax, width: float) -> list[np.ndarray]:
    return [
        line.get_ydata()
        for line in ax.get_lines()
        if line.get_linewidth() == width and len(line.get_xdata()) > 1
    ]


def test_curves_show_seeds_means_and_book():
    data = curves(3)
    axes = plot_curves(data, published(4, 5))
    for ax, loss in zip(axes, ("train_loss", "valid_loss"), strict=True):
        means = [data[data.model == m].groupby("epoch")[loss].mean() for m in data.model.unique()]
        assert np.allclose(lines(ax, 2), means)
        assert len(lines(ax, 0.8)) == 6
        hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
        book = [published(run)[loss].tolist() for run in (4, 5)]
        assert [line.get_ydata().tolist() for line in hollow] == book
        colours = [LOOKS[model][0] for model in data.model.unique()]
        thick = [line for line in ax.get_lines() if line.get_linewidth() == 2]
        assert [line.get_color() for line in thick] == [line.get_color() for line in hollow] == colours
        assert (
            len({line.get_marker() for line in thick}) == len({line.get_linestyle() for line in thick}) == 2
        )
        assert {line.get_color() for line in ax.get_lines()} == {*colours}
    assert all(
        text.get_color() == LOOKS[text.get_text().split()[1]][0]
        for text in axes[1].texts
        if "Dot" in text.get_text()
    )
    words = [text.get_text() for text in texts(axes)]
    ends = {model: rows.loc[rows.epoch == 4, "valid_loss"].mean() for model, rows in data.groupby("model")}
    assert any(f"DotProductBiasParams {ends['DotProductBiasParams']:.3f}" in word for word in words)
    assert {"training MSE (smoothed)", "validation MSE", "epoch"} <= set(words)
    assert sum("book" in word for word in words) == 2


def test_curves_on_one_axes_are_those_of_validation():
    data = curves(2)
    _, ax = plt.subplots()
    assert plot_curves(data, ax=ax) is ax
    assert np.allclose(
        lines(ax, 2)[0], data[data.model == "DotProductBias"].groupby("epoch").valid_loss.mean()
    )
    assert not any("book" in text.get_text() for text in texts(ax))


def test_every_known_model_looks_different_without_colour():
    assert len({(str(line), marker) for _, line, marker, _ in LOOKS.values()}) == len(LOOKS)
    assert len({str(line) for _, line, *_ in LOOKS.values()}) == len(LOOKS)
    names = [*LOOKS, "SomethingElse"]
    ax = plot_curves(curves(2, names))[1]
    assert overlaps(ax) == []
    assert len({line.get_color() for line in ax.get_lines() if line.get_linewidth() == 2}) == len(names)


def test_difference_shows_what_compare_computes():
    data = curves(5)
    ax = plot_difference(data)
    expected = difference(data)
    assert np.allclose(lines(ax, 2)[0], expected["mean"])
    seeds = data.pivot(index="epoch", columns=["model", "seed"], values="valid_loss")
    thin = (seeds["DotProductBiasParams"] - seeds["DotProductBias"]).T.to_numpy()
    assert np.allclose(lines(ax, 0.9), thin)
    low, high = ax.collections[0].get_datalim(ax.transData).intervaly
    assert np.isclose(low, expected.low.min()) and np.isclose(high, expected.high.max())
    assert ax.get_ylim()[0] < 0 < ax.get_ylim()[1] and any(not np.any(line) for line in lines(ax, 0.8))
    assert "DotProductBiasParams − DotProductBias" in ax.get_ylabel()
    assert f"mean {expected['mean'].iloc[-1]:+.4f}".replace("-", "−") in [t.get_text() for t in texts(ax)]


def test_difference_of_one_seed_has_no_interval():
    ax = plot_difference(curves(1), loss="train_loss")
    assert not any("interval" in text.get_text() for text in texts(ax)) and "training" in ax.get_ylabel()


def test_identical_models_differ_by_nothing():
    data = curves(3)
    twin = data[data.model == "DotProductBias"].assign(model="DotProductBiasParams")
    ax = plot_difference(pd.concat([data[data.model == "DotProductBias"], twin]))
    assert not lines(ax, 2)[0].any() and overlaps(ax) == []


@pytest.mark.parametrize("bias", [BIAS, TABLE], ids=["series", "table"])
def test_bias_shows_both_ends_highest_on_top(bias):
    ax = plot_bias(bias.sample(frac=1, random_state=1), n=4)
    named = [label.get_text() for label in ax.get_yticklabels()]
    assert named == list(BIAS.index[:4]) + list(BIAS.index[-4:])
    assert (np.diff(ax.get_yticks()) > 0).all() and ax.get_yticks()[4] - ax.get_yticks()[3] == 2
    assert np.allclose(ax.get_lines()[0].get_xdata(), [*BIAS[:4], *BIAS[-4:]])
    if bias is TABLE:
        ends = np.array([segment[:, 0] for segment in ax.collections[0].get_segments()])
        assert np.allclose(ends[:, 0], TABLE.low[named]) and np.allclose(ends[:, 1], TABLE.high[named])
        words = [text.get_text() for text in texts(ax)]
        assert "40" in words and "1 to 40" in words


def test_bias_of_few_titles_shows_each_once():
    ax = plot_bias(BIAS.head(5), n=4)
    assert [label.get_text() for label in ax.get_yticklabels()] == list(BIAS.index[:5])


@pytest.mark.parametrize("long", [False, True])
@settings(max_examples=5, deadline=None)
@given(scale=st.sampled_from([1e-6, 1, 1e4]), seed=st.integers(0, 999))
def test_no_labels_of_the_map_overlap_or_leave_it(long, scale, seed):
    pca = map_of(70, scale, seed, long)
    ax = plot_factors(pca, 0, 2)
    assert overlaps(ax) == []
    labels = [text for text in ax.texts if text.get_text() not in ("", "made up")]
    assert len(labels) == 50  # none had to be left out
    for text in labels:
        box = Text.get_window_extent(text)
        assert ax.bbox.x0 <= box.x0 and box.x1 <= ax.bbox.x1 and ax.bbox.y0 <= box.y0 and box.y1 <= ax.bbox.y1
        points = ax.transData.transform(pca.head(50)[[0, 2]].to_numpy())
        assert not ((points > box.min) & (points < box.max)).all(axis=1).any()
    plt.close("all")


def test_map_shows_the_components_asked_for():
    pca = map_of(30)
    ax = plot_factors(pca, 1, 0, n=10)
    assert np.array_equal(ax.get_lines()[0].get_xdata(), pca[1].head(10))
    assert np.array_equal(ax.get_lines()[0].get_ydata(), pca[0].head(10))
    assert ax.get_xlabel() == "component 1 (12% of the variance)"
    assert "Film of 3" in [text.get_text() for text in ax.texts]


def test_map_without_room_leaves_labels_out_rather_than_on_each_other():
    ax = plot_factors(map_of(60), ax=plt.subplots(figsize=(3, 2))[1])
    assert overlaps(ax) == [] and 5 < len(ax.texts) < 50


def test_labels_far_from_their_point_are_tied_to_it():
    crowd = pd.DataFrame(np.random.default_rng(1).normal(0, 1e-4, (25, 3)), titles(25))
    crowd.iloc[0] = 1
    ax = plot_factors(crowd)
    ties = lines(ax, 0.5)
    assert len(ties) > 5 and overlaps(ax) == []
    starts = [tuple(line.get_xydata()[0]) for line in ax.get_lines() if line.get_linewidth() == 0.5]
    points = {tuple(np.round(point, 9)) for point in crowd[[0, 2]].to_numpy()}
    assert all(tuple(np.round(start, 9)) in points for start in starts)
    low, high = crowd[0].min(), crowd[0].max()
    assert np.allclose(ax.get_xlim(), np.array([low, high]) + 0.1 * (high - low) * np.array([-1, 1]))
    assert all(line.get_zorder() < ax.get_lines()[0].get_zorder() for line in ax.get_lines()[1:])


def test_dollars_and_marks_in_titles_are_text():
    index = pd.Index(["$9.99 or 10$ (1990)", "a_b^c $x_1$ (1991)", "Été, L' (1992)", "% & # { (1993)"])
    assert overlaps(plot_factors(pd.DataFrame(rng.normal(size=(4, 3)), index))) == []
    for ax in (
        plot_factors(pd.DataFrame(rng.normal(size=(4, 3)), index)),
        plot_bias(pd.Series([1.0, 2, 3, 4], index)),
    ):
        dollars = [t for t in texts(ax) if "$" in t.get_text()]
        assert dollars and not any(t.get_parse_math() for t in dollars)


def test_short_titles():
    for title, (width, year), short in [
        ("Silence of the Lambs, The (1991)", (40, True), "The Silence of the Lambs (1991)"),
        ("Silence of the Lambs, The (1991)", (40, False), "The Silence of the Lambs"),
        ("Seventh Seal, The (Sjunde inseglet, Det) (1957)", (40, True), "The Seventh Seal (1957)"),
        ("Avventura, L' (1960)", (40, True), "L'Avventura (1960)"),
        ("Indiana Jones and the Last Crusade (1989)", (25, True), "Indiana Jones and… (1989)"),
        ("Indiana Jones and the Last Crusade (1989)", (25, False), "Indiana Jones and the…"),
        ("Supercalifragilistic (1989)", (10, False), "Supercali…"),
        ("Just fits (1989)", (16, True), "Just fits (1989)"),
        ("Good, The Bad", (40, True), "Good, The Bad"),
        ("unknown", (40, True), "unknown"),
        ("(1999)", (40, True), "(1999)"),
        ("two\nlines (1990)", (40, True), "two lines (1990)"),
        (7, (40, True), "7"),
    ]:
        assert short_title(title, width, year) == short, title


@given(st.text(), st.integers(10, 50), st.booleans())
def test_short_titles_are_short(title, width, year):
    assert len(short_title(title, width, year)) <= width


@pytest.mark.parametrize("width", [48, 32])
def test_labels_of_titles_alike_differ(width):
    long = "A very long title that goes on and on until it is over, part "
    titles = [long + "one", long + "two", "Hamlet (1990)", "Hamlet (1996)", "x", "x "]
    titles += ["七人の侍" * 20 + "一", "七人の侍" * 20]
    labels = looks.short_titles(pd.Index(titles), width, year=False)
    assert len(set(labels)) == len(titles)
    assert labels[0].endswith("part one") and labels[1].endswith("part two")
    assert labels[2:4] == ["Hamlet (1990)", "Hamlet (1996)"]
    wide = [sum(1 + (east_asian_width(letter) == "W") for letter in label) for label in labels]
    assert max(wide) <= width + 4


def test_a_point_without_a_place_takes_no_label_but_its_own():
    _, ax = plt.subplots(dpi=200)
    ax.set(xlim=(-1, 4), ylim=(-1, 4))
    looks.label_points(ax, [0, np.nan, 2, 3], [0, 1, 2, np.inf], list("abcd"))
    assert [text.get_text() for text in ax.texts] == ["a", "c"]
    gaps = [Text.get_window_extent(text).x0 - ax.transData.transform(text.xy)[0] for text in ax.texts]
    assert np.allclose(gaps, 6 * 200 / 72, atol=1)  # six points to the right, at any resolution


def test_the_book_is_drawn_beside_its_own_ratings_alone(tmp_path, monkeypatch):
    books = []
    drawn = lambda curves, book: books.append(book) or plot_curves(curves, book)  # noqa: E731
    monkeypatch.setattr(folder.plots, "plot_curves", drawn)
    monkeypatch.setattr(folder, "usable_cores", lambda: 1)  # a process of its own would keep the list
    for data in ("ml-100k", "mine"):
        curves(1).assign(data=data)[folder.CURVES].to_csv(tmp_path / "curves.csv", index=False)
        folder.draw(tmp_path)
    assert set(books[0]["run"]) == {4, 5} and books[1] is None


def test_letters_that_no_font_has_are_a_note(tmp_path, capsys):
    made(np.random.default_rng(0).normal(size=(3, 4)), bias=np.arange(3.0)).save(tmp_path / "learned-A.npz")
    learned = Learned.load(tmp_path / "learned-A.npz")
    replace(learned, titles=["#na#", "\U0001faf8", "a|b", "b\nc"]).save(tmp_path / "learned-A.npz")
    with pytest.warns(UserWarning, match="drawn as boxes") as said:
        folder.draw(tmp_path)
    assert len(said) == 1 and (tmp_path / "bias-A.png").exists()


def test_a_report_keeps_its_cells_and_lines():
    text = report.table(["a|b", "n"], [("x | y", 1), ("line\nbreak", 2), ("z" * 10**6, 3)])
    lines = text.splitlines()
    assert len(lines) == 5 and len({len(line) for line in lines}) == 1 and len(lines[0]) < 150
    assert r"x \| y" in text and "line break" in text and r"a\|b" in lines[0]
    assert len(report.one_line("z" * 999)) == 80
    biases = report._biases("M", made(np.zeros((8, 2)), bias=range(8))).splitlines()[2:]
    assert [line.replace("|", "").split() for line in biases] == [
        [*f"{low} +{n}.00".split(), *f"{high} +{7 - n}.00".split()]
        for n, (low, high) in enumerate(zip("ABCDE", "HGFED", strict=True))
    ]
