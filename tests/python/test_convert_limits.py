"""Graphs in which a careless conversion would change the result: the converted model computes what the prepared one does, or the
error says why it cannot."""

import pytest
import torch
import torch.nn.functional as F
from support.handwritten import Conv, FakeQuant, Linear, activation, batch_norm, convert, kernels, op_names
from torch import nn

from torchquant.convert import convert_script

ops = torch.ops.torchquant


class Net(nn.Module):
    """A forward given as a function of the module, and the modules that it uses."""

    def __init__(self, forward, **modules):
        super().__init__()
        for name, module in modules.items():
            self.add_module(name, module)
        self.compute = forward

    def forward(self, *inputs):
        return self.compute(self, *inputs)


def norm_1d(channels):
    norm = nn.BatchNorm1d(channels)
    norm.running_mean.normal_(0, 0.5)
    norm.running_var.uniform_(0.3, 2)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    return norm


def fused(converted, layer):
    return [row["fused"] for row in converted.receipt.rows if row["layer"] == layer]


def test_an_error_of_an_op_raises():
    model = Net(lambda m, x: m.second(m.between(m.first(m.input(x)).relu())), input=activation(), first=Conv(3, 4, 3), between=activation(0, 4), second=Conv(4, 2, 1))
    converted = convert(model, torch.randn(2, 3, 8, 8))
    with pytest.raises(RuntimeError, match="quantized_conv: "):
        converted(torch.randn(2, 5, 8, 8))


def test_batch_norm_of_a_sequence_is_not_folded_into_a_linear_layer():
    model = Net(lambda m, x: m.norm(m.linear(m.input(x))), input=activation(), linear=Linear(6, 8), norm=norm_1d(8))
    converted = convert(model, torch.randn(4, 8, 6))
    assert fused(converted, "linear") == [[]]
    assert [row["precision"] for row in converted.receipt.rows if row["layer"] == "norm"] == ["float"]


def test_batch_norm_of_rows_is_folded_into_every_linear_layer():
    def forward(m, x):
        return m.norm2(m.linear2(m.between(m.norm1(m.linear1(m.input(x))).relu())))

    model = Net(forward, input=activation(), linear1=Linear(6, 8), norm1=norm_1d(8), between=activation(0, 4), linear2=Linear(8, 5), norm2=norm_1d(5))
    converted = convert(model, torch.randn(4, 6))
    assert fused(converted, "linear1") == [["batch_norm", "relu"]] and fused(converted, "linear2") == [["batch_norm"]]


def test_no_quantize_moves_above_a_write():
    def forward(m, x):
        y = m.conv(m.input(x))
        t = y.flatten(1)
        y.relu_()
        return m.linear(m.between(t))

    convert(Net(forward, input=activation(), conv=Conv(3, 4, 3), between=activation(-4, 4), linear=Linear(144, 5)), torch.randn(2, 3, 8, 8))


def test_codes_are_not_shared_across_a_write():
    def forward(m, x):
        y = m.conv(m.input(x))
        t = y.view(y.size(0), -1)
        before = m.linear(m.between(t))
        y.relu_()
        return before + m.linear(m.between(t))

    convert(Net(forward, input=activation(), conv=Conv(3, 4, 3), between=activation(-4, 4), linear=Linear(144, 5)), torch.randn(2, 3, 8, 8))


def test_an_added_vector_that_broadcasts_is_no_residual():
    def forward(m, x, t):
        shift = m.shift(m.linear(m.time(t)))[:, :, None, None]
        return m.last(m.sum(m.conv(m.input(x)) + shift))

    model = Net(
        forward, input=activation(), conv=Conv(3, 4, 3), time=activation(), linear=Linear(6, 4), shift=activation(-4, 4), sum=activation(-6, 6), last=Conv(4, 2, 1)
    )
    converted = convert(model, torch.randn(2, 3, 8, 8), torch.randn(2, 6))
    assert fused(converted, "conv") == [[]] and "add" in op_names(converted)


def test_a_layer_of_one_pixel_takes_in_no_map():
    def forward(m, x):
        x = m.input(x)
        pixel = m.squeezed(F.max_pool2d(m.squeeze(x), 8))
        return m.last(m.sum(m.expand(pixel) + x))

    model = Net(forward, input=activation(), squeeze=Conv(4, 2, 1), squeezed=activation(), expand=Conv(2, 4, 1), sum=activation(-6, 6), last=Conv(4, 2, 1))
    assert fused(convert(model, torch.randn(2, 4, 8, 8)), "expand") == [[]]


