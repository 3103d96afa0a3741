"""The command line: `python -m collab_repro --help`."""

import argparse
import sys
import time
import warnings
from collections.abc import Sequence
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory

from fastai.torch_core import rank_distrib
from filelock import FileLock, Timeout
from tqdm import tqdm

from . import results
from .chapter import RUNS
from .checks import BadRatings
from .compare import BOTH, curves, same_start, train
from .data import RatingsUnavailable, load_ratings
from .files import FileError, write_table
from .interpret import UnknownTitle
from .learned import Learned
from .report import chapter_report, report, table, title_to_show, versions
from .reproduce import against_the_book, reproduce
from .training import DivergedError

ABOUT = """fastbook chapter 8 reproduced: nn.Embedding against a plain indexed nn.Parameter.

Without a subcommand: train both DotProductBias models on MovieLens 100K, set their curves beside
the book's, check that copied weights train identically to the bit, show what the models learned,
and write curves.csv, report.md, the learned tables and the figures."""
PARTS = ["loops", "main", "accuracy", "scale", "tuning"]
CHAPTERS_TITLE = "Silence of the Lambs, The (1991)"
SAID = (
    BadRatings,
    DivergedError,
    FileError,
    RatingsUnavailable,
    UnknownTitle,
    results.ResultsError,
)


def parser() -> argparse.ArgumentParser:
    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
        return int(text)

    def runs(text: str) -> list[int]:
        numbers = [int(n) if n.strip().isdecimal() else 0 for n in text.split(",")]
        if not set(numbers) <= set(RUNS):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list like 1,4,5 of runs 1 to {max(RUNS)}")
        return numbers

    def parts(text: str) -> list[str]:
        if not set(text.split(",")) <= set(PARTS):
            raise argparse.ArgumentTypeError(f"{text!r} is not a list of {','.join(PARTS)}")
        return text.split(",")

    common = argparse.ArgumentParser(add_help=False)
    add = common.add_argument
    add("--out", type=Path, default=Path("results"), metavar="DIR", help="where to write (default: results)")
    data = argparse.ArgumentParser(add_help=False)
    add = data.add_argument
    add(
        "--data",
        metavar="NAME",
        help="ml-100k (default), synthetic, or a .csv or .tsv file with columns of users, items and ratings",
    )
    length = argparse.ArgumentParser(add_help=False)
    length.add_argument(
        "--epochs", type=positive, default=5, metavar="N", help="epochs of each training (default: 5)"
    )

    top = argparse.ArgumentParser(
        "python -m collab_repro",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[common, data, length],
        epilog="Ratings come from the folder in COLLAB_REPRO_DATA, from GroupLens, or from the RecBole "
        "package by pip,\nwhichever answers first; only this main command falls back on synthetic ones.",
    )
    top.add_argument(
        "--seeds", type=positive, default=3, metavar="N", help="seeds of each model (default: 3)"
    )
    top.add_argument("--title", metavar="TITLE", help=f"whose neighbours to show (default: {CHAPTERS_TITLE})")
    sub = top.add_subparsers(dest="command", metavar="SUBCOMMAND")
    sub.add_parser(
        "plots", parents=[common], help="draw all figures again from what --out holds, without training"
    )
    chapter = sub.add_parser(
        "chapter", parents=[common, data, length], help="all eight tables of the chapter over many splits"
    )
    chapter.add_argument(
        "--runs", type=runs, default=list(RUNS), metavar="1,4,5", help="which (default: all)"
    )
    chapter.add_argument(
        "--splits", type=positive, default=10, metavar="N", help="random splits (default: 10)"
    )
    bench = sub.add_parser(
        "bench", parents=[common, data], help="what training costs, beside stock fastai and other libraries"
    )
    of = f"of {','.join(PARTS)} (default: all but {PARTS[-1]})"
    bench.add_argument("--parts", type=parts, default=PARTS[:-1], metavar="A,B", help=of)
    bench.add_argument("--repeats", type=positive, default=3, metavar="N", help="of the loops (default: 3)")
    return top


def ratings_for(args: argparse.Namespace):
    "The ratings that `--data` names; the main command alone falls back on synthetic ones, and says so."
    try:
        ratings = load_ratings(args.data or "ml-100k")
    except RatingsUnavailable as why:
        if args.data or args.command:
            raise
        print(f"{why}\nGoing on with synthetic ratings: nothing below can be compared with the book.\n")
        ratings = load_ratings("synthetic")
    print(f"Ratings: {ratings.attrs['source']}", flush=True)
    return ratings


def main_command(args: argparse.Namespace) -> None:
    started = time.perf_counter()
    ratings = ratings_for(args)
    name = ratings.attrs["name"]
    title = title_to_show(ratings, args.title, CHAPTERS_TITLE)
    with tqdm(total=2 * (args.seeds + 1) * args.epochs, unit="epoch", disable=None, leave=False) as bar:
        learns = train(ratings, BOTH, range(args.seeds), args.epochs, progress=bar.update)
        same = same_start(ratings, BOTH, epochs=args.epochs, progress=bar.update)
    found = curves(learns, data=name)
    learned = {m.__name__: Learned.of(learns[m.__name__, 0], seed=0) for m in BOTH}
    settings = (
        f"{args.epochs} epochs of fit_one_cycle at 5e-3, wd .1, batches of 64, 50 factors, seeds 0 to "
        f"{args.seeds - 1} (each its own split, weights and order)"
    )
    text = report(found, learned, same, ratings.attrs["source"], settings, title, book=name == "ml-100k")
    print(f"\n{text}")
    files = results.save(args.out, found, learned, text)
    print(f"Wrote {', '.join(f.name for f in files)} in {args.out} ({time.perf_counter() - started:.0f} s)")


