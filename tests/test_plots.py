"""Figures: nothing overlaps or is cut, the data shown is the data given, and none of it changes."""

from itertools import combinations

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.image import imread
from matplotlib.text import Text

mpl.use("Agg")
import matplotlib.pyplot as plt

from collab_repro import plots
from collab_repro.chapter import published
from collab_repro.compare import difference
from collab_repro.plots import (
    LOOKS,
    plot_bias,
    plot_bias_vs_mean,
    plot_chapter,
    plot_cost,
    plot_curves,
    plot_difference,
    plot_factors,
    plot_initial,
    plot_neighbours,
    save_figure,
    short_title,
)

rng = np.random.default_rng(0)
RC = dict(mpl.rcParams)  # before any figure


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


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
INITIAL = {"DotProductBias": rng.normal(0, 0.0087, (99, 5)), "DotProductBiasParams": rng.normal(0, 0.01, 500)}
FIGURES = {
    "curves": (plot_curves, curves(), published(4, 5)),
    "difference": (plot_difference, curves()),
    "bias": (plot_bias, BIAS),
    "bias_table": (plot_bias, TABLE),
    "factors": (plot_factors, map_of(), 0, 2),
    "neighbours": (plot_neighbours, NEAR, "Film, The (1950)"),
    "bias_vs_mean": (plot_bias_vs_mean, BIAS, MEAN, pd.Series(range(1, 41), BIAS.index)),
    "chapter": (plot_chapter, CHAPTER, BOOK),
    "cost": (plot_cost, BENCH, "rows", "us", "way"),
    "initial": (plot_initial, INITIAL),
}


def drawn(ax) -> mpl.figure.Figure:
    figure = np.ravel(ax)[0].figure
    figure.draw_without_rendering()
    return figure


def texts(ax) -> list[Text]:
    "All texts of the figure that can be seen; ticks outside an axis' range exist but are never drawn."
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


@pytest.mark.parametrize("name", FIGURES)
def test_no_text_lies_on_another_and_none_is_tiny(name):
    plot, *data = FIGURES[name]
    ax = plot(*data)
    assert overlaps(ax) == []
    assert min(text.get_fontsize() for text in texts(ax)) >= 6.5
    assert not any("$" in text.get_text() and "math" not in text.get_text() for text in texts(ax))


@pytest.mark.parametrize("name", FIGURES)
def test_the_origin_of_the_data_stands_in_the_figure(name):
    plot, *data = FIGURES[name]
    given = [text.get_text() for text in texts(plot(*data, source="drawn from planets"))]
    assert any("drawn from planets" in text for text in given)
    if name in ("curves", "difference", "factors", "chapter", "cost"):  # the data says it itself
        assert any("made up" in text.get_text() for text in texts(plot(*data)))
    if name in ("curves", "difference", "chapter"):
        repeats = "4 splits" if name == "chapter" else "4 seeds"
        assert any(repeats in text.get_text() for text in texts(plot(*data)))


def copies(data) -> list:
    return [
        {k: v.copy() for k, v in one.items()}
        if isinstance(one, dict)
        else getattr(one, "copy", lambda one=one: one)()
        for one in data
    ]


def unchanged(one, before) -> bool:
    if isinstance(one, dict):
        return one.keys() == before.keys() and all(np.array_equal(one[k], before[k]) for k in one)
    if isinstance(one, pd.DataFrame | pd.Series):
        names = (one.name == before.name) if isinstance(one, pd.Series) else list(one) == list(before)
        return one.equals(before) and names and one.attrs == before.attrs and one.index.equals(before.index)
    return one == before


@pytest.mark.parametrize("name", FIGURES)
def test_neither_input_nor_global_settings_change(name, monkeypatch):
    monkeypatch.setattr(plt, "show", lambda *_: pytest.fail("a figure shows itself"))
    plot, *data = FIGURES[name]
    before = copies(data)
    ax = plot(*data)
    assert all(map(unchanged, data, before))
    assert dict(mpl.rcParams) == RC
    assert len(plt.get_fignums()) == 1
    assert all(isinstance(one, mpl.axes.Axes) for one in np.ravel(ax))


