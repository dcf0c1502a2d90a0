"""Torch in a forked process, where the threads that it had are gone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar

import torch

_PROCESS = os.getpid()  # a later one was forked, and Torch may have had threads before
_THREADS: ContextVar[int] = ContextVar("threads")


def thread_count() -> int:
    """As many threads as Torch uses, or would use if it were not in ``torch_after_fork``."""
    return _THREADS.get(0) or torch.get_num_threads()


@contextmanager
def torch_after_fork() -> Iterator[None]:
    """In a forked process Torch works on one thread: it would wait for others for ever.

    Threads of OpenMP do not survive a fork, and the one that forked still counts on them.
    """
    threads = torch.get_num_threads()
    if os.getpid() == _PROCESS or threads == 1:
        yield
        return
    before = _THREADS.set(threads)
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        _THREADS.reset(before)