def plots_command(args: argparse.Namespace) -> None:
    files = results.draw(args.out)
    print(f"Drew {', '.join(f.name for f in files)} in {args.out}")


def chapter_command(args: argparse.Namespace) -> None:
    ratings = ratings_for(args)
    total = len(args.runs) * args.splits * args.epochs
    with tqdm(total=total, unit="epoch", disable=None, leave=False) as bar:
        losses = reproduce(
            ratings, args.runs, args.splits, args.epochs, args.out / "chapter.csv", progress=bar.update
        )
    names = {number: RUNS[number].name for number in args.runs}
    print("\n" + chapter_report(against_the_book(losses), names, args.splits, ratings.attrs["source"]))
    files = results.draw(args.out)
    print(f"Wrote chapter.csv, {', '.join(f.name for f in files)} in {args.out}")


def bench_command(args: argparse.Namespace) -> None:
    from . import bench  # the only command that needs it

    ratings = ratings_for(args)
    print(f"{bench.machine()}; {versions()}.")
    if "loops" in args.parts:
        found = bench.loops(ratings, args.repeats)
        write_table(args.out / "bench-loops.csv", found)
        print(
            f"\n## A model-epoch at batch 64, median of {args.repeats}\n\n{bench.ratios(found)}", flush=True
        )
    if "main" in args.parts:
        seconds = bench.main_command(ratings)
        ours, stock = seconds.values()
        said = f"{ours / stock:.2f} of stock fastai's time for the same model-epochs"
        print(f"\n## The whole main command\n\n{said} ({ours:.0f} s against {stock:.0f} s)", flush=True)
    if "accuracy" in args.parts:
        found = bench.accuracy(ratings)
        write_table(args.out / "bench-accuracy.csv", found)
        wide = found.pivot(index="model", columns="split", values="rmse").loc[found["model"].unique()]
        seconds = found.groupby("model")["seconds"].median()
        rows = [(m, *(f"{r:.4f}" for r in row), f"{seconds[m]:.1f}") for m, row in wide.iterrows()]
        header = ["model", *(f"split {split}" for split in wide), "seconds"]
        print(f"\n## RMSE (stars) on three held-out fifths\n\n{table(header, rows)}", flush=True)
    if "scale" in args.parts:
        found = bench.scale()
        if found.empty:
            raise results.ResultsError("not one size could be trained")
        write_table(args.out / "bench-scale.csv", found)
        flat = found["ratings_per_s"].max() / found["ratings_per_s"].min()
        print(f"\n## Cost against size, planted ratings\n\nmost to least per rating: {flat:.1f}\n")
        rows = [[f"{v:,.4g}" if isinstance(v, float) else str(v) for v in row] for row in found.values]
        print(table(list(found), rows))
        results.draw(args.out)
    if "tuning" in args.parts:
        found = bench.tuning(ratings)
        write_table(args.out / "bench-tuning.csv", found)
        wide = found.pivot(index=list(bench.GRID), columns="split", values="rmse")
        rows = [(*setting, *(f"{r:.4f}" for r in row)) for setting, *row in wide.itertuples()]
        print("\n## RMSE (stars) of the mean of ten models on a fifth of each split's training rows\n")
        print(table([*bench.GRID, *(f"split {split}" for split in wide)], rows))
    print(f"\nWrote {', '.join(f.name for f in sorted(args.out.glob('bench-*')))} in {args.out}")


COMMANDS = {None: main_command, "plots": plots_command, "chapter": chapter_command, "bench": bench_command}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 2 after one clear line on stderr, 130 when interrupted."""
    args = parser().parse_args(argv)
    if rank_distrib():  # under torchrun, all processes train and the first one tells
        with redirect_stdout(StringIO()), TemporaryDirectory() as out:
            args.out = Path(out)
            COMMANDS[args.command](args)
        return 0
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "You are using `torch.load`")  # by pickle, before PyTorch 2.6
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # stock fastai's loader
        warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # one of bench's peers
        warnings.showwarning = lambda message, *_, **__: print(f"Note: {message}", file=sys.stderr)
        try:
            args.out.mkdir(parents=True, exist_ok=True)
            with FileLock(args.out / ".lock", timeout=0):
                for left in args.out.glob(".*.part"):  # by a killed run: nobody else writes here now
                    left.unlink()
                COMMANDS[args.command](args)
        except Timeout:
            return _fail(f"another run is writing in {args.out}: wait for it, or give another --out")
        except SAID as error:
            return _fail(str(error))
        except OSError as error:
            return _fail(f"{error.filename or args.out}: {error.strerror or error}")
        except KeyboardInterrupt:
            return _fail("interrupted; what was finished before still stands", code=130)
    return 0


def _fail(message: str, code: int = 2) -> int:
    print(f"collab_repro: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
