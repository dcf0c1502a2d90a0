"""Reads the tokenizer and the chat template of a checkpoint from its various files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, models, processors

from engine.errors import SteerError
from engine.files import Folder, read_text
from engine.gguf.file import GgufFile, is_gguf
from engine.text.added_tokens import SPECIAL, add_tokens, content, read_config
from engine.text.chat import ChatTemplates
from engine.text.gguf_tokenizer import read_tokenizer as read_gguf_tokenizer
from engine.text.sentencepiece_model import SentencePieceModel


@dataclass(frozen=True)
class TokenizerFiles:
    """A fast tokenizer with all added tokens, and the chat templates by name."""

    tokenizer: Tokenizer
    chat_templates: ChatTemplates


def read_tokenizer(source: Path | Folder | GgufFile) -> TokenizerFiles:
    """Read a folder (tokenizer.json, else tokenizer.model), a tokenizer.json alone or a GGUF file.

    tokenizer_config.json (with special_tokens_map.json) adds tokens and chat templates. If there
    are files of templates (chat_template.jinja, additional_chat_templates/NAME.jinja), they stand
    for all of the config's.
    The tokens at a text's beginning and end are those of tokenizer.json, as in transformers; for
    tokenizer.model they are those of the config.
    """
    if isinstance(source, Path) and is_gguf(source):
        source = GgufFile(source)
    if isinstance(source, GgufFile):
        read = read_gguf_tokenizer(source)
        return TokenizerFiles(
            read.tokenizer, ChatTemplates(str(source), read.templates, read.special)
        )
    if isinstance(source, Path) and not source.is_dir():
        return _read_folder(Folder(source.parent), source)
    folder = Folder(source) if isinstance(source, Path) else source
    return _read_folder(folder, folder.path / "tokenizer.json")


def _read_folder(folder: Folder, path: Path) -> TokenizerFiles:
    """``path``: its tokenizer.json, if there is one."""
    config = read_config(folder)
    if path.is_file():
        tokenizer = _fast_tokenizer(path)
    elif folder.has("tokenizer.model"):
        tokenizer = _sentencepiece(folder.path, config)
        config = {"add_bos_token": True, "bos_token": "<s>", "eos_token": "</s>"} | config
    else:
        raise SteerError(f"{folder}: tokenizer.json is missing, and so is tokenizer.model")
    add_tokens(tokenizer, folder, config)
    if not path.is_file():
        _mark_ends(tokenizer, config)
    return TokenizerFiles(tokenizer, _folder_templates(folder.path, config))


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


def _mark_ends(tokenizer: Tokenizer, config: Mapping[str, Any]) -> None:
    """Set the tokens put before and after a text."""
    wanted = ("bos_token", "add_bos_token"), ("eos_token", "add_eos_token")
    bos, eos = (
        content(config[name]) if config.get(flag) and config.get(name) else ""
        for name, flag in wanted
    )
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
    special = {name: content(config[name]) for name in SPECIAL if config.get(name) is not None}
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
