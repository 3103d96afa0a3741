"""Jobs run beside each other in forked processes, where the system can fork."""

import multiprocessing
import os
import pickle
import sys
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import TypeVar

import torch

__all__ = ["in_processes", "usable_cores"]

Result = TypeVar("Result")
Job = Callable[[Callable[[object], None]], Result]


def usable_cores() -> int:
    "Cores this process may run on where it can fork, else 1."
    if sys.platform != "linux":  # forking a process with PyTorch in it is safe on Linux only
        return 1
    return len(os.sched_getaffinity(0))


def in_processes(jobs: Sequence[Job], most: int, listen: Callable[[object], None]) -> list[Result]:
    """The results of `jobs`, up to `most` of them running at a time, each in a process of its own.

    There PyTorch has one thread: the cores are shared out among the processes, and the threads it
    had started before do not survive a fork (waiting for them would never end).
    A job gets a function to call with messages, which reach `listen` here; what it returns must
    pickle. What a job raises is raised here, and ends the others; so is RuntimeError when its process died.
    """
    if most <= 1 or len(jobs) <= 1:
        return [job(listen) for job in jobs]
    fork = multiprocessing.get_context("fork")
    waiting, running, results = list(enumerate(jobs)), {}, {}
    try:
        while waiting or running:
            while waiting and len(running) < most:
                number, job = waiting.pop(0)
                ours, theirs = fork.Pipe(duplex=False)
                process = fork.Process(target=_run, args=(job, theirs), daemon=True)
                process.start()
                theirs.close()  # so that a dead process reads as the end of the pipe
                running[ours] = number, process
            for pipe in wait(running):
                try:
                    kind, content = pickle.loads(pipe.recv_bytes())
                except EOFError:
                    raise RuntimeError("a training process died; was it killed, or out of memory?") from None
                if kind == "message":
                    listen(content)
                    continue
                number, process = running.pop(pipe)
                process.join()
                if kind == "error":
                    raise content
                results[number] = content
    finally:
        for _, process in running.values():
            process.kill()
            process.join()
    return [results[number] for number in range(len(jobs))]


def _run(job: Job, pipe: Connection) -> None:
    def send(kind: str, content: object) -> None:
        pipe.send_bytes(pickle.dumps((kind, content)))  # `send` would share each tensor by a file of its own

    torch.set_num_threads(1)
    try:
        send("result", job(lambda content: send("message", content)))
    except KeyboardInterrupt:
        pass  # the parent was interrupted too
    except BaseException as error:
        send("error", error)
