"""From checkpoints and settings to the parts of an engine."""
