"""What scales as its input does, f(s * x) = s * f(x) for s > 0: the methods that move factors between layers go through these."""

from torch import nn

# Names of functions and of methods of tensors. Element by element:
ELEMENTWISE = frozenset("relu relu_ leaky_relu leaky_relu_ dropout dropout_ dropout1d dropout2d contiguous clone to float type_as".split())
# The same, channel by channel, of (N, C, ...):
POOLS = frozenset(
    "max_pool1d max_pool2d avg_pool1d avg_pool2d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_max_pool1d adaptive_max_pool2d".split()
)
# Modules that are either.
MODULES = (
    nn.ReLU, nn.LeakyReLU, nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.MaxPool1d, nn.MaxPool2d, nn.AvgPool1d, nn.AvgPool2d,
    nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d,
)  # fmt: skip