@pytest.mark.parametrize("name", FIGURES)
def test_it_draws_on_the_axes_it_is_given(name):
    plot, *data = FIGURES[name]
    shape = {"curves": (1, 2), "chapter": (2, 4)}.get(name, (1, 1))
    figure, axes = plt.subplots(*shape, figsize=(14, 9), squeeze=shape == (1, 1))
    assert plot(*data, ax=axes) is axes
    assert len(figure.axes) == np.size(axes) and len(plt.get_fignums()) == 1
    drawn(axes)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_is_one_png_to_the_byte(name, tmp_path):
    plot, *data = FIGURES[name]
    for file in ("a.png", "b.png"):
        save_figure(plot(*data), tmp_path / file, dpi=60)
        plt.close("all")
    content = (tmp_path / "a.png").read_bytes()
    assert content == (tmp_path / "b.png").read_bytes()
    assert b"tEXt" not in content and b"tIME" not in content
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.png", "b.png"]


@pytest.mark.parametrize("name", FIGURES)
def test_nothing_is_cut_at_the_edge(name, tmp_path):
    plot, *data = FIGURES[name]
    save_figure(plot(*data), tmp_path / "a.png", dpi=80)
    pixels = imread(tmp_path / "a.png")[..., :3]
    for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]):
        assert (edge == 1).all()  # white all round


