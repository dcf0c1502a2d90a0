"""Requests from submit to completion, and the lanes that move them on. Knows no tensor."""
