"""A simulated card for a program that tests start: with this folder on PYTHONPATH it sees one.

STEER_CARD_FAULTS is JSON that says what is to go wrong there: an op to spoil, a part that fails,
a part that hangs, with a `sleep` of so many seconds; see tests/card/worker.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if "bench.gpu_quick.worker" in sys.orig_argv:
    sys.path.insert(0, str(Path(__file__).parents[3]))
    os.environ["TRITON_INTERPRET"] = "1"  # read where kernels are imported
    from tests.card.worker import enter

    enter()
