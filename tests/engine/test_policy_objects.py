"""A user's objects as policies: three names are enough, the others have defaults."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine import (
    Audit,
    Boundary,
    Decision,
    Engine,
    Policy,
    Query,
    Random,
    SamplingParams,
    SteerError,
)
from engine.replay.replay import replay
from engine.replay.trace import Trace
from engine.routing.policies import AfterThinking, Always
from engine.routing.policy import complete
from engine.routing.windows import BOUNDARY, Window

PROMPT = "12+34*56-7?\n\n"
PARAMS = SamplingParams(max_tokens=48, ignore_eos=True)


def by_doubt(boundary: Boundary) -> Decision:
    sure = boundary.signals is None or boundary.signals.max_prob > 0.9
    return Decision("small" if sure else "large", "by doubt")


def user_policy(decide: Callable[[Boundary], Decision] = by_doubt, **more: Any) -> Any:
    """An object of no class of the library."""
    return SimpleNamespace(**{"name": "mine", "reads": True, "decide": decide} | more)


def texts(engine: Engine, policy: Any) -> list[tuple[str, str]]:
    (answer,) = engine.generate([PROMPT], PARAMS, policy)
    return [(step.model, step.text) for step in answer.steps]


def test_three_names_are_enough(engine: Engine):
    as_function = texts(engine, lambda b: by_doubt(b).model)
    assert {model for model, _ in as_function} == {"small", "large"}
    assert texts(engine, user_policy()) == as_function
    assert isinstance(user_policy(), Policy)
    whole = complete(user_policy())
    assert (whole.window, whole.reader, whole.audit) == (BOUNDARY, "small", None)


@pytest.mark.parametrize("start", ["submit", "stream"])
def test_every_way_in_takes_one(engine: Engine, start: str):
    expected = texts(engine, user_policy())
    if start == "submit":
        engine.submit(PROMPT, PARAMS, user_policy())
        done = []
        while not done:
            done = engine.step()
        (answer,) = done
    else:
        answer = list(engine.stream(PROMPT, PARAMS, user_policy()))[-1].completion
    assert [(step.model, step.text) for step in answer.steps] == expected


def test_the_other_attributes_count_if_they_are_there(engine: Engine):
    tried = []

    def decide(boundary: Boundary) -> Decision:
        tried.append(boundary.tried)
        return Decision("small", "always")

    texts(engine, user_policy(decide, window=Window("probe", 3)))
    assert max(tried) == 3
    audit = Audit("rollback", "min", 0.0)
    judged = user_policy(lambda b: Decision("small", "to be judged"), reader="large", audit=audit)
    (answer,) = engine.generate([PROMPT], PARAMS, judged)
    assert answer.retracted and {step.model for step in answer.steps} == {"large"}


def test_as_a_part_of_another(engine: Engine):
    first_by_large = user_policy(lambda b: Decision("large", "asked once"))
    assert {model for model, _ in texts(engine, Query(first_by_large))} == {"large"}
    both = AfterThinking(user_policy(window=Window("probe", 3)), Always("large"))
    assert both.window == Window("probe", 3) and both.reads
    with pytest.raises(SteerError, match="one window, got probe:3 and boundary"):
        AfterThinking(user_policy(window=Window("probe", 3)), user_policy(window=BOUNDARY))
    assert texts(engine, both)  # nothing ends the thinking


@pytest.mark.parametrize("start", ["generate", "submit", "stream", "query", "thinking", "replay"])
def test_a_window_that_is_none_is_refused(engine: Engine, start: str, tmp_path: Path):
    wrong, path = user_policy(window="probe:3"), tmp_path / "trace.jsonl"
    engine.generate([PROMPT], PARAMS, "threshold:max_prob:0.9", trace=path)
    ways: dict[str, Callable[[], Any]] = {
        "generate": lambda: engine.generate([PROMPT], PARAMS, wrong),
        "submit": lambda: engine.submit(PROMPT, PARAMS, wrong),
        "stream": lambda: list(engine.stream(PROMPT, PARAMS, wrong)),
        "query": lambda: engine.generate([PROMPT], PARAMS, Query(wrong)),
        "thinking": lambda: AfterThinking(wrong, Always("small")),
        "replay": lambda: replay(Trace.read(path), wrong),
    }
    with pytest.raises(SteerError, match="a policy's window must be a Window, got 'probe:3'"):
        ways[start]()


def test_one_that_uses_no_window_replays_any_trace(engine: Engine, tmp_path: Path):
    path = tmp_path / "trace.jsonl"
    engine.generate([PROMPT], PARAMS, "threshold:max_prob:0.9@probe:3", trace=path)
    trace = Trace.read(path)
    large = user_policy(lambda b: Decision("large", "always"), reads=False)
    assert replay(trace, large).large_step_share == 1
    assert replay(trace, Query(Random(0.0))).large_step_share == 0
    with pytest.raises(SteerError, match="looks at boundary, the trace holds probe:3"):
        replay(trace, user_policy())
