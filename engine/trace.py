"""The decision trace: JSON lines that say who wrote each step, why, and what it cost.

Three kinds of line, told apart by ``type``: ``run`` (first), ``step`` and ``request``. The rows of
a request are shape-free, so a trace can be priced at the shapes of any pair.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import SteerError
from engine.files import JsonLines, read_text
from engine.ledger import Usage
from engine.request import Completion

SCHEMA = "steer-trace/1"


class TraceWriter(JsonLines):
    """Writes one run."""

    def __init__(self, path: Path, pair: str, policy: str) -> None:
        super().__init__(path)
        self.write({"schema": SCHEMA, "type": "run", "pair": pair, "policy": policy})

    def add(self, completion: Completion) -> None:
        """Write the steps of a finished request, then its counts."""
        for step in completion.steps:
            self.write(
                {
                    "type": "step",
                    "request": completion.request_id,
                    "step": step.index,
                    "position": step.position,
                    "tokens": len(step.token_ids),
                    "model": step.model,
                    "signals": step.signals and step.signals.to_json(),
                    "posterior": step.posterior,
                    "reason": step.reason,
                }
            )
        self.write(
            {
                "type": "request",
                "request": completion.request_id,
                "sample": completion.sample,
                "prompt_tokens": len(completion.prompt_token_ids),
                "completion_tokens": len(completion.token_ids),
                "finish_reason": completion.finish_reason,
                "large_step_share": completion.large_step_share,
                **completion.usage.to_json(),
            }
        )


@dataclass(frozen=True)
class TracedRequest:
    """One request of a trace: what pricing needs."""

    prompt_tokens: int
    completion_tokens: int
    steps: int
    large_steps: int
    usage: Usage


@dataclass(frozen=True)
class Trace:
    """A trace that was read back."""

    pair: str
    policy: str
    requests: tuple[TracedRequest, ...]

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read a file. SteerError with file and line number on anything that is not a trace."""
        run: dict[str, Any] = {}
        requests: list[TracedRequest] = []
        steps = large = 0
        for number, row in _rows(path):
            if not run:
                if row.get("schema") != SCHEMA:
                    raise SteerError(f"{path}:1: schema {row.get('schema')!r}, expected {SCHEMA!r}")
                run = row
            elif row.get("type") == "step":
                steps, large = steps + 1, large + (row.get("model") == "large")
            elif row.get("type") == "request":
                requests.append(_request(path, number, row, steps, large))
                steps = large = 0
        if not requests:
            raise SteerError(f"{path}: no finished request in this trace")
        return cls(str(run.get("pair")), str(run.get("policy")), tuple(requests))


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(path, "trace file").rstrip("\n").split("\n"), 1):
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise SteerError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise SteerError(f"{path}:{number}: expected a JSON object")
        yield number, row


def _request(path: Path, number: int, row: dict[str, Any], steps: int, large: int) -> TracedRequest:
    try:
        usage = Usage.from_json(row)
        prompt, generated = int(row["prompt_tokens"]), int(row["completion_tokens"])
    except (KeyError, TypeError, ValueError) as error:
        raise SteerError(f"{path}:{number}: not a request of a trace: {error}") from None
    return TracedRequest(prompt, generated, steps, large, usage)
