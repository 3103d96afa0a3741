"""Several jobs at a time, in forked processes, on systems that can fork."""

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from threadpoolctl import threadpool_limits

Listen = Callable[[object], None]


class WorkerDied(RuntimeError):
    """A process ended before its job did."""


def usable_cores() -> int:
    """The number of cores this process may use, or 1 where it can't fork."""
    forks = sys.platform == "linux" and not multiprocessing.current_process().daemon
    return len(os.sched_getaffinity(0)) if forks else 1


def in_processes(
    jobs: Sequence[Callable[[Listen], object]], most: int, listen: Listen = lambda message: None
) -> list:
    """The results of `jobs`, at most `most` of them running at a time, each in a process of its own.

    A job gets a function that passes a message to `listen` in this process; its result must pickle.
    An error in a job is raised here and ends the other jobs. Raises `WorkerDied` when a process died.
    """
    if min(most, len(jobs)) <= 1:
        return [job(listen) for job in jobs]
    fork = multiprocessing.get_context("fork")
    messages = fork.SimpleQueue()
    setup = {"initializer": _set_up, "initargs": (jobs, messages, os.getpid())}
    with ProcessPoolExecutor(min(most, len(jobs)), fork, **setup) as pool:
        running = futures = [pool.submit(_run, number) for number in range(len(jobs))]
        try:
            while running:
                done, running = wait(running, timeout=0.1)
                while not messages.empty():
                    listen(messages.get())
                for future in done:
                    future.result()
        except BaseException as error:
            for process in list((pool._processes or {}).values()):
                process.kill()
            if isinstance(error, BrokenProcessPool):
                raise WorkerDied("a process died at its work; was it killed, or out of memory?") from None
            raise
    return [pickle.loads(future.result()) for future in futures]


def _set_up(jobs: Sequence[Callable], messages, parent: int) -> None:
    """In a new process: keep the jobs, which came by the fork, and end when the parent has ended.

    One thread each: more would only wait for a core, and PyTorch's do not survive a fork.
    """
    _run.jobs, _run.listen = jobs, messages.put
    threadpool_limits(1, user_api="blas")
    for sent in (signal.SIGINT, signal.SIGTERM):  # the parent answers them, and ends its processes
        signal.signal(sent, signal.SIG_IGN)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.3)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _run(number: int) -> bytes:
    return pickle.dumps(_run.jobs[number](_run.listen))  # the pool would share each tensor by a file
