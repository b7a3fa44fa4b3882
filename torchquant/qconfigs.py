"""The usual QConfigs. Each fits what the converter lowers; any width from 2 to 8 bits trains."""

from __future__ import annotations

import torch

from torchquant.qconfig import QConfig, QuantSpec


def int8_static(*, weight_bits: int = 8, activation_bits: int = 8, observer: str = "auto") -> QConfig:
    """Integers from layer to layer: activations with fixed scales, weights with one per output channel."""
    return QConfig(QuantSpec.weight(weight_bits), QuantSpec.activation(activation_bits, observer=observer))


def int4_weight_static(*, activation_bits: int = 8, observer: str = "auto") -> QConfig:
    """int8_static with weights of 4 bits, two in a byte; they need training (`prepare_qat`) more often than not."""
    return int8_static(weight_bits=4, activation_bits=activation_bits, observer=observer)


def int8_dynamic(*, weight_bits: int = 8) -> QConfig:
    """Linear and recurrent layers whose input rows are quantized as they come: nothing to calibrate."""
    return QConfig(QuantSpec.weight(weight_bits), QuantSpec.per_row())


def fp8_dynamic(
    *, weight_dtype: torch.dtype = torch.float8_e4m3fn, activation_dtype: torch.dtype = torch.float8_e4m3fn
) -> QConfig:
    """Linear layers of 8-bit floats (Micikevicius et al., "FP8 formats for deep learning", 2022): weights with one scale per
    output channel, input rows quantized as they come; nothing to calibrate. Runs on GPUs from compute capability 8.9 on, and
    as fp32 products on the CPU. The dtypes are torch.float8_e4m3fn or torch.float8_e5m2, not both e5m2."""
    return QConfig(QuantSpec.fp8(weight_dtype), QuantSpec.fp8(activation_dtype))


def int8_weight_only() -> QConfig:
    """Weights of linear layers and embeddings in 8 bits, one scale per output channel or row; activations stay float."""
    return QConfig(QuantSpec.weight(8))


def int4_weight_only(group_size: int = 128, *, symmetric: bool = True) -> QConfig:
    """Weights of linear layers and embeddings in 4 bits, one scale per `group_size` values along the last axis; with
    symmetric=False one zero point as well."""
    lowest = -7 if symmetric else -8
    return QConfig(QuantSpec.weight(4, axis=1, group_size=group_size, symmetric=symmetric, quant_min=lowest))


def learned(*, weight_bits: int = 8, activation_bits: int = 8, learn_zero_point: bool = False) -> QConfig:
    """int8_static whose scales train with the model, for `prepare_qat`: LSQ (Esser et al., "Learned step size
    quantization", ICLR 2020), and with learn_zero_point LSQ+ (Bhalgat et al., CVPR workshops 2020) on activations. As LSQ+
    proposes, they start from the range with the least squared error; weights of 5 bits and more from their whole range, which
    is hardly another one and costs no histograms."""
    activation = QuantSpec.activation(activation_bits, observer="mse", learnable=True, learnable_zero_point=learn_zero_point)
    start = {"observer": "mse", "bins": 128} if weight_bits <= 4 else {}  # a histogram per channel: few bins keep checkpoints small
    return QConfig(QuantSpec.weight(weight_bits, learnable=True, **start), activation)


def pact(*, weight_bits: int = 8, activation_bits: int = 8) -> QConfig:
    """int8_static whose activations learn where to clip, for `prepare_qat`: PACT (Choi et al., "PACT: Parameterized clipping
    activation for quantized neural networks", 2018). Weight decay on the clipping values (`training.quantization_parameters`)
    is part of the method."""
    return QConfig(QuantSpec.weight(weight_bits), QuantSpec.activation(activation_bits, learnable_clip=True))


def power_of_two(*, weight_bits: int = 8, activation_bits: int = 8, observer: str = "auto") -> QConfig:
    """int8_static whose scales are powers of two, for hardware that rescales by shifting. Scales are rounded up, as Jain et
    al., "Trained quantization thresholds for accurate and efficient fixed-point inference" (MLSys 2020), do."""
    weight = QuantSpec.weight(weight_bits, power_of_two=True)
    return QConfig(weight, QuantSpec.activation(activation_bits, observer=observer, power_of_two=True))
