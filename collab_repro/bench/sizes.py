"""Cost against size: planted ratings as many as MovieLens 100K, 1M, 10M and 25M have."""

import json
import math
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from fastai.data.core import DataLoaders
from fastai.learner import Learner
from fastai.losses import MSELossFlat
from torch.utils.data import TensorDataset

from ..loader import TensorDL
from ..models import N_FACTORS, DotProductBias
from ..sources import planted_ratings
from ..speed import FastLoop, FusedAdam, Stopwatch, big_batch, few_threads
from ..training import EPOCHS
from .ways import fit_quietly

SIZES = {  # users, titles, ratings
    "100k": (943, 1_664, 100_000),
    "1m": (6_040, 3_706, 1_000_000),
    "10m": (69_878, 10_677, 10_000_000),
    "25m": (162_541, 59_047, 25_000_000),
}


def proc_value(file: str, name: str) -> str:
    """The value that a file under /proc gives for `name`, or nothing where there is no such file."""
    file = Path("/proc") / file
    lines = file.read_text().splitlines() if file.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")


def scale(sizes: Iterable[str] = tuple(SIZES), epochs: int = EPOCHS) -> pd.DataFrame:
    """Train on planted ratings of MovieLens' sizes with `big_batch`, each size in its own process.

    Columns: size, ratings, users, titles, bs, epochs, seconds (median epoch, validation included),
    ratings_per_s, memory (peak, GB, planting included; Linux only), valid_loss (MSE after the last epoch).
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
    users, titles, n = SIZES[size]
    ratings = planted_ratings(users, titles, n)[0]
    x = torch.stack([torch.from_numpy(ratings[c].to_numpy(np.int32)) for c in ("user", "movie")], dim=1)
    y = torch.from_numpy(ratings["rating"].to_numpy(np.float32))[:, None]
    del ratings
    valid = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: n // 5]
    training = torch.ones(n, dtype=torch.bool).index_fill_(0, valid, False)
    settings = big_batch(n - n // 5)
    bs = settings.pop("bs")
    datasets = TensorDataset(x[training], y[training]), TensorDataset(x[valid], y[valid])
    del x, y
    dls = DataLoaders(*(TensorDL(d, bs, shuffle=d is datasets[0]) for d in datasets), device="cpu")
    torch.manual_seed(0)
    model = DotProductBias(users + 1, titles + 1, N_FACTORS)
    learn = Learner(dls, model, MSELossFlat(), opt_func=FusedAdam, cbs=[FastLoop, Stopwatch])
    with few_threads(bs * N_FACTORS):
        loss = fit_quietly(learn, epochs, **settings)
    seconds = float(np.median(learn.stopwatch.seconds))
    peak = proc_value("self/status", "VmHWM").removesuffix(" kB")  # getrusage counts the parent's, too
    row = {"ratings": n, "users": users, "titles": titles, "bs": bs, "epochs": epochs, "seconds": seconds}
    row |= {"ratings_per_s": n / seconds, "memory": int(peak) / 2**20 if peak else math.nan}
    print(json.dumps(row | {"valid_loss": loss}))
