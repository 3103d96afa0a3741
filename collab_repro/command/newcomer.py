"""The command for somebody with ratings of their own: films to see, without training."""

import argparse
from pathlib import Path

import pandas as pd
from tqdm import tqdm

from ..interpret import MIN_RATINGS
from ..recommending.learned import Learned
from ..recommending.unseen import recommend
from ..sources import SUFFIXES, BadRatings, load_own
from ..sources.files import FileError
from ..sources.roles import is_named


def recommend_command(args: argparse.Namespace, ratings: None, bar: tqdm) -> None:
    """Print what the models kept in `args.out` recommend, by their mean, to who rated as `args.rate` says.

    Raises `FileError` when no model is there, `BadRatings` and `UnknownTitle` for the ratings.
    """
    bar.close()
    files = sorted(args.out.glob("learned-*.npz"))
    if not files:
        remedy = "make them with `python -m collab_repro`, or give the --out of an earlier run"
        raise FileError(f"{args.out} holds no learned-*.npz: {remedy}")
    learns = [Learned.load(file) for file in files]
    named = {str(title): title for title in learns[0].titles}  # ids are text on the command line
    rated = {named.get(str(title), title): number for title, number in stars(args.rate).items()}
    best = recommend(learns, rated, args.n)
    if best.empty:
        best = recommend(learns, rated, args.n, min_ratings=1)
        if best.empty:
            raise BadRatings("every title that the models know is among your ratings; give fewer")
        print(f"No title that you haven't rated has {MIN_RATINGS} training ratings, so all of them count.")
    about = f"{learns[0].movies.source}; {len(rated)} rating{'s' * (len(rated) != 1)} of yours"
    print(f"From {', '.join(file.name for file in files)} ({about})\n")
    best["prediction"] = best["prediction"].map("{:.2f}".format)
    best["because"] = best["because"].fillna("")
    print(best.to_markdown(index=False, disable_numparse=True, colalign=["left", "right", "right", "left"]))


def stars(given: list[str]) -> dict:
    """Stars by title from TITLE=STARS and files, where they are the columns called so or first and last."""
    rated = {}
    for text in given:
        title, equals, number = text.rpartition("=")
        if not equals and Path(text).suffix.lower() not in SUFFIXES:
            raise BadRatings(f"--rate {text!r} is neither TITLE=STARS nor the path of a table")
        table = pd.DataFrame([[title.strip(), number.strip()]]) if equals else load_own(text, least=2)
        if table.shape[1] < 2:
            raise BadRatings(f"{text} has one column; it needs one of titles and one of stars")
        if any(is_named(name, "user") and table[name].nunique() > 1 for name in table):
            raise BadRatings(f"{text} has the ratings of several users; give those of one")
        sure = {n: is_named(n, "rating") - is_named(n, "item") - ("title" in str(n).lower()) for n in table}
        title, *_, star = sorted(table, key=sure.get)
        rated |= zip(table[title].tolist(), table[star].tolist(), strict=True)
    return rated
