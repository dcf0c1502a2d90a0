"""Problems, checkers and step-by-step traces: one task a file."""
