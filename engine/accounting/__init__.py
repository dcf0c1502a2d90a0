"""Accounting: which rows were computed, why, and what they cost."""
