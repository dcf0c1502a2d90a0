"""GGUF files as checkpoints: header, shape, weights and tokenizer."""
