"""Small random models of each family as checkpoints, and their results by transformers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

TOKENS = ("\n\n", "\n", *"abcdefghijklmnopqrstuvwxyz0123456789")
SHAPE: dict[str, Any] = {
    "vocab_size": len(TOKENS),
    "hidden_size": 48,
    "intermediate_size": 72,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
    "eos_token_id": None,
    "bos_token_id": None,
    "pad_token_id": None,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e4,
    "factor": 4.0,
    "original_max_position_embeddings": 32,
}
_SMALL = {"hidden_size": 48, "num_attention_heads": 3, "num_key_value_heads": 1}
_LARGE = {"hidden_size": 96, "num_hidden_layers": 3, "vocab_size": 48}
# Heads of 16, which the kernels for GPUs take.
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen2": ("qwen2", {}),
    "qwen3": ("qwen3", {"head_dim": 16}),
    "llama": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None, "head_dim": 16}),
    "qwen2 tied yarn": ("qwen2", {"tie_word_embeddings": True, "rope_parameters": YARN}),
}


def build_tokenizer() -> Tokenizer:
    """One token per character, besides the double newline; ids are positions in ``TOKENS``."""
    tokenizer = Tokenizer(models.WordLevel({t: i for i, t in enumerate(TOKENS)}, unk_token="a"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"\n\n|\n|."), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def checkpoint(kind: str, changes: dict[str, Any], folder: Path, seed: int = 1) -> Any:
    """A random model of a family, written to ``folder``; the model is transformers', in fp32.

    Args:
        kind: transformers' name of the family.
        changes: changes to ``SHAPE``.
        folder: where the checkpoint goes, with a tokenizer.
        seed: seed of the weights.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(SHAPE | changes)))
    model = model.float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 1:
                weight.normal_(float("norm" in name), 0.2)
    model.save_pretrained(folder)
    build_tokenizer().save(str(folder / "tokenizer.json"))
    return model


class Oracle:
    """Both models of a family, by transformers on the host: its results never saw the card."""

    def __init__(self, family: str, folder: Path) -> None:
        kind, changes = FAMILIES[family]
        self.folders = folder / "small", folder / "large"
        self._models = [
            checkpoint(kind, changes | sizes, where, seed)
            for seed, (sizes, where) in enumerate(zip((_SMALL, _LARGE), self.folders, strict=True))
        ]

    @torch.no_grad()
    def logprobs(self, model: int, tokens: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Log-probabilities of all ids as the next token of each prefix, fp64 [len(tokens), ids].

        Args:
            model: 0 for the small one, 1 for the large one.
            tokens: a text that the model follows, whatever it would have written.
            dtype: of weights and activations. With bfloat16 in fp64 see :meth:`rounded`.
        """
        found = self._models[model].to(dtype)(torch.tensor([list(tokens)])).logits[0]
        self._models[model].float()
        logprobs: Tensor = found.double()[:, : len(TOKENS)].log_softmax(-1)
        return logprobs

    def rounded(self) -> None:
        """Round all weights to the values of bfloat16."""
        for model in self._models:
            model.bfloat16().float()
