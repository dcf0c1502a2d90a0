"""Triton's interpreter: whether it works here, and how it is made faster.

Triton 3.6 cannot run a loop whose bounds are known at run time only, with NumPy 2.4 or newer. Tests
are skipped there at the first kernel that they launch.

Left alone it finds and replaces the language's functions at every call of a device function,
`tl.sum` included, which was half of what the kernels' tests took (Triton 3.7.1). Made faster it
does so once a launch: what a launch has replaced stays so until its end. NumPy's
type of each type is found once, not at every operation; so is what Triton keeps of each shape.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from types import FunctionType
from typing import Any

import numpy as np
import pytest
import triton
import triton.language as tl
from triton.errors import TritonError
from triton.runtime import interpreter

KNOWN_FAULT = "only 0-dimensional arrays can be converted"


def _count(n):  # type: ignore[no-untyped-def]
    total = 0
    for i in range(n):
        total += i
    return total


@cache
def fault() -> str | None:
    """Why the interpreter does not work here. Only the known fault: any other fails the tests."""
    try:
        interpreter.InterpretedFunction(_count)[(1,)](2)
    except TritonError as error:
        if KNOWN_FAULT in str(error):
            versions = f"Triton {triton.__version__} with NumPy {np.__version__}"
            return f"the interpreter of {versions} fails: {error}"
    return None


def require() -> None:
    """Skips the test that is running where the interpreter does not work."""
    if (reason := fault()) is not None:
        pytest.skip(reason)


def skip_where_it_fails() -> None:
    """From here on the first launch of a kernel skips the test, where the interpreter fails."""
    if fault() is not None:
        interpreter.GridExecutor.__call__ = lambda *_, **__: require()


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
    if (numpy_type := vars(interpreter).get("_get_np_dtype")) is not None:
        interpreter._get_np_dtype = _remembered(numpy_type)
    tl.block_type.__init__ = _once_a_shape(tl.block_type.__init__)
    tl.tensor.__init__ = _once_a_shape_of(tl.tensor.__init__)


def _once_a_shape(make: Callable[..., None]) -> Callable[..., None]:
    """Of a block's type: a shape that was checked once is right."""
    known: dict[tuple[int, ...], tuple[str, dict[str, Any]]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = tuple([getattr(size, "value", size) for size in getattr(shape, "values", shape)])
        if (kept := known.get(key)) is None:
            make(self, element_ty, shape)
            same = {k: v for k, v in vars(self).items() if k not in ("element_ty", "name")}
            known[key] = str(self.shape), same
        else:
            vars(self).update(kept[1])
            self.element_ty, self.name = element_ty, f"<{kept[0]}, {element_ty}>"

    return init


def _once_a_shape_of(make: Callable[..., None]) -> Callable[..., None]:
    """Of a tensor, whose sizes are as many objects each time, all alike."""
    known: dict[int, tuple[Any, dict[str, Any]]] = {}  # the shape too: its id is nothing else's

    def init(self: Any, handle: Any, type: Any) -> None:
        shape = type.shape if type.is_block() else ()
        if (kept := known.get(id(shape))) is None:
            make(self, handle, type)
            known[id(shape)] = shape, {k: vars(self)[k] for k in ("shape", "numel")}
        else:
            vars(self).update(kept[1])
            self.handle, self.type, self.dtype = handle, type, type.scalar

    return init


def _remembered(numpy_type: Callable[[Any], Any]) -> Callable[[Any], Any]:
    known = cache(numpy_type)  # pointers have no hash

    def remembered(dtype: Any) -> Any:
        scalar = dtype.scalar
        return numpy_type(scalar) if isinstance(scalar, tl.pointer_type) else known(scalar)

    return remembered
