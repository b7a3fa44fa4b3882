"""The integer contract and the LSQ / LSQ+ gradients in plain PyTorch, written from the formulas; what the ops are tested against."""

import torch

# name -> shape, axis, group_size
GRANULARITIES = {
    "per_tensor": ((4, 6, 5, 3), None, None),
    "per_channel_first": ((4, 6, 5, 7), 0, None),
    "per_channel_second": ((4, 6, 5, 7), 1, None),
    "per_channel_last": ((4, 6, 5, 7), -1, None),
    "per_channel_long_runs": ((2, 3, 9, 11), 1, None),
    "per_channel_of_vector": ((37,), 0, None),
    "per_group_last": ((6, 40), -1, 8),
    "per_group_first": ((12, 35), 0, 4),
    "per_group_inner": ((2, 12, 3, 5), 1, 4),
    "per_token": ((3, 5, 48), -1, 48),
    "one_channel": ((4, 1, 9), 1, None),
    "one_group": ((3, 1, 8), 1, 1),
}


def parameter_shape(shape, axis, group_size):
    if axis is None:
        return (1,)
    if group_size is None:
        return (shape[axis],)
    result = list(shape)
    result[axis] //= group_size
    return tuple(result)


def expand(parameter, x, axis, group_size):
    """The parameter of each element of x."""
    if axis is None:
        return parameter.reshape([1] * x.dim())
    if group_size is None:
        view = [1] * x.dim()
        view[axis] = -1
        return parameter.reshape(view)
    return parameter.repeat_interleave(group_size, dim=axis)


def reduce_to_parameters(values, axis, group_size, shape):
    """Sums over the elements of each parameter: the transpose of `expand`."""
    parameter = torch.zeros(shape, dtype=values.dtype, requires_grad=True)
    expand(parameter, values, axis, group_size).expand(values.shape).backward(values)
    return parameter.grad


def codes(x, scale, zero_point, axis, group_size, quant_min, quant_max):
    """q as fp32, NaN kept; and the expanded scale and effective zero point."""
    scale = expand(scale, x, axis, group_size).float()
    zero_point = expand(zero_point, x, axis, group_size).float().round().clamp(quant_min, quant_max)
    return (torch.round(x.float() * (1.0 / scale)) + zero_point).clamp(quant_min, quant_max), scale, zero_point


def fake_quantize(x, scale, zero_point, *, axis=None, group_size=None, quant_min, quant_max):
    q, scale, zero_point = codes(x, scale, zero_point, axis, group_size, quant_min, quant_max)
    return ((q - zero_point) * scale).to(x.dtype)


def quantize(x, scale, zero_point, *, axis=None, group_size=None, dtype, quant_min, quant_max):
    q, _, zero_point = codes(x, scale, zero_point, axis, group_size, quant_min, quant_max)
    return torch.where(q.isnan(), zero_point, q).to(dtype)


def dequantize(q, scale, zero_point, *, axis=None, group_size=None, dtype):
    scale = expand(scale, q, axis, group_size)
    zero_point = expand(zero_point, q, axis, group_size).float()
    return ((q.float() - zero_point) * scale).to(dtype)


def learnable_fake_quantize(x, scale, zero_point, *, axis, group_size, quant_min, quant_max, grad_factor=1.0):
    """Differentiable in x, scale and zero_point by autograd over the forward formula, rounding straight through."""

    def round_straight_through(v):
        return v + (v.round() - v).detach()

    def scale_gradient(v):
        return v * grad_factor + (v * (1.0 - grad_factor)).detach()

    scale = expand(scale_gradient(scale), x, axis, group_size)
    zero_point = round_straight_through(expand(scale_gradient(zero_point), x, axis, group_size))
    q = round_straight_through(x / scale) + zero_point
    # Not clamp(): torch versions disagree on its gradient at the bounds, where the contract passes the gradient on.
    q = torch.where((q >= quant_min) & (q <= quant_max), q, q.detach().clamp(quant_min, quant_max))
    return (q - zero_point) * scale


def away_from_ties(shape, scale, axis, group_size, spread=60):
    """x whose x / scale is far from a rounding tie, so that fp32 and fp64 round it alike; many values saturate."""
    template = torch.empty(shape)
    whole = torch.randint(-spread, spread, shape).float()
    return (whole + (torch.rand(shape) - 0.5) * 0.9) * expand(scale, template, axis, group_size)
