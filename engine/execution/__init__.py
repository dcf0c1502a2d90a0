"""One tick of one model, from a plan to its result. Knows no policy."""
