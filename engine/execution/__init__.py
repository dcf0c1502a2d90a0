"""One tick of one model, from a plan to its result. This package knows nothing of policies."""
