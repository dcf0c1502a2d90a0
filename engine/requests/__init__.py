"""Requests from submit to completion, and the lanes that run them. No tensors here."""
