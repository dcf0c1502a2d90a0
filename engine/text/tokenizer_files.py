"""Reads the tokenizer and the chat template of a checkpoint from its various files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, processors

from engine.errors import SteerError
from engine.files import read_json, read_text
from engine.gguf.file import GgufFile, opened
from engine.text.chat import ChatTemplates
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
    """A fast tokenizer with all added tokens, and the chat templates by name."""

    tokenizer: Tokenizer
    chat_templates: ChatTemplates


def read_tokenizer(source: Path | GgufFile) -> TokenizerFiles:
    """Read a folder (tokenizer.json, else tokenizer.model), a tokenizer.json alone or a GGUF file.

    tokenizer_config.json adds tokens and chat templates. If there are files of templates
    (chat_template.jinja, additional_chat_templates/NAME.jinja), they stand for all of the config's.
    The tokens at a text's beginning and end are those of tokenizer.json, as in transformers; for
    tokenizer.model they are those of the config.
    """
    source = opened(source)
    if isinstance(source, GgufFile):
        read = read_gguf_tokenizer(source)
        return TokenizerFiles(
            read.tokenizer, ChatTemplates(str(source), read.templates, read.special)
        )
    return _read_folder(source)


def _read_folder(where: Path) -> TokenizerFiles:
    folder = where if where.is_dir() else where.parent
    config = _optional(folder / "tokenizer_config.json")
    path = where / "tokenizer.json" if where.is_dir() else where
    if path.is_file():
        try:
            tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:  # the library raises plain Exception
            raise SteerError(f"{path}: not a readable tokenizer: {error}") from None
    elif (folder / "tokenizer.model").is_file():
        tokenizer = SentencePieceModel.read(folder / "tokenizer.model").tokenizer()
        config = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"} | config
        _mark_ends(tokenizer, config)
    else:
        raise SteerError(f"{folder}: tokenizer.json is missing, and so is tokenizer.model")
    _add_tokens(tokenizer, folder, config)
    return TokenizerFiles(tokenizer, _folder_templates(folder, config))


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
    try:
        added |= {int(index): token for index, token in listed.items()}
        extra = _optional(folder / "added_tokens.json")
        added = {int(i): {"content": token, "special": False} for token, i in extra.items()} | added
    except (TypeError, ValueError, AttributeError) as error:
        raise SteerError(f"{path}: added tokens must have ids: {error}") from None
    for index, token in sorted(added.items()):
        text = _content(token)
        if tokenizer.token_to_id(text) == index and _is_added(tokenizer, index):
            continue
        options = token if isinstance(token, Mapping) else {}
        flags = {n: bool(options.get(n, False)) for n in ("lstrip", "rstrip", "single_word")}
        special = bool(options.get("special", False))
        added_token = AddedToken(
            text, special=special, normalized=bool(options.get("normalized", not special)), **flags
        )
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added_token])
        if (actual := tokenizer.token_to_id(text)) != index:
            raise SteerError(f"{path}: added token {text!r} should be id {index}, it is {actual}")


def _is_added(tokenizer: Tokenizer, index: int) -> bool:
    return index in tokenizer.get_added_tokens_decoder()


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


def _folder_templates(folder: Path, config: Mapping[str, Any]) -> ChatTemplates:
    paths = {path.stem: path for path in (folder / "additional_chat_templates").glob("*.jinja")}
    if (path := folder / "chat_template.jinja").is_file():
        paths = {"default": path} | paths
    sources = {name: read_text(path, "chat template") for name, path in paths.items()}
    special = {name: _content(config[name]) for name in _SPECIAL if config.get(name) is not None}
    return ChatTemplates(str(folder), sources or _config_templates(folder, config), special)


def _config_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The config's templates by name; one alone is the default."""
    given: Any = config.get("chat_template")
    if given is None:
        return {}
    if isinstance(given, list):
        entries = [entry if isinstance(entry, dict) else {} for entry in given]
        given = {entry.get("name"): entry.get("template") for entry in entries}
    named = given if isinstance(given, dict) else {"default": given}
    if not all(isinstance(text, str) for item in named.items() for text in item):
        raise SteerError(
            f"{folder / 'tokenizer_config.json'}: chat_template must be text, or a list of "
            '{"name": text, "template": text}'
        )
    return named
