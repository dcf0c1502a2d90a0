"""Triton's interpreter, made faster: it finds and replaces the language's functions once a launch.

It does so at every call of a device function, `tl.sum` included, which was half of what the
kernels' tests took (Triton 3.7.1). What a launch has replaced stays so until its end.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any

import triton.language as tl
from triton.runtime import interpreter


def patch_once() -> None:
    """Does nothing where the interpreter is built otherwise."""
    launch = vars(interpreter.GridExecutor).get("__call__")
    patch = getattr(interpreter, "_patch_lang", None)
    scope = getattr(interpreter, "_LangPatchScope", None)
    if launch is None or patch is None or scope is None:
        return
    replaced: set[int] = set()
    languages: dict[FunctionType, frozenset[int]] = {}

    def seen_by(function: FunctionType) -> frozenset[int]:
        if function not in languages:
            known = (id(v) for v in function.__globals__.values() if v is tl or v is tl.core)
            languages[function] = frozenset(known)
        return languages[function]

    def patch_new(function: FunctionType) -> Any:
        if seen_by(function) <= replaced:
            return scope()
        done = patch(function)
        replaced.update(seen_by(function))
        return done

    def launch_anew(self: Any, *arguments: Any, **options: Any) -> Any:
        replaced.clear()
        try:
            return launch(self, *arguments, **options)
        finally:
            replaced.clear()

    interpreter._patch_lang = patch_new
    interpreter.GridExecutor.__call__ = launch_anew
