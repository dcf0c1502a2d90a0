"""A GGUF file's tokenizer, chat template and special tokens."""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any, NamedTuple

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
)

from engine.errors import SteerError
from engine.gguf.file import GgufFile, short
from engine.text.sentencepiece_model import SentencePieceModel

_NORMAL, _CONTROL, _USER_DEFINED, _UNUSED = 1, 3, 4, 5
_KEYS = {
    "bos_token": "bos_token_id",
    "eos_token": "eos_token_id",
    "unk_token": "unknown_token_id",
    "sep_token": "seperator_token_id",  # the format's spelling
    "pad_token": "padding_token_id",
}
# llama.cpp's converter takes every token of this look for a control token; in Qwen's own files
# these have text.
_WORDS = {
    "<|fim_prefix|>",
    "<|fim_middle|>",
    "<|fim_suffix|>",
    "<|fim_pad|>",
    "<|repo_name|>",
    "<|file_sep|>",
}
_LONGEST_PIECE = 1000  # characters: all cuts of each piece are tried
_ENDS = ("eos_token_id", "eot_token_id", "eom_token_id")
# A GGUF file may name only one end token; the generation_config.json of the same checkpoint lists
# several of these.
_END_TEXTS = ("<|im_end|>", "<|endoftext|>", "<|end_of_text|>", "<|eot_id|>", "<|eom_id|>")


class _Splitter(NamedTuple):
    """A value of ``tokenizer.ggml.pre``: how text is cut before merges.

    whole: a piece that is a token stays whole, whatever the merges say.
    marks: whether a text begins with the beginning-of-text token if the file does not say.
    """

    cut: Callable[[], list[pre_tokenizers.PreTokenizer]]
    nfc: bool = False
    whole: bool = False
    marks: bool = False


def _pattern(text: str) -> Callable[[], list[pre_tokenizers.PreTokenizer]]:
    return lambda: [
        pre_tokenizers.Split(Regex(text), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
    ]


def _gpt2() -> list[pre_tokenizers.PreTokenizer]:
    return [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]


def _words(digits: str) -> str:
    """The pattern of Llama 3 and Qwen2; they differ in how many digits form a piece."""
    return (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|" + digits + r"| ?[^\s\p{L}\p{N}]+"
        r"[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    )


_TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|"
    r"\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _pattern(_words(r"\p{N}"))
_LLAMA3 = _Splitter(_pattern(_words(r"\p{N}{1,3}")), whole=True, marks=True)
_SPLITTERS = {
    "qwen2": _Splitter(_QWEN2, nfc=True),
    "deepseek-r1-qwen": _Splitter(_QWEN2),
    "llama-bpe": _LLAMA3,
    "llama-v3": _LLAMA3,
    "llama3": _LLAMA3,
    "tekken": _Splitter(_pattern(_TEKKEN), whole=True, marks=True),
    "smollm": _Splitter(lambda: [pre_tokenizers.Digits(individual_digits=True), *_gpt2()]),
    "gpt-2": _Splitter(_gpt2),
}


class GgufTokenizer(NamedTuple):
    """A fast tokenizer, chat templates by name, and special tokens by transformers' names."""

    tokenizer: Tokenizer
    templates: dict[str, str]
    special: dict[str, str]


def read_tokenizer(file: GgufFile) -> GgufTokenizer:
    """Read a file's tokenizer. SteerError, naming file and kind, on an unsupported kind."""
    vocabulary = _Vocabulary(file)
    kind = file.get("tokenizer.ggml.model", str)
    if kind == "gpt2":
        tokenizer, marks = _byte_level(file, vocabulary)
    elif kind == "llama":
        tokenizer, marks = _sentencepiece(file, vocabulary), True
    else:
        raise SteerError(
            f"{file.path}: tokenizer.ggml.model {short(kind)} is not supported; "
            "supported: gpt2, llama"
        )
    vocabulary.check_ids(tokenizer)
    special = {
        theirs: vocabulary.text(f"tokenizer.ggml.{ours}")
        for theirs, ours in _KEYS.items()
        if file.get(f"tokenizer.ggml.{ours}", int) is not None
    }
    ends = (("bos_token", "add_bos_token", marks), ("eos_token", "add_eos_token", False))
    _mark(file, tokenizer, [_end(file, special, *each) for each in ends])
    return GgufTokenizer(tokenizer, _chat_templates(file), special)


def _chat_templates(file: GgufFile) -> dict[str, str]:
    """The default one has a key of its own; ``tokenizer.chat_templates`` names all others."""
    key = "tokenizer.chat_template"
    names = file.texts(f"{key}s") if file.get(f"{key}s", list) else []
    sources = {name: file.get(f"{key}.{name}", str) for name in names}
    sources["default"] = file.get(key, str)
    return {name: source for name, source in sources.items() if source is not None}


def end_ids(file: GgufFile) -> list[int]:
    """The ids that end an answer, sorted: those that the file names, and known control tokens."""
    vocabulary = _Vocabulary(file)
    named = (file.get(f"tokenizer.ggml.{key}", int) for key in _ENDS)
    known = (
        index
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.kinds, strict=True))
        if kind == _CONTROL and text in _END_TEXTS
    )
    return sorted({index for index in chain(named, known) if index is not None})


