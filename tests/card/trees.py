"""Arguments and results of operations: tensors and numbers in tuples, lists and dicts.

PyTorch's own walk over such trees knows more kinds and takes most of a small operation's time.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def each(change: Callable[[Any], Any], tree: Any) -> Any:
    """The same tree with its leaves changed."""
    if isinstance(tree, tuple | list):
        return type(tree)([each(change, x) for x in tree])
    if isinstance(tree, dict):
        return {name: each(change, x) for name, x in tree.items()}
    return change(tree)


def leaves(*trees: Any) -> list[Any]:
    """The leaves of some trees, in order."""
    found: list[Any] = []
    for tree in trees:
        if isinstance(tree, tuple | list):
            found += leaves(*tree)
        elif isinstance(tree, dict):
            found += leaves(*tree.values())
        else:
            found.append(tree)
    return found
