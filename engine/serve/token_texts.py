"""Single tokens as JSON shows them."""

from __future__ import annotations

from collections.abc import Sequence

from engine.text.tokenizer import Tokenizer


class TokenTexts:
    """The text and the bytes of each token; special ones by their spelling."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._bytes = tokenizer.bytes
        self._spelled = {i: text for text, i in tokenizer.special.items()}

    def bytes_of(self, token: int) -> bytes:
        """A token's true bytes; of a special one, those of its spelling."""
        own = self._bytes[token] if 0 <= token < len(self._bytes) else b""
        return own or self._spelled.get(token, "").encode()

    def written(self, token: int) -> bytes:
        """What a token adds to a text: nothing, if it is special."""
        return self._bytes[token] if 0 <= token < len(self._bytes) else b""

    def text_of(self, token: int) -> str:
        """A token's text; a part of a character as OpenAI writes it: ``bytes:\\xf0\\x9f``."""
        data = self.bytes_of(token)
        try:
            return data.decode()
        except UnicodeDecodeError:
            return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)

    def tail(self, ids: Sequence[int], count: int = 16) -> str:
        """The text of the last ``count`` tokens, special ones spelled."""
        return b"".join(self.bytes_of(token) for token in ids[-count:]).decode(errors="replace")
