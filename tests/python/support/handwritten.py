"""Models written by hand to the graph contract, fake-quants on weights and activations and nothing else of prepare, and their
conversion, checked against them."""

import json

import torch
import torch.nn.functional as F
from torch import nn

from torchquant.convert import convert_script

ops = torch.ops.torchquant


class FakeQuant(nn.Module):
    def __init__(self, scale, zero_point, **settings):
        super().__init__()
        self.settings = settings
        self.register_buffer("scale", scale.clone())
        self.register_buffer("zero_point", zero_point.clone())

    def forward(self, x):
        return ops.fake_quantize(x, self.scale, self.zero_point, **self.settings)


def activation(low=-3.1, high=3.3):
    parameters = ops.qparams_from_min_max(torch.tensor([float(low)]), torch.tensor([float(high)]), symmetric=False, quant_min=0, quant_max=255)
    return FakeQuant(*parameters, quant_min=0, quant_max=255)


def weight(tensor, axis=0, group_size=None, symmetric=True, quant_min=-127, quant_max=127):
    settings = dict(axis=axis, group_size=group_size, quant_min=quant_min, quant_max=quant_max)
    return FakeQuant(*ops.choose_qparams(tensor.detach(), symmetric=symmetric, **settings), **settings)


class Conv(nn.Conv2d):
    def __init__(self, *args, quant_max=127, **kwargs):
        super().__init__(*args, **kwargs)
        self.weight_fake_quant = weight(self.weight, quant_min=-quant_max, quant_max=quant_max)

    def forward(self, x):
        return self._conv_forward(x, self.weight_fake_quant(self.weight), self.bias)


class Linear(nn.Linear):
    def __init__(self, *args, **settings):
        bias = settings.pop("bias", True)
        super().__init__(*args, bias=bias)
        self.weight_fake_quant = weight(self.weight, **settings)

    def forward(self, x):
        return F.linear(x, self.weight_fake_quant(self.weight), self.bias)


def rows(x):
    settings = dict(axis=-1, group_size=x.size(-1), quant_min=-127, quant_max=127)
    return ops.fake_quantize(x, *ops.choose_qparams(x, symmetric=True, **settings), **settings)


def batch_norm(channels):
    norm = nn.BatchNorm2d(channels)
    norm.running_mean.normal_(0, 0.2)
    norm.running_var.uniform_(0.3, 2)
    nn.init.uniform_(norm.weight, -1, 1.5)  # a negative factor must not turn the clamp of the activation around
    nn.init.normal_(norm.bias, 0, 0.3)
    return norm


def convert(model, *inputs, **options):
    """The converted model, after checking it against the fake-quantized one on the inputs and on a larger batch."""
    model.eval()
    with torch.no_grad():
        script = torch.jit.trace(model, inputs)
        converted = convert_script(script, **options)
        for batch in (inputs, tuple(torch.cat([x, x, x]) for x in inputs)):
            torch.testing.assert_close(converted(*batch), model(*batch), atol=1e-5, rtol=1e-5)
    return converted


def kernels(converted):
    return {row["layer"]: row["kernel"].split("/")[0] for row in converted.receipt.rows}


def op_names(converted):
    """The ops of the graph, those in its islands included."""
    programs = {text: json.loads(text) for text in string_constants(converted) if text.startswith('{"version"')}
    steps = [step["op"] for program in programs.values() for step in program["steps"]]
    names = steps + [node.kind() for node in converted.script.graph.nodes() if node.kind() != "torchquant::quantized_island"]
    return [name.split("::")[1].split(".")[0] for name in names if name.startswith(("aten", "torchquant"))]


def string_constants(converted):
    constants = converted.script.graph.findAllNodes("prim::Constant")
    return [node.s("value") for node in constants if node.output().type().kind() == "StringType"]
