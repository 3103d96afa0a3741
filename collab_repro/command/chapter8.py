"""The commands that train: both models compared, and the chapter's eight runs."""

import argparse
import time

import pandas as pd
from tqdm import tqdm

from ..chapter import RUNS
from ..comparison import BOTH, curves_of, same_start, train
from ..evidence.eight_runs import against_the_book, reproduce
from ..recommend.learned import Learned
from . import folder
from .report import chapter_report, report, title_to_show

CHAPTERS_TITLE = "Silence of the Lambs, The (1991)"


def main_command(args: argparse.Namespace, ratings: pd.DataFrame) -> None:
    """Train and compare both models; write curves, report, tables and figures into `args.out`."""
    started = time.perf_counter()
    name, source = ratings.attrs["name"], ratings.attrs["source"]
    title = title_to_show(ratings, args.title, CHAPTERS_TITLE)
    with tqdm(total=2 * (args.seeds + 1) * args.epochs, unit="epoch", disable=None, leave=False) as bar:
        learns = train(ratings, BOTH, range(args.seeds), args.epochs, progress=bar.update)
        same = same_start(ratings, BOTH, epochs=args.epochs, progress=bar.update)
    curves = curves_of(learns, data=name)
    learned = {m.__name__: Learned.of(learns[m.__name__, 0], seed=0) for m in BOTH}
    settings = (
        f"{args.epochs} epochs of fit_one_cycle at 5e-3, wd .1, batches of 64, 50 factors, seeds 0 to "
        f"{args.seeds - 1} (each its own split, weights and order)"
    )
    text = report(curves, learned, str(same), source, settings, title, book=name == "ml-100k")
    print(f"\n{text}")
    files = folder.save(args.out, curves, learned, text)
    print(f"Wrote {', '.join(f.name for f in files)} in {args.out} ({time.perf_counter() - started:.0f} s)")


def chapter_command(args: argparse.Namespace, ratings: pd.DataFrame) -> None:
    """Train the chapter's runs over many splits; write chapter.csv and its figure into `args.out`."""
    runs = args.runs or list(RUNS)
    total = len(runs) * args.splits * args.epochs
    with tqdm(total=total, unit="epoch", disable=None, leave=False) as bar:
        path = args.out / "chapter.csv"
        losses = reproduce(ratings, runs, args.splits, args.epochs, path, progress=bar.update)
    names = {number: RUNS[number].name for number in runs}
    print("\n" + chapter_report(against_the_book(losses), names, args.splits, ratings.attrs["source"]))
    files = folder.draw(args.out)
    print(f"Wrote chapter.csv, {', '.join(f.name for f in files)} in {args.out}")
