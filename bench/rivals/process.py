"""The handle of another engine's process."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench.rivals.runtimes import Ids, MissingError, Task
from engine.errors import SteerError

_ROOT = Path(__file__).resolve().parents[2]


class Rival:
    """One engine in a process of its own, which waits while others are measured."""

    def __init__(self, name: str, task: Task, python: str, log: Path) -> None:
        """Starts the process and waits until its model is loaded.

        MissingError if the engine cannot run here, SteerError if it fails; its output goes to
        ``log``.
        """
        self.name = name
        self._log = log
        command = [python, "-m", "bench.rivals.worker", name, json.dumps(asdict(task))]
        with log.open("w") as errors:
            self._process = subprocess.Popen(
                command,
                cwd=_ROOT,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        answer = self._answer()
        if "missing" in answer:
            self.close()
            raise MissingError(answer["missing"])
        self.version: str = answer["version"]
        self.weights: str = answer["weights"]

    def generate(self, prompts: Sequence[Ids], tokens: int) -> tuple[float, list[Ids]]:
        """The seconds taken, and the new ids of each prompt."""
        assert self._process.stdin
        print(json.dumps({"prompts": prompts, "tokens": tokens}), file=self._process.stdin)
        self._process.stdin.flush()
        answer = self._answer()
        short = [len(ids) for ids in answer["ids"] if len(ids) != tokens]
        if short or len(answer["ids"]) != len(prompts):
            raise SteerError(f"{self.name} wrote {short} tokens where {tokens} were asked for")
        return answer["seconds"], answer["ids"]

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            lines = self._log.read_text(errors="replace").strip().splitlines() or ["no message"]
            raise SteerError(f"{self.name} failed, see {self._log}: {lines[-1]}")
        answer: dict[str, Any] = json.loads(line)
        return answer
