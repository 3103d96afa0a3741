"""Jobs in forked processes: their results in order, their messages, their failures, their threads."""

import os
import signal

import pytest
import torch

from collab_repro import learner
from collab_repro.processes import in_processes
from collab_repro.training import fit


def jobs(n: int):
    def job(number, report):
        report(number)
        return number, os.getpid()

    return [lambda report, number=number: job(number, report) for number in range(n)]


@pytest.mark.parametrize("most", [1, 2, 7])
def test_results_come_in_the_jobs_order_and_messages_here(most):
    heard = []
    results = in_processes(jobs(5), most, heard.append)
    assert [number for number, _ in results] == list(range(5))
    assert sorted(heard) == list(range(5))
    assert (os.getpid() in {pid for _, pid in results}) == (most == 1)


def fails(report):
    raise KeyError("no such thing")


def dies(report):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "job, error, match", [(fails, KeyError, "no such"), (dies, RuntimeError, "a training process died")]
)
def test_a_job_that_fails_ends_the_others(job, error, match):
    with pytest.raises(error, match=match):
        in_processes([lambda report: signal.pause(), job], 2, print)


@pytest.mark.timeout(60)
def test_processes_forked_beside_two_threads_do_not_wait_for_them(planted):
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.randn(10**6).exp()  # starts the second thread, which no fork takes along
        learns = [
            learner(planted, seed=seed, n_factors=200, bs=1024) for seed in range(2)
        ]  # two threads' work
        fit(learns, 1, processes=2)
    finally:
        torch.set_num_threads(before)
    assert all(len(learn.recorder.values) == 1 for learn in learns)
