"""The integer contract in NumPy, written from its text and sharing no code with the library: exact sums in float64, one rounding
where the contract says fmaf, fp32 everywhere else. Activations that the contract leaves to polynomials are evaluated in float64."""

import math

import numpy as np
import torch
import torch.nn.functional as F

FUNCTIONS = {
    "hardswish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
    "hardsigmoid": lambda x: np.clip(x + 3, 0, 6) / 6,
    "silu": lambda x: x / (1 + np.exp(-x)),
    "gelu": lambda x: 0.5 * x * np.vectorize(math.erfc, otypes=[float])(-x / math.sqrt(2)),
    "gelu_tanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "sigmoid": lambda x: 1 / (1 + np.exp(-x)),
    "tanh": np.tanh,
}
CLAMPS = ("relu", "relu6", "hardtanh")


def float32(values):
    return np.asarray(values, dtype=np.float32)


def fmaf(a, b, c):
    """a * b + c rounded once to fp32. The product of two fp32 is exact in fp64; their sum with c is rounded to odd (Boldo and
    Melquiond, 2008), so that the second rounding to fp32 cannot change the result."""
    product = float32(a).astype(np.float64) * float32(b).astype(np.float64)
    c = float32(c).astype(np.float64)
    total = product + c
    part = total - product
    error = (product - (total - part)) + (c - part)
    even = (np.abs(total).view(np.int64) & 1) == 0
    odd = np.where(even & (error != 0), np.nextafter(total, np.where(error > 0, np.inf, -np.inf)), total)
    return odd.astype(np.float32)


def channel_shape(values, dims, axis=1):
    shape = [1] * dims
    shape[axis] = -1
    return values.reshape(shape)


def activate(v, activation, args, output_scale):
    if activation in CLAMPS:
        return np.minimum(np.maximum(v, np.float32(args[0])), np.float32(args[1]))
    if activation == "none":
        return v
    real = (v * np.float32(output_scale)).astype(np.float64)
    return FUNCTIONS[activation](real) / np.float64(np.float32(output_scale))


def codes(v, zero_point, quant_min, quant_max, dtype):
    return torch.from_numpy(np.clip(np.rint(v) + zero_point, quant_min, quant_max).astype(np.int64)).to(dtype)


def conv_accumulator(x, weight, x_zero_point, *, stride, padding, dilation, groups, transposed, output_padding):
    """sum((q_x - z_x) * q_w) through torch's float64 convolution, which is exact for sums below 2^53. Padding with 0 after the
    zero point is subtracted is padding with the zero point."""
    centred = x.double() - x_zero_point
    dims = x.dim() - 2
    if transposed:
        conv = (F.conv_transpose1d, F.conv_transpose2d)[dims - 1]
        return conv(centred, weight.double(), None, stride, padding, output_padding, groups, dilation)
    conv = (F.conv1d, F.conv2d)[dims - 1]
    return conv(centred, weight.double(), None, stride, padding, dilation, groups)


def scaled(acc, multiplier, bias, residual=None, residual_multiplier=1.0, residual_zero_point=0, axis=1):
    """v before the activation, as fp32."""
    acc = float32(acc.numpy())
    multiplier = channel_shape(multiplier.numpy(), acc.ndim, axis)
    bias = channel_shape(bias.numpy(), acc.ndim, axis)
    v = fmaf(*np.broadcast_arrays(acc, multiplier, bias))
    if residual is not None:
        steps = float32(residual.numpy().astype(np.int64) - residual_zero_point)
        v = fmaf(steps, np.full_like(steps, residual_multiplier), v)
    return v


def pack_int4(values, quant_min):
    """uint8 [rows, ceil(rest / 2)] from int8 codes, low nibble first."""
    nibbles = (values.reshape(values.shape[0], -1).to(torch.int16) - quant_min).to(torch.uint8)
    if nibbles.shape[1] % 2:
        nibbles = F.pad(nibbles, (0, 1))
    return nibbles[:, 0::2] | (nibbles[:, 1::2] << 4)
