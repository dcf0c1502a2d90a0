"""Reads the tokenizer and the chat template of a checkpoint from its various files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, models, processors

from engine.errors import SteerError
from engine.files import read_json, read_text
from engine.gguf.file import GgufFile, opened
from engine.text.chat import ChatTemplate
from engine.text.gguf_tokenizer import read_tokenizer as read_gguf_tokenizer
from engine.text.sentencepiece_model import SentencePieceModel

_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)


@dataclass(frozen=True)
class TokenizerFiles:
    """A fast tokenizer with all added tokens, and the chat template if there is one."""

    tokenizer: Tokenizer
    chat_template: ChatTemplate | None


def read_tokenizer(source: Path | GgufFile) -> TokenizerFiles:
    """Read a folder (tokenizer.json, else tokenizer.model), a tokenizer.json alone or a GGUF file.

    tokenizer_config.json adds tokens and the chat template; chat_template.jinja takes precedence.
    The tokens at a text's beginning and end are those of tokenizer.json, as in transformers; for
    tokenizer.model they are those of the config.
    """
    source = opened(source)
    if isinstance(source, GgufFile):
        read = read_gguf_tokenizer(source)
        return TokenizerFiles(read.tokenizer, _template(source, read.template, read.special))
    return _read_folder(source)


def _read_folder(where: Path) -> TokenizerFiles:
    folder = where if where.is_dir() else where.parent
    config = _optional(folder / "tokenizer_config.json")
    path = where / "tokenizer.json" if where.is_dir() else where
    if path.is_file():
        tokenizer = _fast_tokenizer(path)
    elif (folder / "tokenizer.model").is_file():
        tokenizer = _sentencepiece(folder, config)
        config = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"} | config
        _mark_ends(tokenizer, config)
    else:
        raise SteerError(f"{folder}: tokenizer.json is missing, and so is tokenizer.model")
    _add_tokens(tokenizer, folder, config)
    return TokenizerFiles(tokenizer, _chat_template(folder, config))


def _fast_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json without what is for training only: it would change prompts.

    Truncation and padding shape batches of a training, and a model's dropout leaves out merges at
    random. All other parts of the file say how the model was trained to read text, and stay.
    """
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises plain Exception
        raise SteerError(f"{path}: not a readable tokenizer: {error}") from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if isinstance(tokenizer.model, models.BPE):
        tokenizer.model.dropout = None
    return tokenizer


def _sentencepiece(folder: Path, config: Mapping[str, Any]) -> Tokenizer:
    """tokenizer.model, with spaces added as tokenizer_config.json says."""
    model = SentencePieceModel.read(folder / "tokenizer.model")
    for name in ("legacy", "add_prefix_space"):
        if not isinstance(config.get(name), bool | None):
            raise SteerError(
                f"{folder / 'tokenizer_config.json'}: {name} must be true, false or null, got "
                f"{config[name]!r}"
            )
    prefix = config.get("add_prefix_space")
    model.dummy_prefix = model.dummy_prefix if prefix is None else prefix
    model.once = config.get("legacy") is False
    return model.tokenizer()


def _optional(path: Path) -> dict[str, Any]:
    return read_json(path) if path.is_file() else {}


def _content(token: Any) -> str:
    """The text of a token, which some files write as an object."""
    return str(token.get("content")) if isinstance(token, Mapping) else str(token)


def _add_tokens(tokenizer: Tokenizer, folder: Path, config: Mapping[str, Any]) -> None:
    """Add the folder's tokens; SteerError if one does not get the id that the folder says."""
    listed = config.get("added_tokens_decoder") or {}
    path = folder / "tokenizer_config.json"
    added: dict[int, Any] = {}
    present = tokenizer.get_added_tokens_decoder()
    known = {token.content: index for index, token in present.items()}
    try:
        for text, index in _optional(folder / "added_tokens.json").items():
            if known.get(text) != index:  # else tokenizer.json has its flags
                added[int(index)] = {"content": text, "special": False}
        added |= {int(index): token for index, token in listed.items()}
    except (TypeError, ValueError, AttributeError) as error:
        raise SteerError(f"{path}: added tokens must have ids: {error}") from None
    for index, token in sorted(added.items()):
        text = _content(token)
        options = token if isinstance(token, Mapping) else {}
        flags = {n: bool(options.get(n, False)) for n in ("lstrip", "rstrip", "single_word")}
        special = bool(options.get("special", False))
        added_token = AddedToken(
            text, special=special, normalized=bool(options.get("normalized", not special)), **flags
        )
        if present.get(index) == added_token:
            continue
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added_token])
        if (actual := tokenizer.token_to_id(text)) != index:
            raise SteerError(f"{path}: added token {text!r} should be id {index}, it is {actual}")


def _mark_ends(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Set the tokens put before and after a text."""
    wanted = ("bos_token", "add_bos_token"), ("eos_token", "add_eos_token")
    bos, eos = (_content(config[name]) if config.get(flag) else "" for name, flag in wanted)
    ids = [(token, tokenizer.token_to_id(token)) for token in (bos, eos) if token]
    missing = next((token for token, index in ids if index is None), None)
    if missing:
        raise SteerError(f"tokenizer_config.json: special token {missing!r} is not a token")
    parts = [f"{bos}:0"] * bool(bos) + ["$A:0"] + [f"{eos}:0"] * bool(eos)
    tokenizer.post_processor = processors.TemplateProcessing(single=parts, special_tokens=ids)


def _chat_template(folder: Path, config: Mapping[str, Any]) -> ChatTemplate | None:
    path = folder / "chat_template.jinja"
    source: Any = config.get("chat_template")
    if path.is_file():
        source = read_text(path, "chat template")
    if isinstance(source, list):  # several by name
        named = {t.get("name"): t.get("template") for t in source if isinstance(t, Mapping)}
        source = named.get("default")
    if source is not None and not isinstance(source, str):
        raise SteerError(f"{folder / 'tokenizer_config.json'}: chat_template must be text")
    special = {name: _content(config[name]) for name in _SPECIAL if config.get(name) is not None}
    return _template(folder, source, special)


def _template(
    where: Path | GgufFile, source: str | None, special: Mapping[str, str]
) -> ChatTemplate | None:
    if source is None:
        return None
    try:
        return ChatTemplate(source, special)
    except SteerError as error:
        raise SteerError(f"{where}: {error}") from None
