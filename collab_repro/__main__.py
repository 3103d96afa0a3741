"""The command line: `python -m collab_repro --help`."""

import argparse
import gc
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path

from .bench import PARTS

ABOUT = """fastbook chapter 8 reproduced: nn.Embedding against a plain indexed nn.Parameter.

Without a subcommand: train both DotProductBias models on MovieLens 100K, set their curves beside
the book's, check that copied weights train identically to the bit, show what the models learned,
and write curves.csv, report.md, the learned tables and the figures."""
COMMANDS = {
    None: ("command.chapter8", "main_command"),
    "plots": ("command.folder", "plots_command"),
    "recommend": ("command.newcomer", "recommend_command"),
    "chapter": ("command.chapter8", "chapter_command"),
    "bench": ("bench.printing", "bench_command"),
}
FROM_FILES = "plots", "recommend"  # work on what an earlier run kept, without any ratings


def parser() -> argparse.ArgumentParser:
    def positive(text: str) -> int:
        if not text.isdecimal() or int(text) < 1:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 on")
        return int(text)

    def some_of(known: Sequence) -> Callable[[str], list]:
        def read(text: str) -> list:
            named = {str(one): one for one in known}
            if not set(text.split(",")) <= set(named):
                raise argparse.ArgumentTypeError(f"{text!r} is not a list of {','.join(named)}")
            return [named[part] for part in text.split(",")]

        return read

    def given(text: str) -> str:
        if not text.strip():
            raise argparse.ArgumentTypeError(f"{text!r} is no name")
        return text

    def options(name: str, **settings) -> argparse.ArgumentParser:
        parent = argparse.ArgumentParser(add_help=False)
        parent.add_argument(name, **settings)
        return parent

    def batch(text: str) -> int | str:
        return text if text == "big" else positive(text)

    ones_own = "a file with columns of users, items and ratings, or another MovieLens set, as ml-1m"
    where = "where to write (default: results)"
    out = options("--out", type=lambda text: Path(given(text)), default="results", metavar="DIR", help=where)
    data = options("--data", type=given, metavar="NAME", help=f"ml-100k (default), synthetic, or {ones_own}")
    for role in ("user", "item", "rating"):
        data.add_argument(f"--{role}", metavar="COLUMN", help=f"the column of {role}s in your own file")
    which = "items that differ in case, blanks or accents only: one, or different ones (default: an error)"
    data.add_argument("--alike", choices=["fold", "keep"], help=which)
    bounds = {"nargs": 2, "type": float, "metavar": ("LOW", "HIGH")}
    training = options("--y-range", help="bounds of the predictions (default: 0 5.5)", **bounds)
    which = "ratings in a batch, or big for many ratings (default: 64)"
    training.add_argument("--batch", "--bs", type=batch, metavar="N|big", help=which)
    count = {"type": positive, "metavar": "N"}
    epochs = options("--epochs", default=5, help="epochs of each training (default: 5)", **count)

    top = argparse.ArgumentParser(
        "python -m collab_repro",
        description=ABOUT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[out, data, epochs, training],
        epilog="Ratings come from the folder in COLLAB_REPRO_DATA, from GroupLens, or from the RecBole "
        "package by pip,\nwhichever answers first; only this main command falls back on synthetic ones.",
    )
    top.add_argument("--seeds", default=3, help="seeds of each model (default: 3)", **count)
    top.add_argument("--title", metavar="TITLE", help="whose neighbours to show (default: the chapter's)")
    sub = top.add_subparsers(dest="command", metavar="SUBCOMMAND")
    about = "draw all figures again from what --out holds, without training"
    sub.add_parser("plots", parents=[out], help=about)
    about = "films for somebody with these ratings, from the tables that an earlier run kept in --out"
    taste = sub.add_parser("recommend", parents=[out], help=about)
    rate = "a rating, or a .csv or .tsv file of titles and stars; may be given many times"
    taste.add_argument("--rate", action="append", required=True, metavar="TITLE=STARS", help=rate)
    taste.add_argument("-n", default=10, help="how many films (default: 10)", **count)
    about = "all eight tables of the chapter over many splits"
    chapter = sub.add_parser("chapter", parents=[out, data, epochs, training], help=about)
    which = "which of the eight (default: all)"
    chapter.add_argument("--runs", type=some_of(range(1, 9)), metavar="1,4,5", help=which)
    chapter.add_argument("--splits", default=10, help="random splits (default: 10)", **count)
    what = "measure what `diagnose` knows instead: what each difference from the chapter does"
    chapter.add_argument("--effects", action="store_true", help=what)
    about = "what training costs, beside stock fastai and other libraries"
    bench = sub.add_parser("bench", parents=[out, data, training], help=about)
    which = f"of {','.join(PARTS)} (default: all but {' and '.join(PARTS[-2:])})"
    bench.add_argument("--parts", type=some_of(PARTS), default=PARTS[:-2], metavar="A,B", help=which)
    bench.add_argument("--repeats", default=3, help="of the loops (default: 3)", **count)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code: 0, 2 after one clear line on stderr, 130 when interrupted, 141
    when nobody reads the output any more."""
    sys.stdout, sys.stderr = (one or open(os.devnull, "w") for one in (sys.stdout, sys.stderr))  # noqa: SIM115
    args, code = parser().parse_args(argv), 2
    from filelock import Timeout

    try:
        with warnings.catch_warnings():
            _run(args)
        sys.stdout.flush()
        return 0
    except Timeout:
        told = f"another run is writing in {args.out}: wait for it, or give another --out"
    except OSError as error:
        told = f"{error.filename or 'the output'}: {error.strerror or error}"
        if isinstance(error, BrokenPipeError):  # the reader of a pipe has ended, as `head` does
            told, code = f"nobody reads the output any more; what is finished is in {args.out}", 141
        try:
            sys.stdout.flush()
        except OSError:  # nor could Python do it when it ends
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except KeyboardInterrupt:
        told, code = "interrupted; what was finished before still stands", 130
    except Exception as error:
        if isinstance(error, MemoryError) or re.search("map segment|allocate memory", str(error)):
            told = "too little memory; end other programs, or raise the limit that `ulimit -v` shows"
        elif type(error).__module__.startswith("collab_repro."):  # one of this package's own
            from .command.ratings import at_command_line

            told = at_command_line(str(error))
        else:
            raise
    print(f"collab_repro: {told}", file=sys.stderr)
    return code


def _run(args: argparse.Namespace) -> None:
    from filelock import FileLock
    from tqdm import tqdm

    from .command.ratings import at_command_line, ratings_for
    from .sources.files import FileError, check_folder

    os.environ["MPLBACKEND"] = "Agg"  # figures go to files, whatever else is set
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal may lack some letters
    warnings.filterwarnings("ignore", "You are using `torch.load`")  # by pickle, before PyTorch 2.6
    warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # stock fastai's loader
    warnings.filterwarnings("ignore", "pkg_resources is deprecated")  # one of bench's peers
    warnings.showwarning = lambda told, *_, **__: print(
        f"Note: {at_command_line(f'{told}')}", file=sys.stderr
    )
    if args.command in FROM_FILES and not args.out.is_dir():
        what = f"there is no folder {args.out}; give the --out of an earlier run"
        raise FileError(f"{what}, or make it with `python -m collab_repro`")
    args.out.mkdir(parents=True, exist_ok=True)
    module, function = COMMANDS[args.command]
    if writes := args.command != "recommend":
        check_folder(args.out)
    with FileLock(args.out / ".lock", timeout=0) if writes else nullcontext():
        ratings = ratings_for(args) if args.command not in FROM_FILES else None
        with tqdm(desc="loading fastai", unit="epoch", disable=None, leave=False) as bar:
            gc.disable()  # importing fastai makes half a million objects and hardly any garbage
            command = getattr(import_module(f"collab_repro.{module}"), function)
            gc.enable()
            command(args, ratings, bar)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `kill` is answered as Ctrl-C is
    sys.exit(main())
