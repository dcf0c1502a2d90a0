"""The sampling parameters of a request, checked at construction."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from engine.errors import SteerError, about
from engine.routing.audit import Audit

THINK_END = "</think>"
_LARGEST = sys.float_info.max


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return _is_whole(value) or isinstance(value, float)


def _is_list(value: Any) -> bool:
    return isinstance(value, tuple | list | set | frozenset)


class _Biases(Mapping[int, float]):
    """A copy of a caller's biases; unlike a proxy of a dict it can be hashed and pickled."""

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
    """The sampling parameters of a request, the same for both models.

    Logits are changed in this order: repetition penalty, frequency and presence penalty, logit
    bias, the ban of stop tokens by ``min_tokens``, temperature, then ``top_k``, ``top_p`` and
    ``min_p``. This holds for greedy sampling too; a policy's signals and ``logprobs`` are taken
    from the model's unchanged logits.

    max_tokens: most tokens to generate.
    temperature: 0 is greedy.
    top_k, top_p, min_p: applied in this order; 0, 1 and 0 switch them off.
    seed: seed of the random draws; None takes a fresh one. The same seed, prompt and routing give
        the same text, whatever else runs at the same time; other prompts get other random numbers.
    stop_token_ids: tokens that end the text, besides the models' end-of-sequence tokens.
    stop: one or more strings that end the text; it is cut before the first of them. A special
        token, such as "<|im_end|>", ends it as one of ``stop_token_ids``.
    include_stop: the text keeps the stop string, or the text of the stop token, that ended it.
    ignore_eos: end-of-sequence tokens do not end the text.
    min_tokens: tokens before the first stop of any kind; until then stop tokens are not sampled.
    max_step_tokens: a longer step is closed and a boundary forced; 0 sets no limit.
    n: answers to the prompt, sampled independently; they share the computed prompt.
    max_think_tokens: tokens after which ``think_end`` is inserted if no model wrote it; 0 sets no
        limit.
    think_end: text that ends the thinking part, and its step; by default ``</think>`` if the limit
        or the policy needs one.
    max_repeats: ends the text with the reason "repetition" once the same piece of it (up to 256
        tokens) is repeated so many times in a row, over 32 tokens or more; 0 switches it off.
    max_large_share: no step is handed over while the large model has written more than this share
        of the answer.
    max_flops: no step is handed over that would make the request exceed so many FLOPs; None sets
        no limit.
    repetition_penalty: divides the positive logits and multiplies the negative logits of tokens in
        the prompt or the generated text; above 0, 1 switches it off.
    presence_penalty: subtracted once from the logit of each generated token; in [-2, 2].
    frequency_penalty: subtracted for each time that the token was generated; in [-2, 2].
    logit_bias: token id -> number added to its logit, in [-100, 100]. A copy is kept.
    logprobs: number of likeliest tokens, 0 to 20, returned with each generated token and its own
        log-probability; None returns no log-probabilities.
    prompt_logprobs: likewise for each token of the prompt, by the model that writes all: the
        policy must be small or large. Every row of the prompt is then computed: none comes from the
        prefix cache.
    token_signals: return the small model's signals of each token that it wrote.
    audit: whether the large model scores the small model's steps when it reads them: off, score,
        rollback or rollback:SCORE:MARK (``engine.routing.audit``).

    SteerError on a value out of its range or of the wrong type, naming the field.
    """

    max_tokens: int = 128
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    seed: int | None = None
    stop_token_ids: tuple[int, ...] = ()
    stop: tuple[str, ...] | str = ()
    ignore_eos: bool = False
    min_tokens: int = 0
    max_step_tokens: int = 0
    n: int = 1
    max_think_tokens: int = 0
    think_end: str = ""
    max_repeats: int = 0
    max_large_share: float = 1.0
    max_flops: float | None = None
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    token_signals: bool = False
    audit: str = "off"
    include_stop: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        self._check_types()
        for name, (holds, expected) in _RANGES.items():
            if not holds(getattr(self, name)):
                raise SteerError(f"{name} must be {expected}, got {getattr(self, name)}", name)
        if self.min_tokens > self.max_tokens:
            raise SteerError(
                f"min_tokens must be in 0..max_tokens, got {self.min_tokens}", "min_tokens"
            )
        for name in ("stop", "stop_token_ids"):  # lists cannot be hashed
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "logit_bias", _Biases(self.logit_bias))

    def _check_types(self) -> None:
        for name in _WHOLE:
            value = getattr(self, name)
            if not _is_whole(value) or abs(value) >= 2**31:
                raise SteerError(f"{name} must be a whole number below 2**31, got {value!r}", name)
        for name in _NUMBERS:
            value = getattr(self, name)
            if not (_is_number(value) or (value is None and name == "max_flops")):
                raise SteerError(f"{name} must be a number, got {value!r}", name)
        for name in ("seed", "logprobs", "prompt_logprobs"):
            value = getattr(self, name)
            if not (value is None or _is_whole(value)):
                raise SteerError(f"{name} must be a whole number or None, got {value!r}", name)
        for name in ("think_end", "audit"):
            if not isinstance(getattr(self, name), str):
                raise SteerError(f"{name} must be text, got {getattr(self, name)!r}", name)
        with about("audit"):
            Audit.parse(self.audit)
        self._check_stops()
        self._check_biases()

    def _check_stops(self) -> None:
        for name in ("ignore_eos", "include_stop", "token_signals"):
            if not isinstance(getattr(self, name), bool):
                raise SteerError(f"{name} must be true or false, got {getattr(self, name)!r}", name)
        ids, texts = self.stop_token_ids, self.stop
        if not _is_list(ids) or not all(_is_whole(i) and 0 <= i < 2**31 for i in ids):
            raise SteerError(f"stop_token_ids must be token ids, got {ids!r}", "stop_token_ids")
        if not _is_list(texts) or not all(isinstance(s, str) and s for s in texts):
            raise SteerError(f"stop must be strings that are not empty, got {texts!r}", "stop")
        if any("\ud800" <= character <= "\udfff" for text in texts for character in text):
            raise SteerError(f"stop must be valid Unicode, got {texts!r}", "stop")

    def _check_biases(self) -> None:
        expected = "logit_bias must map token ids to numbers in [-100, 100]"
        if not isinstance(self.logit_bias, Mapping):
            raise SteerError(f"{expected}, got a {type(self.logit_bias).__name__}", "logit_bias")
        for token, bias in self.logit_bias.items():
            known = _is_whole(token) and 0 <= token < 2**31
            if not (known and _is_number(bias) and -100 <= bias <= 100):
                raise SteerError(f"{expected}, got {bias!r} for {token!r}", "logit_bias")

    @cached_property
    def looks_back(self) -> bool:
        """Whether earlier tokens change the logits."""
        return bool(self.repetition_penalty != 1 or self.presence_penalty or self.frequency_penalty)

    @cached_property
    def edits_logits(self) -> bool:
        """Whether penalties or biases change the logits."""
        return self.looks_back or bool(self.logit_bias)


