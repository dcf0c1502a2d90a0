"""Chat templates: messages become the text that a model was trained on, as transformers does it.

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
    """One template and the special tokens that it may name."""

    def __init__(self, source: str, tokens: Mapping[str, str]) -> None:
        """``tokens``: ``bos_token``, ``eos_token`` and so on, by name. SteerError if malformed."""
        from jinja2 import TemplateError  # not to be paid for by who sends no messages

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
            variables: what else the template reads, such as ``enable_thinking``.

        Raises:
            SteerError: on messages that are none, or that the template refuses.
        """
        from jinja2 import TemplateError

        if isinstance(messages, str | Mapping) or not messages:
            raise SteerError('messages must be a list of {"role": ..., "content": ...}')
        plain = _plain({"messages": list(messages), "tools": tools and list(tools), **variables})
        plain["messages"] = [_message(message) for message in plain["messages"]]
        given = {**self._tokens, **plain, "add_generation_prompt": add_generation_prompt}
        try:
            return self._template.render(**given)
        except TemplateError as error:
            raise SteerError(f"the chat template refuses these messages: {error}") from None
        except (TypeError, ValueError, KeyError, ArithmeticError, RecursionError) as error:
            raise SteerError(f"the chat template fails on these messages: {error!r}") from None


def _plain(values: dict[str, Any]) -> dict[str, Any]:
    """A copy of JSON types only: other objects have methods that a sandbox cannot know."""
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
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """``{% generation %}`` marks what the assistant wrote: for training, no matter here."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body).set_lineno(line)

    class Space(Namespace):
        """Jinja's namespace without names that lead into Python."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise SecurityError(f"a template must not set {name!r}")
            super().__setitem__(name, value)

    def space(*given: Any, **attributes: Any) -> Space:
        made = Space()
        for name, value in dict(*given, **attributes).items():
            made[name] = value
        return made

    def refuse(message: str) -> str:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals |= {
        "raise_exception": refuse,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "namespace": space,
        "dict": lambda *given, **entries: dict(*given, **entries),
    }
    return environment


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """Jinja's own filter escapes HTML."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
