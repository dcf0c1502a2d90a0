"""Processes and threads: what forks, spawned processes and several threads may do with an engine.

A fork is tried in a process of its own, where nothing of pytest is copied.
"""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import textwrap

import pytest
import torch

from engine import Engine, EngineConfig, SteerError

# A child that hangs is ended after some seconds.
HEAD = """
import os, signal, sys, threading, time
import torch
torch.set_num_threads(3)
from engine import Engine, EngineConfig, SamplingParams, SteerError
PROMPT, PARAMS = "47+36*37-15?\\n\\n", SamplingParams(24)

def thread_count():
    return len(os.listdir("/proc/self/task"))

def answer(engine, policy="steer"):
    return engine.generate([PROMPT], PARAMS, policy)[0].text

def child(work):
    number = os.fork()
    if not number:
        work()
        sys.stdout.flush()
        os._exit(0)
    return number

def join(number, seconds=20):
    for _ in range(10 * seconds):
        ended, status = os.waitpid(number, os.WNOHANG)
        if ended:
            return f"ended with {status}"
        time.sleep(0.1)
    os.kill(number, signal.SIGKILL)
    os.waitpid(number, 0)
    return "hangs"
"""


def run(program: str) -> list[str]:
    """What the program prints."""
    text = HEAD + textwrap.dedent(program)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, timeout=150, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("end", ["os._exit(0)", "del engine; os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_computes_and_ends(end: str):
    lines = run(
        f"""
        engine = Engine("tiny")
        expected = answer(engine)
        number = os.fork()
        if not number:
            torch.set_num_threads(3)  # starts threads of Torch, which do not count
            before = thread_count()
            right = answer(engine) == expected
            started = thread_count() - before
            print("right:", right, "threads:", started, flush=True)
            {end}
        print("child", join(number), "parent right:", answer(engine) == expected)
        """
    )
    # Two models, with two threads each beside the caller.
    assert lines == ["right: True threads: 4", "child ended with 0 parent right: True"]


def test_a_child_that_never_computes_ends():
    assert run(
        """
        engine = Engine("tiny")
        number = os.fork()
        if not number:
            del engine
            os._exit(0)
        print(join(number))
        """
    ) == ["ended with 0"]


def test_a_child_of_a_child_computes():
    assert run(
        """
        engine = Engine("tiny")
        expected = answer(engine)

        def again():
            assert answer(engine) == expected
            print("grandchild", join(child(lambda: print(answer(engine) == expected))))

        print("child", join(child(again)))
        """
    ) == ["True", "grandchild ended with 0", "child ended with 0"]


def test_an_engine_may_be_made_after_a_fork():
    assert run(
        """
        torch.randn(64, 150_000).softmax(-1)  # on three threads, which the child does not have
        expected = answer(Engine("tiny"))

        def make():
            torch.set_num_threads(3)  # starts threads of Torch, which do not count
            before = thread_count()
            engine = Engine("tiny")
            print(answer(engine) == expected, thread_count() - before)

        print(join(child(make)))
        """
    ) == ["True 4", "ended with 0"]


def test_torch_in_a_forked_engine_does_not_wait_for_threads_that_are_gone():
    """A large softmax, as sampling from a large vocabulary is, before and after the fork."""
    assert run(
        """
        logits = torch.randn(64, 150_000)

        def policy(boundary):
            logits.softmax(-1)
            return "small"

        engine = Engine("tiny")
        expected = answer(engine, policy)

        def work():
            print(answer(engine, policy) == expected, torch.get_num_threads())

        print(join(child(work)))
        """
    ) == ["True 3", "ended with 0"]


def test_a_fork_while_another_thread_is_inside_is_refused_in_the_child():
    lines = run(
        """
        inside, forked = threading.Event(), threading.Event()

        def policy(boundary):
            inside.set()
            assert forked.wait(60)
            return "small"

        def refused():
            try:
                answer(engine)
            except SteerError as error:
                print(error)

        engine = Engine("tiny")
        expected = answer(engine, "small")
        found = []
        thread = threading.Thread(target=lambda: found.append(answer(engine, policy)))
        thread.start()
        assert inside.wait(60)
        number = child(refused)
        print(join(number))
        forked.set()
        thread.join()
        print(found == [expected])
        """
    )
    assert lines[0].startswith("the process was forked in the middle of a call of this engine")
    assert lines[1:] == ["ended with 0", "True"]


def test_workers_of_a_data_loader_compute():
    """They are forked, on Linux by default, and run Torch on one thread."""
    assert run(
        """
        from torch.utils.data import DataLoader

        class Answers:
            def __init__(self, engine):
                self.engine = engine

            def __len__(self):
                return 4

            def __getitem__(self, index):
                return answer(self.engine)

        engine = Engine("tiny")
        expected = answer(engine)
        loader = DataLoader(
            Answers(engine), num_workers=2, batch_size=2, multiprocessing_context="fork", timeout=60
        )
        print([text == expected for batch in loader for text in batch])
        """
    ) == ["[True, True, True, True]"]


def test_an_engine_cannot_be_sent_to_a_spawned_process():
    with pytest.raises(SteerError, match="make one in that process"):
        pickle.dumps(Engine("tiny"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_forked_child_cannot_use_an_engine_on_a_gpu():
    config = EngineConfig(arena_tokens=4096, max_context=256)
    engine = Engine("tiny", device="cuda", config=config)
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            engine.generate(["1+2?\n\n"])
        except SteerError as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    os.close(writer)
    with os.fdopen(reader) as text:
        assert text.read().startswith("an engine on a GPU cannot be used in a forked process")
