"""Counts: what was computed, why, and what it cost."""
