"""Training whose forward products run on the integer kernels, opt-in: what `convert` will compute, at its speed; backward as before."""

from __future__ import annotations

import warnings

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from torchquant.fake_quantize import FakeQuantize
from torchquant.prepare import check_prepared
from torchquant.prepare.quantized_parameter import extend, weight_fake_quants
from torchquant.qconfig import QuantSpec

_ops = torch.ops.torchquant
_METHOD = "integer_forward"


def integer_forward(prepared: nn.Module) -> list[str]:
    """Lets the Linear and Conv2d layers of a prepared model multiply integers in the forward pass of training steps. In place.

    The codes are those of the fake-quants that stand there anyway, the kernel is the one that the converted model will use, and its result
    differs from the float product of the fake-quantized tensors by rounding in fp32 only. The gradient is that of the float product
    (straight through the fake-quants, as always). What a step gains is a forward product in int8 instead of fp32; what it costs is taking the
    codes of input and weight and packing the weight, once per step: it pays for wide layers. CPU only. Evaluation and conversion are as
    before; so are steps under autocast, `torch.compile` and for layers whose input does not come straight from a fake-quant, which
    a warning names once.

    Jacob et al., "Quantization and training of neural networks for efficient integer-arithmetic-only inference" (CVPR 2018), simulate
    this arithmetic in training; this runs it.

    Args:
        prepared: from `torchquant.prepare_qat`.

    Returns:
        The paths of the layers that may run on integers; the others have no static fake-quant with int8 weights.

    Raises:
        TypeError: if `prepared` is not a prepared model.
        ValueError: if none of its layers can, or if it is not on the CPU.
    """
    check_prepared(_METHOD, prepared, "prepare_qat")
    if any(parameter.device.type != "cpu" for parameter in prepared.parameters()):
        raise ValueError(f"{_METHOD}: the integer kernels for training run on the CPU only; move the model there, or leave it as it is")
    paths = {id(module): path for path, module in prepared.named_modules()}
    suitable = [(paths[id(module)], module) for module, name, fake_quant in weight_fake_quants(prepared) if _suits(module, name, fake_quant)]
    sources = [module for module in prepared.modules() if isinstance(module, FakeQuantize) and _gives_codes(module)]
    if not suitable or not sources:
        raise ValueError(
            f"{_METHOD}: no Linear or Conv2d layer has static fake-quants on its weight and its input; prepare with qconfigs.int8_static() "
            "or learned()"
        )
    for path, module in suitable:
        module.torchquant_path = path
        extend(module, mixin=_IntegerLinear if isinstance(module, nn.Linear) else _IntegerConv2d)
    for source in sources:
        source.register_forward_hook(_mark)
    for module in prepared.modules():
        if isinstance(module, nn.Flatten):
            module.register_forward_hook(_pass_mark_on)
    return [path for path, _ in suitable]


def _suits(module: nn.Module, name: str, fake_quant: FakeQuantize) -> bool:
    spec = fake_quant.spec
    known = isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.padding_mode == "zeros" and not isinstance(module.padding, str))
    per_channel = spec.group_size is None and spec.axis in (None, 0)
    return known and name == "weight" and not spec.dynamic and per_channel and spec.symmetric and spec.rounding != "noise" and spec.quant_min >= -127


def _gives_codes(fake_quant: FakeQuantize) -> bool:
    spec = fake_quant.spec
    return not (fake_quant.of_parameter or spec.dynamic) and spec.axis is None and spec.group_size is None and spec.rounding != "noise"


@dataclass(frozen=True)
class _Source:
    """What a tensor was fake-quantized with. Copies: the fake-quant may move on before the tensor is read."""

    spec: QuantSpec
    scale: Tensor
    zero_point: Tensor


def _mark(fake_quant: FakeQuantize, args, output: Tensor) -> None:
    if fake_quant.training and fake_quant.fake_quant_enabled and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        output.torchquant_source = _Source(fake_quant.spec, fake_quant.scale.detach().clone(), fake_quant.zero_point.detach().clone())


def _pass_mark_on(flatten: nn.Flatten, args, output: Tensor) -> None:
    """Where flattening has to copy, because the image lies channels last."""
    source = _source_of(args[0])
    if source is not None:
        output.torchquant_source = source


