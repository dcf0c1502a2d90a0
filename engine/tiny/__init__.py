"""Weights and model card of the embedded pair: data, no code."""
