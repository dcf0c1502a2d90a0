"""The parts of ``python -m bench.kernels``."""
