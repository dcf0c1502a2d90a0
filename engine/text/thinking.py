"""The thinking part of an answer: has the prompt ended it already?"""

from __future__ import annotations

from collections.abc import Sequence

from engine.text.tokenizer import Tokenizer


def closes_thinking(ids: Sequence[int], marker: str, tokenizer: Tokenizer) -> bool:
    """Whether a prompt has ended its thinking part, so that the answer begins without one.

    Chat templates write ``<think>\\n\\n</think>\\n\\n`` where thinking is switched off. What counts
    is the text after the last special token, which is where the assistant's turn begins: earlier
    turns may have thoughts of their own. A prompt that opens another part after the marker
    (``<think>`` for ``</think>``) has not ended it.

    Args:
        ids: the prompt.
        marker: text that ends thinking.
    """
    opening = marker.replace("</", "<", 1)
    spelled = {tokenizer.id_of(text): text for text in (marker, opening)}
    turn: list[bytes] = []
    for token in reversed(ids):
        text = tokenizer.bytes[token] or spelled.get(token, "").encode()
        if not text:
            break
        turn.append(text)
    written = b"".join(reversed(turn)).decode(errors="replace")
    end = written.rfind(marker)
    return end >= 0 and (opening == marker or written.rfind(opening) < end)
