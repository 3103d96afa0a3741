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
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout, suppress
from pathlib import Path

import pandas as pd
import pytest
from test_interpret import made

from collab_repro import Learned
from collab_repro.__main__ import main
from collab_repro.command.folder import CURVES
from collab_repro.evidence.eight_runs import COLUMNS
from collab_repro.processes import usable_cores
from collab_repro.sources.files import read_losses, write_table, write_whole

KILLS = int(os.environ.get("COLLAB_REPRO_KILLS", "50"))


def forked(work: Callable[[], int], log: Path | str = os.devnull) -> int:
    """A child process, leader of its own group, that ends with the exit code of `work()` and prints to `log`.

    It has everything imported already, so that what is killed is the work.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fork beside threads: the child needs none of them
        child = os.fork()
    with suppress(OSError):
        os.setpgid(child, child)  # both do it, so that it is done whoever is first
    if child:
        return child
    code = 1
    try:
        with open(log, "w") as out, redirect_stdout(out), redirect_stderr(out):
            code = work()
    finally:
        os._exit(code)


def killed(command: list[str], wait: Callable[[], object], sent=signal.SIGKILL) -> None:
    """Run `command`, and send a signal to it and its processes once `wait` returns."""
    child = forked(lambda: main(command))
    wait()
    os.killpg(child, sent)
    os.waitpid(child, 0)


def timed(command: list[str]) -> float:
    """The seconds that a whole run takes here."""
    started = time.perf_counter()
    assert main(command) == 0
    return time.perf_counter() - started


def unfinished(folder: Path) -> set[str]:
    return {name for name in os.listdir(folder) if name.endswith(".part")}


@pytest.fixture(scope="module")
def mine(planted, tmp_path_factory):
    file = tmp_path_factory.mktemp("mine") / "mine.csv"
    planted.to_csv(file, index=False)
    return str(file)


def test_fifty_kills_while_writing_leave_every_file_whole(tmp_path):
    learned = made([[1.0] * 50] * 9)
    columns = dict.fromkeys(CURVES, 0.5) | {"data": "mine", "model": "DotProductBias"}
    tables = [pd.DataFrame([columns] * n).assign(seed=range(n), epoch=0) for n in (10, 200)]
    reports = [b"long" * 3_000_000, b"longer" * 3_000_000]
    turn, hits = random.Random(0), 0

    def work():
        which = turn.randrange(2)
        write_table(tmp_path / "curves.csv", tables[which])
        write_whole(tmp_path / "report.md", reports[which])
        learned.save(tmp_path / "learned-DotProductBias.npz")

    def work_on():
        while True:
            work()

    work()
    for kill in range(KILLS):
        before = unfinished(tmp_path)
        child = forked(work_on)
        time.sleep(turn.uniform(0, 0.02))
        until = time.monotonic() + 5 * (kill % 2)  # every other kill waits for a file half written
        while unfinished(tmp_path) <= before and time.monotonic() < until:
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        hits += bool(unfinished(tmp_path) - before)
        turn.random()  # another sequence for the next child
        assert len(read_losses(tmp_path / "curves.csv", CURVES)) in (10, 200)
        assert (tmp_path / "report.md").read_bytes() in reports
        assert Learned.load(tmp_path / "learned-DotProductBias.npz").titles == learned.titles
    assert hits, "no kill hit a file half written: this proves nothing"
    work()
    assert not unfinished(tmp_path)


@pytest.mark.parametrize("call", ["write_bytes", "replace"])
def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, call):
    file = tmp_path / "curves.csv"
    write_whole(file, b"old")

    def full(path, *args):
        with path.open("wb") as part:
            part.write(b"ne")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, call, full)
    with pytest.raises(OSError, match="No space left") as said:
        write_whole(file, b"new and longer")
    assert said.value.filename == str(file), "not that of the unfinished one"
    assert [(f.name, f.read_text()) for f in tmp_path.iterdir()] == [("curves.csv", "old")]


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_chapter_killed_at_any_moment_resumes_and_ends_with_the_same_bytes(
    mine, tmp_path, sent, interruptible, capsys
):
    command = ["chapter", "--data", mine, "--runs", "3,4,7", "--splits", "4", "--epochs", "1", "--out"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    seconds, losses = timed([*command, str(whole)]), out / "chapter.csv"
    moments, kept = random.Random(1), 0
    for kill in range(max(2, KILLS // 10)):

        def wait(kill=kill):
            while not (kill or losses.exists()):  # the first kill leaves something to resume
                time.sleep(0.001)
            time.sleep(moments.uniform(0, seconds) if kill else 0)

        killed([*command, str(out)], wait, sent)
        rows = len(read_losses(losses, COLUMNS))
        assert kept <= rows and (kill or 0 < rows < 12)
        kept = rows
    assert main([*command, str(out)]) == 0
    assert len(read_losses(losses, COLUMNS)) == 12
    assert {f.name: f.read_bytes() for f in out.iterdir()} == {
        f.name: f.read_bytes() for f in whole.iterdir()
    }


def test_the_main_command_killed_at_any_moment_leaves_the_earlier_results(mine, tmp_path, capsys):
    command = ["--data", mine, "--epochs", "1", "--out", str(tmp_path), "--seeds"]
    seconds, moments = timed([*command, "1"]), random.Random(2)
    for _ in range(max(2, KILLS // 15)):
        killed([*command, "2"], lambda: time.sleep(moments.uniform(0, seconds)))
        assert len(read_losses(tmp_path / "curves.csv", CURVES)) in (2, 4)  # the earlier run or this one
        assert Learned.load(tmp_path / "learned-DotProductBias.npz").titles
    assert main([*command, "2"]) == 0
    assert len(read_losses(tmp_path / "curves.csv", CURVES)) == 4 and not unfinished(tmp_path)


def at_work(group: int) -> list[int]:
    """The processes of a group that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
            found += [int(stat.parent.name)] * (int(its_group) == group and state != "Z")
    return found


@pytest.mark.skipif(usable_cores() < 2, reason="one core has no processes to leave behind")
@pytest.mark.parametrize(
    ("sent", "to_all", "code"),
    [(signal.SIGKILL, False, -9), (signal.SIGTERM, False, 130), (signal.SIGTERM, True, 130)],
)
def test_no_process_is_left_a_second_after_its_parent(sent, to_all, code, mine, tmp_path, interruptible):
    command = [sys.executable, "-m", "collab_repro", "chapter", "--data", mine, "--runs", "7,8"]
    command += ["--splits", "2", "--epochs", "9999", "--out", str(tmp_path)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True) as run:
        while len(at_work(run.pid)) < 3:  # itself and two that train
            assert run.poll() is None, run.stderr.read()
            time.sleep(0.01)
        time.sleep(0.5)
        (os.killpg if to_all else os.kill)(run.pid, sent)
        assert run.wait(timeout=10) == code
        time.sleep(1)
        assert at_work(run.pid) == []
        assert ("collab_repro: interrupted" in run.stderr.read()) == (code == 130)
