"""Randomly initialised Qwen2 models whose first layer starts out looking back."""

from __future__ import annotations

import math

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from bench.pair_training.spec import Spec
from bench.tasks.problem import EOS, PAD
from bench.tasks.tokenizer import ALPHABET

THETA = 10000.0
_SLOWEST = 0.09  # radians per token: slower pairs of a head are left to training
_LEAD = 6.0  # in logits, over the neighbouring distances


def build_model(spec: Spec, seed: int) -> Qwen2ForCausalLM:
    """A model of the given shape, its weights drawn from ``seed``, its first heads looking back."""
    model = initialise(spec, seed)
    look_back(model, spec)
    return model


def initialise(spec: Spec, seed: int) -> Qwen2ForCausalLM:
    """A model of the given shape, its weights drawn from ``seed``; value biases stay zero."""
    torch.manual_seed(seed)
    config = Qwen2Config(
        vocab_size=spec.vocabulary,
        hidden_size=spec.hidden,
        intermediate_size=spec.feed_forward,
        num_hidden_layers=spec.layers,
        num_attention_heads=spec.heads,
        num_key_value_heads=spec.kv_heads,
        max_position_embeddings=256,
        rope_parameters={"rope_type": "default", "rope_theta": THETA},
        tie_word_embeddings=True,
        initializer_range=0.1,  # at the usual 0.02 some seeds never leave the plateau
        bos_token_id=None,
        eos_token_id=ALPHABET.index(EOS),
        pad_token_id=ALPHABET.index(PAD),
    )
    config.head_dim = spec.head_dim
    model = Qwen2ForCausalLM(config)
    for layer in model.model.layers:  # a half that sees none of its symbols must write nothing
        layer.self_attn.v_proj.bias.requires_grad_(False)
    return model


@torch.no_grad()
def look_back(model: Qwen2ForCausalLM, spec: Spec) -> None:
    """Let the first heads of layer 0 start out attending a fixed number of tokens back.

    RoPE makes a bias on query and key a function of distance alone: equal biases peak at distance
    0, a query bias turned back by ``d`` positions peaks at ``d``. Looking something up in the
    prompt needs such heads; small models find them by themselves only after very many updates.
    """
    attention = model.model.layers[0].self_attn
    size, group = spec.head_dim, spec.heads // spec.kv_heads
    half = size // 2
    speed = torch.tensor([THETA ** (-f / half) for f in range(half)])
    used = speed >= _SLOWEST
    swing = float((1 - torch.cos(speed[used])).sum())
    bias = torch.where(used, math.sqrt(_LEAD * math.sqrt(size) / swing), 0.0)
    for kv in {head // group for head in range(len(spec.look_back))}:
        attention.k_proj.bias[kv * size : kv * size + half] = bias
        attention.k_proj.weight[kv * size : (kv + 1) * size] *= 0.1
    for head, distance in enumerate(spec.look_back):
        rows = slice(head * size, (head + 1) * size)
        angle = distance * speed
        turned = torch.cat([bias * torch.cos(angle), -bias * torch.sin(angle)])
        attention.q_proj.bias[rows] = turned
        attention.q_proj.weight[rows] *= 0.1
