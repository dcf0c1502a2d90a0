"""What a caller asks for and what comes back."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from engine.errors import SteerError
from engine.ledger import Usage
from engine.routing.signals import Signals

FINISH_REASONS = ("none", "stop", "length", "abort", "error", "deadline")

_LARGEST = sys.float_info.max
_NUMBERS = (
    "temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
)  # fmt: skip


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


class _Biases(Mapping[int, float]):
    """A copy of a caller's biases. Unlike a proxy of a dict it has a hash and can be pickled."""

    def __init__(self, given: Mapping[int, float]) -> None:
        self._of = {token: float(bias) for token, bias in given.items()}

    def __getitem__(self, token: int) -> float:
        return self._of[token]

    def __iter__(self) -> Iterator[int]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)

    def __hash__(self) -> int:
        return hash(frozenset(self._of.items()))

    def __repr__(self) -> str:
        return repr(self._of)


@dataclass(frozen=True)
class SamplingParams:
    """How to sample. The same for both models.

    What changes logits is applied in this order: repetition penalty, frequency and presence
    penalty, logit bias, the ban of stop tokens by ``min_tokens``, temperature, then ``top_k``,
    ``top_p`` and ``min_p``. Greedy sampling obeys it too; a policy's signals and ``logprobs`` are
    taken from the logits as the model gave them.

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
    repetition_penalty: divides the positive logits of tokens that the prompt or the generated text
        holds and multiplies the others; above 0, 1 switches it off.
    presence_penalty: taken from the logits of generated tokens, once; in [-2, 2].
    frequency_penalty: the same for each time that the token was generated; in [-2, 2].
    logit_bias: token id -> what is added to its logit, in [-100, 100]. A copy is kept.
    logprobs: how many of the likeliest tokens come back with each generated token and its own
        log-probability, 0 to 20; None gives no log-probabilities.

    SteerError on a value out of its range or of the wrong type, naming the field.
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
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None

    def __post_init__(self) -> None:
        self._check_types()
        object.__setattr__(self, "logit_bias", _Biases(self.logit_bias))
        for name, holds, expected in (
            ("max_tokens", self.max_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "0 or more"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("top_p", 0 < self.top_p <= 1, "in (0, 1]"),
            ("min_p", 0 <= self.min_p <= 1, "in [0, 1]"),
            ("min_tokens", 0 <= self.min_tokens <= self.max_tokens, "in 0..max_tokens"),
            ("max_step_tokens", self.max_step_tokens >= 0, "0 (off) or more"),
            ("seed", self.seed is None or 0 <= self.seed < 2**64, "in 0..2**64-1"),
            ("repetition_penalty", 0 < self.repetition_penalty <= _LARGEST, "above 0 and finite"),
            ("presence_penalty", -2 <= self.presence_penalty <= 2, "in [-2, 2]"),
            ("frequency_penalty", -2 <= self.frequency_penalty <= 2, "in [-2, 2]"),
            ("logprobs", self.logprobs is None or 0 <= self.logprobs <= 20, "None or in 0..20"),
        ):
            if not holds:
                raise SteerError(f"{name} must be {expected}, got {getattr(self, name)}")

    def _check_types(self) -> None:
        for name in ("max_tokens", "top_k", "min_tokens", "max_step_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or abs(value) >= 2**31:
                raise SteerError(f"{name} must be a whole number below 2**31, got {value!r}")
        for name in _NUMBERS:
            if not _is_number(getattr(self, name)):
                raise SteerError(f"{name} must be a number, got {getattr(self, name)!r}")
        if not isinstance(self.seed, int | None):
            raise SteerError(f"seed must be a whole number or None, got {self.seed!r}")
        if not all(isinstance(i, int) and 0 <= i < 2**31 for i in self.stop_token_ids):
            raise SteerError(f"stop_token_ids must be token ids, got {self.stop_token_ids!r}")
        if isinstance(self.stop, str) or not all(isinstance(s, str) and s for s in self.stop):
            raise SteerError(f"stop must be strings that are not empty, got {self.stop!r}")
        if self.logprobs is not None and not _is_whole(self.logprobs):
            raise SteerError(f"logprobs must be a whole number or None, got {self.logprobs!r}")
        self._check_biases()

    def _check_biases(self) -> None:
        expected = "logit_bias must map token ids to numbers in [-100, 100]"
        if not isinstance(self.logit_bias, Mapping):
            raise SteerError(f"{expected}, got a {type(self.logit_bias).__name__}")
        for token, bias in self.logit_bias.items():
            known = _is_whole(token) and 0 <= token < 2**31
            if not (known and _is_number(bias) and -100 <= bias <= 100):
                raise SteerError(f"{expected}, got {bias!r} for {token!r}")

    @cached_property
    def looks_back(self) -> bool:
        """Whether earlier tokens change the logits."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)

    @cached_property
    def edits_logits(self) -> bool:
        """Whether penalties or biases change the logits."""
        return self.looks_back or bool(self.logit_bias)


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one generated token's place, by the model that wrote it.

    They are natural logarithms over the tokenizer's vocabulary at temperature 1, before penalties,
    biases and bans. ``logprob`` is the token's own; ``top`` are the likeliest tokens, the likeliest
    first, as (token id, log-probability), the token itself among them if it is one. None and empty
    where no model sampled the token.
    """

    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


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

    ``logprobs`` has an entry for each of ``token_ids``, or is None where none were asked for.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...]
    text: str
    token_ids: tuple[int, ...]
    finish_reason: str
    steps: tuple[Step, ...]
    usage: Usage = field(repr=False)
    seed: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = field(default=None, repr=False)

    @property
    def large_step_share(self) -> float:
        """Share of steps that the large model wrote."""
        return sum(s.model == "large" for s in self.steps) / max(1, len(self.steps))
