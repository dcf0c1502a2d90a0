"""Text to ids and back, messages to ids, and the bytes of each id."""

from __future__ import annotations

import codecs
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Encoding

from engine.errors import SteerError
from engine.files import Folder
from engine.gguf.file import GgufFile
from engine.text.chat import ChatTemplate, Message, check_read
from engine.text.tokenizer_difference import definition_difference, vocabulary_difference
from engine.text.tokenizer_files import read_tokenizer

_ANCHOR = "\n"  # put before a text: some tokenizers then add their space before it, not the text
_LONG = 4096  # characters
_BYTE_FALLBACK = re.compile(r"<0x([0-9A-F]{2})>")


class Tokenizer:
    """One tokenizer, shared by both models of a pair unless the engine retokenizes.

    size: one more than the largest id that may be used; see :meth:`limit`.
    bytes: the bytes of each id, empty for special tokens.
    """

    def __init__(self, source: Path | Folder | GgufFile) -> None:
        """Read a checkpoint, or a tokenizer.json. SteerError if it cannot be read."""
        files = read_tokenizer(source)
        self._where = str(source)
        self._tokenizer = files.tokenizer
        self.chat_templates = files.chat_templates
        self._definition: dict[str, Any] = json.loads(self.to_json())
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        if not vocabulary:
            raise SteerError(f"{source}: the tokenizer's vocabulary is empty")
        self.size = 1 + max(vocabulary.values())
        model = self._definition["model"]
        unknown = self._tokenizer.token_to_id(model.get("unk_token") or "")
        self._unknown = model.get("unk_id", unknown)  # a Unigram names it by id
        self.bytes = self._token_bytes()

    def __repr__(self) -> str:
        chat = "with" if self.chat_templates else "without"
        return f"Tokenizer({self._where!r}, {self.size} ids, {chat} a chat template)"

    @property
    def chat_template(self) -> ChatTemplate | None:
        """The checkpoint's default chat template, if there is one."""
        return self.chat_templates.default

    def limit(self, rows: int) -> dict[str, int] | None:
        """Never use ids from ``rows`` on, which a model has no embedding for: they are no ids then.

        Returns:
            The tokens left out now, with their ids. None, and nothing is left out, if the
            vocabulary proper reaches beyond ``rows``: only added tokens, such as one for padding,
            may.
        """
        vocabulary = self._tokenizer.get_vocab(with_added_tokens=True)
        beyond = {token: index for token, index in vocabulary.items() if index >= rows}
        if not set(beyond.values()) <= self._tokenizer.get_added_tokens_decoder().keys():
            return None
        before, self.size = self.size, min(self.size, rows)
        del self.bytes[rows:]
        return {token: index for token, index in beyond.items() if index < before}

    def chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        chat_template: str | None = None,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> list[int]:
        """Ids of a conversation, as the checkpoint's chat template writes it; a prompt.

        Args:
            messages: each with a ``role`` and a ``content``.
            tools: JSON schemas of functions that the model may call. A checkpoint's template
                "tool_use" is then taken instead of its "default".
            add_generation_prompt: end where the assistant's answer begins; None for True unless the
                last message is continued.
            documents: texts to answer from, each with what the template reads, such as a ``title``
                and a ``text``.
            chat_template: the name of one of the checkpoint's templates, or a template's text.
            continue_final_message: end within the last message, so that the model goes on with it;
                True for its content, or another field's name, such as ``reasoning_content``.
            variables: further variables of the template, such as ``enable_thinking``.

        Raises:
            SteerError: without a template, on malformed messages or those that it refuses, on
                arguments that it does not read, and if it takes too long or writes too much.
        """
        options = {"documents": documents, "continue_final_message": continue_final_message}
        return write_chat(
            [self],
            messages,
            tools,
            add_generation_prompt,
            chat_template=chat_template,
            **options,
            **variables,
        )[0]

    def encode(self, text: str, special: bool = False) -> list[int]:
        """Ids of a text; special tokens written in it are recognised.

        Args:
            text: what to encode.
            special: add the model's tokens around a text, such as a beginning-of-text token.

        Raises:
            SteerError: on text that the tokenizer cannot encode.
        """
        encoding = self._encoding(text, special)
        ids: list[int] = encoding.ids
        if self._unknown in ids:
            self._check_known(text, encoding)
        if ids and max(ids) >= self.size:
            token = self._tokenizer.id_to_token(max(ids))
            raise SteerError(
                f"the text holds {token!r} (id {max(ids)}), which the model has no row for"
            )
        return ids

    def _encoding(self, text: str, special: bool = False) -> Encoding:
        try:
            if len(text) < _LONG:
                return self._tokenizer.encode(text, add_special_tokens=special)
            # For a batch the library lets other threads of Python run meanwhile.
            return self._tokenizer.encode_batch([text], add_special_tokens=special)[0]
        except TypeError:  # lone surrogates, as undecodable bytes on a command line become
            raise SteerError("the text holds characters that are not valid Unicode") from None
        except Exception as error:  # the library raises plain Exception
            raise SteerError(f"the tokenizer cannot encode this text: {error}") from None

    def _check_known(self, text: str, encoding: Encoding) -> None:
        """SteerError on text that became the unknown token and does not spell it."""
        token = str(self._tokenizer.id_to_token(self._unknown))
        each = zip(encoding.ids, encoding.special_tokens_mask, encoding.offsets, strict=True)
        for index, put_around, (begin, end) in each:
            if index != self._unknown or put_around:  # it may also begin or end every text
                continue
            if text[begin:end].strip() != token.strip():  # an added token may take spaces beside it
                raise SteerError(f"the tokenizer does not know {text[begin:end]!r}")

    def id_of(self, token: str) -> int | None:
        """The id of a token by its spelling; None if there is none."""
        found: int | None = self._tokenizer.token_to_id(token)
        return found if found is not None and found < self.size else None

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids; special tokens and padding ids give no text."""
        known = [i for i in ids if 0 <= i < self.size]
        return str(self._tokenizer.decode(known, skip_special_tokens=True))

    def text_of(self, ids: Sequence[int]) -> str:
        """Text of ids; part of a character becomes U+FFFD."""
        return self.bytes_of(ids).decode(errors="replace")

    def texts_of(self, pieces: Sequence[Sequence[int]]) -> list[str]:
        """Texts of the pieces of a sequence, in order; they join to the text of the whole.

        A character that begins in one piece and ends in a later one belongs to the later one.
        """
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        last = len(pieces) - 1
        return [decoder.decode(self.bytes_of(ids), i == last) for i, ids in enumerate(pieces)]

    def bytes_of(self, ids: Sequence[int]) -> bytes:
        """The joined bytes of ids; special tokens and padding ids give none."""
        return b"".join(self.bytes[i] for i in ids if 0 <= i < self.size)

    def write(self, data: bytes) -> list[int] | None:
        """Ids whose bytes are exactly ``data``, for the middle of a text; None if there are none.

        These are the tokenizer's own ids if they keep every byte: a normaliser, a special token
        spelled out in the text or a space added before it can change some. Else they are one of the
        shortest sequences of tokens that spell the bytes.
        """
        try:
            text = data.decode()
            anchor = self._encoding(_ANCHOR).ids
            for before, known in (("", []), (_ANCHOR, anchor)):
                ids = self._encoding(before + text).ids
                if ids[: len(known)] == known and self.bytes_of(ids[len(known) :]) == data:
                    return list(ids[len(known) :])
        except (UnicodeDecodeError, SteerError):  # a step can end within a character
            pass
        return self._spell(data)

    def _spell(self, data: bytes) -> list[int] | None:
        pieces, longest = self._pieces
        fewest: list[tuple[int, int, int] | None] = [None] * len(data) + [(0, 0, 0)]
        for first in reversed(range(len(data))):
            for size in range(min(longest, len(data) - first), 0, -1):
                rest, token = fewest[first + size], pieces.get(data[first : first + size])
                if rest is None or token is None:
                    continue
                best = fewest[first]
                if best is None or rest[0] + 1 < best[0]:
                    fewest[first] = rest[0] + 1, token, size
        ids, place = [], 0
        while place < len(data):
            chosen = fewest[place]
            if chosen is None:
                return None
            ids.append(chosen[1])
            place += chosen[2]
        return ids

    @cached_property
    def _pieces(self) -> tuple[dict[bytes, int], int]:
        """The lowest id for each token's bytes, and the length of the longest token in bytes."""
        pieces = {data: i for i, data in reversed(list(enumerate(self.bytes))) if data}
        return pieces, max(map(len, pieces), default=0)

    @cached_property
    def special(self) -> dict[str, int]:
        """Special tokens, which have no bytes: their ids by their spelling."""
        without = (i for i, data in enumerate(self.bytes) if not data)
        spelled = ((self._tokenizer.id_to_token(i), i) for i in without)
        return {text: i for text, i in spelled if text}

    def difference(self, other: Tokenizer) -> str | None:
        """The first difference of two tokenizers, in words; None if they agree.

        Compares ids, added tokens with their flags, and every part of encoding and decoding. This
        tokenizer is called the small model's.
        """
        mine, theirs = (t._tokenizer.get_vocab(with_added_tokens=True) for t in (self, other))
        return vocabulary_difference(mine, theirs) or definition_difference(
            self._definition, other._definition
        )

    @property
    def fingerprint(self) -> str:
        """A hash that changes with everything that changes ids or text."""
        definition = json.dumps(self._definition, sort_keys=True)
        return hashlib.sha256(definition.encode()).hexdigest()[:16]

    def to_json(self) -> str:
        """The text of a tokenizer.json that defines this tokenizer, its chat template left out."""
        return str(self._tokenizer.to_str())

    def _token_bytes(self) -> list[bytes]:
        special = {t["id"] for t in self._definition["added_tokens"] if t["special"]}
        added = {t["id"] for t in self._definition["added_tokens"]}
        convert = self._converter()
        texts: list[bytes] = []
        for index in range(self.size):
            token = self._tokenizer.id_to_token(index)
            if token is None or index in special:
                texts.append(b"")
            else:
                texts.append(token.encode() if index in added else convert(token))
        return texts

    def _converter(self) -> Any:
        decoder = json.dumps(self._definition.get("decoder"))
        if '"ByteLevel"' in decoder:
            alphabet = _byte_level_alphabet()
            return lambda token: _byte_level_bytes(token, alphabet)
        if '"ByteFallback"' in decoder or '"Metaspace"' in decoder:
            return _sentencepiece_bytes
        return str.encode


