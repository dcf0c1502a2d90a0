"""The parts: a module each, with ``run(scene)``."""

# By the key of a part.
MODULES = {
    "1": "card",
    "2": "ops",
    "3": "parity",
    "row": "row",
    "4": "decode",
    "5": "models",
    "6": "kernels",
    "7": "soak",
    "compile-prove": "ahead",
    "compile-time": "ahead",
    "bisect": "bisect",
}
