"""What computes the operations on a device; ``kernels.ops.backend_for`` chooses."""
