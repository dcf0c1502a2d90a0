"""The parts of ``python -m bench.flops --all --report DIR``."""
