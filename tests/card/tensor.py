"""Tensors on the simulated card: what is asked of them is put on the current stream.

Values are real, as a CPU computes them. What one may not rely on is spoilt: memory that was never
written or is freed, and what an asynchronous copy has yet to bring.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.card.streams import CARD, Event, Graph, Stream, plainly, spoil
from tests.card.trees import each, leaves

aten = torch.ops.aten
_PLACED = (aten.index, aten.index_put, aten.index_put_)
_WAITS = (aten._local_scalar_dense.default, aten.equal.default, aten.is_nonzero.default)


def _raw(tensor: Tensor) -> Tensor:
    """The bytes of a tensor's whole memory."""
    with plainly(), torch.inference_mode(False):
        return torch.empty(0, dtype=torch.uint8).set_(tensor.untyped_storage())


class Block:
    """An allocation. It dies with the last tensor in it; then its memory is anybody's."""

    def __init__(self, memory: Tensor, device: torch.device) -> None:
        self.users: list[Stream] = []
        weakref.finalize(
            self, _free, memory, CARD.stream(device), self.users, CARD.recording
        ).atexit = False


def _free(memory: Tensor, stream: Stream, users: list[Stream], graph: Graph | None) -> None:
    if graph is not None:
        graph.pool.free.append(memory)
    elif stream in CARD.streams:
        # The allocator looks at the streams that it was told of, and makes none wait for another.
        nobody = Stream(stream.device) if users else stream
        for user in {stream, *users} if users else ():
            event = Event()
            event.record_now(user)
            nobody.put_now(event)
        nobody.put_now(lambda: spoil(memory))


class CardTensor(Tensor):
    """``inner``: the same memory as a CPU sees it. ``block``: what that is a part of."""

    inner: Tensor
    block: Block

    @staticmethod
    def __new__(cls, inner: Tensor, device: torch.device, block: Block | None = None) -> CardTensor:
        with torch.inference_mode(False):
            made = Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=device,
            )
        made.inner = inner
        made.block = block or Block(_raw(inner), made.device)
        return made

    def __init__(self, *_: Any) -> None:
        pass

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, kwargs or {})

    def record_stream(self, stream: Stream) -> None:
        self.block.users.append(stream)

    def data_ptr(self) -> int:
        return self.inner.data_ptr()

    def tolist(self) -> Any:
        CARD.wait("for values", CARD.stream(self.device))
        return self.inner.tolist()

    def __repr__(self, **_: Any) -> str:
        return f"CardTensor({tuple(self.shape)}, {self.dtype}, {self.device})"


def inner(x: Any) -> Any:
    """What a CPU would work on."""
    return x.inner if isinstance(x, CardTensor) else x


def allocate(form: Tensor, device: torch.device) -> CardTensor:
    """Memory of the form of a meta tensor, that nothing has written."""
    with plainly(), torch.inference_mode(False):
        made = torch.empty_strided(form.shape, form.stride(), dtype=form.dtype)
        memory = torch.empty(0, dtype=torch.uint8).set_(made.untyped_storage())
        spoil(memory)
    return CardTensor(made, device, Block(memory, device))


def pin(tensor: Tensor) -> Tensor:
    """Copies to and from it need not wait."""
    CARD.pinned[tensor.untyped_storage().data_ptr()] = tensor
    return tensor


def _is_pinned(tensor: Tensor) -> bool:
    return tensor.untyped_storage().data_ptr() in CARD.pinned


