"""Runs chat templates: Jinja as transformers sets it up, within limits on time and text.

Templates come with checkpoints and are not trusted. They run in Jinja's immutable sandbox, which
keeps them from Python's insides and limits ``range``; what they compute and write is charged, and
bounded as :mod:`engine.text.template_limits` says. Nothing is computed while one is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from typing import Any

from jinja2 import TemplateError, meta, nodes, pass_context
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from engine.errors import SteerError
from engine.text.template_fields import FieldUse, field_use
from engine.text.template_limits import (
    BITS,
    METER,
    Meter,
    charged_filters,
    check_braces,
    check_percent,
    check_widths,
    length_of,
    whole,
)

_METHODS_LEFT_OUT = ("translate", "expandtabs", "format_map", "to_bytes", "encode")


@dataclass(frozen=True)
class CompiledTemplate:
    """A template that is ready to run.

    reads: the variables that it reads, its own not counted.
    fields: what it expects of the messages' fields.
    """

    template: Any
    reads: frozenset[str]
    fields: FieldUse

    def render(self, values: Mapping[str, Any]) -> str:
        """The text. SteerError if the template refuses, fails or reaches a limit."""
        token = METER.set(meter := Meter())
        try:
            meter.add(values)
            return str(self.template.render(dict(values)))
        except SteerError as error:
            error.field = error.field or "messages"
            raise
        except TemplateError as error:
            said = f"the chat template refuses these messages: {error}"
            raise SteerError(said, "messages") from None
        except Exception as error:  # the template is a program: it can raise anything
            said = f"the chat template fails on these messages: {error!r}"
            raise SteerError(said, "messages") from None
        finally:
            METER.reset(token)


@lru_cache(maxsize=64)
def compile_template(source: str) -> CompiledTemplate:
    """Compile a template's text. SteerError if it is malformed."""
    environment = _Environment()
    try:
        tree = environment.parse(source)
        reads = frozenset(meta.find_undeclared_variables(tree))
        return CompiledTemplate(environment.from_string(source), reads, field_use(tree))
    except (TemplateError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
        reason = "it is nested too deeply" if isinstance(error, RecursionError) else error
        raise SteerError(f"the chat template is malformed: {reason}", "chat_template") from None


class _Environment(ImmutableSandboxedEnvironment):
    """The sandbox that charges the rendering's meter."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            extensions=[_Generation, loopcontrols],
            optimized=False,
            finalize=_written,
        )
        self.filters = charged_filters()
        del self.globals["lipsum"]
        self.globals |= {
            "raise_exception": _refuse,
            "strftime_now": lambda form: datetime.now().strftime(form),
            "namespace": _namespace,
            "dict": lambda *given, **entries: dict(*given, **entries),
        }

    def _parse(self, *given: Any) -> nodes.Template:
        tree: nodes.Template = _Hooks().visit(super()._parse(*given))
        tree.set_environment(self)
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return attr not in _METHODS_LEFT_OUT and super().is_safe_attribute(obj, attr, value)

    def call(self, context: Any, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        meter = METER.get()
        meter.charge()
        method = getattr(obj, "__wrapped__", obj)  # the sandbox wraps str.format
        owner, name = getattr(method, "__self__", None), getattr(method, "__name__", "")
        if isinstance(owner, str | int | list | tuple | dict):
            args = _checked_arguments(meter, owner, name, args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        meter.charge(length_of(result))
        return result

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        meter = METER.get()
        if operator == "%" and isinstance(left, str):
            check_percent(left)
            meter.charge_items(right)
        elif isinstance(left, int) and isinstance(right, int):
            bits = left.bit_length()
            made = {"*": bits + right.bit_length(), "**": bits * right}.get(operator, bits)
            if made > BITS:
                raise SteerError(f"the chat template makes a number of more than {BITS} bits")
        elif operator == "*":
            meter.charge(max(length_of(left) * whole(right), length_of(right) * whole(left)))
        result = super().call_binop(context, operator, left, right)
        meter.charge(length_of(result))
        return result

    # What the hooks below call.
    def joined(self, *parts: Any) -> str:
        return "".join(map(METER.get().text, parts))

    def part(self, value: Any, first: Any, last: Any, step: Any) -> Any:
        return value[first:last:step]

    def compared(self, value: Any) -> Any:
        if isinstance(value, list | tuple | dict):
            METER.get().charge_items(value)
        return value

    def passed(self) -> None:
        """One pass of a loop: the call itself is charged."""


def _checked_arguments(
    meter: Meter, owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[Any, ...]:
    """A method's arguments, after a look at how much it will return."""
    if isinstance(owner, list | tuple | dict):
        for value in args:
            meter.charge_items(value)  # compared with the items
        return args
    meter.charge(length_of(owner))  # most return parts of it
    check_widths(*args, *kwargs.values())
    if name == "format":
        check_braces(owner)
        meter.charge_items((args, dict(kwargs)))
    elif name == "replace" and len(args) > 1:
        meter.charge(owner.count(args[0]) * length_of(args[1]))
    elif name == "join" and args:
        args = (list(args[0]),)
        meter.charge(len(args[0]) * len(owner))
    return args


class _Hooks(NodeTransformer):
    """Puts calls of the environment where Jinja would run its own code unseen."""

    def visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> Any:
        node = self.generic_visit(node)
        if isinstance(node, nodes.TemplateData):
            return nodes.Const(node.data, lineno=node.lineno)  # written through ``_written``
        if isinstance(node, nodes.For):
            node.body.insert(0, nodes.ExprStmt(_call("passed", []), lineno=node.lineno))
        elif isinstance(node, nodes.Concat):
            return _call("joined", node.nodes)
        elif isinstance(node, nodes.Compare):
            node.expr = _call("compared", [node.expr])
        elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
            cut = node.arg
            bounds = [bound or nodes.Const(None) for bound in (cut.start, cut.stop, cut.step)]
            return _call("part", [node.node, *bounds])
        return node


def _call(name: str, values: list[nodes.Expr]) -> nodes.Call:
    return nodes.Call(nodes.EnvironmentAttribute(name), values, [], None, None)


@pass_context
def _written(context: Any, value: Any) -> str:
    """All that a template writes goes through here."""
    return METER.get().text(value)


class _Generation(Extension):
    """``{% generation %}`` marks what the assistant wrote: for training, without effect here."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body).set_lineno(line)


class _SafeNamespace(Namespace):
    """Jinja's ``namespace()`` without names that lead into Python."""

    def __repr__(self) -> str:
        return "<Namespace>"  # Jinja's own writes all values, however often they hold one another

    def __setitem__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            raise SecurityError(f"a template must not set {name!r}")
        super().__setitem__(name, value)


def _namespace(*given: Any, **attributes: Any) -> _SafeNamespace:
    names = _SafeNamespace()
    for name, value in dict(*given, **attributes).items():
        names[name] = value
    return names


def _refuse(message: str) -> str:
    raise TemplateError(message)
