"""Two processes on gloo and CPU: together they are one process with twice the batch.

One `torchrun` serves both tests: a process takes longer to import what it needs than to train.
"""

import json
import os
import subprocess
import sys

import pytest
import torch

from collab_repro import DotProductBias, DotProductBiasParams, fit, learner
from collab_repro.models import tables

pytest.importorskip("accelerate", reason="fastai trains distributed through Accelerate")

SCRIPT = """
import atexit, json, os, runpy, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch

@atexit.register
def the_group_is_closed():  # registered first, so it runs last: gloo's threads must not outlive Python
    threads = [f.read_text() for f in Path("/proc/self/task").glob("*/comm")]
    if torch.distributed.is_initialized() or "gloo" in str(threads):
        print("gloo is left running", file=sys.stderr, flush=True)
        os._exit(3)

import pandas as pd
from fastai.torch_core import rank_distrib
from collab_repro import DotProductBias, DotProductBiasParams, RatingsDL, fit, learner
from collab_repro.models import tables

ratings = pd.read_csv("ratings.csv")
learns = [learner(ratings, model, seed=3, bs=32) for model in (DotProductBias, DotProductBiasParams)]
fit(learns, epochs=2)
if rank_distrib() == 0:
    torch.save([{k: v.detach() for k, v in tables(ln.model).items()} for ln in learns], "tables.pt")
    values = [[list(map(float, row)) for row in ln.recorder.values] for ln in learns]
    loaders = [(type(dl) is RatingsDL, dl.epoch_no) for ln in learns for dl in ln.dls]
    Path("fitted.json").write_text(json.dumps([values, loaders]))

sys.argv = ["collab_repro", "--data", "ratings.csv", "--seeds", "1", "--epochs", "1", "--out", "out"]
runpy.run_module("collab_repro", run_name="__main__", alter_sys=True)
"""


@pytest.fixture(scope="module")
def torchrun(few, tmp_path_factory):
    """The folder in which two processes have trained two models and run the main command, and its output."""
    folder = tmp_path_factory.mktemp("torchrun")
    (folder / "train.py").write_text(SCRIPT)
    few.to_csv(folder / "ratings.csv", index=False)
    command = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        "train.py",
    ]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=folder, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_two_processes_end_where_one_with_twice_the_batch_ends(torchrun, few):
    learns = [learner(few, model, seed=3, bs=64) for model in (DotProductBias, DotProductBiasParams)]
    fit(learns, epochs=2)
    values, loaders = json.loads((torchrun[0] / "fitted.json").read_text())
    assert torch.allclose(
        torch.tensor(values), torch.tensor([ln.recorder.values for ln in learns]), atol=1e-6
    )
    assert loaders == [[True, 2]] * 4, "the loaders were not handed back as after two epochs"
    for theirs, learn in zip(torch.load(torchrun[0] / "tables.pt"), learns, strict=True):
        for name, table in tables(learn.model).items():
            assert torch.allclose(table, theirs[name], atol=1e-6), name
    biases = [tables(learn.model)["movie_bias"].view(-1) for learn in learns]
    assert not torch.allclose(*biases, atol=1e-4)


def test_the_main_command_runs_under_torchrun_and_tells_once(torchrun):
    folder, output = torchrun
    assert output.count("# fastbook chapter 8") == 1
    assert (folder / "out" / "curves.png").exists()
