"""Cost against size: planted ratings as many as MovieLens 100K, 1M, 10M and 25M have."""

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd

from ..further.columns import columns_in, with_columns
from ..models import DotProductBias
from ..sources import planted_ratings
from ..speed import big_batch
from ..training import EPOCHS, learner
from .ways import fit_quietly

SIZES = {  # users, titles, ratings
    "100k": (943, 1_664, 100_000),
    "1m": (6_040, 3_706, 1_000_000),
    "10m": (69_878, 10_677, 10_000_000),
    "25m": (162_541, 59_047, 25_000_000),
}
ALL = " + columns"  # behind a size: a model told all that the ratings of 25M tell
RANK = 32  # main directions of its bags


def proc_value(file: str, name: str) -> str:
    """The value that a file under /proc gives for `name`, or nothing where there is no such file."""
    file = Path("/proc") / file
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def scale(sizes: Iterable[str] = (*SIZES, "25m" + ALL), epochs: int = EPOCHS) -> pd.DataFrame:
    """Train on planted ratings of MovieLens' sizes with `big_batch`, each size in its own process.

    A size with `ALL` behind it is the model of `with_columns`, in batches twice as large. Columns: size,
    ratings, users, titles, bs, epochs, seconds (median epoch, validation included), ratings_per_s, memory
    (peak, GB, planting included; Linux only), valid_loss (MSE after the last epoch).
    A size that fails is left out, with its reason on stderr.
    """
    rows = []
    for size in sizes:
        code = f"from collab_repro.bench.sizes import one_size; one_size({size!r}, {epochs})"
        run = subprocess.run([sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True)
        if run.returncode:
            reason = (run.stderr.strip().splitlines() or [f"killed by signal {-run.returncode}"])[-1]
            print(f"{size}: left out, {reason}", file=sys.stderr)
            continue
        rows.append({"size": size, **json.loads(run.stdout)})
    return pd.DataFrame(rows)


def one_size(size: str, epochs: int) -> None:
    """Train on planted ratings of `size`, and print the row of `scale` as JSON."""
    users, titles, n = SIZES[size.removesuffix(ALL)]
    ratings = planted_ratings(users, titles, n)[0]
    ratings = ratings.astype({"user": np.int32, "movie": np.int32, "rating": np.float32})  # as they are read
    model, settings = DotProductBias, big_batch(n - n // 5)
    if size.endswith(ALL):
        kinds = pd.Series(["Comedy", "Comedy|Drama", "Drama|War", "Horror"], dtype="category")
        ratings["genres"] = kinds.take(ratings["movie"] % len(kinds)).array
        model = with_columns(ratings, columns_in(ratings), rank=RANK)
        settings["bs"] *= 2  # what a step costs whatever its rows: bags, all users, all films
    bs = settings.pop("bs")
    learn = learner(ratings, model, bs=bs)
    loss = fit_quietly(learn, epochs, **settings)
    seconds = float(np.median(learn.stopwatch.seconds))
    peak = proc_value("self/status", "VmHWM").removesuffix(" kB")  # getrusage counts the parent's, too
    row = {"ratings": n, "users": users, "titles": titles, "bs": bs, "epochs": epochs, "seconds": seconds}
    row |= {"ratings_per_s": n / seconds, "memory": int(peak) / 2**20 if peak else math.nan}
    print(json.dumps(row | {"valid_loss": loss}))
