"""Gates for developers: kernels compiled ahead of time and held to limits, and their rooflines.

A module an op, with ``roofline`` and ``variants``. They import the ops; nothing that runs imports
them, so what is here is no part of the engine at run time.
"""
