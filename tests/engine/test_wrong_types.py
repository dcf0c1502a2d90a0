"""Values of a type that a newcomer tries: one line says what is wrong and what would be right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine import (
    AfterThinking,
    Calibration,
    CostAware,
    Engine,
    EngineConfig,
    Judge,
    Query,
    Random,
    SamplingParams,
    Steer,
    SteerError,
    Threshold,
    Window,
)
from engine.config import TINY

PROMPT = "47+36*7-15?\n\n"
CALIBRATION = TINY / "calibration.json"


@pytest.fixture(scope="module")
def engine() -> Engine:
    return Engine("tiny")


CALLS: dict[str, tuple[Callable[[Engine], Any], str]] = {
    "dict as params": (
        lambda e: e.submit(PROMPT, {"max_tokens": 3}),
        "params must be Sampl.* a dict",
    ),
    "list as params": (
        lambda e: e.submit(PROMPT, [SamplingParams()]),
        "params must be Sampl.* a list",
    ),
    "dict for one": (lambda e: e.generate([PROMPT], [{"n": 3}]), "params must be Sampl.* a dict"),
    "params of a stream": (lambda e: next(e.stream(PROMPT, 5)), "params must be Sampl.* an? int"),
    "timeout as text": (lambda e: e.submit(PROMPT, timeout="5"), "timeout must be .* got '5'"),
    "true as timeout": (lambda e: e.submit(PROMPT, timeout=True), "timeout must be .* got True"),
    "true as priority": (lambda e: e.submit(PROMPT, priority=True), "priority must be .* got True"),
    "bytes as prompt": (lambda e: e.submit(b"47"), "text or token ids, got b'47'"),
    "truths as prompt": (lambda e: e.submit([True]), r"text or token ids, got \[True\]"),
    "dict as prompt": (lambda e: e.submit({3: 4}), "text or token ids, got {3: 4}"),
    "text as sequences": (lambda e: e.warm_up("3"), "from 1 to 256 sequences, got '3'"),
    "number as trace": (lambda e: e.generate([PROMPT], trace=5), "trace must be text or a Path"),
    "path as calibration": (lambda e: e.policy("steer", CALIBRATION), "expected a Calibration"),
    "text in Steer": (lambda e: Steer(str(CALIBRATION)), "expected a Calibration, got a str"),
    "text in CostAware": (lambda e: CostAware("c.json"), "expected a Calibration, got a str"),
    "number as a path": (lambda e: Calibration.load(3, e.fingerprint), "path must be text or"),
    "text as threshold": (lambda e: Threshold("max_prob", "0.9"), "a finite number, got '0.9'"),
    "true as threshold": (lambda e: Threshold("max_prob", True), "a finite number, got True"),
    "text as share": (lambda e: Random("0.5"), r"share must be in \[0, 1\], got '0.5'"),
    "true as share": (lambda e: Random(True), r"share must be in \[0, 1\], got True"),
    "text as mark": (lambda e: Judge("-6"), "with a finite MARK, .* mark '-6'"),
    "true in a window": (lambda e: Window("probe", True), "1 or more tokens; got True"),
    "names in AfterThinking": (lambda e: AfterThinking("small", "large"), "expected a Policy, got"),
    "name in Query": (lambda e: Query("small"), "expected a Policy, got 'small'"),
    "dict as config": (lambda e: Engine("tiny", config={}), "config must be EngineConfig.* a dict"),
    "number as pair": (lambda e: Engine(5), "a pair must be a name or a Pair, got 5"),
    "number as folder": (lambda e: Engine("custom", small=5, large=6), "must be text or a Path"),
    "number as device": (lambda e: Engine("tiny", device=5), "unknown device 5; known: auto, cpu"),
    "number as devices": (lambda e: Engine("tiny", devices=5), "each of the two models, got 5"),
}


@pytest.mark.parametrize("call", CALLS)
def test_one_line_says_what_would_be_right(engine: Engine, call: str):
    act, message = CALLS[call]
    with pytest.raises(SteerError, match=message) as raised:
        act(engine)
    assert "\n" not in str(raised.value) and len(str(raised.value)) < 200
    assert not engine.scheduler.waiting


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ("threshold:max_prob:2", r"max_prob is in \[0, 1\], got 2"),
        ("threshold:max_prob:90@probe:3", r"max_prob is in \[0, 1\], got 90"),
        ("cascade:max_prob:-0.1", r"max_prob is in \[0, 1\], got -0.1"),
        ("query:max_prob:1.1", r"max_prob is in \[0, 1\], got 1.1"),
        ("previous:margin:-1", "margin is 0 or more, got -1"),
        ("entropy:-1", "entropy is 0 or more, got -1"),
    ],
)
def test_names_of_thresholds_beyond_the_range(engine: Engine, policy: str, message: str):
    """An object may have such a value: it makes one model write everything."""
    with pytest.raises(
        SteerError, match=f"^policy '{policy}': {message}; for one model everywhere"
    ):
        engine.policy(policy)
    params = SamplingParams(max_tokens=20)
    (done,) = engine.generate([PROMPT], params, Threshold("max_prob", 1.1))
    assert {step.model for step in done.steps} == {"large"}


def test_thresholds_at_the_ends_of_the_range(engine: Engine):
    for policy in ("threshold:max_prob:0", "threshold:max_prob:1", "entropy:0", "max-logit:-5"):
        assert engine.policy(policy).name


def test_text_is_a_path_too(engine: Engine, tmp_path: Path):
    calibration = Calibration.load(str(CALIBRATION), engine.fingerprint)
    calibration.save(str(tmp_path / "copy.json"))
    assert Calibration.load(tmp_path / "copy.json", engine.fingerprint) == calibration


def test_one_text_is_one_stop_string(engine: Engine):
    assert SamplingParams(stop="ab") == SamplingParams(stop=("ab",)) == SamplingParams(stop=["ab"])
    with pytest.raises(SteerError, match="stop must be strings that are not empty"):
        SamplingParams(stop="")
    (done,) = engine.generate([PROMPT], SamplingParams(max_tokens=40, stop="\n\n"), "large")
    (free,) = engine.generate([PROMPT], SamplingParams(max_tokens=40), "large")
    assert done.text == free.text.split("\n\n")[0]


def test_delimiters_as_a_list_are_the_same_settings():
    assert {EngineConfig(delimiters=["\n\n"])} == {EngineConfig()}