def test_nothing_is_cut_on_axes_that_leave_no_room(tmp_path):
    save_figure(plot_cost(BENCH, "rows", "us", "way", ax=plt.subplots(figsize=(4, 3))[1]), tmp_path / "a.png")
    pixels = imread(tmp_path / "a.png")[..., :3]
    assert (pixels[:, -2:] == 1).all() and pixels.shape[1] > 4 * 150


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
        assert len(lines(ax, 0.6)) == 6
        hollow = [line for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
        book = [published(run)[loss].tolist() for run in (4, 5)]
        assert [line.get_ydata().tolist() for line in hollow] == book
        looks = {
            (line.get_color(), line.get_marker(), line.get_linestyle())
            for line in ax.get_lines()
            if line.get_linewidth() == 2
        }
        assert len(looks) == 2
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
    assert np.allclose(lines(ax, 0.6), thin)
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
    ax = plot_bias_vs_mean(bias, mean, n=2)
    assert {text.get_text() for text in ax.texts} - {""} == set(BIAS.index[[3, 30]])
    counts = pd.Series(1, BIAS.index)
    counts.iloc[[10, 11]], counts.iloc[5] = 30, 0
    ax = plot_bias_vs_mean(bias, mean, counts, n=2)
    assert {text.get_text() for text in ax.texts} - {""} == set(BIAS.index[[10, 11]])
    assert len(ax.collections[0].get_offsets()) == 39  # one was never rated
    assert len(plot_bias_vs_mean(bias.head(4), mean, n=9).texts) == 5  # all four, and the foot


def test_chapter_shows_every_run_with_the_book_on_it():
    axes = plot_chapter(CHAPTER, BOOK)
    assert axes.shape == (2, 4)
    for ax, (run, book) in zip(axes.flat, BOOK.groupby("run"), strict=True):
        assert ax.get_title("left").replace("\n", " ") == f"{run}. {book['name'].iloc[0]}"
        mean = CHAPTER[CHAPTER.run == run].groupby("epoch")[["train_loss", "valid_loss"]].mean().T
        assert np.allclose(lines(ax, 2), mean) and len(lines(ax, 0.6)) == 8
        hollow = [line.get_ydata() for line in ax.get_lines() if line.get_markerfacecolor() == "none"]
        assert np.allclose(hollow, book[["train_loss", "valid_loss"]].T)
        last = book.valid_loss.iloc[-1]
        assert f"{last + 0.015:.3f} ± 0.013, book {last:.3f}" in ax.texts[0].get_text()
    hidden = plot_chapter(CHAPTER, published(3, 4, 5, 6, 7))
    assert [ax.get_visible() for ax in hidden.flat] == [True] * 5 + [False] * 3


def test_cost_goes_through_medians_on_log_scales():
    ax = plot_cost(BENCH, "rows", "us", "way", xlabel="rows of the table", ylabel="time (µs)")
    assert ax.get_xscale() == ax.get_yscale() == "log"
    assert np.allclose(lines(ax, 1.8)[1], 2 * 2 * np.sqrt([10, 100, 1000]))
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("rows of the table", "time (µs)")
    named = {text.get_text()[2:] for text in ax.texts}
    assert {"nn.Embedding", "p[i]", "one-hot"} <= named
    models = plot_cost(BENCH.replace({"way": {"p[i]": "CollabNN"}}), "rows", "us", "way")
    assert LOOKS["CollabNN"][0] in {line.get_color() for line in models.get_lines()}


def test_initial_weights_are_densities_with_their_spread():
    ax = plot_initial(INITIAL)
    for patch, (name, weights) in zip(ax.patches, INITIAL.items(), strict=True):
        outline = patch.get_xy()
        xs, ys = outline[:-1:2, 0], outline[1::2, 1]
        assert np.isclose((np.diff(xs) * ys[: len(xs) - 1]).sum(), 1, atol=1e-6)
        assert f"{name}\nsd {weights.std():.4f}, at most {np.abs(weights).max():.4f}" in [
            t.get_text() for t in ax.texts
        ]


def test_dollars_and_marks_in_titles_are_text():
    index = pd.Index(["$9.99 or 10$ (1990)", "a_b^c $x_1$ (1991)", "Été, L' (1992)", "% & # { (1993)"])
    assert overlaps(plot_factors(pd.DataFrame(rng.normal(size=(4, 3)), index))) == []
    for ax in (
        plot_factors(pd.DataFrame(rng.normal(size=(4, 3)), index)),
        plot_bias(pd.Series([1.0, 2, 3, 4], index)),
        plot_neighbours(NEAR.set_index(index[:3]), index[0]),
    ):
        held = [t for t in texts(ax) if "$" in t.get_text()]
        assert held and not any(t.get_parse_math() for t in held)


def test_short_titles():
    for title, (width, year), short in [
        ("Silence of the Lambs, The (1991)", (40, True), "The Silence of the Lambs (1991)"),
        ("Silence of the Lambs, The (1991)", (40, False), "The Silence of the Lambs"),
        ("Seventh Seal, The (Sjunde inseglet, Det) (1957)", (40, True), "The Seventh Seal (1957)"),
        ("Avventura, L' (1960)", (40, True), "L'Avventura (1960)"),
        ("Indiana Jones and the Last Crusade (1989)", (25, True), "Indiana Jones and… (1989)"),
        ("Indiana Jones and the Last Crusade (1989)", (25, False), "Indiana Jones and the…"),
        ("Supercalifragilistic (1989)", (10, False), "Supercali…"),
        ("Good, The Bad", (40, True), "Good, The Bad"),
        ("unknown", (40, True), "unknown"),
        ("(1999)", (40, True), "(1999)"),
        ("two\nlines (1990)", (40, True), "two\nlines (1990)"),
        (7, (40, True), "7"),
    ]:
        assert short_title(title, width, year) == short, title


@given(st.text(), st.integers(10, 50), st.booleans())
def test_short_titles_are_short(title, width, year):
    assert len(short_title(title, width, year)) <= width


def test_all_is_public():
    assert set(plots.__all__) == {
        "LOOKS",
        "save_figure",
        "short_title",
        *(f.__name__ for f, *_ in FIGURES.values()),
    }
