"""How a request's text ended: what of it the caller gets, and what stopped it."""

from __future__ import annotations

from dataclasses import dataclass

from engine import _core
from engine._core import Finish
from engine.params import SamplingParams
from engine.request import Times
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Ending:
    """The text of an answer, and its ``stop_reason``, see ``engine.request.Completion``."""

    text: str
    stop_reason: str | int | None

    @classmethod
    def of(
        cls,
        sequence: _core.Sequence,
        generated: list[int],
        params: SamplingParams,
        tokenizer: Tokenizer,
    ) -> Ending:
        """The ending of a finished sequence with these generated tokens."""
        if sequence.finish != Finish.stop:
            return cls(tokenizer.text_of(generated), None)
        read = tokenizer.bytes_of(generated)
        end = len(read) - sequence.cut_bytes
        stop = _stop_string(read[end:], params, tokenizer)
        if stop is None:
            reason, size = _stop_token(generated[-1:], params, tokenizer), sequence.cut_bytes
        else:
            reason, size = stop, len(stop.encode())
        kept = read[: end + size * params.include_stop]
        return cls(kept.decode(errors="replace"), reason)


def _stop_string(cut: bytes, params: SamplingParams, tokenizer: Tokenizer) -> str | None:
    """The stop string that bytes cut from a text begin with: the shortest was found first."""
    plain = (stop for stop in params.stop if stop not in tokenizer.special)
    return min((stop for stop in plain if cut.startswith(stop.encode())), key=len, default=None)


def _stop_token(last: list[int], params: SamplingParams, tokenizer: Tokenizer) -> str | int | None:
    for token in last:
        if token in params.stop_token_ids:
            return token
        named = (stop for stop in params.stop if tokenizer.special.get(stop) == token)
        return next(named, None)
    return None


def times_of(sequence: _core.Sequence) -> Times:
    """The moments of a finished sequence."""
    queued, started, first_token, ended = sequence.times
    return Times(queued, started or None, first_token or None, ended)
