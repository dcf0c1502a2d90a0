"""Bytes, queues and graphs of a device. Knows no request."""
