"""Prompts and completions: the answer, its steps, its log-probabilities."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine._core import FINISH_REASONS as FINISH_REASONS
from engine._core import RowKind
from engine.accounting.ledger import Usage
from engine.routing.signals import Signals


@dataclass(frozen=True)
class Prompt:
    """A prompt in the tokens of each model, for a pair whose tokenizers differ.

    Only the text after it crosses between the models, so the two may differ in special tokens.
    """

    small: tuple[int, ...]
    large: tuple[int, ...]


@dataclass(frozen=True)
class TokenLogprobs:
    """Log-probabilities at one token's position, by the model that wrote it or reads the prompt.

    They are natural logarithms over the tokenizer's vocabulary at temperature 1, before penalties,
    biases and bans.

    logprob: the token's own; None if no model sampled it, or for a prompt's first token.
    top: the likeliest tokens, in descending order, as (token id, log-probability); empty if
        ``logprob`` is None.
    """

    logprob: float | None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Step:
    """One step of an answer: which model wrote it, and why.

    index: its number in the answer, from 0.
    position: index of its first token in the sequence, prompt included.
    model: the role of the model that wrote it.
    text: text of all its tokens, including a stop that the completion's text leaves out. The texts
        of an answer's steps join to its text and stop: a character that a step ends within belongs
        to the step that completes it.
    reason: the decision's reason.
    kind: the decision's kind, one of ``engine.routing.policy.KINDS``.
    signals: those of the decision; None if the policy did not read the boundary.
    posterior: probability of the confident component, if the policy has one.
    tried: tokens on trial at the decision.
    catch_up: tokens that the large model had not read yet at the decision.
    audit: log p_small and log p_large of each token; empty if the large model did not read the
        step, or wrote it.
    replaced: of a step that the small model wrote and the large one verified: indexes in
        ``token_ids`` of the large model's tokens. None for other steps. Such a step's ``model`` is
        large: it was the large model's to write.
    """

    index: int
    position: int
    model: str
    text: str
    token_ids: tuple[int, ...]
    reason: str
    kind: str = "other"
    signals: Signals | None = None
    posterior: float | None = None
    tried: int = 0
    catch_up: int = field(default=0, compare=False)
    audit: tuple[tuple[float, float], ...] = ()
    replaced: tuple[int, ...] | None = None

    @property
    def large_tokens(self) -> int:
        """Tokens that the large model wrote."""
        if self.replaced is not None:
            return len(self.replaced)
        return len(self.token_ids) if self.model == "large" else 0


@dataclass(frozen=True)
class Retracted:
    """A step of the small model that an audit rolled back.

    position: index of its first token in the sequence.
    token_ids: its tokens.
    dropped: all tokens that were dropped, its own included.
    score: its score, below the audit's mark.
    """

    position: int
    token_ids: tuple[int, ...]
    dropped: int
    score: float


@dataclass(frozen=True)
class Times:
    """Moments of a request, in seconds of ``time.monotonic()``; None: it ended before.

    queued, started: it was queued, and left the queue.
    first_token: its first token stood: it could no longer be taken back.
    ended: it was finished.
    """

    queued: float
    started: float | None
    first_token: float | None
    ended: float


@dataclass(frozen=True)
class Completion:
    """The answer to one request.

    text: the answer, without the stop that ended it unless ``include_stop`` asked for it.
    token_ids: all generated tokens, those of the stop included.
    finish_reason: one of ``FINISH_REASONS`` except "none".
    stop_reason: the stop string that ended the text, or the id of the stop token; None if a model
        ended it with its end-of-sequence token, or nothing stopped it.
    times: when it was queued, began and ended; None if it could not run.
    error: what went wrong, if the finish reason is "error"; otherwise None. A prompt that could not
        run at all has the request id -1.
    sample: number of the answer among those to the same prompt, from 0.
    logprobs: an entry for each of ``token_ids``; None if not requested.
    prompt_logprobs: an entry for each of ``prompt_token_ids``, without a number for the first,
        which nothing predicts, and where a request ended too early; None if not requested.
    token_signals: an entry for each of ``token_ids``, None for the large model's tokens; None if
        not requested.
    retracted: steps that an audit rolled back.
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
    prompt_logprobs: tuple[TokenLogprobs, ...] | None = field(default=None, repr=False)
    token_signals: tuple[Signals | None, ...] | None = field(default=None, repr=False)
    retracted: tuple[Retracted, ...] = ()
    error: str | None = None
    stop_reason: str | int | None = None
    times: Times | None = field(default=None, repr=False, compare=False)

    @property
    def cached_tokens(self) -> int:
        """Tokens of the prompt that were not computed, because KV of an earlier request served.

        Of the model that found more of them, if both read the prompt.
        """
        found = self.usage.spared[:, RowKind.prompt, 0].max()
        return min(int(found), len(self.prompt_token_ids))

    @property
    def large_step_share(self) -> float:
        """Share of steps that the large model wrote."""
        return sum(s.model == "large" for s in self.steps) / max(1, len(self.steps))

    @property
    def large_token_share(self) -> float:
        """Share of tokens that the large model wrote."""
        return sum(s.large_tokens for s in self.steps) / max(1, len(self.token_ids))
