"""What a caller asks for and what comes back."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from engine.errors import SteerError
from engine.ledger import Usage
from engine.routing.signals import Signals

FINISH_REASONS = ("none", "stop", "length", "abort", "error", "deadline", "repetition")
THINK_END = "</think>"


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. The same for both models.

    max_tokens: generated tokens at most.
    temperature: 0 is greedy.
    top_k, top_p, min_p: applied in this order; 0, 1 and 0 switch them off.
    seed: of the random draws; None takes a fresh one. The same seed, prompt and routing give the
        same text, whatever else runs beside it.
    stop_token_ids: end the text, as the models' end-of-sequence tokens do.
    stop: strings that end the text; it is cut before the first of them.
    ignore_eos: end-of-sequence tokens do not end the text.
    min_tokens: tokens before the first stop of any kind; until then stop tokens are not sampled.
    max_step_tokens: a step that is longer is closed and a boundary forced; 0 sets no limit.
    n: answers to the prompt, drawn apart; they share what is computed of the prompt.
    max_think_tokens: tokens after which ``think_end`` is written if no model has; 0 sets no limit.
    think_end: text that ends the thinking part, and its step; by default ``</think>`` where the
        limit or the policy needs one.
    max_repeats: ends the text with the reason "repetition" once the same piece of it (up to 256
        tokens) stands so many times in a row, over 32 tokens or more; 0 switches it off.
    max_large_share: no step is handed over while the large model has written more than this share
        of the answer.
    max_flops: no step is handed over that would bring the request past so many FLOPs.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    max_step_tokens: int = 0
    n: int = 1
    max_think_tokens: int = 0
    think_end: str = ""
    max_repeats: int = 0
    max_large_share: float = 1.0
    max_flops: float = math.inf

    def __post_init__(self) -> None:
        self._check_types()
        for name, holds, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "in 0..max_tokens"),
            ("max_step_tokens", self.max_step_tokens >= 0, "0 (off) or more"),
            ("n", self.n >= 1, "at least 1"),
            ("max_think_tokens", self.max_think_tokens >= 0, "0 (off) or more"),
            ("max_repeats", self.max_repeats == 0 or self.max_repeats > 1, "0 (off) or 2 or more"),
            ("max_large_share", 0 <= self.max_large_share <= 1, "in [0, 1]"),
            ("max_flops", self.max_flops >= 0, "0 or more"),
            ("seed", self.seed is None or 0 <= self.seed < 2**64, "in 0..2**64-1"),
        ):
            if not holds:
                raise SteerError(f"{name} must be {expected}, got {getattr(self, name)}")

    def _check_types(self) -> None:
        for name in (
            "max_tokens", "top_k", "min_tokens", "max_step_tokens", "n", "max_think_tokens",
            "max_repeats",
        ):  # fmt: skip
            value = getattr(self, name)
            if not isinstance(value, int) or abs(value) >= 2**31:
                raise SteerError(f"{name} must be a whole number below 2**31, got {value!r}")
        for name in ("temperature", "top_p", "min_p", "max_large_share", "max_flops"):
            if not isinstance(getattr(self, name), int | float):
                raise SteerError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not isinstance(self.think_end, str):
            raise SteerError(f"think_end must be text, got {self.think_end!r}")
        if not isinstance(self.seed, int | None):
            raise SteerError(f"seed must be a whole number or None, got {self.seed!r}")
        if not all(isinstance(i, int) and 0 <= i < 2**31 for i in self.stop_token_ids):
            raise SteerError(f"stop_token_ids must be token ids, got {self.stop_token_ids!r}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise SteerError(f"stop must be strings that are not empty, got {self.stop!r}")


@dataclass(frozen=True)
class Step:
    """One step of a trace: who wrote it and why.

    ``position`` is its first token's place in the sequence; ``text`` is that of all its tokens, a
    stop that ends the completion's text included; ``signals`` are None where the policy
    did not read the boundary; ``posterior`` is the probability of the confident component.
    """

    index: int
    position: int
    model: str
    text: str
    token_ids: tuple[int, ...]
    reason: str
    signals: Signals | None = None
    posterior: float | None = None


@dataclass(frozen=True)
class Completion:
    """The answer to one request. ``token_ids`` include what stopped it, ``text`` does not.

    ``sample`` counts the answers to one prompt from 0.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    steps: tuple[Step, ...]
    usage: Usage = field(repr=False)
    seed: int = 0
    sample: int = 0

    @property
    def large_step_share(self) -> float:
        """Share of steps that the large model wrote."""
        return sum(s.model == "large" for s in self.steps) / max(1, len(self.steps))
