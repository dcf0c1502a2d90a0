"""Decoders and their weights. Knows kernels; knows no scheduler."""
