"""Two processes on gloo and CPU: together they are one process with twice the batch."""

import json
import os
import subprocess
import sys

import pytest
import torch

pytest.importorskip("accelerate", reason="fastai trains distributed through Accelerate")

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
SCRIPT = """
import atexit, json, os, sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
import torch

@atexit.register
def the_group_is_closed():  # registered first, so it runs last: gloo's threads must not outlive Python
    threads = [f.read_text() for f in Path("/proc/self/task").glob("*/comm")]
    if torch.distributed.is_initialized() or "gloo" in str(threads):
        print("gloo is left running", file=sys.stderr, flush=True)
        os._exit(3)

from fastai.torch_core import rank_distrib
from collab_repro import DotProductBias, DotProductBiasParams, fit, learner, planted_ratings
from collab_repro.models import tables

torch.set_num_threads(1)
ratings, _ = planted_ratings(n_users=120, n_movies=90, n_ratings=4000, n_factors=3, seed=1)
bs, file = int(sys.argv[1]), sys.argv[2]
learns = [learner(ratings, model, seed=3, bs=bs) for model in (DotProductBias, DotProductBiasParams)]
fit(learns, epochs=2)
if rank_distrib() == 0:
    torch.save([{k: v.detach() for k, v in tables(ln.model).items()} for ln in learns], file)
    print(json.dumps([[list(map(float, row)) for row in ln.recorder.values] for ln in learns]))
    assert all(ln.dls.train.world_size == 1 for ln in learns), "the loaders were not handed back"
"""


def run(tmp_path, processes: int, bs: int):
    script, file = tmp_path / "train.py", tmp_path / f"tables-{processes}.pt"
    script.write_text(SCRIPT)
    launch = [*TORCHRUN, f"--nproc_per_node={processes}"] if processes > 1 else [sys.executable]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.getcwd()}
    done = subprocess.run(
        [*launch, str(script), str(bs), str(file)], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), torch.load(file, weights_only=True)


def test_two_processes_end_where_one_with_twice_the_batch_ends(tmp_path):
    one, one_tables = run(tmp_path, 1, 64)
    two, two_tables = run(tmp_path, 2, 32)
    assert torch.allclose(torch.tensor(one), torch.tensor(two), atol=1e-6)
    for ours, theirs in zip(one_tables, two_tables, strict=True):
        for name, table in ours.items():
            assert torch.allclose(table, theirs[name], atol=1e-6), name
    assert not torch.allclose(one_tables[0]["movie_bias"].view(-1), one_tables[1]["movie_bias"], atol=1e-4)


def test_the_main_command_runs_under_torchrun_and_tells_once(tmp_path, planted):
    planted.to_csv(tmp_path / "mine.csv", index=False)
    command = [*TORCHRUN, "--nproc_per_node=2", "-m", "collab_repro"]
    command += ["--data", str(tmp_path / "mine.csv"), "--seeds", "2", "--epochs", "1"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, "--out", str(tmp_path / "out")], capture_output=True, text=True, env=env, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("# fastbook chapter 8") == 1
    assert (tmp_path / "out" / "curves.png").exists()
