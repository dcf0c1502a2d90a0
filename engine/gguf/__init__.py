"""GGUF files: what one holds, whatever it is used for."""