def test_a_downsampled_branch_is_a_residual():
    def forward(m, x):
        x = m.input(x)
        return m.last(m.sum(F.relu(m.main(x) + m.shortcut_out(m.shortcut(x)))))

    model = Net(
        forward, input=activation(), main=Conv(4, 8, 3, stride=2, padding=1), shortcut=Conv(4, 8, 1, stride=2), shortcut_out=activation(), sum=activation(0, 6), last=Conv(8, 2, 1)
    )
    assert fused(convert(model, torch.randn(2, 4, 9, 9)), "main") == [["add", "relu"]]


def test_a_residual_of_a_linear_layer_on_sequences():
    def forward(m, x):
        x = m.input(x)
        return m.last(m.sum(m.down(m.between(F.gelu(m.up(x)))) + x))

    model = Net(forward, input=activation(), up=Linear(6, 12), between=activation(), down=Linear(12, 6), sum=activation(-6, 6), last=Linear(6, 2))
    assert fused(convert(model, torch.randn(2, 5, 6)), "down") == [["add"]]


def test_batch_norm_with_parameters_of_the_run_is_left_alone():
    def forward(m, x, gamma):
        y = m.conv(m.input(x))
        return F.batch_norm(y, m.norm.running_mean, m.norm.running_var, gamma, gamma * 2, False, 0.0, 1e-5)

    model = Net(forward, input=activation(), conv=Conv(3, 4, 3), norm=batch_norm(4))
    model.eval()
    x, gamma = torch.randn(2, 3, 8, 8), torch.rand(4) + 0.5
    with torch.no_grad():
        converted = convert_script(torch.jit.trace(model, (x, gamma)))
        torch.testing.assert_close(converted(x, gamma), model(x, gamma), atol=1e-5, rtol=1e-5)
    assert fused(converted, "conv") == [[]]


@pytest.mark.parametrize("zero_point", [20.0, -3.0, 7.4])
def test_zero_points_are_rounded_and_clamped_as_fake_quantize_does(zero_point):
    def narrow():
        return FakeQuant(torch.tensor([0.2]), torch.tensor([zero_point]), quant_min=0, quant_max=15)

    def forward(m, x):
        y = m.first(m.input(x)).relu()
        return m.second(m.curved(torch.tanh(m.between(y)))), m.between(y).flatten(1)

    convert(Net(forward, input=narrow(), first=Conv(3, 4, 3), between=narrow(), curved=narrow(), second=Conv(4, 2, 1)), torch.randn(2, 3, 8, 8))


def test_a_sum_that_the_lowest_weight_code_could_overflow_is_refused():
    depth = 66311  # 255 * 127 times this is just below 2^31, 255 * 128 times it is not
    layer = Linear(depth, 1, bias=False, quant_min=-128, quant_max=127)
    layer.weight_fake_quant.scale.fill_(1.0)
    layer.weight.data.fill_(-128.0)
    model = Net(lambda m, x: m.layer(m.input(x)), input=FakeQuant(torch.ones(1), torch.zeros(1), quant_min=0, quant_max=255), layer=layer)
    with pytest.raises(RuntimeError, match="sums 66311 products, and an int32 sum holds at most 65793"):
        convert(model, torch.full((1, depth), 255.0))


