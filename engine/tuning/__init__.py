"""Fits a calibration to a user's own pair and prompts, and measures its quality."""
