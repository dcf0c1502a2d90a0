"""The parts of ``python -m bench.real_pair``."""
