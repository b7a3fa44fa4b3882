"""Every wrong argument of the integer ops, by the text of its error: the op, the argument, what is allowed, what came."""

import re

import pytest
import torch
from support import quantized_op_samples  # noqa: F401  (registers the samples)
from support.op_samples import SAMPLES

import torchquant  # noqa: F401

NAN = float("nan")
U8, S8, F32 = torch.uint8, torch.int8, torch.float32


def zeros(*shape, dtype=F32):
    return torch.zeros(shape, dtype=dtype)


# (op, index of the sample, changed arguments, text). Integer keys change positional arguments.
ERRORS = [
    # x
    ("quantized_conv", 0, {0: zeros(2, 4, 8, 6)}, "x must be uint8 or int8, got float32"),
    ("quantized_conv", 0, {0: zeros(4, 8, 6, dtype=U8)}, "x must have 4 dimensions (batch, channels, height, width), got shape [4, 8, 6]"),
    ("quantized_conv", 2, {0: zeros(5, 9, dtype=U8)}, "x must have 3 dimensions (batch, channels, length), got shape [5, 9]"),
    ("quantized_conv", 0, {"x_zero_point": 256}, "x_zero_point must lie in [0, 255] for codes of type uint8, got 256"),
    ("quantized_conv", 0, {0: zeros(2, 4, 1, 6, dtype=U8), "padding": [0, 0]}, "the kernel must fit into x with its padding"),
    ("quantized_linear", 2, {"x_zero_point": -129}, "x_zero_point must lie in [-128, 127] for codes of type int8, got -129"),
    ("quantized_linear", 0, {0: zeros(5, 8)}, "x must be uint8 or int8, got float32"),
    ("quantized_linear", 0, {0: torch.tensor(3, dtype=U8)}, "x must have shape [..., K] with K at least 1, got []"),
    ("quantized_linear_dynamic", 0, {0: zeros(5, 8, dtype=U8)}, "x must be float32, bfloat16 or float16, got uint8"),
    ("quantized_linear_weight_only", 0, {0: zeros(5, 8, dtype=torch.float64)}, "x must be float32, bfloat16 or float16, got float64"),
    ("quantized_lookup", 0, {0: zeros(2, 7)}, "x must be uint8 or int8, got float32"),
    ("quantized_add", 0, {1: zeros(2, 3, 4, 5)}, "b must be uint8 or int8, got float32"),
    ("quantized_mul", 0, {"a_zero_point": -1}, "a_zero_point must lie in [0, 255] for codes of type uint8, got -1"),
    ("quantized_matmul", 0, {0: zeros(2, 5, 8)}, "a must be uint8 or int8, got float32"),
    ("quantized_matmul", 0, {"b_zero_point": 256}, "b_zero_point must lie in [0, 255] for codes of type uint8, got 256"),
    ("quantized_matmul", 0, {0: zeros(8, dtype=U8)}, "a must have shape [..., M, K] with K at least 1, got [8]"),
    ("quantized_matmul", 0, {0: zeros(2, 5, 0, dtype=U8)}, "a must have shape [..., M, K] with K at least 1, got [2, 5, 0]"),
    ("quantized_matmul", 0, {1: zeros(8, dtype=U8)}, "b must have shape [..., K, N] with K = 8, the last dimension of a, got [8]"),
    ("quantized_matmul", 0, {1: zeros(7, 6, dtype=U8)}, "b must have shape [..., K, N] with K = 8, the last dimension of a, got [7, 6]"),
    ("quantized_matmul", 0, {1: zeros(3, 8, 6, dtype=U8)}, "the leading dimensions of a and b must be equal or 1, got [2, 5, 8] and [3, 8, 6]"),
    ("quantized_matmul", 0, {0: zeros(1, 33026, dtype=U8), 1: zeros(33026, 1, dtype=U8)}, "depth K must be at most 33025, because K * 255 * 255 must stay below 2^31, got 33026"),
    ("quantized_matmul", 0, {0: zeros(1, 1, 1, 1, 1, 1, 2, 5, 8, dtype=U8)}, "a and b must have at most 8 dimensions, got 9 and 2"),
    ("quantized_matmul", 0, {"multiplier": NAN}, "multiplier must be a finite float32, got nan"),
    # geometry
    ("quantized_conv", 0, {"kernel_size": [3, 3, 3]}, "kernel_size must have 1 or 2 values, got [3, 3, 3]"),
    ("quantized_conv", 0, {"stride": [1]}, "stride must have 2 values, one per entry of kernel_size, got [1]"),
    ("quantized_conv", 0, {"stride": [0, 1]}, "stride must be at least 1, got [0, 1]"),
    ("quantized_conv", 0, {"padding": [-1, 1]}, "padding must be at least 0, got [-1, 1]"),
    ("quantized_conv", 0, {"groups": 3}, "x must have 12 channels (its second dimension) for weight of shape [6, 4, 3, 3] and groups 3, got x of shape [2, 4, "),
    ("quantized_conv", 0, {"groups": 0}, "groups must be at least 1, got 0"),
    ("quantized_conv", 1, {"groups": 4}, "groups must divide the 6 output channels (the length of multiplier), got 4"),
    ("quantized_conv", 0, {"output_padding": [1, 0]}, "output_padding must be 0 unless transposed, got [1, 0]"),
    ("quantized_conv", 3, {"output_padding": [2, 0]}, "output_padding must be smaller than stride or dilation, got [2, 0]"),
    # weights
    ("quantized_conv", 0, {1: zeros(6, 4, 3, 2, dtype=S8)}, "weight must have shape [6, 4, 3, 3], got [6, 4, 3, 2]"),
    ("quantized_conv", 2, {1: zeros(4, 9, dtype=U8)}, "weight must have shape [4, 8], got [4, 9]"),
    ("quantized_conv", 3, {1: zeros(3, 4, 3, 3, dtype=S8)}, "weight must have shape [4, 3, 3, 3], got [3, 4, 3, 3]"),
    ("quantized_linear", 0, {1: zeros(3, 8, dtype=U8)}, "weight must be int8 for weight_bits 8, got uint8"),
    ("quantized_linear", 1, {1: zeros(3, 4, dtype=S8)}, "weight must be uint8 (two codes a byte) for weight_bits 4, got int8"),
    ("quantized_linear", 0, {"weight_bits": 2}, "weight_bits must be 8 or 4, got 2"),
    ("quantized_linear", 1, {"weight_quant_min": -9}, "weight_quant_min must lie in [-8, 0] for weight_bits 4, got -9"),
    ("quantized_linear", 0, {1: zeros(3, 7, dtype=S8)}, "x must have 7 features (its last dimension) for weight_bits 8 and weight of shape [3, 7], got x of shape [5, 8]"),
    ("quantized_linear", 0, {0: zeros(1, 66312, dtype=U8), 1: zeros(3, 66312, dtype=S8)}, "depth K must be at most 66311, because K * 255 * 127 must stay below 2^31, got 66312"),
    ("quantized_linear", 0, {0: zeros(1, 65794, dtype=U8), 1: zeros(3, 65794, dtype=S8), "weight_quant_min": -128}, "depth K must be at most 65793, because K * 255 * 128 must stay below 2^31, got 65794"),
    ("quantized_conv", 0, {0: zeros(1, 7369, 3, 3, dtype=U8), 1: zeros(6, 7369, 3, 3, dtype=S8)}, "depth K must be at most 66311"),
    ("quantized_linear_weight_only", 1, {"group_size": 3}, "group_size must divide the 8 codes of a weight row, got 3"),
    ("quantized_linear_weight_only", 0, {2: zeros(4)}, "weight_scale must have shape [3], got [4]"),
    ("quantized_linear_weight_only", 1, {3: zeros(3, 1)}, "weight_zero_point must have shape [3, 2], got [3, 1]"),
    ("quantized_embedding", 0, {"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
    ("quantized_embedding", 0, {"embedding_dim": 7}, "weight must have shape [rows, 7] for weight_bits 8 and embedding_dim 7, got [9, 6]"),
    # per-channel values
    ("quantized_conv", 0, {2: torch.full((6,), NAN)}, "multiplier must be finite, got nan at index 0"),
    ("quantized_conv", 0, {3: zeros(5)}, "bias must hold one value per output channel, shape [6], got [5]"),
    ("quantized_linear", 0, {2: zeros(3, dtype=torch.float64)}, "multiplier must be float32, got float64"),
    ("quantized_linear", 0, {3: torch.tensor([0.0, float("inf"), 0.0])}, "bias must be finite, got inf at index 1"),
    ("quantized_linear_dynamic", 0, {2: torch.tensor([1.0, 0.0, 1.0])}, "weight_scale must be finite and > 0, got 0 at index 1"),
    ("quantized_linear_weight_only", 0, {2: torch.tensor([1.0, 1.0, -2.0])}, "weight_scale must be finite and > 0, got -2 at index 2"),
    ("quantized_embedding", 0, {2: torch.full((9,), NAN)}, "weight_scale must be finite and > 0, got nan at index 0"),
    # residual
    ("quantized_conv", 1, {4: zeros(2, 6, 1, 1, dtype=U8)}, "residual must have shape [2, 6, 4, 6], got [2, 6, 1, 1]"),
    ("quantized_linear", 1, {4: zeros(3, dtype=U8)}, "residual must have shape [2, 5, 3], got [3]"),
    ("quantized_linear", 1, {4: zeros(2, 5, 3)}, "residual must be uint8 or int8, got float32"),
    ("quantized_conv", 1, {"residual_zero_point": 128}, "residual_zero_point must lie in [-128, 127] for codes of type int8, got 128"),
    ("quantized_conv", 1, {"residual_multiplier": NAN}, "residual_multiplier must be a finite float32, got nan"),
    # output
    ("quantized_linear", 0, {"activation": "swish"}, "activation must be one of none, relu, relu6, hardtanh, hardswish"),
    ("quantized_linear", 0, {"activation": "relu"}, "activation_args must be [lo, hi] with lo <= hi, divided by the output scale, for activation 'relu', got []"),
    ("quantized_linear", 0, {"activation": "hardtanh", "activation_args": [2.0, 1.0]}, "activation_args must be [lo, hi] with lo <= hi"),
    ("quantized_linear", 0, {"activation": "silu", "activation_args": [1.0]}, "activation_args must be empty for activation 'silu', got [1]"),
    ("quantized_linear", 0, {"output_scale": 0.0}, "output_scale must be finite and > 0, with a finite reciprocal, got 0"),
    ("quantized_linear", 0, {"output_scale": 2.0**-129}, "output_scale must be finite and > 0, with a finite reciprocal, got 1.46937e-39"),
    ("quantized_linear", 2, {"output_scale": 2.0}, "output_scale must be 1 for a floating output_dtype, got 2"),
    ("quantized_linear", 0, {"output_dtype": torch.int32}, "output_dtype must be uint8, int8, float32, bfloat16 or float16, got int32"),
    ("quantized_linear", 0, {"output_quant_max": 256}, "must be an increasing range inside [0, 255] for output_dtype uint8, got [0, 256]"),
    ("quantized_linear", 0, {"output_quant_min": 8}, "output_zero_point must lie in [output_quant_min, output_quant_max] = [8, 255], got 7"),
    ("quantized_add", 0, {"b_multiplier": NAN}, "b_multiplier must be a finite float32, got nan"),
    ("quantized_mul", 0, {"multiplier": 1e300}, "multiplier must be a finite float32, got 1e+300"),
    ("quantized_embedding", 0, {"output_dtype": U8}, "output_dtype must be float32, bfloat16 or float16, got uint8"),
    # tables and indices
    ("quantized_lookup", 0, {1: zeros(255, dtype=U8)}, "table must have 256 entries of output_dtype uint8, got shape [255] of uint8"),
    ("quantized_lookup", 0, {1: zeros(256, dtype=S8)}, "table must have 256 entries of output_dtype uint8, got shape [256] of int8"),
    ("quantized_lookup", 0, {"table_min": -128}, "table_min must be 0 for codes of type uint8, so that every code has an entry, got -128"),
    ("quantized_embedding", 0, {0: torch.tensor([0, 9])}, "indices must lie in [0, 9), got 9 at position 1"),
    ("quantized_embedding", 0, {0: torch.tensor([-1])}, "indices must lie in [0, 9), got -1 at position 0"),
    ("quantized_embedding", 0, {0: zeros(2)}, "indices must be int64 or int32, got float32"),
    # pooling
    ("quantized_max_pool", 0, {"padding": [2, 1]}, "padding must be at most half of kernel_size [3, 2], got [2, 1]"),
    ("quantized_max_pool", 0, {"pad_value": -1}, "pad_value must lie in [0, 255] for codes of type uint8, got -1"),
    ("quantized_max_pool", 0, {"dilation": [9, 1]}, "the window must fit into x with its padding"),
    ("quantized_avg_pool", 0, {"kernel_size": [3, 2, 2]}, "kernel_size must have 1 or 2 values, got 3"),
    ("quantized_avg_pool", 0, {"divisor_override": 0}, "divisor_override must be at least 1 or None, got 0"),
    ("quantized_avg_pool", 0, {"multiplier": NAN}, "multiplier must be a finite float32, got nan"),
    ("quantized_adaptive_avg_pool", 0, {"output_size": [0, 1]}, "output_size must be at least 1, got [0, 1]"),
    ("quantized_adaptive_avg_pool", 0, {"output_size": [1]}, "x must have 3 dimensions (batch, channels, length)"),
    ("quantized_resize_linear", 0, {"output_size": None}, "exactly one of output_size and scale_factors must be given"),
    ("quantized_resize_linear", 0, {"output_size": [4]}, "x must have 3 dimensions (batch, channels, length)"),
    ("quantized_resize_linear", 0, {"output_size": [4, 0]}, "the output must have at least one position in each dimension, got 0 for dimension 3"),
    ("quantized_resize_linear", 1, {"scale_factors": [0.1, 1.0]}, "the output must have at least one position in each dimension, got 0 for dimension 2"),
    ("quantized_resize_linear", 0, {"multiplier": NAN}, "multiplier must be a finite float32, got nan"),
]


@pytest.mark.parametrize("name,index,changes,text", ERRORS, ids=[f"{e[0]}-{e[3][:40]}" for e in ERRORS])
def test_error_text(name, index, changes, text):
    args, kwargs = SAMPLES[name]()[index]
    op = getattr(torch.ops.torchquant, name)
    op(*args, **kwargs)  # the sample itself is fine
    args = [changes.get(i, arg) for i, arg in enumerate(args)]
    kwargs = kwargs | {key: value for key, value in changes.items() if isinstance(key, str)}
    with pytest.raises((RuntimeError, IndexError), match=re.escape(text)) as error:
        op(*args, **kwargs)
    assert str(error.value).startswith(f"{name}: ")


@pytest.mark.parametrize("name", sorted(name for name in SAMPLES if name.startswith("quantized_")))
def test_tensors_on_two_devices_are_refused(name):
    """`meta` stands for a second device. Every tensor is moved in turn."""
    args, kwargs = SAMPLES[name]()[1]
    op = getattr(torch.ops.torchquant, name)
    tensors = [i for i, arg in enumerate(args) if isinstance(arg, torch.Tensor)]
    for moved in tensors if len(tensors) > 1 else []:
        mixed = [arg.to("meta") if i == moved else arg for i, arg in enumerate(args)]
        with pytest.raises(RuntimeError, match="must be on"):
            op(*mixed, **kwargs)


def test_operands_that_do_not_broadcast():
    args, kwargs = SAMPLES["quantized_add"]()[0]
    with pytest.raises(RuntimeError, match="must match the size of tensor b"):
        torch.ops.torchquant.quantized_add(zeros(2, 3, dtype=U8), zeros(2, 4, dtype=U8), **kwargs)


@pytest.mark.parametrize("name", sorted(name for name in SAMPLES if name.startswith("quantized_")))
def test_meta_makes_the_same_checks(name):
    """What needs no values is refused on Meta tensors with the same words, before anything runs."""
    value_errors = ("finite, got", "> 0, got", "indices must lie")
    for op_name, index, changes, text in ERRORS:
        if op_name != name or (any(isinstance(key, int) for key in changes) and any(t in text for t in value_errors)):
            continue
        args, kwargs = SAMPLES[name]()[index]
        args = [changes.get(i, arg) for i, arg in enumerate(args)]
        args = [arg.to("meta") if isinstance(arg, torch.Tensor) else arg for arg in args]
        kwargs = kwargs | {key: value for key, value in changes.items() if isinstance(key, str)}
        with pytest.raises((RuntimeError, IndexError), match=re.escape(text)):
            getattr(torch.ops.torchquant, name)(*args, **kwargs)
