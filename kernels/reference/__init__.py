"""The oracles: each operation in plain PyTorch. A CPU runs them where nothing else is compiled."""
