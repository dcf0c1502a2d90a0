"""Two models that share no symbol become one: each keeps its own half of every dimension.

The halves are trained apart, which costs a fraction of training one model on everything. Every
matrix of the joined model is block diagonal and every symbol embeds in one half only, so the other
half holds zeros throughout and adds nothing: the joined model computes what its halves did, except
that a normalisation now averages over both (a constant, put into its weights) and that symbols of
the other half compete with a logit of zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.tasks.problem import EOS, PAD
from bench.tasks.tokenizer import ALPHABET, GRAPHS


@torch.no_grad()
def silence(model: Qwen2ForCausalLM, texts: Sequence[Tensor]) -> float:
    """Turn value biases into value weights, so that zeros in give zeros out.

    A direction ``u`` with ``u . x`` near 1 for every normalised input ``x`` of a layer is fitted on
    ``texts`` (token ids [length] each), then the bias ``b`` becomes ``b u^T`` added to the weights.
    Returns the largest root mean square error of ``u . x`` over the layers.
    """
    worst = 0.0
    for layer in model.model.layers:
        if not bool(layer.self_attn.v_proj.bias.any()):
            continue
        seen: list[Tensor] = []
        handle = layer.input_layernorm.register_forward_hook(
            lambda module, inputs, output, seen=seen: seen.append(output[0])
        )
        for ids in texts:
            model(input_ids=ids[None])
        handle.remove()
        x = torch.cat(seen).double()
        ones = torch.ones(len(x), 1, dtype=torch.double)
        u = torch.linalg.lstsq(x, ones, driver="gelsd", rcond=1e-4).solution
        worst = max(worst, float((x @ u - 1).square().mean().sqrt()))
        value = layer.self_attn.v_proj
        value.weight += value.bias[:, None] * u[:, 0].float()
        value.bias.zero_()
    return worst


@torch.no_grad()
def join(numbers: Qwen2ForCausalLM, graphs: Qwen2ForCausalLM, vocabulary: int) -> Qwen2ForCausalLM:
    """One model that knows the symbols of both; their heads are as wide.

    The half with fewer layers writes nothing in the last ones.
    """
    halves = (numbers, graphs)
    one = Qwen2ForCausalLM(_config(halves, vocabulary))
    for parameter in one.parameters():
        parameter.zero_()
    _join_embeddings(one, halves)
    shares = [math.sqrt(one.config.hidden_size / half.config.hidden_size) for half in halves]
    depth = len(one.model.layers)
    layers = [[*half.model.layers, *_silent_layers(half, depth)][:depth] for half in halves]
    for mine, *theirs in zip(one.model.layers, *layers, strict=True):
        for name in ("input_layernorm", "post_attention_layernorm"):
            _join_norm(getattr(mine, name), [getattr(their, name) for their in theirs], shares)
        for name in ("gate_proj", "up_proj", "down_proj"):
            weights = [getattr(their.mlp, name).weight for their in theirs]
            getattr(mine.mlp, name).weight.copy_(_block_diagonal(weights))
        _join_attention(mine.self_attn, [their.self_attn for their in theirs])
    _join_norm(one.model.norm, [half.model.norm for half in halves], shares)
    one.train(False)
    return one


def _silent_layers(half: Qwen2ForCausalLM, count: int) -> list[Any]:
    """Layers that write nothing, for a half that has fewer than the other."""
    layers = [deepcopy(half.model.layers[-1]) for _ in range(count)]
    for layer in layers:
        for parameter in layer.parameters():
            parameter.zero_()
    return layers


def _config(halves: Sequence[Qwen2ForCausalLM], vocabulary: int) -> Qwen2Config:
    configs = [half.config for half in halves]
    raw = configs[0].to_dict()
    total = {
        name: sum(getattr(config, name) for config in configs)
        for name in ("hidden_size", "intermediate_size", "num_attention_heads")
    }
    same = {
        "num_hidden_layers": max(config.num_hidden_layers for config in configs),
        "num_key_value_heads": total["num_attention_heads"],
        "vocab_size": vocabulary,
    }
    return Qwen2Config(**raw | total | same | {"layer_types": None})


def _join_embeddings(one: Qwen2ForCausalLM, halves: Sequence[Qwen2ForCausalLM]) -> None:
    """Rows of the alphabet go to the half that uses them, further rows (padding) to both."""
    rows = one.model.embed_tokens.weight
    first, second = (half.model.embed_tokens.weight for half in halves)
    width = first.shape[1]
    for token, symbol in enumerate(ALPHABET):
        if symbol not in GRAPHS and symbol != PAD and token < len(first):
            rows[token, :width] = first[token]
        if symbol in (*GRAPHS, EOS):
            rows[token, width:] = second[token]
    spare = len(rows) - len(ALPHABET)
    if spare:
        rows[-spare:, :width], rows[-spare:, width:] = first[-spare:], second[-spare:]


def _join_norm(mine: Any, theirs: Sequence[Any], shares: Sequence[float]) -> None:
    scaled = [norm.weight / share for norm, share in zip(theirs, shares, strict=True)]
    mine.weight.copy_(torch.cat(scaled))


def _join_attention(mine: Any, theirs: Sequence[Any]) -> None:
    """Each query head gets keys and values of its own, as the halves may share them differently."""
    mine.q_proj.weight.copy_(_block_diagonal([a.q_proj.weight for a in theirs]))
    mine.q_proj.bias.copy_(torch.cat([a.q_proj.bias for a in theirs]))
    mine.o_proj.weight.copy_(_block_diagonal([a.o_proj.weight for a in theirs]))
    for name in ("k_proj", "v_proj"):
        projections = [getattr(a, name) for a in theirs]
        groups = [a.num_key_value_groups for a in theirs]
        sizes = [a.head_dim for a in theirs]
        whole = list(zip(projections, groups, sizes, strict=True))
        weights = [_repeat(p.weight, group, size) for p, group, size in whole]
        getattr(mine, name).weight.copy_(_block_diagonal(weights))
        biases = [_repeat(p.bias[:, None], group, size)[:, 0] for p, group, size in whole]
        getattr(mine, name).bias.copy_(torch.cat(biases))


def _block_diagonal(matrices: Sequence[Tensor]) -> Tensor:
    block_diag: Callable[..., Tensor] = torch.block_diag  # which torch leaves untyped
    return block_diag(*matrices)


def _repeat(rows: Tensor, groups: int, size: int) -> Tensor:
    """[kv_heads * size, n] -> [kv_heads * groups * size, n]: each head's rows, ``groups`` times."""
    heads = rows.view(-1, size, rows.shape[1])
    return heads.repeat_interleave(groups, dim=0).reshape(-1, rows.shape[1])
