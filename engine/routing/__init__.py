"""Signals, calibration and policies. This package handles numbers, never tensors."""
