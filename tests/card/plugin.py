"""For pytest: simulated cards for the whole run, so that tests that ask for a GPU find one.

python -m pytest -p tests.card.plugin -m gpu tests/engine
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are imported

import pytest

from tests.card.references import references
from tests.card.simulated import simulated_card

_CARDS = simulated_card(), references()


def pytest_load_initial_conftests() -> None:
    """Before a test file asks whether there is a GPU."""
    for entered in _CARDS:
        entered.__enter__()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure() -> None:
    for entered in reversed(_CARDS):
        entered.__exit__(None, None, None)
