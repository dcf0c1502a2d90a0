"""What an answer costs in time on a named card, and in money."""