_WHOLE = (
    "max_tokens",
    "top_k",
    "min_tokens",
    "max_step_tokens",
    "n",
    "max_think_tokens",
    "max_repeats",
)
_NUMBERS = (
    "temperature",
    "top_p",
    "min_p",
    "max_large_share",
    "max_flops",
    "repetition_penalty",
    "presence_penalty",
    "frequency_penalty",
)
_RANGES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "max_tokens": (lambda v: v >= 1, "at least 1"),
    "temperature": (lambda v: 0 <= v < math.inf, "0 or more"),
    "top_k": (lambda v: v >= 0, "0 (off) or more"),
    "top_p": (lambda v: 0 < v <= 1, "in (0, 1]"),
    "min_p": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "seed": (lambda v: v is None or 0 <= v < 2**64, "in 0..2**64-1"),
    "min_tokens": (lambda v: v >= 0, "in 0..max_tokens"),
    "max_step_tokens": (lambda v: v >= 0, "0 (off) or more"),
    "n": (lambda v: v >= 1, "at least 1"),
    "max_think_tokens": (lambda v: v >= 0, "0 (off) or more"),
    "max_repeats": (lambda v: v == 0 or v > 1, "0 (off) or 2 or more"),
    "max_large_share": (lambda v: 0 <= v <= 1, "in [0, 1]"),
    "max_flops": (lambda v: v is None or v >= 0, "0 or more, or None"),
    "repetition_penalty": (lambda v: 0 < v <= _LARGEST, "above 0 and finite"),
    "presence_penalty": (lambda v: -2 <= v <= 2, "in [-2, 2]"),
    "frequency_penalty": (lambda v: -2 <= v <= 2, "in [-2, 2]"),
    "logprobs": (lambda v: v is None or 0 <= v <= 20, "None or in 0..20"),
    "prompt_logprobs": (lambda v: v is None or 0 <= v <= 20, "None or in 0..20"),
}
