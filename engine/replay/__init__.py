"""Replays traces: what another policy would have decided, and what that would have cost."""
