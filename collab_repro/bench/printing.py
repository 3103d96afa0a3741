"""`python -m collab_repro bench`: run the parts asked for, print their tables and write them as CSV."""

import argparse
import platform

import pandas as pd
import torch
from tqdm import tqdm

from ..command.folder import draw
from ..command.ratings import settings_for
from ..command.report import versions
from ..models import Y_RANGE, YRange
from ..processes import usable_cores
from ..sources.files import FileError, write_table
from ..training import BS
from . import PARTS, accuracy, benchmarks, sizes, ways


def bench_command(args: argparse.Namespace, ratings: pd.DataFrame, bar: tqdm) -> None:
    """Run `args.parts` (see `PARTS`) on `ratings`; tables go to `args.out` as bench-*.csv.

    `args.repeats` is how often the loops are timed. Raises `FileError` when no size could be trained.
    """
    bar.close()
    made, _ = settings_for(args, ratings)
    y_range, bs = made.get("y_range", Y_RANGE), made.get("bs", BS)
    machine = sizes.proc_value("cpuinfo", "model name") or platform.machine()
    machine += f", usable cores: {usable_cores()}, threads of PyTorch: {torch.get_num_threads()}"
    print(f"{machine}; {versions()}.")
    for part in filter(args.parts.__contains__, PARTS):
        heading, table, text = _measured(part, ratings, args.repeats, y_range, bs)
        try:
            if table is not None:
                write_table(args.out / f"bench-{part}.csv", table)
        finally:  # whatever becomes of the file
            print(f"\n## {heading}\n\n{text}", flush=True)
        if part == "scale":
            draw(args.out, [args.out / "bench-scale.csv"])
    print(f"\nWrote {', '.join(f.name for f in sorted(args.out.glob('bench-*')))} in {args.out}")


def _measured(
    part: str, ratings: pd.DataFrame, repeats: int, y_range: YRange, bs: int
) -> tuple[str, pd.DataFrame | None, str]:
    """What a part of the bench found: a heading, the table to keep, and the text to print."""
    if part == "startup":
        seconds = ways.startup(repeats)
        return f"Whole processes, median of {repeats}", seconds, _markdown(seconds, ".2f")
    if part == "loops":
        timings = ways.loops(ratings, repeats, y_range=y_range, bs=bs)
        text = _markdown(ways.ratios(timings), ".1f", ".2f", ".2f")
        return f"A model-epoch at batch {bs}, median of {repeats}", timings, text
    if part == "main":
        ours, stock = ways.main_command(ratings, y_range=y_range, bs=bs).values()
        text = f"{ours / stock:.2f} of stock fastai's time for the same model-epochs"
        return "The whole main command", None, f"{text} ({ours:.0f} s against {stock:.0f} s)"
    if part == "accuracy":
        errors = accuracy.accuracy(ratings, y_range=y_range, bs=bs)
        table = _by_split(errors, ["model"]).set_index("model").loc[errors["model"].unique()].reset_index()
        return "RMSE (stars) on three held-out fifths", errors, _markdown(table, ".4f", ".1f")
    if part == "scale":
        costs = sizes.scale()
        if costs.empty:
            raise FileError("not one size could be trained")
        plain = costs.loc[~costs["size"].str.endswith(sizes.ALL), "ratings_per_s"]
        flat = plain.max() / plain.min()
        text = f"most to least per rating: {flat:.1f}\n\n{_markdown(costs, ',.4g')}"
        return "Cost against size, planted ratings", costs, text
    if part == "published":
        found = benchmarks.benchmarks()
        splits = _markdown(_by_split(found, ["protocol", "model"]), ".4f", ".1f")
        beside = _markdown(benchmarks.beside(found), ".4f", ".1f", "")
        text = f"{splits}\n\n## Published beside measured, by protocol\n\n{beside}"
        return "RMSE (stars) on each split", found, text
    errors, grid = accuracy.tuning(ratings, y_range=y_range), list(accuracy.GRID)
    heading = "RMSE (stars) of the mean of ten models on a fifth of each split's training rows"
    splits = errors["split"].unique()
    return heading, errors, _markdown(_by_split(errors, grid), "g", *[".4f"] * len(splits))


def _by_split(errors: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """The RMSE with a column for each split, and the median of the seconds where they are known."""
    wide = errors.pivot(index=index, columns="split", values="rmse").add_prefix("split ")
    if "seconds" in errors:
        wide["seconds"] = errors.groupby(index)["seconds"].median()
    return wide.reset_index()


def _markdown(table: pd.DataFrame, *formats: str) -> str:
    """A Markdown table; `formats` are of the last columns' floats, the first of them is of all before too."""
    formats = [formats[0]] * (table.shape[1] - len(formats)) + list(formats)
    known = table.astype(object).where(table.notna(), None)  # nothing stands where there is no number
    return known.to_markdown(index=False, floatfmt=formats, numalign="right", missingval="")
