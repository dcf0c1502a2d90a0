"""What ends a request's text: stop strings, and stop tokens in each model's ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.errors import about
from engine.params import SamplingParams
from engine.text.special_tokens import check_plain
from engine.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class Stops:
    """Tokens that end a text, sorted.

    ids: of the model whose ids the request has: both models', or the small one's.
    relayed: if the large model has ids of its own, each of its tokens that end the text, and the
        token that the small model's text gets in its place; None: no token.
    """

    ids: tuple[int, ...]
    relayed: dict[int, int | None]


@about("stop")
def find_stops(
    params: SamplingParams, tokenizers: Sequence[Tokenizer], eos_ids: Sequence[Sequence[int]]
) -> Stops:
    """The stop tokens of a request. A stop string that is a special token is one of them.

    Args:
        tokenizers, eos_ids: of both models if their tokens differ, otherwise one of each.

    Raises:
        SteerError: on a stop string that holds a special token among other text, or any special
            token of one model where the other model has no such token.
    """
    special = [_special(params.stop, tokenizer) for tokenizer in tokenizers]
    ends = [() if params.ignore_eos else tuple(ids) for ids in eos_ids]
    small = {*params.stop_token_ids, *special[0].values(), *ends[0]}
    relayed: dict[int, int | None] = {}
    if len(tokenizers) > 1:
        relayed = dict.fromkeys(ends[1], min(ends[0], default=None))
        relayed |= {token: special[0].get(text) for text, token in special[1].items()}
    return Stops(tuple(sorted(small)), relayed)


def _special(texts: Sequence[str], tokenizer: Tokenizer) -> dict[str, int]:
    """The stop strings that are special tokens, with their ids."""
    for text in texts:
        if text not in tokenizer.special:
            check_plain(text, tokenizer, "stop string", "give it as a stop string of its own")
    return {text: tokenizer.special[text] for text in texts if text in tokenizer.special}
