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

from typing import Optional, Tuple

import torch
from torch import Tensor
from torch.jit import _builtins

__all__ = [
    "dequantize",
    "dequantize_fp8",
    "fake_quantize",
    "fake_quantize_fp8",
    "kv_cache_append",
    "kv_cache_attention",
    "quantize",
    "quantize_fp8",
    "quantize_fp8_dynamic",
]


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


def quantize_fp8(x: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """8-bit floats of ``x * (1 / scale)``, rounded to nearest even.

    Saturates: what lies beyond the largest value of the format, 448 or 57344, becomes that value, infinities included (a cast
    by ``x.to(dtype)`` would give NaN or an infinity). NaN stays NaN. The formats are those of Micikevicius et al., "FP8 formats
    for deep learning", 2022.

    Args:
        x: float32, bfloat16 or float16, at least one dimension.
        scale: float32, finite and greater than 0: one element, or one for each row, ``x.shape[:-1]``; or a number.
        dtype: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.

    Returns:
        A contiguous tensor of ``dtype`` with the shape of ``x``. It carries no gradient.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got.
    """
    return torch.ops.torchquant.quantize_fp8(x, _as_parameter(scale, x.device), dtype=dtype)


def quantize_fp8_dynamic(x: Tensor, *, dtype: torch.dtype = torch.float8_e4m3fn) -> Tuple[Tensor, Tensor]:
    """:func:`quantize_fp8` with a scale for each row (of the last dimension) that is taken from the row: its largest finite
    magnitude over 448 or 57344; 1 for a row of zeros.

    Returns:
        (codes, scale): codes as :func:`quantize_fp8` gives them; scale is float32 of shape ``x.shape[:-1]``.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got.
    """
    return torch.ops.torchquant.quantize_fp8_dynamic(x, dtype=dtype)


def dequantize_fp8(q: Tensor, scale: Tensor, *, dtype: torch.dtype = torch.float32) -> Tensor:
    """Values of 8-bit floats: ``q * scale``, computed in float32.

    Args:
        q: ``torch.float8_e4m3fn`` or ``torch.float8_e5m2``.
        scale: as for :func:`quantize_fp8`.
        dtype: float32, bfloat16 or float16.

    Returns:
        A contiguous tensor of ``dtype`` with the shape of ``q``. Differentiating it is an error.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got.
    """
    return torch.ops.torchquant.dequantize_fp8(q, _as_parameter(scale, q.device), dtype=dtype)


def fake_quantize_fp8(x: Tensor, scale: Optional[Tensor] = None, *, dtype: torch.dtype = torch.float8_e4m3fn) -> Tensor:
    """Rounds ``x`` to the values that 8-bit floats can represent: ``dequantize_fp8(quantize_fp8(x, scale), scale)``.

    Without ``scale``, each row of the last dimension has its own, as in :func:`quantize_fp8_dynamic`. Differentiable: the
    gradient of ``x`` passes straight through where the value is not clipped and is zero elsewhere; ``scale`` gets none. A
    second derivative is an error.

    Args:
        x, scale, dtype: as for :func:`quantize_fp8`.

    Returns:
        A contiguous tensor with the shape and dtype of ``x``.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got.
    """
    scale = scale if scale is None else _as_parameter(scale, x.device)
    return torch.ops.torchquant.fake_quantize_fp8(x, scale, dtype=dtype)


def kv_cache_append(
    key: Tensor, value: Tensor, key_cache: Tensor, key_scale: Tensor, value_cache: Tensor, value_scale: Tensor, lengths: Tensor
) -> None:
    """Stores the keys and values of new tokens in a cache of int8 or 8-bit floats, each row with a scale of its own.

    A row is one token of one head: ``scale = absmax / 127`` over its finite values, codes in [-127, 127]; for 8-bit floats,
    ``absmax / 448`` or ``/ 57344``, as in :func:`quantize_fp8_dynamic`. The tokens of sequence ``b`` go to the places from
    ``lengths[b]`` on; ``lengths`` itself is the caller's to increase afterwards.

    Args:
        key, value: float32, bfloat16 or float16, ``[batch, heads, tokens, head_dim]``.
        key_cache, value_cache: int8, float8_e4m3fn or float8_e5m2, both alike, ``[batch, heads, capacity, head_dim]``,
            contiguous, written in place; ``head_dim`` is a multiple of 4.
        key_scale, value_scale: float32 ``[batch, heads, capacity]``, contiguous, written in place.
        lengths: int32 ``[batch]`` on the device of the cache: tokens that are in it already.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got. On the CPU also where a sequence has no room,
            before anything is written; on CUDA, which does not read ``lengths`` back, tokens without room are not stored.
    """
    torch.ops.torchquant.kv_cache_append(key, value, key_cache, key_scale, value_cache, value_scale, lengths)


def kv_cache_attention(
    query: Tensor,
    key_cache: Tensor,
    key_scale: Tensor,
    value_cache: Tensor,
    value_scale: Tensor,
    lengths: Tensor,
    *,
    scale: Optional[float] = None,
) -> Tensor:
    """Attention of one query token per sequence over a cache of int8 or fp8: ``softmax(q k^T * scale) v`` in float32 sums.

    The scales of the keys multiply the scores and those of the values the weights, so that codes are never written out as
    floats. Query heads that are neighbours share a head of the cache (grouped-query attention, Ainslie et al., "GQA", 2023).

    Args:
        query: float32, bfloat16 or float16, ``[batch, query_heads, 1, head_dim]``, ``query_heads`` a multiple of ``heads``.
        key_cache, key_scale, value_cache, value_scale: as :func:`kv_cache_append` fills them.
        lengths: int32 ``[batch]`` on the device of the cache: tokens to attend to, the newest included. 0 gives zeros.
        scale: of the scores; ``1 / sqrt(head_dim)`` by default.

    Returns:
        A tensor with the shape and dtype of ``query``. It carries no gradient.

    Raises:
        RuntimeError: naming the argument, what is allowed and what it got. On CUDA ``head_dim`` must be 64 or 128, and at most
            16 query heads may share a head of the cache.
    """
    return torch.ops.torchquant.kv_cache_attention(
        query, key_cache, key_scale, value_cache, value_scale, lengths, scale=scale
    )


# TorchScript compiles no keyword-only arguments with defaults, but the ops' schemas have them.
for _function in (fake_quantize, quantize, dequantize):
    _builtins._register_builtin(_function, f"torchquant::{_function.__name__}")
