"""The ratings that a command works on."""

import argparse

import pandas as pd

from ..data import RatingsUnavailable, load_ratings


def ratings_for(args: argparse.Namespace) -> pd.DataFrame:
    """The ratings that `--data` names; without it the main command falls back on synthetic ones.

    Prints where they come from. Raises `RatingsUnavailable`, before anything imports fastai.
    """
    try:
        ratings = load_ratings(args.data or "ml-100k")
    except RatingsUnavailable as error:
        if args.data or args.command:
            raise
        print(f"{error}\nGoing on with synthetic ratings: nothing below can be compared with the book.\n")
        ratings = load_ratings("synthetic")
    print(f"Ratings: {ratings.attrs['source']}", flush=True)
    return ratings
