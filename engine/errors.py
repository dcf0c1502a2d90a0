"""The errors that the engine raises on a request that it cannot serve."""


class SteerError(ValueError):
    """Bad input: one line that names what is wrong and what would be right."""


class QueueFullError(SteerError):
    """The engine refuses a request because too many wait already; it can be sent again later."""
