"""The parts of ``python -m bench.signals``."""