class Quantizes(nn.Module):
    """Uses the library's quantize and dequantize in its own forward, beside a quantized layer."""

    def __init__(self, parameters, axis=None, reads=None):
        super().__init__()
        self.input, self.layer, self.reads = activation(), Linear(6, 6), reads
        self.parameters_of, self.axis = parameters, axis

    def forward(self, x):
        y = self.layer(self.input(x))
        scale, zero_point = self.parameters_of(y)
        codes = ops.quantize(y, scale, zero_point, axis=self.axis, dtype=torch.uint8)
        if self.reads == "pointwise":
            return torch.tanh(ops.dequantize(codes, scale, zero_point, axis=self.axis))
        if self.reads == "codes":
            return ops.dequantize(codes // 2, scale, zero_point, axis=self.axis).flatten(1)
        return ops.dequantize(codes, scale, zero_point, axis=self.axis).flatten(1)


def per_tensor(y):
    return torch.tensor([0.05]), torch.tensor([128.0])


def per_channel(y):
    return torch.rand(6) * 0 + 0.05, torch.full((6,), 128.0)


def of_the_run(y):
    return (y.abs().max() / 100).reshape(1), torch.full((1,), 128.0)


@pytest.mark.parametrize(("parameters", "axis"), [(per_tensor, None), (per_channel, 1), (of_the_run, None)])
@pytest.mark.parametrize("reads", [None, "pointwise", "codes"])
def test_the_users_own_quantize_stays_as_it_is(parameters, axis, reads):
    convert(Quantizes(parameters, axis, reads), torch.randn(3, 6))


def test_codes_may_be_an_input():
    def forward(m, x, codes):
        return m.layer(m.input(x)) + ops.dequantize(codes, m.input.scale, m.input.zero_point)

    model = Net(forward, input=activation(), layer=Linear(6, 6))
    convert(model, torch.randn(3, 6), torch.randint(0, 255, (3, 6), dtype=torch.uint8))


@pytest.mark.parametrize("pool", [nn.MaxPool2d(3, 2, ceil_mode=True), nn.AvgPool2d(3, 2, ceil_mode=True)])
def test_ceil_mode_pools_windows_larger_than_their_input(pool):
    model = Net(lambda m, x: m.conv(m.between(m.pool(m.input(x)))), input=activation(), pool=pool, between=activation(), conv=Conv(3, 4, 1))
    convert(model, torch.randn(2, 3, 2, 2))


@pytest.mark.parametrize("low", [-3.1, 0.0])
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_padding_that_repeats_values_keeps_a_convolution_on_integers(mode, low):
    conv = Conv(3, 4, 3, padding=1, padding_mode=mode)
    converted = convert(Net(lambda m, x: m.conv(m.input(x)), input=activation(low), conv=conv), torch.randn(2, 3, 8, 8))
    assert kernels(converted)["conv"] == "quantized_conv"


def broken(scale, zero_point):
    fake_quant = activation()
    fake_quant.scale.fill_(scale)
    fake_quant.zero_point.fill_(zero_point)
    return fake_quant


@pytest.mark.parametrize(
    ("scale", "zero_point", "message"),
    [(1e-39, 0.0, "the scale of fake-quant 'input' must be"), (0.1, float("nan"), "the zero point of fake-quant 'input' must be finite, got nan")],
)
def test_parameters_that_no_kernel_takes_are_refused(scale, zero_point, message):
    model = Net(lambda m, x: m.layer(m.input(x)), input=activation(), layer=Linear(6, 6))
    script = torch.jit.trace(model.eval(), torch.randn(2, 6))
    model.input.scale.fill_(scale)
    model.input.zero_point.fill_(zero_point)
    with pytest.raises(RuntimeError, match=message):
        convert_script(script)


@pytest.mark.parametrize(("name", "value", "message"), [("scale", 1e-39, "the scale of the weight of 'layer' must be"), ("zero_point", float("nan"), "the zero point of the weight of 'layer' must be finite")])
def test_weight_parameters_that_no_kernel_takes_are_refused(name, value, message):
    model = Net(lambda m, x: m.layer(m.input(x)), input=activation(), layer=Linear(6, 6))
    script = torch.jit.trace(model.eval(), torch.randn(2, 6))
    getattr(model.layer.weight_fake_quant, name)[2] = value
    with pytest.raises(RuntimeError, match=message):
        convert_script(script)


@pytest.mark.parametrize("nested", [False, True])
def test_devices_follow_a_tensor_inside_a_tuple(nested):
    class Pair(nn.Module):
        def __init__(self):
            super().__init__()
            self.input, self.layer = activation(), Linear(6, 6)

        def forward(self, pair):
            x = pair[0][0] if nested else pair[0]
            return self.layer(self.input(x)) + torch.zeros(x.size(0), 1, device=x.device)

    x = torch.randn(3, 6)
    pair = ((x,), x) if nested else (x, x)
    script = torch.jit.trace(Pair().eval(), (pair,))
    converted = convert_script(script)
    assert "prim::device" in [node.kind() for node in converted.script.graph.nodes()]
    assert torch.allclose(converted(pair), script(pair), atol=1e-5)
