"""Chat templates: messages become the text that a model was trained on, as in transformers.

Templates come with checkpoints and are not trusted: :mod:`engine.text.template_sandbox` runs them,
and they see nothing but plain JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from engine.errors import SteerError, about
from engine.text.chat_messages import REASONING, normalised

Message = Mapping[str, Any]
_DEFAULT, _TOOL_USE = "default", "tool_use"
_FIELD = "chat_template"  # of errors
_TAG = "CONTINUE_FINAL_MESSAGE_TAG "  # put where a message is continued; its end may be trimmed


class ChatTemplate:
    """One template and the special tokens that it may use.

    reads: the variables that it reads.
    """

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """Compile a template; SteerError if it is malformed.

        tokens: text of ``bos_token``, ``eos_token`` and so on, by name.
        """
        # Imported here: many programs send no messages.
        from engine.text.template_sandbox import compile_template

        self.source = source
        self._tokens = dict(tokens)
        self._compiled = compile_template(source)
        self.reads = self._compiled.reads

    def __repr__(self) -> str:
        return f"ChatTemplate({len(self.source)} characters)"

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool | None = None,
        *,
        documents: Sequence[Mapping[str, Any]] | None = None,
        continue_final_message: bool | str = False,
        **variables: Any,
    ) -> str:
        """The text of a conversation; arguments and errors are those of :meth:`Tokenizer.chat`.

        Variables that the template does not read have no effect.
        """
        if isinstance(messages, str | Mapping) or not messages:
            raise SteerError('messages must be a list of {"role": ..., "content": ...}', "messages")
        if continue_final_message and add_generation_prompt:
            raise SteerError(
                "continue_final_message goes on with the last message, add_generation_prompt "
                "begins a new one: give one of them",
                "continue_final_message",
            )
        given = {
            "messages": list(messages),
            "tools": _objects("tools", tools),
            "documents": _objects("documents", documents),
            **variables,
        }
        plain = _plain(given)
        plain["messages"] = normalised(plain["messages"], self._compiled.fields, self.source)
        if add_generation_prompt is None:
            add_generation_prompt = not continue_final_message
        values = {**self._tokens, **plain, "add_generation_prompt": add_generation_prompt}
        if not continue_final_message:
            return self._compiled.render(values)
        begun = _mark_end(plain["messages"][-1], continue_final_message, self.source)
        return _cut_at_mark(self._compiled.render(values), begun)


class ChatTemplates:
    """The templates of one checkpoint by name, and its special tokens."""

    def __init__(self, where: str, sources: Mapping[str, str], tokens: Mapping[str, str]) -> None:
        """Compile the default template; the others, when they are used.

        Args:
            where: the checkpoint, for errors.
            sources: the templates' texts by name.
            tokens: see :class:`ChatTemplate`.

        Raises:
            SteerError: if the default template is malformed.
        """
        self._where = where
        self._sources = dict(sources)
        self._tokens = dict(tokens)
        self.default = self._named(_DEFAULT) if _DEFAULT in sources else None

    def __len__(self) -> int:
        return len(self._sources)

    def choose(self, wanted: str | None = None, has_tools: bool = False) -> ChatTemplate:
        """The template for a conversation, as transformers chooses it.

        Args:
            wanted: a template's name, or the text of one that the checkpoint does not bring.
            has_tools: take the template "tool_use" if there is one, instead of "default".

        Raises:
            SteerError: if there is none, or it is malformed.
        """
        if wanted is None:
            return self._named(_TOOL_USE if has_tools and _TOOL_USE in self._sources else _DEFAULT)
        if not isinstance(wanted, str):
            raise SteerError(
                f"chat_template must be a name or a template's text, got {wanted!r}", _FIELD
            )
        if wanted in self._sources or not ("{{" in wanted or "{%" in wanted):
            return self._named(wanted)
        return ChatTemplate(wanted, self._tokens)

    def _named(self, name: str) -> ChatTemplate:
        if not self._sources:
            raise SteerError(f"{self._where}: the checkpoint brings no chat template", _FIELD)
        if name not in self._sources:
            names = ", ".join(sorted(self._sources))
            raise SteerError(
                f"{self._where}: no chat template is named {name!r}; chat_template= takes one of "
                f"{names}, or a template's text",
                _FIELD,
            )
        try:
            return ChatTemplate(self._sources[name], self._tokens)
        except SteerError as error:
            where = self._where if name == _DEFAULT else f"{self._where}, {name!r}"
            raise error.within(where) from None


def check_read(templates: Sequence[ChatTemplate], names: Collection[str]) -> None:
    """SteerError for a name that none of the templates reads: it would have no effect."""
    reads = frozenset[str]().union(*(template.reads for template in templates))
    if unread := sorted(set(names) - reads):
        known = ", ".join(sorted(reads)) or "no variable"
        said = f"the chat template does not read {', '.join(unread)}; it reads {known}"
        raise SteerError(said, unread[0])


def _objects(name: str, values: Any) -> list[Any] | None:
    if values is None:
        return None
    listed = list(values) if isinstance(values, Sequence) and not isinstance(values, str) else None
    if listed is None or not all(isinstance(value, Mapping) for value in listed):
        raise SteerError(f"{name} must be a list of objects, got {values!r:.80}", name)
    return listed


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of plain JSON types: other objects have methods that a sandbox cannot judge."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        said = f"messages and tools must be plain JSON values: {error}"
        raise SteerError(said, "messages") from None
    return copy


@about("continue_final_message")
def _mark_end(message: dict[str, Any], wanted: bool | str, source: str) -> str:
    """Put the tag after the text that is to be continued, in place; returns that text."""
    field = wanted if isinstance(wanted, str) else "content"
    text = message.get(field)
    holder, names = message, [field]
    if field in REASONING:  # the template reads one of its copies
        names = [name for name in REASONING if message.get(name) == text]
    if text is not None and not any(name in source for name in names):
        raise SteerError(f"continue_final_message: the chat template reads no {field!r}")
    if isinstance(text, list):
        blocks = [block for block in text if isinstance(block, dict) and "text" in block]
        holder, names = (blocks[-1], ["text"]) if blocks else ({}, [])
        text = holder.get("text")
    if not isinstance(text, str):
        raise SteerError(f"continue_final_message: the last message has no text in {field!r}")
    holder.update(dict.fromkeys(names, text + _TAG))
    return text


@about("continue_final_message")
def _cut_at_mark(rendered: str, begun: str) -> str:
    if begun.strip() not in rendered or _TAG.strip() not in rendered:
        raise SteerError(
            "continue_final_message: the chat template does not write the last message as it is, "
            "so that it cannot be continued"
        )
    place = rendered.rindex(_TAG.strip())
    kept = rendered[:place]
    return kept if rendered.startswith(_TAG, place) else kept.rstrip()
