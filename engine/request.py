"""What goes in and comes back: a prompt; the answer, its steps, its log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine.accounting.ledger import Usage
from engine.routing.signals import Signals

FINISH_REASONS = ("none", "stop", "length", "abort", "error", "deadline", "repetition")


@dataclass(frozen=True)
class Prompt:
    """A prompt in the tokens of each model, for a pair whose tokenizers differ.

    Only what follows crosses as text, so the two may differ in special tokens.
    """

    small: tuple[int, ...]
    large: tuple[int, ...]


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
    did not read the boundary; ``posterior`` is the probability of the confident component;
    ``tried`` are the tokens that stood on trial when it was decided; ``audit`` has log p_small and
    log p_large of each token, empty where the large model did not read a step of the small one.
    """

    index: int
    position: int
    model: str
    text: str
    token_ids: tuple[int, ...]
    reason: str
    signals: Signals | None = None
    posterior: float | None = None
    tried: int = 0
    audit: tuple[tuple[float, float], ...] = ()


@dataclass(frozen=True)
class Retracted:
    """A step of the small model that an audit took back.

    position: its first token's place. token_ids: its own. dropped: tokens that went with it, its
    own included. score: what it had.
    """

    position: int
    token_ids: tuple[int, ...]
    dropped: int
    score: float


@dataclass(frozen=True)
class Completion:
    """The answer to one request. ``token_ids`` include what stopped it, ``text`` does not.

    ``logprobs`` has an entry for each of ``token_ids``, or is None where none were asked for;
    ``sample`` counts the answers to one prompt from 0. ``token_signals`` has an entry for each of
    ``token_ids``, None for those of the large model; it is None where none were asked for.
    ``retracted`` are the steps that an audit took back.
    """

    request_id: int
    prompt_token_ids: tuple[int, ...] = field(repr=False)
    text: str
    token_ids: tuple[int, ...] = field(repr=False)
    finish_reason: str
    steps: tuple[Step, ...] = field(repr=False)
    usage: Usage = field(repr=False)
    seed: int = 0
    sample: int = 0
    logprobs: tuple[TokenLogprobs, ...] | None = field(default=None, repr=False)
    token_signals: tuple[Signals | None, ...] | None = field(default=None, repr=False)
    retracted: tuple[Retracted, ...] = ()

    @property
    def large_step_share(self) -> float:
        """Share of steps that the large model wrote."""
        return sum(s.model == "large" for s in self.steps) / max(1, len(self.steps))
