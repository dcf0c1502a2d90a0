"""The core's numbers under the short names that its tests use."""

from __future__ import annotations

from engine._core import LARGE as LARGE
from engine._core import NOBODY as NOBODY
from engine._core import SMALL as SMALL
from engine._core import WHOLE_ANSWER as WHOLE
from engine._core import EventKind, Finish, Phase, RowKind

__all__ = ["LARGE", "NOBODY", "SMALL", "WHOLE"]

PROMPT, CATCHUP, SAMPLED, DISCARDED, RECOMPUTE, DRAFTED, REJECTED = RowKind
DECIDE, FINISHED = EventKind
WAITING, RUNNING, OVER = Phase
NONE, STOP, LENGTH, ABORT, ERROR, DEADLINE, REPETITION = Finish
