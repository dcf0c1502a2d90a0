"""Chat templates: messages become the text that a model was trained on, as in transformers.

Templates come with checkpoints and are not trusted: they run in Jinja's immutable sandbox and see
nothing but plain JSON values.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from engine.errors import SteerError

Message = Mapping[str, Any]
_REASONING = ("reasoning_content", "thinking", "reasoning")


class ChatTemplate:
    """One template and the special tokens that it may use."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """Compile a template; SteerError if it is malformed.

        tokens: text of ``bos_token``, ``eos_token`` and so on, by name.
        """
        from jinja2 import TemplateError  # imported here: many programs send no messages

        self.source = source
        self._tokens = dict(tokens)
        try:
            self._template = _environment().from_string(source)
        except (TemplateError, RecursionError) as error:
            raise SteerError(f"the chat template is malformed: {error}") from None

    def __repr__(self) -> str:
        return f"ChatTemplate({len(self.source)} characters)"

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The text of a conversation.

        Args:
            messages: each with a ``role`` and a ``content``.
            tools: JSON schemas of functions that the model may call.
            add_generation_prompt: end where the assistant's answer begins.
            variables: further variables of the template, such as ``enable_thinking``.

        Raises:
            SteerError: on malformed messages, and on those that the template refuses.
        """
        from jinja2 import TemplateError

        if isinstance(messages, str | Mapping) or not messages:
            raise SteerError('messages must be a list of {"role": ..., "content": ...}')
        plain = _plain({"messages": list(messages), "tools": tools and list(tools), **variables})
        plain["messages"] = [_message(message) for message in plain["messages"]]
        given = {**self._tokens, **plain, "add_generation_prompt": add_generation_prompt}
        try:
            return str(self._template.render(**given))
        except TemplateError as error:
            raise SteerError(f"the chat template refuses these messages: {error}") from None
        except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            raise SteerError(f"the chat template fails on these messages: {error!r}") from None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of plain JSON types: other objects have methods that a sandbox cannot judge."""
    try:
        copy: dict[str, Any] = json.loads(json.dumps(values))
    except (TypeError, ValueError, RecursionError) as error:
        raise SteerError(f"messages and tools must be plain JSON values: {error}") from None
    return copy


def _message(message: Any) -> dict[str, Any]:
    if not isinstance(message, dict) or not isinstance(message.get("role"), str):
        raise SteerError(f'a message must be {{"role": ..., "content": ...}}, got {message!r}')
    reasoning = next((message[k] for k in _REASONING if message.get(k) is not None), None)
    if reasoning is None:
        return message
    return {"thinking": reasoning, **message, "reasoning_content": reasoning}


def _environment() -> Any:
    """Jinja as transformers sets it up (utils/chat_template_utils.py)."""
    from jinja2 import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_generation_tag(), loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": _safe_namespace(),
        "dict": lambda *given, **entries: dict(*given, **entries),
    }
    return environment


def _generation_tag() -> Any:
    """The class of a Jinja extension that accepts ``{% generation %}`` and prints its content."""
    from jinja2 import nodes
    from jinja2.ext import Extension
    from jinja2.parser import Parser

    class Generation(Extension):
        """Marks what the assistant wrote: used in training, without effect here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    return Generation


def _safe_namespace() -> Any:
    """Jinja's ``namespace()`` without names that lead into Python."""
    from jinja2.exceptions import SecurityError
    from jinja2.utils import Namespace

    class SafeNamespace(Namespace):
        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a template must not set {name!r}")
            super().__setitem__(name, value)

    def namespace(*given: Any, **attributes: Any) -> SafeNamespace:
        names = SafeNamespace()
        for name, value in dict(*given, **attributes).items():
            names[name] = value
        return names

    return namespace


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as text; replaces Jinja's own filter, which escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
