"""How figures look: the colours of the models, the style, and labels that find a free place.

A model keeps its colour, line and marker in all figures, so that they can be read in grey too.
"""

import re
from collections.abc import Sequence
from unicodedata import east_asian_width

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.patheffects import withStroke
from matplotlib.ticker import MaxNLocator

# Colour (Okabe and Ito's, safe for the colour-blind), line, marker, and that marker in text.
LOOKS = {
    "DotProductBias": ("#0072B2", "-", "o", "●○"),
    "DotProductBiasParams": ("#D55E00", (0, (4, 1.5)), "s", "■□"),
    "EmbeddingDotBias": ("#009E73", "-.", "^", "▲△"),
    "DotProduct": ("#CC79A7", ":", "v", "▼▽"),
    "CollabNN": ("#B8860B", (0, (6, 1, 1, 1)), "D", "◆◇"),
    "EmbeddingNN": ("#56B4E9", (0, (1, 1)), "p", "★☆"),
}
INK, GREY = "0.2", "0.4"  # what belongs to no model
CJK = "Noto Sans CJK JP", "Noto Sans CJK SC", "Source Han Sans", "IPAexGothic", "WenQuanYi Zen Hei"
CJK += "Hiragino Sans", "PingFang SC", "Microsoft YaHei", "Yu Gothic", "Malgun Gothic", "Arial Unicode MS"
INSTALLED = {font.name for font in fontManager.ttflist}
STYLE = {
    "font.family": ["DejaVu Sans", *(name for name in CJK if name in INSTALLED)],  # by letter
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


def one_line(text: object, width: int = 80) -> str:
    """`text` on one line of no more than `width` letters."""
    line = " ".join(str(text)[: 9 * width].split())
    return line if len(line) <= width else line[: width - 1] + "…"


def short_title(title: object, width: int = 40, year: bool = True) -> str:
    """A title for a label: 'Seventh Seal, The (Sjunde inseglet, Det) (1957)' as 'The Seventh Seal (1957)'.

    Without `year` that goes too, and '…' stands for what is over `width` characters, of which a Chinese,
    Japanese or Korean one is two.
    """
    title = " ".join(str(title)[:1000].split())
    width -= sum(east_asian_width(letter) in "WF" for letter in title[: width // 2])
    parts = re.fullmatch(r"(.*?)((?: \([^()]*\))*?)( \(\d{4}\))?", title)
    name, released = parts[1], (parts[3] or "") if year else ""
    if article := re.fullmatch(r"(.+), (The|An?|Les?|La|L'|Das|Der|Die|El|Il)", name):
        name = f"{article[2]} {article[1]}".replace("L' ", "L'")
    if len(name) > (room := max(width - len(released), 2)):
        words = name[:room].rpartition(" ")[0]
        name = (words if len(words) > room // 2 else name[: room - 1]).rstrip(" ,:") + "…"
    return name + released


def short_titles(titles: Sequence[object], width: int = 40, year: bool = True) -> list[str]:
    """`short_title` of each; those that would be alike get the year, their end or a number."""
    short = pd.Series([short_title(title, width, year) for title in titles], dtype=object)
    alike = short.duplicated(keep=False)
    short[alike] = [short_title(title, width) for title in np.asarray(titles, object)[alike]]
    for alike in short[short.duplicated(keep=False)].groupby(short).groups.values():
        half = len(short[alike[0]]) // 2
        ends = ["…" + " ".join(str(titles[n])[-1000:].split())[-half:] for n in alike]
        if len(set(ends)) == len(ends):
            short[alike] = [short[n][:half].rstrip("…") + end for n, end in zip(alike, ends, strict=True)]
        else:
            short[alike] = [f"{short[n]} [{k}]" for k, n in enumerate(alike, start=1)]
    return short.tolist()


def look_of(model: str) -> tuple:
    """A model's colour, line and marker, and its marker as text, filled and hollow."""
    return LOOKS.get(model, ("0.35", (0, (2, 1)), "X", "✖✖"))


def looks_of(names: Sequence[str]) -> dict[str, tuple]:
    """The look of each of `names`: a model's own, or shades from dark to light for other names."""
    others = [name for name in dict.fromkeys(names) if name not in LOOKS]
    if len(others) < 2:
        return LOOKS | {name: look_of(name) for name in others}
    shades = map(mpl.colors.to_hex, mpl.colormaps["viridis"](np.linspace(0, 0.6, len(others))))
    forms = [form for _, *form in LOOKS.values()] * len(others)
    return LOOKS | {name: (shade, *form) for name, shade, form in zip(others, shades, forms, strict=False)}


def about(curves: pd.DataFrame, repeat: str = "") -> str:
    """The data's name, and how many seeds or splits there are."""
    data = one_line(", ".join(map(str, curves["data"].unique()))) if "data" in curves else ""
    n = curves[repeat].nunique() if repeat else 0
    return ", ".join(filter(None, [data, f"{n} {repeat}{'s' * (n != 1)} (thin)" if repeat else ""]))


def foot(ax: Axes, source: str) -> None:
    """`source`, small, under the right end of `ax`."""
    look = {"fontsize": 7.5, "color": GREY, "ha": "right", "va": "top"}
    ax.annotate(one_line(source, 120), (1, 0), (0, -34), xycoords="axes fraction", **look, **OFFSET)


def epochs_axis(ax: Axes, ylabel: str) -> None:
    ax.set_xlabel("epoch")
    ax.set_ylabel("\n".join(one_line(line, 48) for line in ylabel.split("\n")))
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.grid(axis="y", color="0.9")
    ax.set_axisbelow(True)


def root(ax: Axes) -> Figure:
    return ax.figure.canvas.figure  # of a subfigure too


def end_labels(ax: Axes, labels: Sequence[tuple[float, str, str]], lines: int = 1) -> None:
    """Write texts, given as (height, text, colour), to the right of `ax`, near their heights.

    Each stands a step or more above the last, and all as near to their heights as that allows (least
    squares: isotonic regression by its min-max formula; for scipy's one would wait .3 s).
    """
    ax.set_ylim(ax.get_ylim())
    root(ax).draw_without_rendering()  # lays the figure out
    labels = sorted(labels, key=lambda label: label[0])
    at = ax.transData.transform([(1, y) for y, *_ in labels])[:, 1] * 72 / root(ax).dpi
    n, steps = len(labels), np.arange(len(labels)) * 11.5 * lines
    mean = [[(at - steps)[i:k].mean() for k in range(i + 1, n + 1)] for i in range(n)]
    free = np.array([max(min(mean[i][k - i :]) for i in range(k + 1)) for k in range(n)]) + steps
    look = {"xycoords": ax.get_yaxis_transform(), "fontsize": 8, "va": "center"}
    for (y, text, colour), up in zip(labels, free - at, strict=True):
        text = "\n".join(one_line(line, 48) for line in text.split("\n"))
        ax.annotate(text, (1, y), (6, up), color=colour, **look, **OFFSET)


def label_points(ax: Axes, x: Sequence[float], y: Sequence[float], labels: Sequence[str]) -> None:
    """Label points one by one, each at the nearest free place; leave out a label that finds none."""
    ax.set(xlim=ax.get_xlim(), ylim=ax.get_ylim())
    root(ax).draw_without_rendering()
    px = root(ax).dpi / 72  # pixels a point
    known = np.isfinite(np.column_stack([x, y]).astype(float)).all(axis=1)
    x, y, labels = np.asarray(x)[known], np.asarray(y)[known], np.asarray(labels, object)[known]
    points = ax.transData.transform(np.column_stack([x, y]))
    taken = np.hstack([points - 3.5 * px, points + 3.5 * px])  # boxes: left, bottom, right, top
    angle = np.radians([0, 180, 90, 270, *range(15, 360, 15)])
    towards = np.column_stack([np.cos(angle), np.sin(angle)])
    gaps = np.arange(5, 160, 3)[:, None, None] * px
    look = {"fontsize": 7, "ha": "center", "va": "center", "in_layout": False}  # inside the axes anyway
    look["path_effects"] = [withStroke(linewidth=2, foreground="white")]
    for xy, point, label in zip(zip(x, y, strict=True), points, labels, strict=True):
        text = ax.annotate(label, xy, (0, 0), **look, **OFFSET)
        half = text.get_window_extent().size / 2 + px
        for centres in point + towards * (half + gaps):  # rings of places, nearest first
            boxes = np.hstack([centres - half, centres + half])
            apart = (boxes[:, None, :2] >= taken[:, 2:]) | (boxes[:, None, 2:] <= taken[:, :2])
            inside = (boxes[:, :2] >= ax.bbox.min) & (boxes[:, 2:] <= ax.bbox.max)
            free = apart.any(axis=2).all(axis=1) & inside.all(axis=1)
            if free.any():
                break
        else:
            text.remove()
            continue
        centre, box = centres[free.argmax()], boxes[free.argmax()]
        text.set_position((centre - point) / px)
        taken = np.vstack([taken, box])
        end = np.clip(point, box[:2], box[2:])  # of the label, where it is nearest
        if np.hypot(*(end - point)) > 7 * px:
            leader = ax.transData.inverted().transform([point, end])
            ax.plot(*leader.T, color="0.6", linewidth=0.5, zorder=1)
