"""Memory, queues and graphs of a device. This package knows nothing of requests."""
