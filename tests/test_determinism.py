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
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import collab_repro
from collab_repro import learned, plots, stability
from collab_repro.ablations import CHANGES, ablate
from collab_repro.loaders import shuffled


def ratings() -> pd.DataFrame:
    return collab_repro.planted_ratings(n_users=70, n_movies=50, n_ratings=1500, seed=3)[0]


def fitted():
    learn = collab_repro.learner(ratings(), seed=4, n_factors=5)
    collab_repro.fit([learn], epochs=1)
    return learn


def learner_fit() -> list:
    learn = fitted()
    return [list(learn.model.state_dict().values()), learn.recorder.losses, learn.recorder.values]


def batches() -> list:
    dls = collab_repro.learner(ratings(), seed=4, order=9).dls
    return [list(dls.train), list(dls.train), dls.one_batch()]


def reproduced() -> pd.DataFrame:
    with tempfile.TemporaryDirectory() as out:
        collab_repro.reproduce(ratings(), runs=[3, 8], splits=2, epochs=1, path=Path(out) / "chapter.csv")
        return (Path(out) / "chapter.csv").read_bytes()


def figure(draw) -> bytes:
    with tempfile.TemporaryDirectory() as out:
        plots.save_figure(draw(), Path(out) / "figure.png")
        return (Path(out) / "figure.png").read_bytes()


def curves() -> pd.DataFrame:
    return collab_repro.compare(ratings(), seeds=range(2), epochs=2, n_factors=5).drop(columns="seconds")


def same_start() -> list:
    same = collab_repro.same_start(ratings(), seed=2, epochs=1)
    return [same.equal_losses, same.curves.drop(columns="seconds")]


def ensemble() -> pd.Series:
    learns = [collab_repro.learner(ratings(), seed=s, n_factors=5) for s in range(4)]
    collab_repro.fit(learns, epochs=1)
    return collab_repro.predict(learns, ratings().head(50))


def saved() -> bytes:
    with tempfile.TemporaryDirectory() as out:
        learned.Learned.of(fitted()).save(Path(out) / "learned.npz")
        return (Path(out) / "learned.npz").read_bytes()


SEEDED = {
    "planted_ratings": ratings,
    "shuffled": lambda: shuffled(1000, seed=5, epoch=2),
    "batches": batches,
    "learner and fit": learner_fit,
    "compare": curves,
    "same_start": same_start,
    "reproduce": reproduced,
    "predict, ensemble": ensemble,
    "ablate": lambda: ablate(ratings(), CHANGES[:3], seeds=range(2), epochs=1),
    "rotated": lambda: stability.rotated(fitted(), seed=6).movie_factors,
    "factor_pca": lambda: collab_repro.factor_pca(fitted(), top=30),
    "plot_curves": lambda: figure(lambda: collab_repro.plot_curves(curves())),
    "plot_difference": lambda: figure(lambda: collab_repro.plot_difference(curves())),
    "plot_bias": lambda: figure(lambda: collab_repro.plot_bias(collab_repro.movie_bias(fitted()))),
    "plot_factors": lambda: figure(lambda: collab_repro.plot_factors(collab_repro.factor_pca(fitted()))),
    "Learned.save": saved,
}


def digest(found) -> str:
    "A hash of every bit of `found`."
    if isinstance(found, pd.DataFrame | pd.Series):
        found = found.to_csv()  # floats in full
    if hasattr(found, "tobytes") or isinstance(found, torch.Tensor):
        found = np.asarray(found.detach() if isinstance(found, torch.Tensor) else found).tobytes()
    elif not isinstance(found, bytes | str | float | int):  # lists, tuples and fastai's L
        found = "".join(map(digest, found))
    return hashlib.sha256(found if isinstance(found, bytes) else str(found).encode()).hexdigest()


@pytest.fixture(scope="module")
def elsewhere() -> dict[str, str]:
    "The digests that a fresh process finds."
    run = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


@pytest.mark.parametrize("name", SEEDED)
@pytest.mark.parametrize("threads", [1, 2])
def test_one_seed_one_result(name, threads, elsewhere):
    torch.set_num_threads(threads)
    torch.rand(threads), np.random.rand(threads), random.random()  # unrelated draws
    assert digest(SEEDED[name]()) == elsewhere[name]


@pytest.mark.parametrize("name", ["planted_ratings", "shuffled"])
def test_another_seed_another_result(name):
    other = {
        "planted_ratings": lambda: collab_repro.planted_ratings(70, 50, 1500, seed=4)[0],
        "shuffled": lambda: shuffled(1000, seed=6, epoch=2),
    }
    assert digest(other[name]()) != digest(SEEDED[name]())


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    import matplotlib

    matplotlib.use("Agg")
    print(json.dumps({name: digest(found()) for name, found in SEEDED.items()}))
