"""Quantised checkpoints: their entry in config.json, and the tensors that they need.

Formats, all weight-only (activations are not quantised, whatever a checkpoint says):

* fp8 (``quant_method`` "fp8"): float8_e4m3fn with a scale per tensor, or per block of
  ``weight_block_size`` (DeepSeek-V3's and Qwen3's files), under ``weight_scale_inv`` or
  ``weight_scale``; "fbgemm_fp8" (Llama 3.1's files): with a scale per row.
* compressed-tensors: ``float-quantized`` (fp8 per tensor, row or block) and ``pack-quantized``
  (int4 and int8 in groups or rows, with or without zero points).
* GPTQ (AutoGPTQ's and GPTQModel's ``qweight``, both checkpoint formats, act-order too).
* AWQ (AutoAWQ's "gemm" layout).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from engine.config import Quantisation
from engine.errors import SteerError

FLOATS = ("F32", "BF16", "F16")
_INT, _INDEX, _FP8 = ("I32",), ("I32", "I64"), ("F8_E4M3",)


class Wanted(NamedTuple):
    """A tensor that a layer needs: the shapes and dtypes it may have."""

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    optional: bool = False


def parse_quantisation(raw: Mapping[str, Any], where: str) -> Quantisation | None:
    """Read ``quantization_config``. SteerError on a format that is not supported."""
    method = raw.get("quant_method")
    readers = {
        "fp8": _parse_fp8,
        "fbgemm_fp8": _parse_fbgemm,
        "gptq": _parse_gptq,
        "awq": _parse_awq,
        "compressed-tensors": _parse_compressed,
    }
    if method not in readers:
        raise SteerError(
            f"{where}: quant_method {method!r} is not supported; supported: {', '.join(readers)}"
        )
    try:
        return readers[method](raw)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        detail = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise SteerError(f"{where}: quantization_config: {detail}") from None


def _parse_fp8(raw: Mapping[str, Any]) -> Quantisation:
    if raw.get("fmt", "e4m3") != "e4m3":
        raise ValueError(f"fmt {raw['fmt']!r} is not supported: e4m3 is")
    block = raw.get("weight_block_size")
    if block is None:
        return Quantisation("fp8", 8, strategy="tensor", scale_name="weight_scale")
    return Quantisation(
        "fp8", 8, strategy="block", block=_block(block), scale_name="weight_scale_inv"
    )


def _parse_fbgemm(raw: Mapping[str, Any]) -> Quantisation:
    return Quantisation("fp8", 8, strategy="channel", scale_name="weight_scale")


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
    """Columns that share a scale; 0 for a whole row."""
    if not isinstance(value, int) or (value < 1 and value not in (-1, 0)):
        raise ValueError(f"group_size must be a whole number, got {value!r}")
    return max(value, 0)


def _parse_gptq(raw: Mapping[str, Any]) -> Quantisation:
    form = raw.get("checkpoint_format", "gptq")
    if form not in ("gptq", "gptq_v2"):
        raise ValueError(f"checkpoint_format {form!r} is not supported: gptq and gptq_v2 are")
    return Quantisation(
        "gptq",
        _bits(raw["bits"]),
        _group(raw["group_size"]),
        zero_shift=int(form == "gptq"),
        symmetric=raw.get("sym") is True,
    )


def _parse_awq(raw: Mapping[str, Any]) -> Quantisation:
    if raw.get("version", "gemm").lower() != "gemm":
        raise ValueError(f"version {raw['version']!r} is not supported: gemm is")
    if raw["bits"] != 4:
        raise ValueError(f"{raw['bits']!r} bits are not supported: 4 are")
    return Quantisation("awq", 4, _group(raw["group_size"]), symmetric=False)


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
    """The tensors of a packed linear layer by suffix. SteerError if its shape does not fit."""
    if q.method == "fp8":
        scales = {
            "tensor": ((), (1,), (1, 1)),
            "channel": ((rows, 1), (rows,)),
            "block": ((_ceil(rows, q.block[0]), _ceil(columns, q.block[1])),),
        }[q.strategy]
        return {"weight": Wanted(((rows, columns),), _FP8), q.scale_name: Wanted(scales, FLOATS)}
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
