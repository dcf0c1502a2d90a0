"""Fits a calibration to a user's own pair and prompts, and shows what it is worth."""
