"""Jobs in forked processes: their results in order, their messages, their failures."""

import multiprocessing
import os
import signal
import time

import pytest
from threadpoolctl import threadpool_info

from collab_repro.processes import in_processes


@pytest.mark.parametrize("most", [1, 2, 7])
def test_results_come_in_the_jobs_order_and_messages_here(most):
    def job(number, report):
        report(number)
        return number, os.getpid()

    heard, jobs = [], [lambda report, number=number: job(number, report) for number in range(5)]
    results = in_processes(jobs, most, heard.append)
    assert [number for number, _ in results] == list(range(5)) == sorted(heard)
    assert (os.getpid() in {pid for _, pid in results}) == (most == 1)


def test_each_process_has_one_thread():
    def threads(report):
        return [pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas"]

    for found in in_processes([threads] * 2, 2):
        assert found and set(found) == {1}


def fails(report):
    raise KeyError("no such thing")


def dies(report):
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    "job, error, match", [(fails, KeyError, "no such"), (dies, RuntimeError, "a process died")]
)
def test_a_job_that_fails_ends_the_others(job, error, match):
    with pytest.raises(error, match=match):
        in_processes([lambda report: signal.pause(), job], 2, print)


def test_a_failure_ends_no_process_that_others_started():
    own = []

    def starts(message):  # while the jobs run
        own.append(multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,)))
        own[0].start()

    def fails_later(report):
        report("now")
        time.sleep(1)
        raise KeyError("no such thing")

    with pytest.raises(KeyError, match="no such"):
        in_processes([lambda report: signal.pause(), fails_later], 2, starts)
    assert own[0].is_alive()
    own[0].kill()
    own[0].join()
