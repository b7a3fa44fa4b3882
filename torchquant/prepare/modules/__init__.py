"""torch.nn modules that fake-quants cannot reach from outside, because they read their children's weights or run fused
kernels."""
