"""Signals, calibration and policies. Sees numbers, never tensors."""
