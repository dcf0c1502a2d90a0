"""Turns a text into a prompt: as it is, or as a user's message in a chat template."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from engine.errors import SteerError
from engine.request import Prompt
from engine.text.chat import Message

if TYPE_CHECKING:
    from engine.engine import Engine

Asked = str | list[int] | Prompt  # what Engine.generate() takes for one prompt


def add_flags(parser: argparse._ActionsContainer) -> None:
    """--chat, --system and --instruction."""
    add = parser.add_argument
    add(
        "--chat",
        action="store_true",
        default=None,
        help="each prompt is a user's message, written with the checkpoint's chat template",
    )
    add(
        "--system",
        metavar="TEXT",
        help="with --chat: the system message before it; \\n is read as a line end",
    )
    add(
        "--instruction",
        metavar="TEXT",
        help="put TEXT after each prompt, on a line of its own, with or without --chat, such as "
        "'Separate steps by blank lines.'; \\n is read as a line end",
    )


@dataclass(frozen=True)
class Conversation:
    """What is put around the text of each prompt.

    chat: the text is a user's message, and the checkpoint's chat template writes the prompt.
    system: a system message before it; only with ``chat``.
    instruction: text after it, on a line of its own.
    """

    chat: bool = False
    system: str | None = None
    instruction: str | None = None

    @classmethod
    def of(cls, options: argparse.Namespace) -> Conversation:
        """A conversation from the flags. SteerError on flags that do not go together."""
        if options.system is not None and not options.chat:
            raise SteerError("--system goes with --chat")
        system, instruction = (
            None if text is None else text.replace("\\n", "\n")
            for text in (options.system, options.instruction)
        )
        if instruction is not None and not instruction.strip():
            raise SteerError("--instruction is empty: give its text, or leave it out")
        return cls(bool(options.chat), system, instruction)

    def check(self, engine: Engine) -> None:
        """SteerError if the checkpoint has no template for such chats."""
        templates = engine.tokenizer.chat_templates
        if not self.chat:
            return
        if not templates:
            raise SteerError(
                f"pair {engine.pair.name} brings no chat template (--chat): take checkpoints that "
                "were trained on chats, or plain prompts"
            )
        if self.system is not None:
            try:
                templates.choose().render(self._messages("?"))
            except SteerError as error:
                raise error.within("--system") from None

    def prompts(self, engine: Engine, texts: Sequence[str]) -> list[Asked]:
        """The prompt of each text. SteerError as in :meth:`check` and :meth:`prompt`."""
        self.check(engine)
        return [self.prompt(engine, text) for text in texts]

    def prompt(self, engine: Engine, text: str) -> Asked:
        """The prompt of one text: the text itself, or the ids of a chat.

        Raises:
            SteerError: if the template refuses the messages, or the tokenizer their text.
        """
        return engine.chat(self._messages(text)) if self.chat else self._message(text)

    def settings(self) -> dict[str, Any]:
        """The flags that are set, by name, for the rows of a benchmark."""
        named = {"chat": self.chat or None, "system": self.system, "instruction": self.instruction}
        return {name: value for name, value in named.items() if value is not None}

    def _message(self, text: str) -> str:
        return text if self.instruction is None else f"{text}\n{self.instruction}"

    def _messages(self, text: str) -> list[Message]:
        before = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*before, {"role": "user", "content": self._message(text)}]


def length(engine: Engine, prompt: Asked) -> int:
    """Tokens of a prompt; if each model has its own ids, the larger number."""
    if isinstance(prompt, Prompt):
        return max(len(prompt.small), len(prompt.large))
    return len(engine.tokenizer.encode(prompt, special=True) if isinstance(prompt, str) else prompt)
