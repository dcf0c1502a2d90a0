"""What a chat template does with fields of messages that come in several forms.

Read from its syntax tree: a template that takes a content apart itself gets it as it was given, and
one that does not gets a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from jinja2 import nodes

_CHOOSING = ("map", "selectattr", "rejectattr")  # filters over the parts of a content
_FIELDS_OF_A_PART = ("type", "text")
_OF_PRESENCE = ("defined", "undefined", "none")  # tests


class FieldUse(NamedTuple):
    """What a template expects of the messages' fields.

    parts: it takes apart a content that is a list.
    null: how a content that is missing is told: "none" or "defined", the test that the template
        makes; "" if an empty text is better: it makes neither, or asks whether it is a text.
    arguments_as_text: it writes the arguments of a tool's call as they are, so that they must be
        JSON as text.
    """

    parts: bool
    null: str
    arguments_as_text: bool


def field_use(tree: nodes.Template) -> FieldUse:
    """What a template expects. ``tree``: as parsed, with the sandbox's changes or without."""
    content, arguments = _Field(tree, "content"), _Field(tree, "arguments")
    tests = {test.name for test in tree.find_all(nodes.Test) if content.is_in(test.node)}
    compared = any(
        isinstance(operand.expr, nodes.Const) and operand.expr.value is None
        for compare in tree.find_all(nodes.Compare)
        if content.is_in(compare.expr)
        for operand in compare.ops
    )
    null = "none" if compared or "none" in tests else "defined" if "defined" in tests else ""
    if "string" in tests:  # a template that asks for texts takes an empty one well
        null = ""
    return FieldUse(content.taken_apart(), null, arguments.written() and not arguments.examined())


class _Field:
    """A field of messages, and the names that a template gives to its value."""

    def __init__(self, tree: nodes.Template, name: str) -> None:
        self._tree, self._name = tree, name
        self._names = {name}
        while more := set(self._further_names()) - self._names:
            self._names |= more

    def _further_names(self) -> Iterator[str]:
        """Variables that get the value, and parameters of macros that are called with it."""
        for assigned in self._tree.find_all(nodes.Assign):
            if isinstance(assigned.target, nodes.Name) and self.is_in(assigned.node):
                yield assigned.target.name
        macros = {macro.name: macro.args for macro in self._tree.find_all(nodes.Macro)}
        for call in self._tree.find_all(nodes.Call):
            if isinstance(call.node, nodes.Name) and call.node.name in macros:
                parameters = macros[call.node.name]
                for parameter, value in zip(parameters, call.args, strict=False):
                    if self.is_in(value):
                        yield parameter.name
                yield from (pair.key for pair in call.kwargs if self.is_in(pair.value))

    def is_in(self, node: nodes.Node) -> bool:
        """Whether an expression is the field's value, or may be: filtered, or one of two."""
        match node:
            case nodes.Name(name=name):
                return name in self._names
            case nodes.Getattr(attr=name):
                return bool(name == self._name)
            case nodes.Getitem(arg=nodes.Const(value=name)):
                return bool(name == self._name)
            case nodes.Filter(node=inner) if inner is not None:
                return self.is_in(inner)
            case nodes.Or(left=one, right=other) | nodes.CondExpr(expr1=one, expr2=other):
                return self.is_in(one) or (other is not None and self.is_in(other))
            case nodes.Call(node=nodes.EnvironmentAttribute(), args=[inner, *_]):
                return self.is_in(inner)  # a slice or comparison in the sandbox
        return False

    def taken_apart(self) -> bool:
        """Whether the template goes through the items of the value, or reads fields of one."""
        if any(self.is_in(loop.iter) for loop in self._tree.find_all(nodes.For)):
            return True
        if any(f.name in _CHOOSING and self.is_in(f) for f in self._tree.find_all(nodes.Filter)):
            return True
        return any(self._is_item(inner) for inner in self._parts_read())

    def _parts_read(self) -> Iterator[nodes.Node]:
        for read in self._tree.find_all((nodes.Getattr, nodes.Getitem)):
            match read:
                case nodes.Getattr(attr=name) | nodes.Getitem(arg=nodes.Const(value=name)):
                    if name in _FIELDS_OF_A_PART:
                        yield read.node

    def _is_item(self, node: nodes.Node) -> bool:
        match node:
            case nodes.Getitem(node=whole, arg=nodes.Const(value=int())):
                return self.is_in(whole)
            case nodes.Filter(name="first" | "last", node=whole) if whole is not None:
                return self.is_in(whole)
        return False

    def written(self) -> bool:
        """Whether the template writes the value, or adds it to a text."""
        outputs = (value for output in self._tree.find_all(nodes.Output) for value in output.nodes)
        sums = (v for add in self._tree.find_all(nodes.Add) for v in (add.left, add.right))
        return any(map(self.is_in, (*outputs, *sums, *self._joined())))

    def _joined(self) -> Iterator[nodes.Node]:
        for concat in self._tree.find_all(nodes.Concat):
            yield from concat.nodes
        for call in self._tree.find_all(nodes.Call):
            match call.node:
                case nodes.EnvironmentAttribute(name="joined"):  # the sandbox's form of a concat
                    yield from call.args

    def examined(self) -> bool:
        """Whether the template looks at the value's type, filters it, or goes through its items."""
        tests = (
            test.node for test in self._tree.find_all(nodes.Test) if test.name not in _OF_PRESENCE
        )
        filtered = self._tree.find_all(nodes.Filter)
        methods = (read.node for read in self._tree.find_all(nodes.Getattr))
        loops = (loop.iter for loop in self._tree.find_all(nodes.For))
        return any(map(self.is_in, (*tests, *filtered, *methods, *loops)))
