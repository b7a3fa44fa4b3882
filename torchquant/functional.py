"""The quantization ops for tensors: thin wrappers of torch.ops.torchquant that also accept numbers as parameters.

Granularity, for every function here:

* ``axis=None``: per tensor; ``scale`` and ``zero_point`` have one element.
* ``axis=a``: per channel; one element for each index of dimension ``a`` (negative counts from the end).
* ``axis=a, group_size=g``: grouped; ``scale`` has the input's shape with dimension ``a`` divided by ``g``. Per token is
  ``axis=-1, group_size=x.size(-1)``.

The integer contract is ``q = clamp(round_half_even(x * (1 / scale)) + zero_point, quant_min, quant_max)``, computed in
float32 whatever the input's dtype.

In TorchScript a call to these functions is a call to the op itself: parameters must be tensors there, and ``quantize`` needs
its ``dtype``.
"""

from __future__ import annotations

from typing import Optional

import torch
from torch import Tensor
from torch.jit import _builtins

__all__ = ["dequantize", "fake_quantize", "quantize"]


def _as_parameter(value, device: torch.device) -> Tensor:
    return value if isinstance(value, Tensor) else torch.tensor(float(value), dtype=torch.float32, device=device)


def fake_quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    axis: Optional[int] = None,
    group_size: Optional[int] = None,
    quant_min: int,
    quant_max: int,
) -> Tensor:
    """Rounds ``x`` to the values that integers can represent: ``(q - zero_point) * scale``.

    Differentiable: the gradient of ``x`` passes straight through inside the range and is zero outside; ``scale`` and
    ``zero_point`` get the gradients of LSQ (Esser et al., "Learned Step Size Quantization", ICLR 2020) and LSQ+ (Bhalgat et
    al., "LSQ+: Improving low-bit quantization through learnable offsets and better initialization", CVPRW 2020) where they
    require one. A second derivative is an error. NaN stays NaN; infinities saturate.

    Args:
        x: float32, bfloat16 or float16, any shape and memory format.
        scale: float32, finite and greater than 0; or a number.
        zero_point: float32 or integer, as many elements as ``scale``; enters rounded and clamped to the range;
            or a number.
        axis, group_size: granularity, see the module.
        quant_min, quant_max: inclusive codes, 2 to 8 bits, inside [-128, 127] or [0, 255].

    Returns:
        A tensor with the shape, dtype and memory format of ``x``.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got.
    """
    scale = _as_parameter(scale, x.device)
    zero_point = _as_parameter(zero_point, x.device)
    return torch.ops.torchquant.fake_quantize(
        x, scale, zero_point, axis=axis, group_size=group_size, quant_min=quant_min, quant_max=quant_max
    )


def quantize(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    axis: Optional[int] = None,
    group_size: Optional[int] = None,
    dtype: torch.dtype = torch.int8,
    quant_min: Optional[int] = None,
    quant_max: Optional[int] = None,
) -> Tensor:
    """Integer codes of ``x``. NaN gives the zero point; infinities saturate.

    Args:
        x: float32, bfloat16 or float16, any shape and memory format.
        scale, zero_point, axis, group_size: as for :func:`fake_quantize`.
        dtype: ``torch.int8`` or ``torch.uint8``.
        quant_min, quant_max: inclusive codes inside ``dtype``; by default all of it.

    Returns:
        A tensor of ``dtype`` with the shape and memory format of ``x``. It carries no gradient.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got.
    """
    scale = _as_parameter(scale, x.device)
    zero_point = _as_parameter(zero_point, x.device)
    return torch.ops.torchquant.quantize(
        x, scale, zero_point, axis=axis, group_size=group_size, dtype=dtype, quant_min=quant_min, quant_max=quant_max
    )


def dequantize(
    q: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    *,
    axis: Optional[int] = None,
    group_size: Optional[int] = None,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Values of integer codes: ``(q - zero_point) * scale``.

    Args:
        q: int8 or uint8, any shape and memory format.
        scale, zero_point, axis, group_size: as for :func:`fake_quantize`; the zero point is clamped to ``q``'s dtype.
        dtype: float32, bfloat16 or float16.

    Returns:
        A tensor of ``dtype`` with the shape and memory format of ``q``. Differentiating it is an error.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got.
    """
    scale = _as_parameter(scale, q.device)
    zero_point = _as_parameter(zero_point, q.device)
    return torch.ops.torchquant.dequantize(q, scale, zero_point, axis=axis, group_size=group_size, dtype=dtype)


# TorchScript compiles no keyword-only arguments with defaults, but the ops' schemas have them.
for _function in (fake_quantize, quantize, dequantize):
    _builtins._register_builtin(_function, f"torchquant::{_function.__name__}")
