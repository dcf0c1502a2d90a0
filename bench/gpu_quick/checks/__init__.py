"""Every op of the kernels against fp64."""
