"""Decoders of other families' parts: norms of queries and keys, no bias; against transformers."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen3Config, Qwen3ForCausalLM

from engine.config import ModelConfig
from engine.models.decoder import Batch, Decoder
from kernels import ops

SHAPE = {
    "vocab_size": 40, "hidden_size": 48, "intermediate_size": 72, "num_hidden_layers": 2,
    "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 16,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
FAMILIES = {"qwen3": (Qwen3Config, Qwen3ForCausalLM), "llama": (LlamaConfig, LlamaForCausalLM)}


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_transformers(family):
    torch.manual_seed(0)
    config, build = FAMILIES[family]
    model = build(config(**SHAPE)).float().eval()
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.data.normal_(1.0, 0.3)
    theta = model.config.rope_parameters["rope_theta"]
    shape = ModelConfig(
        40, 48, 72, 2, 6, 2, 16, 64, rope_theta=theta, norm_eps=model.config.rms_norm_eps
    )
    decoder = Decoder(shape, dict(model.state_dict()), 64)
    assert (decoder.layers[0].qkv_bias is None) and len(decoder.tensors()) > 3
    assert (decoder.layers[0].query_norm is not None) == (family == "qwen3")
    text = torch.randint(40, (21,))
    layout = ops.KVLayout(2, 2, 16, 4, slots=1, slab_rows=64)
    places = torch.arange(21)
    plan = ops.AttentionPlan.build(
        layout, torch.tensor([0, 21]), torch.tensor([21]), torch.arange(6)[None], places
    )
    arena = torch.full((6 * layout.slab_rows, 16), torch.nan)
    ours = decoder.forward(Batch(text, places, places, plan), arena)
    with torch.no_grad():
        theirs = model(text[None]).logits[0]
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)
