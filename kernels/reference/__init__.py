"""The oracles: every operation in plain PyTorch, no Triton. A CPU runs them where no compiled kernel does."""
