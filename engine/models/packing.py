"""Repacks a layer's tensors from its checkpoint's format to the format of the kernels."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from engine.config import Quantisation
from engine.errors import SteerError
from kernels.ops import Fp8Weight, IntWeight

_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)  # place of each of eight columns in their word


def pack(
    q: Quantisation, tensors: Mapping[str, Tensor], rows: int, columns: int
) -> Fp8Weight | IntWeight:
    """A linear layer's weight from its tensors by suffix, which may be views of a mapped file.

    SteerError, without the layer's name, on invalid values.
    """
    if q.method == "fp8":
        return _pack_fp8(q, tensors["weight"], tensors[q.scale_name].float(), rows, columns)
    if q.method == "packed":
        return _pack_compressed(q, tensors, rows, columns)
    codes = _words(tensors["qweight"], q.bits, 1 if q.method == "awq" else 0)
    zeros = _words(tensors["qzeros"], q.bits, 1)
    if q.method == "awq":
        codes, zeros = _awq_columns(codes), _awq_columns(zeros)
    return _int_weight(
        q, codes.T, tensors["scales"], zeros.to(torch.int16) + q.zero_shift, tensors.get("g_idx")
    )


def _pack_fp8(q: Quantisation, codes: Tensor, scale: Tensor, rows: int, columns: int) -> Fp8Weight:
    """An fp8 layer; a per-tensor scale is repeated for each row, so that layers can be stacked."""
    if q.strategy == "block":
        return Fp8Weight(codes.clone(), scale.clone(), q.block)
    return Fp8Weight(codes.clone(), scale.reshape(-1, 1).expand(rows, 1).clone(), (1, columns))


def _pack_compressed(
    q: Quantisation, tensors: Mapping[str, Tensor], rows: int, columns: int
) -> IntWeight:
    if tensors["weight_shape"].tolist() != [rows, columns]:
        raise SteerError(
            f"weight_shape is {tensors['weight_shape'].tolist()}, expected {[rows, columns]}"
        )
    codes = _words(tensors["weight_packed"], q.bits, 1)[:, :columns]
    zero = None
    if not q.symmetric:
        zero = _words(tensors["weight_zero_point"], q.bits, 0)[:rows].T.to(torch.int16)
    return _int_weight(q, codes, tensors["weight_scale"].T, zero, tensors.get("weight_g_idx"))


def packed_bytes(q: Quantisation, rows: int, columns: int) -> int:
    """Bytes of a layer after :func:`pack`, with 2-byte scales (fp8: 4) and columns in order."""
    if q.method == "fp8":
        per = q.block if q.strategy == "block" else (1, columns)
        return rows * columns + 4 * _ceil(rows, per[0]) * _ceil(columns, per[1])
    each = 2 if q.symmetric else 4  # a zero point takes 2
    return rows * columns * q.bits // 8 + each * rows * _ceil(columns, q.group or columns)


def _ceil(size: int, part: int) -> int:
    return -(-size // part)


def _int_weight(
    q: Quantisation, codes: Tensor, scale: Tensor, zero: Tensor | None, index: Tensor | None
) -> IntWeight:
    """A packed weight from uint8 codes [out, in], scales and int16 zeros [groups, out]."""
    columns, group = codes.shape[1], q.group or codes.shape[1]
    if columns % 2:
        raise SteerError(f"an even number of inputs is needed, got {columns}")
    order = None if index is None else _order(index.long(), group, columns)
    if order is not None:
        codes = codes[:, order.long()]
    if q.bits == 4:
        codes = codes[:, : columns // 2] | (codes[:, columns // 2 :] << 4)
    if zero is not None and bool((zero == 1 << (q.bits - 1)).all()):
        zero = None
    return IntWeight(
        codes.contiguous(),
        scale.contiguous().clone(),
        None if zero is None else zero.contiguous(),
        q.bits,
        group,
        order,
    )


def _order(index: Tensor, group: int, columns: int) -> Tensor | None:
    """int32 [in]: columns sorted by their group; None if they are in order, or all -1."""
    runs = torch.arange(columns) // group
    if torch.equal(index, runs) or bool((index < 0).all()):
        return None
    groups = int(runs[-1]) + 1
    if int(index.min()) < 0 or int(index.max()) >= groups:
        raise SteerError(f"a group index is not in 0..{groups - 1}")
    order = index.argsort(stable=True)
    if not torch.equal(index[order], runs):
        raise SteerError(f"group indices must give each group {group} columns, the last the rest")
    return order.to(torch.int32)


def _words(words: Tensor, bits: int, dim: int) -> Tensor:
    """Unpack numbers of ``bits`` from int32 words along ``dim``, lowest bits first: uint8."""
    shifts = torch.arange(0, 32, bits, dtype=torch.int32)
    view = [1] * (words.dim() + 1)
    view[dim + 1] = len(shifts)
    parts = (words.unsqueeze(dim + 1) >> shifts.view(view)) & ((1 << bits) - 1)
    return parts.to(torch.uint8).flatten(dim, dim + 1)


def _awq_columns(codes: Tensor) -> Tensor:
    """Undo AWQ's column order: a word holds eight columns, the even ones first."""
    order = torch.arange(codes.shape[1]).view(-1, 8)[:, list(_AWQ_ORDER)]
    return codes[:, order.flatten()]
