"""GGUF files: their metadata and tensors, whatever these are used for."""
