"""One seed, one result, to the bit: after unrelated random draws, with two threads, in another process.

`python tests/test_determinism.py` prints a digest of what each seeded function gives on this machine.
"""

import hashlib
import json
import random
import subprocess
import sys
import tempfile
import warnings
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import collab_repro as api
from collab_repro.command.folder import save_figure
from collab_repro.evidence.ablations import CHANGES, ablate
from collab_repro.evidence.stability import rotated
from collab_repro.loader import shuffled

SMALL = {"n_factors": 5}


def ratings() -> pd.DataFrame:
    return api.planted_ratings(n_users=70, n_movies=50, n_ratings=1500, seed=3)[0]


@cache
def fitted():
    learn = api.learner(ratings(), seed=4, **SMALL)
    api.fit([learn], epochs=1)
    return learn


def learner_fit() -> list:
    learn = fitted()
    return [list(learn.model.state_dict().values()), learn.recorder.losses, learn.recorder.values]


def batches() -> list:
    dls = api.learner(ratings(), seed=4, order=9).dls
    return [list(dls.train), list(dls.train), dls.one_batch()]


@cache
def curves() -> pd.DataFrame:
    return api.compare(ratings(), seeds=range(2), epochs=2, **SMALL).drop(columns="seconds")


def same_start() -> list:
    same = api.same_start(ratings(), seed=2, epochs=1)
    return [same.equal_losses, same.curves.drop(columns="seconds")]


def ensemble() -> pd.Series:
    learns = [api.learner(ratings(), seed=s, **SMALL) for s in range(4)]
    api.fit(learns, epochs=1)
    return api.predict(learns, ratings().head(50))


def written(write) -> bytes:
    """The bytes of the file that `write(path)` makes."""
    with tempfile.TemporaryDirectory() as out:
        path = Path(out) / "chapter.csv"
        write(path)
        return path.read_bytes()


def figure(plot, data) -> bytes:
    return written(lambda path: save_figure(plot(data), path))


SEEDED = {
    "planted_ratings": ratings,
    "shuffled": lambda: shuffled(1000, seed=5, epoch=2),
    "batches": batches,
    "learner and fit": learner_fit,
    "compare": curves,
    "same_start": same_start,
    "predict, ensemble": ensemble,
    "ablate": lambda: ablate(ratings(), CHANGES[:3], seeds=range(2), epochs=1),
    "rotated": lambda: rotated(fitted(), seed=6).movie_factors,
    "factor_pca": lambda: api.factor_pca(fitted(), top=30),
    "reproduce": lambda: written(
        lambda path: api.reproduce(ratings(), [3, 8], splits=2, epochs=1, path=path)
    ),
    "Learned.save": lambda: written(api.Learned.of(fitted()).save),
    "plot_curves": lambda: figure(api.plot_curves, curves()),
    "plot_difference": lambda: figure(api.plot_difference, curves()),
    "plot_bias": lambda: figure(api.plot_bias, api.movie_bias(fitted())),
    "plot_factors": lambda: figure(api.plot_factors, api.factor_pca(fitted())),
}


def digest(found) -> str:
    """A hash of every bit of `found`."""
    if isinstance(found, pd.DataFrame | pd.Series):
        found = found.to_csv()  # floats in full
    if hasattr(found, "tobytes") or isinstance(found, torch.Tensor):
        found = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found).tobytes()
    elif not isinstance(found, bytes | str | float | int):  # lists, tuples and fastai's L
        found = "".join(map(digest, found))
    return hashlib.sha256(found if isinstance(found, bytes) else str(found).encode()).hexdigest()


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    """The digests that a fresh process with one thread finds."""
    run = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", SEEDED)
def test_one_seed_one_result(name, elsewhere):
    torch.set_num_threads(2)
    torch.rand(2), np.random.rand(2), random.random()  # unrelated draws
    assert digest(SEEDED[name]()) == elsewhere[name]


def test_another_seed_another_result(elsewhere):
    others = api.planted_ratings(70, 50, 1500, seed=4)[0], shuffled(1000, 6, 2), shuffled(1000, 5, 3)
    assert len({*map(digest, others), *elsewhere.values()}) == len(SEEDED) + 3


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    import matplotlib

    matplotlib.use("Agg")
    torch.set_num_threads(1)
    print(json.dumps({name: digest(found()) for name, found in SEEDED.items()}))
