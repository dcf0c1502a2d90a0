"""The oracles: every operation in plain PyTorch, no Triton. This is what the CPU path runs."""
