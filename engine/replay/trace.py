"""The decision trace: JSON lines on which model wrote each step, why, and at what cost.

A line's ``type`` is ``run`` (the first line), ``step`` or ``request``. The counts of a request hold
no shapes, so a trace can be priced at the shapes of any pair.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.accounting.ledger import Usage
from engine.errors import SteerError
from engine.files import JsonLines, parse_json, read_text
from engine.request import Completion
from engine.routing.signals import SIGNAL_NAMES, Signals

SCHEMA = "steer-trace/1"


class TraceWriter(JsonLines):
    """Writes the trace of one run."""

    def __init__(self, path: Path, pair: str, policy: str, window: str = "boundary") -> None:
        """``window``: the window of the signals of its steps."""
        super().__init__(path)
        run = {"schema": SCHEMA, "type": "run", "pair": pair, "policy": policy, "window": window}
        self.write(run)

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
                    "tried": step.tried,
                    "model": step.model,
                    "signals": step.signals and step.signals.to_json(),
                    "posterior": step.posterior,
                    "reason": step.reason,
                    **({"audit": step.audit} if step.audit else {}),
                    **({} if step.replaced is None else {"replaced": step.replaced}),
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
                "recomputed_share": completion.usage.recomputed_share,
                "retracted": [[r.position, r.dropped, r.score] for r in completion.retracted],
                **completion.usage.to_json(),
            }
        )


@dataclass(frozen=True)
class TracedStep:
    """One step of a trace.

    position: tokens before it, prompt included.
    tokens: its length.
    model: the role of the model that wrote it.
    signals: those that the decision saw, if any.
    tried: tokens on trial at the decision.
    large_tokens: tokens that the large model wrote.
    """

    position: int
    tokens: int
    model: str
    signals: Signals | None
    tried: int
    large_tokens: int = 0


@dataclass(frozen=True)
class TracedRequest:
    """One request of a trace."""

    request: int
    prompt_tokens: int
    completion_tokens: int
    trail: tuple[TracedStep, ...]
    usage: Usage

    @property
    def steps(self) -> int:
        """Number of steps."""
        return len(self.trail)

    @property
    def large_steps(self) -> int:
        """Number of steps that the large model wrote."""
        return sum(step.model == "large" for step in self.trail)


@dataclass(frozen=True)
class Trace:
    """A trace read from its file."""

    pair: str
    policy: str
    requests: tuple[TracedRequest, ...]
    window: str = "boundary"

    @classmethod
    def read(cls, path: Path) -> Trace:
        """Read a file. SteerError with file and line number on anything that is not a trace."""
        run: dict[str, Any] = {}
        requests: list[TracedRequest] = []
        trail: list[TracedStep] = []
        for number, row in _rows(path):
            if not run:
                if row.get("schema") != SCHEMA:
                    raise SteerError(
                        f"{path}:1: schema {row.get('schema')!r}, expected {SCHEMA!r}: not a "
                        "trace, or one of another version"
                    )
                run = row
            elif row.get("type") == "step":
                trail.append(_step(path, number, row))
            elif row.get("type") == "request":
                requests.append(_request(path, number, row, trail))
                trail = []
        if not requests:
            raise SteerError(f"{path}: no finished request in this trace")
        # Older traces name no window; in all but the policy cascade's it was the boundary.
        window = str(run.get("window", "boundary"))
        return cls(str(run.get("pair")), str(run.get("policy")), tuple(requests), window)


def _rows(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(read_text(path, "trace file").rstrip("\n").split("\n"), 1):
        try:
            row = parse_json(line)
        except ValueError as error:
            raise SteerError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise SteerError(f"{path}:{number}: expected a JSON object")
        yield number, row


def _step(path: Path, number: int, row: dict[str, Any]) -> TracedStep:
    try:
        raw = row["signals"]
        signals = None if raw is None else Signals(**{k: float(raw[k]) for k in SIGNAL_NAMES})
        place, tokens, tried = (int(row.get(k, 0)) for k in ("position", "tokens", "tried"))
        model = str(row["model"])
        written = len(row["replaced"]) if "replaced" in row else tokens * (model == "large")
        return TracedStep(place, tokens, model, signals, tried, written)
    except (KeyError, TypeError, ValueError) as error:
        raise SteerError(f"{path}:{number}: not a step of a trace: {error}") from None


def _request(
    path: Path, number: int, row: dict[str, Any], trail: list[TracedStep]
) -> TracedRequest:
    try:
        usage = Usage.from_json(row)
        prompt, generated = int(row["prompt_tokens"]), int(row["completion_tokens"])
        name = int(row["request"])
    except (KeyError, TypeError, ValueError) as error:
        raise SteerError(f"{path}:{number}: not a request of a trace: {error}") from None
    if sum(step.tokens for step in trail) != generated:
        raise SteerError(f"{path}:{number}: the steps before do not add up to its tokens")
    return TracedRequest(name, prompt, generated, tuple(trail), usage)
