"""Log-probabilities in each endpoint's own shape."""

from __future__ import annotations

import codecs
import math
from collections.abc import Sequence
from typing import Any

from engine.request import TokenLogprobs
from engine.serve.token_texts import TokenTexts

_LEAST = -9999.0  # for a token that cannot be written: JSON has no -Infinity


def finite(logprob: float | None) -> float:
    """A log-probability as JSON takes it. A token that no model sampled was certain: 0."""
    if logprob is None:
        return 0.0
    return max(_LEAST, logprob) if not math.isnan(logprob) else _LEAST


def chat_logprobs(
    texts: TokenTexts, ids: Sequence[int], logprobs: Sequence[TokenLogprobs], top: int
) -> dict[str, Any]:
    """``{"content": [{token, logprob, bytes, top_logprobs}]}``, an entry for each token."""
    content = []
    for token, each in zip(ids, logprobs, strict=True):
        entry = _entry(texts, token, finite(each.logprob))
        entry["top_logprobs"] = [_entry(texts, i, finite(p)) for i, p in each.top[:top]]
        content.append(entry)
    return {"content": content, "refusal": None}


def _entry(texts: TokenTexts, token: int, logprob: float) -> dict[str, Any]:
    data = texts.bytes_of(token)
    return {"token": texts.text_of(token), "logprob": logprob, "bytes": list(data)}


class CompletionLogprobs:
    """``{tokens, token_logprobs, top_logprobs, text_offset}``; offsets go on from call to call."""

    def __init__(self, texts: TokenTexts, top: int) -> None:
        self._texts = texts
        self._top = top
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def of(self, ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None]) -> dict[str, Any]:
        """The next tokens; None, or an entry without anything, for a prompt's first token."""
        texts = self._texts
        lists: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for token, each in zip(ids, logprobs, strict=True):
            lists["tokens"].append(texts.text_of(token))
            lists["text_offset"].append(self._offset)
            self._offset += len(self._decoder.decode(texts.written(token)))
            known = None if each is None or (each.logprob is None and not each.top) else each
            lists["token_logprobs"].append(None if known is None else finite(known.logprob))
            likely = None if known is None else self._likely(token, known)
            lists["top_logprobs"].append(likely)
        return lists

    def _likely(self, token: int, each: TokenLogprobs) -> dict[str, float]:
        likely: dict[str, float] = {}
        for other, logprob in each.top[: self._top]:
            likely.setdefault(self._texts.text_of(other), finite(logprob))
        likely.setdefault(self._texts.text_of(token), finite(each.logprob))
        return likely


def scored_prompt(
    texts: TokenTexts, ids: Sequence[int], logprobs: Sequence[TokenLogprobs | None] | None
) -> list[dict[str, Any] | None] | None:
    """``prompt_logprobs``: for each token of the prompt, by id, those of it and the likeliest."""
    if logprobs is None:
        return None
    scored: list[dict[str, Any] | None] = []
    for token, each in zip(ids, logprobs, strict=True):
        if each is None or each.logprob is None:
            scored.append(None)
            continue
        rows = dict(each.top) | {token: each.logprob}
        scored.append(
            {
                str(i): {"logprob": finite(p), "decoded_token": texts.text_of(i)}
                for i, p in rows.items()
            }
        )
    return scored
