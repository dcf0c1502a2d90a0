"""Where Triton's interpreter cannot work, tests that need it are skipped, and nowhere else."""

from __future__ import annotations

import pytest
import triton
from triton.runtime import interpreter

from tests import interpreter as ours


def test_it_works_with_all_but_the_oldest_triton():
    assert ours.fault() is None or triton.__version__.startswith("3.6.")


def test_a_launch_skips_where_it_fails(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(ours, "fault", lambda: "the interpreter fails")
    executor = interpreter.GridExecutor
    monkeypatch.setattr(executor, "__call__", executor.__call__)  # put back at the end
    ours.skip_where_it_fails()
    with pytest.raises(pytest.skip.Exception, match="the interpreter fails"):
        interpreter.InterpretedFunction(ours._count)[(1,)](2)


def test_another_fault_is_no_reason_to_skip(monkeypatch: pytest.MonkeyPatch):
    def broken(*_: object, **__: object) -> None:
        raise interpreter.InterpreterError("something else")

    monkeypatch.setattr(interpreter.GridExecutor, "__call__", broken)
    assert ours.fault.__wrapped__() is None
