"""Decoders and their weights. This package uses kernels, and knows nothing of scheduling."""
