"""The result of a part."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from bench.gpu_quick.plan import Part

PASSED, FAILED, NOT_RUN = "passed", "failed", "not run"


@dataclass
class Result:
    """``reason``: one line, if the part did not pass; ``trace``: the traceback, if there is one.

    detail: further facts from the part's process, such as where parity failed, or which kernels it
        had to compile.
    """

    part: Part
    state: str
    seconds: float = 0.0
    reason: str = ""
    trace: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The result as a line for people."""
        name = f"{self.part.key:>13}  {self.state:<8}{self.seconds:6.1f} s  {self.part.title}"
        return f"{name}: {self.reason}" if self.reason else name