class _Vocabulary:
    """Tokens and their kinds by id."""

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self.tokens = file.texts("tokenizer.ggml.tokens")
        self.kinds = file.get("tokenizer.ggml.token_type", list, [_NORMAL] * len(self.tokens))
        if len(self.kinds) != len(self.tokens) or not all(isinstance(k, int) for k in self.kinds):
            raise SteerError(
                f"{file.path}: tokenizer.ggml.token_type must have a whole number for each of "
                f"{len(self.tokens)} tokens, got {len(self.kinds)} of {short(self.kinds[:1])}"
            )
        if file.get("tokenizer.ggml.pre", str) == "qwen2":
            pairs = zip(self.tokens, self.kinds, strict=True)
            self.kinds = [_USER_DEFINED if t in _WORDS else k for t, k in pairs]

    def text(self, key: str) -> str:
        """The token that a key names by its id."""
        index = self._file.get(key, int)
        if not 0 <= index < len(self.tokens):
            raise SteerError(
                f"{self._file.path}: {key} is {index}, there are {len(self.tokens)} tokens"
            )
        return str(self.tokens[index])

    def ids(self) -> dict[str, int]:
        """Ids by token, of all tokens that are in use."""
        ids: dict[str, int] = {}
        for index, (text, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)):
            if kind == _UNUSED:
                continue
            if text in ids:
                raise SteerError(
                    f"{self._file.path}: token {text!r} has two ids, {ids[text]} and {index}"
                )
            ids[text] = index
        return ids

    def added(self) -> list[AddedToken]:
        """Tokens that text is never split inside of; the special ones decode to no text."""
        pairs = zip(self.tokens, self.kinds, strict=True)
        return [
            AddedToken(text, special=kind == _CONTROL, normalized=False)
            for text, kind in pairs
            if kind in (_CONTROL, _USER_DEFINED)
        ]

    def check_ids(self, tokenizer: Tokenizer) -> None:
        """SteerError if the library gave a token an id that differs from the file's."""
        for text, index in self.ids().items():
            if tokenizer.token_to_id(text) != index:
                raise SteerError(
                    f"{self._file.path}: token {text!r} should be id {index}, "
                    f"it is {tokenizer.token_to_id(text)}"
                )


def _byte_level(file: GgufFile, vocabulary: _Vocabulary) -> tuple[Tokenizer, bool]:
    name = file.get("tokenizer.ggml.pre", str)
    if name not in _SPLITTERS:
        raise SteerError(
            f"{file.path}: tokenizer.ggml.pre {short(name)} is not supported; "
            f"supported: {', '.join(_SPLITTERS)}"
        )
    splitter = _SPLITTERS[name]
    try:
        model = models.BPE(vocabulary.ids(), _merges(file), ignore_merges=splitter.whole)
    except Exception as error:  # the library raises plain Exception
        raise SteerError(f"{file.path}: not a usable tokenizer: {error}") from None
    tokenizer = Tokenizer(model)
    if splitter.nfc:
        tokenizer.normalizer = normalizers.NFC()
    steps = splitter.cut()
    tokenizer.pre_tokenizer = steps[0] if len(steps) == 1 else pre_tokenizers.Sequence(steps)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(vocabulary.added())
    return tokenizer, splitter.marks


def _merges(file: GgufFile) -> list[tuple[str, str]]:
    merges = []
    for merge in file.texts("tokenizer.ggml.merges"):
        left, _, right = merge.partition(" ")
        if not (left and right) or " " in right:
            raise SteerError(f"{file.path}: a merge must be of two tokens, got {merge!r}")
        merges.append((left, right))
    return merges


def _sentencepiece(file: GgufFile, vocabulary: _Vocabulary) -> Tokenizer:
    scores = file.get("tokenizer.ggml.scores", list)
    numbers = bool(scores) and all(isinstance(score, float) for score in scores)
    if not numbers or len(scores) != len(vocabulary.tokens):
        raise SteerError(f"{file.path}: tokenizer.ggml.scores must have one number for each token")
    if max(map(len, vocabulary.tokens)) > _LONGEST_PIECE:
        raise SteerError(f"{file.path}: a token is longer than {_LONGEST_PIECE} characters")
    vocabulary.ids()  # raises on duplicate tokens
    pieces = list(zip(vocabulary.tokens, scores, vocabulary.kinds, strict=True))
    model = SentencePieceModel(
        pieces,
        dummy_prefix=file.get("tokenizer.ggml.add_space_prefix", bool, True),
        removes_spaces=file.get("tokenizer.ggml.remove_extra_whitespaces", bool, False),
    )
    return model.tokenizer()


def _end(
    file: GgufFile, special: dict[str, str], token: str, flag: str, default: bool
) -> str | None:
    """The token at one end of a text, if the file wants one there."""
    wanted = file.get(f"tokenizer.ggml.{flag}", bool)
    if wanted and token not in special:
        raise SteerError(f"{file.path}: tokenizer.ggml.{flag} is set, but there is no {token}")
    return special.get(token) if (default if wanted is None else wanted) else None


def _mark(file: GgufFile, tokenizer: Tokenizer, ends: list[str | None]) -> None:
    """Set the tokens put around each text that is encoded with special tokens."""
    first, last = ends
    for token in filter(None, ends):  # the library parses these marks: "$" and ":" have meaning
        if tokenizer.token_to_id(token) is None or token[0] == "$" or set(token) & set(": "):
            raise SteerError(f"{file.path}: {short(token)} cannot mark an end of a text")
    parts = [f"{first}:0"] * bool(first) + ["$A:0"] + [f"{last}:0"] * bool(last)
    ids: list[Any] = [(t, tokenizer.token_to_id(t)) for t in dict.fromkeys(ends) if t]
    if ids:
        tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=ids)
