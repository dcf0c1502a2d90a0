"""Builds the parts of an engine from checkpoints and settings."""
