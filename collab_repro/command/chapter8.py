"""The commands that train: both models compared, and the chapter's eight runs."""

import argparse
import time

import pandas as pd
from fastai.learner import Learner
from tqdm import tqdm

from ..chapter import RUNS
from ..comparison import BOTH, SameStart, curves_of, learners
from ..evidence.effects import CHANGES, confusion, loader_effects, measure, spread_of, wide
from ..evidence.eight_runs import against_the_book, data_name, reproduce
from ..models import copy_weights
from ..recommending.learned import Learned
from ..sources.files import DATA, write_table
from ..training import BS, EPOCHS, LR, WD, Y_RANGE, fit, learner
from . import folder
from .ratings import settings_for
from .report import chapter_report, report, title_to_show

CHAPTERS_TITLE = "Silence of the Lambs, The (1991)"
EFFECT_SEEDS = 10  # of each change that `diagnose` knows


def main_command(args: argparse.Namespace, ratings: pd.DataFrame, bar: tqdm) -> None:
    """Train and compare both models; write curves, report, tables and figures into `args.out`.

    The bit-by-bit check costs one more model: the second one from the first one's weights of seed 0.
    """
    started = time.perf_counter()
    source = ratings.attrs["source"]
    title = title_to_show(ratings, args.title, CHAPTERS_TITLE)
    made, fitted = settings_for(args, ratings)
    learns = learners(ratings, BOTH, range(args.seeds), **made)
    first, copied = learns[BOTH[0].__name__, 0], learner(ratings, BOTH[1], 0, **made)
    copy_weights(first.model, copied.model)
    bar.set_description("training")
    bar.reset(total=(len(learns) + 1) * args.epochs)
    fit([*learns.values(), copied], args.epochs, **fitted, progress=bar.update)
    bar.close()
    same = SameStart.of(first, copied)
    curves = curves_of(learns, data=data_name(ratings, **fitted, **made))
    learned = {m.__name__: Learned.of(learns[m.__name__, 0], seed=0) for m in BOTH}
    about = (
        f"Ratings: {source}.\\\nSettings: {args.epochs} epochs of fit_one_cycle at {fitted.get('lr', LR):g}, "
        f"wd {fitted.get('wd', WD):g}, batches of {made.get('bs', BS):,}, 50 factors, "
        f"y_range {made.get('y_range', Y_RANGE)}, seeds 0 to {args.seeds - 1} (each its own split, weights "
        "and order)."
    )
    constant = sum(constant_mse(learns[BOTH[0].__name__, s]) for s in range(args.seeds)) / args.seeds
    text = report(curves, learned, str(same), about, title, constant)
    try:
        files = folder.save(args.out, curves, learned, text)
    finally:  # whatever becomes of the files
        print(f"\n{text}")
    print(f"Wrote {', '.join(f.name for f in files)} in {args.out} ({time.perf_counter() - started:.0f} s)")


def constant_mse(learn: Learner) -> float:
    """The validation MSE of always predicting the mean training rating."""
    train, valid = (dl.tensors[1].float() for dl in learn.dls)
    return (valid - train.mean()).square().mean().item()


def chapter_command(args: argparse.Namespace, ratings: pd.DataFrame, bar: tqdm) -> None:
    """Train the chapter's runs over many splits; write chapter.csv and its figure into `args.out`."""
    if args.effects:
        return effects_command(args, ratings, bar)
    runs = args.runs or list(RUNS)
    bar.set_description("training")
    bar.reset(total=len(runs) * args.splits * args.epochs)
    path = args.out / "chapter.csv"
    made, fitted = settings_for(args, ratings)
    losses = reproduce(ratings, runs, args.splits, args.epochs, path, bar.update, **fitted, **made)
    bar.close()
    names = {number: RUNS[number].name for number in runs}
    source, book = ratings.attrs["source"], set(losses["data"]) == {DATA}
    print("\n" + chapter_report(against_the_book(losses), names, args.splits, source, book))
    files = folder.draw(args.out, [path])
    print(f"Wrote chapter.csv, {', '.join(f.name for f in files)} in {args.out}")


def effects_command(args: argparse.Namespace, ratings: pd.DataFrame, bar: tqdm) -> None:
    """Measure what `diagnose` reads: effects.csv and spread.csv in `args.out`.

    The first two thirds of the splits make the distributions of losses, the others are named by them.
    """
    bar.set_description("training")
    bar.reset(total=EPOCHS * (2 * len(RUNS) * args.splits + EFFECT_SEEDS * len(CHANGES)))
    settings = {"splits": args.splits, "path": args.out / "chapter.csv", "progress": bar.update}
    trained = wide(pd.concat([reproduce(ratings, replacement=way, **settings) for way in (True, False)]))
    known = trained.index.get_level_values("split") < -(-2 * args.splits // 3)
    spread = spread_of(trained[known])
    changed = measure(ratings, CHANGES, range(EFFECT_SEEDS), bar.update)
    effects = pd.concat([loader_effects(trained[known]), changed]).round(4)
    bar.close()
    write_table(args.out / "effects.csv", effects)
    write_table(args.out / "spread.csv", spread.round(7).reset_index())
    print(f"{effects.to_string(index=False)}\n\nHeld-out trainings (r: drawn with replacement), nearest to:")
    print(confusion(trained[~known], spread).to_string())
    print(f"Wrote effects.csv and spread.csv in {args.out}; `diagnose` reads those in collab_repro/evidence")
