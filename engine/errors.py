"""What the engine says when it is asked for something that cannot be done."""


class SteerError(ValueError):
    """Bad input: one line that names what is wrong and what would be right."""
