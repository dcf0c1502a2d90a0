"""For pytest: simulated cards for the whole run, so that tests that ask for a GPU find one.

python -m pytest -p tests.card.plugin -m gpu tests/engine
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack

os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are imported

import pytest

from tests.card.backends import CardBackends, references
from tests.card.simulated import simulated_card

_ENTERED, _BACKENDS = ExitStack(), pytest.StashKey[CardBackends]()


def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before a test file asks whether there is a GPU."""
    _ENTERED.enter_context(simulated_card())
    early_config.stash[_BACKENDS] = _ENTERED.enter_context(references())


@pytest.fixture(autouse=True)
def _references_are_called(pytestconfig: pytest.Config) -> Iterator[None]:
    """Where an engine runs in a test; else Triton's interpreter would be tested, for hours."""
    backends = pytestconfig.stash[_BACKENDS]
    backends.restart()
    yield
    backends.check()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    _ENTERED.close()
