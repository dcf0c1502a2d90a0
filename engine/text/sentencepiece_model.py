"""Reads a sentencepiece ``tokenizer.model`` (BPE with byte fallback) into a fast tokenizer.

The file is a protobuf message (sentencepiece_model.proto); the few fields that matter here are read
from the wire format, so no protobuf library is needed. Only data is read, no code is run.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from engine.errors import SteerError

_BPE = 2
_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6
_SPACE = "▁"


@dataclass
class SentencePieceModel:
    """The parts of a model file that decide how text becomes pieces.

    pieces: (text, score, type) by id; types are those of the proto's ``SentencePiece.Type``.
    dummy_prefix: a space is added before text.
    once: only at the text's beginning, if it does not begin with a space; otherwise before each
        stretch of text between special tokens, as in the tokenizer.json of Llama 2. A setting of
        the folder, not of the model file (``"legacy": false``).
    """

    pieces: list[tuple[str, float, int]] = field(default_factory=list)
    model_type: int = 1
    normalises: bool = False
    dummy_prefix: bool = True
    removes_spaces: bool = True
    once: bool = False

    @classmethod
    def read(cls, path: Path) -> SentencePieceModel:
        """Read a model file. SteerError on one that is malformed or not supported."""
        model = cls()
        try:
            for number, value in _fields(path.read_bytes()):
                model._take(number, value)
        except (ValueError, IndexError, TypeError, struct.error, UnicodeDecodeError) as error:
            raise SteerError(f"{path}: not a sentencepiece model: {error}") from None
        if not model.pieces:
            raise SteerError(f"{path}: not a sentencepiece model: it has no pieces")
        if model.model_type != _BPE:
            raise SteerError(f"{path}: a sentencepiece model of type BPE is expected")
        if model.normalises:
            raise SteerError(
                f"{path}: its normalisation of characters is not supported: add a tokenizer.json"
            )
        return model

    def _take(self, number: int, value: int | bytes) -> None:
        if number == 1:
            part = dict(_fields(_message(value)))
            (score,) = struct.unpack("<f", _message(part.get(2, b"\0\0\0\0")))
            self.pieces.append((_message(part[1]).decode(), score, _number(part.get(3, 1))))
        elif number == 2:
            self.model_type = _number(dict(_fields(_message(value))).get(3, 1))
        elif number == 3:
            part = dict(_fields(_message(value)))
            self.normalises = bool(part.get(2))
            self.dummy_prefix = bool(part.get(3, 1))
            self.removes_spaces = bool(part.get(4, 1))

    def tokenizer(self) -> Tokenizer:
        """This model as a fast tokenizer."""
        vocabulary = {text: i for i, (text, _, _) in enumerate(self.pieces)}
        unknown = next((t for t, _, kind in self.pieces if kind == _UNKNOWN), None)
        fallback = any(kind == _BYTE for _, _, kind in self.pieces)
        tokenizer = Tokenizer(
            models.BPE(
                vocabulary,
                self._merges(vocabulary),
                unk_token=unknown,
                fuse_unk=True,
                byte_fallback=fallback,
            )
        )
        self._write_spaces(tokenizer)
        parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.dummy_prefix:
            parts.append(decoders.Strip(" ", 1, 0))
        tokenizer.decoder = decoders.Sequence(parts)
        self._mark(tokenizer)
        return tokenizer

    def _write_spaces(self, tokenizer: Tokenizer) -> None:
        """Spaces become their mark, with one added where the model wants it."""
        steps: list[normalizers.Normalizer] = []
        if self.removes_spaces:
            runs = (r"\A +| +\z", ""), (" +", " ")
            steps += [normalizers.Replace(Regex(spaces), kept) for spaces, kept in runs]
        if self.dummy_prefix and self.once:
            tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(
                _SPACE, prepend_scheme="first", split=False
            )
        else:
            steps += [normalizers.Prepend(_SPACE)] * self.dummy_prefix
            steps.append(normalizers.Replace(" ", _SPACE))
        if steps:
            tokenizer.normalizer = normalizers.Sequence(steps)

    def _mark(self, tokenizer: Tokenizer) -> None:
        for text, _, kind in self.pieces:
            if kind in (_UNKNOWN, _CONTROL):
                tokenizer.add_special_tokens([AddedToken(text, normalized=False, special=True)])
            elif kind == _USER_DEFINED:
                tokenizer.add_tokens([AddedToken(text, normalized=False)])

    def _merges(self, vocabulary: dict[str, int]) -> list[tuple[str, str]]:
        """Every pair of pieces that forms a piece, the best score first."""
        merges = []
        for text, score, kind in self.pieces:
            if kind != 1:
                continue
            for cut in range(1, len(text)):
                left, right = text[:cut], text[cut:]
                if left in vocabulary and right in vocabulary:
                    merges.append((-score, vocabulary[text], cut, left, right))
        return [(left, right) for *_, left, right in sorted(merges)]


def _message(value: int | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise TypeError("a message is expected, a number found")
    return value


def _number(value: int | bytes) -> int:
    if not isinstance(value, int):
        raise TypeError("a number is expected, a message found")
    return value


def _fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Field numbers and values of a protobuf message; fixed-size numbers come as their bytes."""
    place = 0
    while place < len(data):
        key, place = _varint(data, place)
        kind = key & 7
        if kind == 0:
            value, place = _varint(data, place)
            yield key >> 3, value
            continue
        if kind not in (1, 2, 5):
            raise ValueError(f"unknown wire type {kind}")
        size = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            size, place = _varint(data, place)
        if place + size > len(data):
            raise ValueError("it is cut off")
        yield key >> 3, data[place : place + size]
        place += size


def _varint(data: bytes, place: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
    raise ValueError("a number is too long")
