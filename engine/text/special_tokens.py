"""Special tokens in texts that are searched for: they have no bytes, so no search finds them."""

from __future__ import annotations

from engine.errors import SteerError
from engine.text.tokenizer import Tokenizer


def check_plain(text: str, tokenizer: Tokenizer, where: str, instead: str) -> None:
    """SteerError if the text is or holds a special token.

    Args:
        where: what the text is, at the message's beginning.
        instead: what would be right, at the message's end.
    """
    special = max((s for s in tokenizer.special if s in text), key=len, default=None)
    if special is not None:
        what = "is" if special == text else f"contains {special!r},"
        raise SteerError(f"{where} {text!r} {what} a special token, which has no text: {instead}")


def check_delimiters(delimiters: tuple[str, ...], *tokenizers: Tokenizer) -> None:
    """SteerError for a delimiter that could not be found in any of the tokenizers' texts."""
    for tokenizer in tokenizers:
        for text in delimiters:
            check_plain(text, tokenizer, "delimiter", "a step ends at text, such as '\\n\\n'")