def dispatch(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Any operation of PyTorch, on the host or on a card."""
    flat = leaves(args, kwargs)
    ours = [x for x in flat if isinstance(x, CardTensor)]
    target = kwargs.get("device")
    if func is aten.copy_.default:
        blocks = not (args[2] if len(args) > 2 else kwargs.get("non_blocking", False))
        return _move(args[0], args[1], blocks)
    if func is aten._to_copy.default and (ours or (target and target.type == "cuda")):
        return _copied(args[0], kwargs)
    if not ours and (target is None or target.type != "cuda"):
        pinned = kwargs.pop("pin_memory", None)
        with _disable_current_modes():
            found = func(*args, **kwargs)
            if pinned and "empty" in func.name():
                spoil(_raw(found))
        return pin(found) if pinned else found
    if func in _WAITS:
        CARD.wait(f"for the values that {func} gives", CARD.stream(ours[0].device))
        with plainly():
            return func(*each(inner, args), **kwargs)
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        with MODE:
            return func.decompose(*args, **kwargs)
    device = target or ours[0].device
    if device.type != "cuda" or any(x.device != device for x in ours):
        raise RuntimeError(f"{func}: from {[x.device for x in ours]} to {device}")
    if func.is_view or func is aten.detach.default:
        return _views(func, args, kwargs, ours[0])
    _check_places(func, args, flat, device)
    return _put(func, args, kwargs, device)


def _views(func: Any, args: Any, kwargs: dict[str, Any], base: CardTensor) -> Any:
    with _disable_current_modes(), torch.inference_mode(False):
        found = func(*each(inner, args), **each(inner, kwargs))
    return each(lambda x: CardTensor(x, base.device, base.block), found)


def _check_places(func: Any, args: Any, flat: list[Any], device: torch.device) -> None:
    """No tensors of the host among those of the card, but single numbers and indices."""
    indices = args[1] if func.overloadpacket in _PLACED else ()
    if any(isinstance(x, Tensor) and x.dtype == torch.bool for x in indices):
        CARD.wait("for the places that a mask has", CARD.stream(device))
    for x in flat:
        if isinstance(x, Tensor) and not isinstance(x, CardTensor) and x.ndim:
            if all(x is not index for index in indices):
                raise RuntimeError(f"{func}: {list(x.shape)} on the host, all else on {device}")
            CARD.wait("for an index that is on the host", CARD.stream(device))


def _meta(x: Any) -> Any:
    if isinstance(x, CardTensor) or (isinstance(x, Tensor) and x.ndim):
        return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device="meta")
    return x


def _put(func: Any, args: Any, kwargs: dict[str, Any], device: torch.device) -> Any:
    """An operation on the stream; what it gives has its form at once and its values later."""
    factory = kwargs.pop("device", None) is not None
    kwargs.pop("pin_memory", None)
    given, named = each(inner, args), each(inner, kwargs)
    stream = CARD.stream(device)
    if func._schema.is_mutable:
        stream.put(lambda: func(*given, **named))
        return _written(func, args, kwargs)
    try:
        form = _form(func, args, kwargs, factory)
    except NotImplementedError:  # its size depends on values
        CARD.wait(f"for the size that {func} gives", stream)
        with _disable_current_modes(), torch.inference_mode(False):
            made = func(*given, **named)
            return each(lambda x: CardTensor(x, device), made)
    out = each(lambda x: allocate(x, device) if isinstance(x, Tensor) else x, form)
    if "empty" not in func.name():
        into = [inner(x) for x in leaves(out)]
        stream.put(lambda: fill(into, func(*given, **named)))
    return out


_FORMS: dict[Hashable, Any] = {}  # results as meta tensors, by operation and arguments


def _form(func: Any, args: Any, kwargs: dict[str, Any], factory: bool) -> Any:
    """An operation's results as meta tensors. Ticks repeat, so most are known."""
    key = _key((func, args, kwargs, factory))
    form = None if key is None else _FORMS.get(key)
    if form is None:
        extra = {"device": torch.device("meta")} if factory else {}
        with _disable_current_modes(), torch.inference_mode(False):
            form = func(*each(_meta, args), **each(_meta, kwargs), **extra)
        if key is not None:
            _FORMS[key] = form
    return form


def _key(x: Any) -> Hashable:
    """All that an operation's form depends on; None if that is more than arguments' forms."""
    if isinstance(x, CardTensor) or (isinstance(x, Tensor) and x.ndim):
        return tuple(x.shape), x.stride(), x.dtype
    if isinstance(x, Tensor):
        return None
    if isinstance(x, tuple | list | dict):
        parts = [_key(part) for part in (x.items() if isinstance(x, dict) else x)]
        return None if None in parts else (type(x), *parts)
    return type(x), x  # 1, 1.0 and True are equal, and give other forms


def fill(into: Any, found: Any) -> None:
    """Copy what an operation gave to where its results are."""
    for mine, made in zip(leaves(into), leaves(found), strict=True):
        if isinstance(mine, Tensor):
            assert mine.shape == made.shape and mine.dtype == made.dtype
            mine.copy_(made)


def _written(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """The arguments that an operation writes and gives back."""
    named = list(zip(func._schema.arguments, args, strict=False))
    named += [(a, kwargs[a.name]) for a in func._schema.arguments if a.name in kwargs]
    found = [x for a, x in named if a.alias_info is not None and a.alias_info.is_write]
    found = found[: len(func._schema.returns)]
    return found[0] if len(found) == 1 else tuple(found) or None


def _copied(source: Tensor, kwargs: dict[str, Any]) -> Tensor:
    """``Tensor.to``."""
    device, dtype = kwargs.get("device") or source.device, kwargs.get("dtype") or source.dtype
    with plainly(), torch.inference_mode(False):
        like = torch.empty_strided(source.shape, source.stride(), device="meta")
        form = torch.empty_like(like, dtype=dtype)
        host = torch.empty_strided(form.shape, form.stride(), dtype=dtype)
    into = allocate(form, device) if device.type == "cuda" else host
    return _move(into, source, not kwargs.get("non_blocking", False))


def _move(into: Tensor, source: Tensor, blocks: bool) -> Tensor:
    """Copy, between host and card as CUDA does."""
    here, there, a, b = _on_card(source), _on_card(into), inner(into), inner(source)
    # What is not one run of bytes, or of another type, goes through memory that is not pinned.
    direct = a.is_contiguous() and b.is_contiguous() and a.dtype == b.dtype
    if not here and not there:
        with plainly():
            a.copy_(b)
        return into
    stream = CARD.stream(source.device if here else into.device)
    CARD.uploads += there and not here
    if here and there:
        assert into.device == source.device, "copies between cards are not simulated"
    elif there and not (direct and _is_pinned(source)):
        CARD.refuse_in_recordings("to copy from memory that is not pinned")
        with plainly():
            b = b.clone()  # it is read before the call returns
    elif here:
        blocks = blocks or not (direct and _is_pinned(into))
        with plainly():
            if direct:
                spoil(a.view(-1).view(torch.uint8))
    stream.put(lambda: a.copy_(b))
    if blocks and here != there:
        CARD.wait(f"for a copy to the {'card' if there else 'host'}", stream)
    return into


def _on_card(tensor: Tensor) -> bool:
    return isinstance(tensor, CardTensor)


class _Mode(TorchDispatchMode):
    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Else the first operation imports torch._dynamo, a second of CPU time in each process."""
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return dispatch(func, args, dict(kwargs or {}))


MODE = _Mode()
