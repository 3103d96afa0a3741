"""Killed at any moment, a run leaves whole files behind, and the next one completes.

COLLAB_REPRO_KILLS=500 python -m pytest tests/test_kills.py runs it long.
"""

import os
import random
import signal
import subprocess
import sys
import time
import warnings

import pandas as pd
import pytest

from collab_repro import DotProductBias, Learned, learner, results
from collab_repro.__main__ import main
from collab_repro.files import read_losses, write_table, write_whole
from collab_repro.reproduce import COLUMNS

KILLS = int(os.environ.get("COLLAB_REPRO_KILLS", "50"))


def fork(work):
    "A child process that does `work` again and again until it is killed."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork beside threads: the child only writes files
        child = os.fork()
    if not child:
        while True:
            work()
    return child


def test_fifty_kills_while_writing_leave_every_file_whole(tmp_path, planted):
    learned = Learned.of(learner(planted, DotProductBias, n_factors=5))
    columns = dict.fromkeys(results.CURVES, 0.5) | {"data": "mine", "model": "DotProductBias"}
    tables = [pd.DataFrame([columns] * n) for n in (10, 5_000)]
    reports = [b"short", b"long" * 2_000_000]
    turn = random.Random(0)

    def work():
        which = turn.randrange(2)
        write_table(tmp_path / "curves.csv", tables[which])
        write_whole(tmp_path / "report.md", reports[which])
        learned.save(tmp_path / "learned-DotProductBias.npz")

    work()
    for kill in range(KILLS):
        before = set(tmp_path.glob(".*.part"))
        child = fork(work)
        time.sleep(turn.uniform(0, 0.03))
        while kill % 2 and set(tmp_path.glob(".*.part")) <= before:
            pass  # every other kill waits for a file half written
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        turn.random()  # another sequence for the next child
        assert len(read_losses(tmp_path / "curves.csv", results.CURVES)) in (10, 5_000)
        assert (tmp_path / "report.md").read_bytes() in reports
        assert Learned.load(tmp_path / "learned-DotProductBias.npz").titles == learned.titles
    assert list(tmp_path.glob(".*.part")), "no kill hit a file half written: this proves nothing"
    assert main(["plots", "--out", str(tmp_path)]) == 0
    assert not list(tmp_path.glob(".*.part"))


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    file = tmp_path / "curves.csv"
    write_whole(file, b"old")

    def full(path, content):
        with path.open("wb") as file:
            file.write(content[:2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        write_whole(file, b"new and longer")
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("curves.csv", "old")]


@pytest.mark.parametrize("signal_sent", [signal.SIGINT, signal.SIGKILL])
def test_chapter_killed_at_random_moments_loses_nothing_it_had(planted, tmp_path, signal_sent, interruptible):
    planted.to_csv(tmp_path / "mine.csv", index=False)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "collab_repro", "chapter", "--data", str(tmp_path / "mine.csv")]
    command += ["--runs", "3,4,7", "--splits", "4", "--epochs", "1", "--out", str(out)]
    moments, kept = random.Random(1), 0
    for _ in range(2):
        run = subprocess.Popen(
            command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(4, 8))
        os.killpg(run.pid, signal_sent)
        run.wait()
        if (out / "chapter.csv").exists():
            rows = len(read_losses(out / "chapter.csv", COLUMNS))
            assert rows >= kept
            kept = rows
    subprocess.run(command, check=True, capture_output=True)
    whole = read_losses(out / "chapter.csv", COLUMNS)
    assert len(whole) == 12 and not list(out.glob(".*.part"))
    assert whole.equals(whole.sort_values(["run", "split", "epoch"], ignore_index=True))


def test_the_main_command_killed_at_random_moments_leaves_the_earlier_results(planted, tmp_path):
    planted.to_csv(tmp_path / "mine.csv", index=False)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "collab_repro", "--data", str(tmp_path / "mine.csv")]
    command += ["--epochs", "1", "--out", str(out), "--seeds"]
    subprocess.run([*command, "1"], check=True, capture_output=True)
    moments = random.Random(2)
    for _ in range(max(1, KILLS // 50)):
        run = subprocess.Popen([*command, "2"], start_new_session=True, stdout=subprocess.DEVNULL)
        time.sleep(moments.uniform(4, 9))
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert len(read_losses(out / "curves.csv", results.CURVES)) in (2, 4)  # the earlier run or this one
        assert Learned.load(out / "learned-DotProductBias.npz").titles
    subprocess.run([*command, "2"], check=True, capture_output=True)
    assert len(read_losses(out / "curves.csv", results.CURVES)) == 4 and not list(out.glob(".*.part"))
