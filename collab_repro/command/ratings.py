"""The ratings and settings that a command works with."""

import argparse
import re

import pandas as pd

from ..data import load_ratings
from ..sources import BadRatings, RatingsUnavailable, check_ratings

MANY = 500_000  # ratings from which on large batches are worth a hint
OPTIONS = {  # what a message tells a reader of Python, and what it tells one of the command line
    r"y_range=\((\S+), (\S+)\)": r"--y-range \1 \2",
    r"(user|item|rating)_name=(?=')": r"--\1 ",
    r"(user|item|rating)_name=": r"--\1",
    r"check_ratings\(ratings, alike='fold'\)": "--alike fold",
    r"alike='keep'": "--alike keep",
    r"a smaller bs": "a smaller --batch",
    r"load_ratings\('(.*)'\)": r"--data '\1'",
    r" with (dropna|astype)\(\w*\)": " in the file",
    r", or give learner the DataFrame": "",
}


def at_command_line(message: str) -> str:
    """`message` with the options of the command line in place of Python's arguments."""
    for python, option in OPTIONS.items():
        message = re.sub(python, option, message)
    return message


def ratings_for(args: argparse.Namespace) -> pd.DataFrame:
    """The ratings that `--data` names, checked; without it the main command falls back on synthetic ones.

    Prints where they come from. Raises `RatingsUnavailable` or `BadRatings` before anything imports fastai.
    """
    try:
        ratings = load_ratings(args.data or "ml-100k")
    except RatingsUnavailable as error:
        if args.data or args.command:
            raise
        print(f"{error}\nGoing on with synthetic ratings: nothing below can be compared with the book.\n")
        ratings = load_ratings("synthetic")
    print(f"Ratings: {ratings.attrs['source']}", flush=True)
    settings = {"y_range": args.y_range} if args.y_range else {}
    settings["bs"] = 1 if args.batch == "big" else args.batch or 64
    checked = check_ratings(ratings, args.user, args.item, args.rating, alike=args.alike, **settings)
    if len(checked) < 5:
        raise BadRatings(f"{len(checked)} ratings leave none to validate on; give five or more")
    if len(checked) > MANY and args.batch is None and args.command != "bench":
        print(f"{len(checked):,} ratings: with --batch big they train faster and better than by 64.")
    return checked


def settings_for(args: argparse.Namespace, ratings: pd.DataFrame) -> tuple[dict, dict]:
    """What `learner` gets (y_range, bs) and what `fit` gets (lr, wd) by the options."""
    made, fitted = {"y_range": tuple(args.y_range)} if args.y_range else {}, {}
    if args.batch == "big":
        from ..speed import big_batch

        fitted = big_batch(len(ratings) - int(0.2 * len(ratings)))
        made["bs"] = fitted.pop("bs")
    elif args.batch:
        made["bs"] = args.batch
    return made, fitted
