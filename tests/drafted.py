"""For pytest: every engine of the run has its large model's tokens guessed, if a test asks nothing
else. The texts that tests expect stay the same.

python -m pytest -p tests.drafted --drafts 4 tests/engine/test_sampling.py
"""

from __future__ import annotations

import functools
from typing import Any

import pytest

from engine import EngineConfig

_PLAIN = EngineConfig.__init__


def pytest_addoption(parser: pytest.Parser) -> None:
    """The number of guesses."""
    parser.addoption("--drafts", type=int, default=4, help="guesses a pass (default: 4)")


def pytest_configure(config: pytest.Config) -> None:
    """Engines are made with so many guesses; by look-up where the models have different tokens."""
    drafts = config.getoption("--drafts")

    @functools.wraps(_PLAIN)
    def guessing(self: EngineConfig, *values: Any, **named: Any) -> None:
        named.setdefault("speculate", drafts)
        if named.get("retokenize"):
            named.setdefault("draft_source", "lookup")
        _PLAIN(self, *values, **named)

    EngineConfig.__init__ = guessing  # type: ignore[method-assign]


def pytest_unconfigure() -> None:
    """Other runs in this process are as ever."""
    EngineConfig.__init__ = _PLAIN  # type: ignore[method-assign]
