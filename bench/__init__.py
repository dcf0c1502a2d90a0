"""Measurements of the engine: one question a file, a result row a line."""
