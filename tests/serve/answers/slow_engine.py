"""An engine whose steps can be slowed down, so that a test meets its requests while they run."""

from __future__ import annotations

import time

from engine import Completion, Engine


class SlowEngine(Engine):
    pause = 0.0  # seconds before each step

    def step(self) -> list[Completion]:
        time.sleep(self.pause)
        return super().step()