def write_chat(
    tokenizers: Sequence[Tokenizer],
    messages: Sequence[Message],
    tools: Sequence[Mapping[str, Any]] | None = None,
    add_generation_prompt: bool | None = None,
    *,
    chat_template: str | None = None,
    **options: Any,
) -> list[list[int]]:
    """:meth:`Tokenizer.chat` for each tokenizer: what one template reads, others may leave."""
    templates = [t.chat_templates.choose(chat_template, tools is not None) for t in tokenizers]
    given = {name for name in options if name != "continue_final_message"}
    given -= set() if options.get("documents") else {"documents"}
    check_read(templates, given | ({"tools"} if tools else set()))
    return [
        tokenizer.encode(template.render(messages, tools, add_generation_prompt, **options))
        for tokenizer, template in zip(tokenizers, templates, strict=True)
    ]


def _byte_level_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins: character to byte."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    rest = [b for b in range(256) if b not in printable]
    shifted = {chr(256 + n): b for n, b in enumerate(rest)}
    return {chr(b): b for b in printable} | shifted


def _byte_level_bytes(token: str, alphabet: dict[str, int]) -> bytes:
    """A token with other characters stands for itself, as in the tokenizers library."""
    if all(character in alphabet for character in token):
        return bytes(alphabet[character] for character in token)
    return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    fallback = _BYTE_FALLBACK.fullmatch(token)
    return bytes([int(fallback[1], 16)]) if fallback else token.replace("▁", " ").encode()
