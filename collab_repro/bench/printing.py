"""`python -m collab_repro bench`: run the parts asked for, print their tables and write them as CSV."""

import argparse
import platform

import pandas as pd
import torch
from tqdm import tqdm

from ..command.folder import ResultsError, draw
from ..command.ratings import settings_for
from ..command.report import versions
from ..models import Y_RANGE
from ..processes import usable_cores
from ..sources.files import write_table
from ..training import BS
from . import accuracy, benchmarks, sizes, ways


def machine() -> str:
    """The processor, its usable cores and PyTorch's threads, on one line."""
    model = sizes.proc_value("cpuinfo", "model name") or platform.machine()
    return f"{model}, usable cores: {usable_cores()}, threads of PyTorch: {torch.get_num_threads()}"


def bench_command(args: argparse.Namespace, ratings: pd.DataFrame, bar: tqdm) -> None:
    """Run `args.parts` (see `PARTS`) on `ratings`; tables go to `args.out` as bench-*.csv.

    `args.repeats` is how often the loops are timed. Raises `ResultsError` when no size could be trained.
    """
    bar.close()
    made, _ = settings_for(args, ratings)
    y_range, bs = made.get("y_range", Y_RANGE), made.get("bs", BS)
    print(f"{machine()}; {versions()}.")
    if "startup" in args.parts:
        seconds = ways.startup(args.repeats)
        write_table(args.out / "bench-startup.csv", seconds)
        _print(f"Whole processes, median of {args.repeats}", _markdown(seconds, ("", ".2f")))
    if "loops" in args.parts:
        timings = ways.loops(ratings, args.repeats, y_range=y_range, bs=bs)
        write_table(args.out / "bench-loops.csv", timings)
        table = _markdown(ways.ratios(timings), ("", ".1f", ".2f", ".2f"))
        _print(f"A model-epoch at batch {bs}, median of {args.repeats}", table)
    if "main" in args.parts:
        ours, stock = ways.main_command(ratings, y_range=y_range, bs=bs).values()
        ratio = f"{ours / stock:.2f} of stock fastai's time for the same model-epochs"
        _print("The whole main command", f"{ratio} ({ours:.0f} s against {stock:.0f} s)")
    if "accuracy" in args.parts:
        errors = accuracy.accuracy(ratings, y_range=y_range)
        write_table(args.out / "bench-accuracy.csv", errors)
        wide = _by_split(errors, ["model"]).loc[errors["model"].unique()]
        table = wide.assign(seconds=errors.groupby("model")["seconds"].median()).reset_index()
        formats = ("", *[".4f"] * len(wide.columns), ".1f")
        _print("RMSE (stars) on three held-out fifths", _markdown(table, formats))
    if "scale" in args.parts:
        costs = sizes.scale()
        if costs.empty:
            raise ResultsError("not one size could be trained")
        write_table(args.out / "bench-scale.csv", costs)
        speed = costs["ratings_per_s"]
        flat = f"most to least per rating: {speed.max() / speed.min():.1f}"
        _print("Cost against size, planted ratings", f"{flat}\n\n{_markdown(costs, ',.4g')}")
        draw(args.out)
    if "published" in args.parts:
        found = benchmarks.benchmarks()
        write_table(args.out / "bench-published.csv", found)
        wide = _by_split(found, ["protocol", "model"])
        wide = wide.assign(seconds=found.groupby(["protocol", "model"])["seconds"].median()).reset_index()
        formats = ("", "", *[".4f"] * (len(wide.columns) - 3), ".1f")
        _print("RMSE (stars) on each split", _markdown(wide, formats))
        table = _markdown(benchmarks.beside(found), ("", "", ".4f", ".1f", ""))
        _print("Published beside measured, by protocol", table)
    if "tuning" in args.parts:
        errors = accuracy.tuning(ratings, y_range=y_range)
        write_table(args.out / "bench-tuning.csv", errors)
        grid = list(accuracy.GRID)
        wide = _by_split(errors, grid)
        formats = (*["g"] * len(grid), *[".4f"] * len(wide.columns))
        heading = "RMSE (stars) of the mean of ten models on a fifth of each split's training rows"
        _print(heading, _markdown(wide.reset_index(), formats))
    print(f"\nWrote {', '.join(f.name for f in sorted(args.out.glob('bench-*')))} in {args.out}")


def _print(heading: str, text: str) -> None:
    print(f"\n## {heading}\n\n{text}", flush=True)


def _by_split(errors: pd.DataFrame, index: list[str]) -> pd.DataFrame:
    """The RMSE with a column for each split."""
    return errors.pivot(index=index, columns="split", values="rmse").add_prefix("split ")


def _markdown(table: pd.DataFrame, formats: str | tuple[str, ...]) -> str:
    """A Markdown table with columns of numbers to the right, floats as `formats` say."""
    gaps = [name for name in table if table[name].isna().any()]  # nothing stands where there is no number
    shown = table.assign(
        **{name: table[name].astype(object).where(table[name].notna(), None) for name in gaps}
    )
    return shown.to_markdown(index=False, floatfmt=formats, numalign="right", missingval="")
