"""What another policy would have decided on a trace, and what that would have cost."""
