"""The parts of ``python -m bench.simulate``: the real scheduler with modelled tick times."""