def _source_of(x: Tensor) -> _Source | None:
    """That of the tensor, or of the one that it is a view of: flattening moves no codes."""
    return getattr(x, "torchquant_source", None) or getattr(x._base, "torchquant_source", None)


class _IntegerProduct(torch.autograd.Function):
    """product(codes of x, codes of w) in place of the float one, whose gradient it has."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None, layer: nn.Module, source: _Source) -> Tensor:
        ctx.layer = layer
        ctx.has_bias = bias is not None
        ctx.save_for_backward(x, weight)
        spec, weight_quant = source.spec, layer.weight_fake_quant
        dtype = torch.uint8 if spec.quant_min >= 0 else torch.int8
        codes = _ops.quantize(x, source.scale, source.zero_point, dtype=dtype, quant_min=spec.quant_min, quant_max=spec.quant_max)
        axis = weight_quant.spec.axis
        weight_codes = _ops.quantize(weight, weight_quant.scale, weight_quant.zero_point, dtype=torch.int8, axis=axis,
                                     quant_min=weight_quant.spec.quant_min, quant_max=weight_quant.spec.quant_max)  # fmt: skip
        channels = weight.size(0)
        multiplier = (source.scale * weight_quant.scale).expand(channels).contiguous()
        bias = torch.zeros(channels) if bias is None else bias
        return layer._integer_product(codes, weight_codes, multiplier, bias, int(source.zero_point.round()))

    @staticmethod
    def backward(ctx, grad: Tensor):
        x, weight = ctx.saved_tensors
        grad_x, grad_weight, grad_bias = ctx.layer._product_gradients(grad, x, weight, ctx.has_bias)
        return grad_x, grad_weight, grad_bias, None, None


class _IntegerLayer:
    """What both mixins share: when a step runs on integers."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or not torch.is_grad_enabled() or torch.jit.is_tracing() or torch.compiler.is_compiling():
            return super().forward(x)
        source = _source_of(x)
        reason = self._why_float(x, source)
        if reason is None:
            return _IntegerProduct.apply(x, self.weight, self.bias, self, source)
        if not self.__dict__.get("torchquant_said_float"):
            self.torchquant_said_float = True
            warnings.warn(f"{_METHOD}: {self.torchquant_path} computes in floats: {reason}", stacklevel=2)
        return super().forward(x)

    def _why_float(self, x: Tensor, source: _Source | None) -> str | None:
        if source is None:
            return "its input does not come straight from a static fake-quant that is on"
        if not self.weight_fake_quant.fake_quant_enabled:
            return "the fake-quant on its weight is off"
        if x.dtype != torch.float32 or torch.is_autocast_enabled("cpu"):
            return "it is not in fp32, or autocast is on"
        return None


class _IntegerLinear(_IntegerLayer):
    def _integer_product(self, codes, weight_codes, multiplier, bias, zero_point):
        return _ops.quantized_linear(codes, weight_codes, multiplier, bias, x_zero_point=zero_point, output_dtype=torch.float32)

    def _product_gradients(self, grad, x, weight, has_bias):
        rows = grad.flatten(0, -2) if grad.dim() > 1 else grad.unsqueeze(0)
        inputs = x.flatten(0, -2) if x.dim() > 1 else x.unsqueeze(0)
        return grad @ weight, rows.t() @ inputs, rows.sum(0) if has_bias else None


class _IntegerConv2d(_IntegerLayer):
    def _integer_product(self, codes, weight_codes, multiplier, bias, zero_point):
        return _ops.quantized_conv(
            codes, weight_codes, multiplier, bias, kernel_size=self.kernel_size, stride=self.stride, padding=self.padding,
            dilation=self.dilation, groups=self.groups, output_padding=(0, 0), x_zero_point=zero_point, output_dtype=torch.float32,
        )  # fmt: skip

    def _product_gradients(self, grad, x, weight, has_bias):
        return torch.ops.aten.convolution_backward(
            grad, x, weight, [weight.size(0)] if has_bias else None, self.stride, self.padding, self.dilation, False, (0, 0), self.groups,
            [True, True, has_bias],
        )  # fmt: skip
