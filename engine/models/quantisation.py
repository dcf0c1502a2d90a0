"""Quantised checkpoints: what config.json says, which tensors there are, and how they are unpacked.

Formats, all weights only (activations stay as they are, whatever a checkpoint says of them):

* fp8 (``quant_method`` "fp8"): float8_e4m3fn with a scale per tensor, or per block of
  ``weight_block_size`` (DeepSeek-V3's and Qwen3's files), under ``weight_scale_inv`` or
  ``weight_scale``.
* compressed-tensors: ``float-quantized`` (fp8 per tensor, row or block) and ``pack-quantized``
  (int4 and int8 in groups or rows, with or without zero points).
* GPTQ (AutoGPTQ's and GPTQModel's ``qweight``, both checkpoint formats, act-order too).
* AWQ (AutoAWQ's "gemm" layout).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from engine.config import Quantisation
from engine.errors import SteerError
from kernels.ops import Fp8Weight, IntWeight

FLOATS = ("F32", "BF16", "F16")
_INT, _INDEX, _FP8 = ("I32",), ("I32", "I64"), ("F8_E4M3",)
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # where each of eight columns lies in its word


class Wanted(NamedTuple):
    """A tensor that a layer needs: the shapes and dtypes it may have."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    optional: bool = False


def parse_quantisation(raw: Mapping[str, Any], where: str) -> Quantisation | None:
    """Read ``quantization_config``. SteerError on a format that is not supported."""
    method = raw.get("quant_method")
    readers = {
        "fp8": _parse_fp8, "gptq": _parse_gptq, "awq": _parse_awq,
        "compressed-tensors": _parse_compressed,
    }  # fmt: skip
    if method not in readers:
        raise SteerError(
            f"{where}: quant_method {method!r} is not supported; supported: {', '.join(readers)}"
        )
    try:
        found = readers[method](raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise SteerError(f"{where}: quantization_config: {detail}") from None
    return found


def _parse_fp8(raw: Mapping[str, Any]) -> Quantisation:
    if raw.get("fmt", "e4m3") != "e4m3":
        raise ValueError(f"fmt {raw['fmt']!r} is not supported: e4m3 is")
    block = raw.get("weight_block_size")
    if block is None:
        return Quantisation("fp8", 8, strategy="tensor", scale_name="weight_scale")
    return Quantisation(
        "fp8", 8, strategy="block", block=_block(block), scale_name="weight_scale_inv"
    )


def _block(value: Any) -> tuple[int, int]:
    rows, columns = (int(size) for size in value)
    if rows < 1 or columns < 1:
        raise ValueError(f"blocks must be of 1 or more, got {value}")
    return rows, columns


def _bits(value: Any) -> int:
    if value not in (4, 8):
        raise ValueError(f"{value!r} bits are not supported: 4 and 8 are")
    return int(value)


def _group(value: Any) -> int:
    """Columns that share a scale; 0 for all of a row."""
    if not isinstance(value, int) or (value < 1 and value not in (-1, 0)):
        raise ValueError(f"group_size must be a whole number, got {value!r}")
    return max(value, 0)


def _parse_gptq(raw: Mapping[str, Any]) -> Quantisation:
    form = raw.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {form!r} is not supported: gptq and gptq_v2 are")
    return Quantisation(
        "gptq", _bits(raw["bits"]), _group(raw["group_size"]), zero_shift=int(form == "gptq")
    )


def _parse_awq(raw: Mapping[str, Any]) -> Quantisation:
    if raw.get("version", "gemm").lower() != "gemm":
        raise ValueError(f"version {raw['version']!r} is not supported: gemm is")
    if raw["bits"] != 4:
        raise ValueError(f"{raw['bits']!r} bits are not supported: 4 are")
    return Quantisation("awq", 4, _group(raw["group_size"]))


def _parse_compressed(raw: Mapping[str, Any]) -> Quantisation:
    groups = list(raw["config_groups"].values())
    if len(groups) != 1:
        raise ValueError(f"one config group is supported, found {len(groups)}")
    weights, form = groups[0]["weights"], raw.get("format") or groups[0].get("format")
    strategy = weights.get("strategy") or ("group" if weights.get("group_size") else "tensor")
    if form == "pack-quantized" and weights["type"] == "int" and strategy in ("group", "channel"):
        group = _group(weights.get("group_size") or 0) if strategy == "group" else 0
        symmetric = bool(weights.get("symmetric", True))
        return Quantisation("packed", _bits(weights["num_bits"]), group, symmetric=symmetric)
    kinds = ("tensor", "channel", "block")
    if form in ("float-quantized", "naive-quantized") and strategy in kinds:
        if (weights["type"], weights["num_bits"]) != ("float", 8):
            raise ValueError(f"{weights['num_bits']} {weights['type']} bits are not supported here")
        block = _block(weights["block_structure"]) if strategy == "block" else (1, 1)
        return Quantisation("fp8", 8, strategy=strategy, block=block, scale_name="weight_scale")
    raise ValueError(
        f"format {form!r} with strategy {strategy!r} is not supported: pack-quantized and "
        "float-quantized are"
    )


def wanted_tensors(q: Quantisation, rows: int, columns: int) -> dict[str, Wanted]:
    """The tensors of a packed linear layer by suffix. SteerError where its shape does not fit."""
    if q.method == "fp8":
        scales = {
            "tensor": ((), (1,), (1, 1)),
            "channel": ((rows, 1), (rows,)),
            "block": ((_ceil(rows, q.block[0]), _ceil(columns, q.block[1])),),
        }[q.strategy]
        return {
            "weight": Wanted(((rows, columns),), _FP8),
            q.scale_name: Wanted(scales, FLOATS),
        }
    pack = 32 // q.bits
    group = q.group or columns
    groups = _ceil(columns, group)
    if q.method == "packed":
        return _wanted_packed(q, rows, columns, groups)
    packed, ways = (rows, "rows") if q.method == "awq" else (columns, "columns")
    for size, what in ((packed, ways), (rows, "rows")):
        if size % pack:
            raise SteerError(f"{q.method} of {q.bits} bits needs {what} by {pack}, got {size}")
    words = (columns, rows // pack) if q.method == "awq" else (columns // pack, rows)
    return {
        "qweight": Wanted((words,), _INT),
        "qzeros": Wanted(((groups, rows // pack),), _INT),
        "scales": Wanted(((groups, rows),), FLOATS),
        "g_idx": Wanted(((columns,),), _INDEX, optional=True),
    }


def _wanted_packed(q: Quantisation, rows: int, columns: int, groups: int) -> dict[str, Wanted]:
    pack = 32 // q.bits
    wanted = {
        "weight_packed": Wanted(((rows, _ceil(columns, pack)),), _INT),
        "weight_scale": Wanted(((rows, groups),), FLOATS),
        "weight_shape": Wanted(((2,),), _INDEX),
        "weight_g_idx": Wanted(((columns,),), _INDEX, optional=True),
    }
    if not q.symmetric:
        wanted["weight_zero_point"] = Wanted(((_ceil(rows, pack), groups),), _INT)
    return wanted


def _ceil(size: int, part: int) -> int:
    return -(-size // part)


def pack(
    q: Quantisation, tensors: Mapping[str, Tensor], rows: int, columns: int
) -> Fp8Weight | IntWeight:
    """A linear layer's weight from its tensors by suffix, which may be views of a mapped file.

    SteerError, without the layer's name, on values that cannot be.
    """
    if q.method == "fp8":
        scale = tensors[q.scale_name].float()
        by_block = {"tensor": (rows, columns), "channel": (1, columns), "block": q.block}
        grid = scale if q.strategy == "block" else scale.reshape(-1, 1)
        return Fp8Weight(tensors["weight"].clone(), grid.clone(), by_block[q.strategy])
    if q.method == "packed":
        return _pack_compressed(q, tensors, rows, columns)
    codes = _words(tensors["qweight"], q.bits, 1 if q.method == "awq" else 0)
    zeros = _words(tensors["qzeros"], q.bits, 1)
    if q.method == "awq":
        codes, zeros = _awq_columns(codes), _awq_columns(zeros)
    return _int_weight(
        q, codes.T, tensors["scales"].T, zeros.T.to(torch.int16) + q.zero_shift,
        tensors.get("g_idx"),
    )  # fmt: skip


def _pack_compressed(
    q: Quantisation, tensors: Mapping[str, Tensor], rows: int, columns: int
) -> IntWeight:
    if tensors["weight_shape"].tolist() != [rows, columns]:
        raise SteerError(
            f"weight_shape is {tensors['weight_shape'].tolist()}, expected {[rows, columns]}"
        )
    codes = _words(tensors["weight_packed"], q.bits, 1)[:, :columns]
    scale = tensors["weight_scale"]
    zero = torch.full(scale.shape, 1 << (q.bits - 1), dtype=torch.int16)
    if not q.symmetric:
        zero = _words(tensors["weight_zero_point"], q.bits, 0)[:rows].to(torch.int16)
    return _int_weight(q, codes, scale, zero, tensors.get("weight_g_idx"))


def packed_bytes(q: Quantisation, rows: int, columns: int) -> int:
    """What :func:`pack` keeps of a layer, with scales of 2 bytes (fp8: 4) and columns in order."""
    if q.method == "fp8":
        per = {"tensor": (rows, columns), "channel": (1, columns), "block": q.block}[q.strategy]
        return rows * columns + 4 * _ceil(rows, per[0]) * _ceil(columns, per[1])
    return rows * columns * q.bits // 8 + 4 * rows * _ceil(columns, q.group or columns)


def _int_weight(
    q: Quantisation, codes: Tensor, scale: Tensor, zero: Tensor, index: Tensor | None
) -> IntWeight:
    """Codes [out, in] one a byte, scales and zeros [out, groups] become one packed weight."""
    columns, groups = codes.shape[1], scale.shape[1]
    if columns % 2:
        raise SteerError(f"an even number of inputs is needed, got {columns}")
    in_order = torch.arange(columns) // (q.group or columns)
    group_of = in_order if index is None or bool((index < 0).all()) else index.long()
    if int(group_of.min()) < 0 or int(group_of.max()) >= groups:
        raise SteerError(f"a group index is not in 0..{groups - 1}")
    even = columns == groups * (q.group or columns)
    plain = even and torch.equal(group_of, in_order)
    if q.bits == 4:
        codes = codes[:, ::2] | (codes[:, 1::2] << 4)
    return IntWeight(
        codes.contiguous(), scale.contiguous().clone(), zero.contiguous(), q.bits,
        None if plain else group_of.to(torch.int32),
    )  # fmt: skip


def _words(words: Tensor, bits: int, dim: int) -> Tensor:
    """Numbers of ``bits`` out of int32 words, the lowest first, along ``dim``: uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    view = [1] * (words.dim() + 1)
    view[dim + 1] = len(shifts)
    parts = (words.unsqueeze(dim + 1) >> shifts.view(view)) & ((1 << bits) - 1)
    return parts.to(torch.uint8).flatten(dim, dim + 1)


def _awq_columns(codes: Tensor) -> Tensor:
    """Columns in their own order: a word holds eight, the even ones first."""
    order = torch.arange(codes.shape[1]).view(-1, 8)[:, list(_AWQ_ORDER)]
    return codes[:, order.flatten()]
