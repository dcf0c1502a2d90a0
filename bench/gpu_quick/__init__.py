"""A few minutes on a GPU, turned into proof and rows: ``python -m bench.gpu_quick``."""
