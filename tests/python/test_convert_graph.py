"""The converter on graphs written by hand to the graph contract: fake-quants on weights and activations, and nothing else of prepare."""

import pytest
import torch
import torch.nn.functional as F
from support.handwritten import Conv, Linear, activation, batch_norm, convert, kernels, op_names, rows, weight
from torch import nn

import torchquant
from torchquant import _C
from torchquant.quantized_model import QuantizedModel
from torchquant.receipt import Receipt


class Block(nn.Module):
    def __init__(self, residual_first, groups, quant_max):
        super().__init__()
        self.conv1, self.norm1, self.between = Conv(4, 4, 3, padding=1, bias=False, quant_max=quant_max), batch_norm(4), activation(0, 3.17)
        self.conv2, self.norm2, self.after = Conv(4, 4, 3, padding=1, groups=groups, quant_max=quant_max), batch_norm(4), activation(0, 4.11)
        self.relu = nn.ReLU(inplace=True)
        self.residual_first = residual_first

    def forward(self, x):
        y = self.norm2(self.conv2(self.between(self.relu(self.norm1(self.conv1(x))))))
        y = x + y if self.residual_first else y.add_(x)
        return self.after(self.relu(y))


class ResNet(nn.Module):
    def __init__(self, quant_max):
        super().__init__()
        self.input = activation()
        self.blocks = nn.Sequential(Block(False, 1, quant_max), Block(True, 4, quant_max))
        self.pool, self.pooled, self.dropout = nn.MaxPool2d(2), activation(0, 3.19), nn.Dropout()
        self.head = Linear(4, 5)

    def forward(self, x):
        x = self.pooled(self.pool(self.blocks(self.input(x))).mean([2, 3]))
        return self.dropout(self.head(x.view(x.size(0), -1))) + torch.zeros(5, device=x.device)


@pytest.mark.parametrize(("quant_max", "precision"), [(127, "int8"), (7, "int4")])
def test_residual_network_runs_on_integers_from_end_to_end(quant_max, precision):
    converted = convert(ResNet(quant_max), torch.randn(2, 4, 8, 8))
    names = op_names(converted)
    assert names.count("quantized_conv") == 4 and names.count("quantize") == 1 and "dequantize" not in names
    assert not {"batch_norm", "relu", "relu_", "convolution", "add_"} & set(names)
    first, second = converted.receipt.rows[:2]
    assert first["layer"] == "blocks.0.conv1" and first["precision"] == precision
    assert first["fused"] == ["batch_norm", "relu"] and second["fused"] == ["batch_norm", "add", "relu"]
    assert second["inputs"] == ["blocks.0.between", "input"] and second["output"] == "blocks.0.after"


def test_float_weights_leave_and_everything_moves_with_the_module():
    model = ResNet(127)
    converted = convert(model, torch.randn(2, 4, 8, 8))
    assert all(value.dtype != torch.float32 or value.numel() <= 5 for value in converted.state_dict().values())
    moved = convert(model, torch.randn(2, 4, 8, 8)).script
    type(moved)._apply(moved, lambda tensor: tensor.to("meta"))  # .to() refuses: the integers are lost there
    assert moved(torch.randn(2, 4, 8, 8, device="meta")).device.type == "meta"


def test_saved_file_computes_the_same(tmp_path):
    x = torch.randn(2, 4, 8, 8)
    converted = convert(ResNet(127), x)
    converted.save(tmp_path / "model.pt")
    assert torch.equal(torchquant.load(tmp_path / "model.pt")(x), converted(x))


class Unusual(nn.Module):
    """What sits between layers: uneven padding, transposed and grouped convolution, resizing, concatenation of two scales,
    a product, a chain of pointwise ops, and outputs in a nested tuple."""

    def __init__(self):
        super().__init__()
        self.input, self.a, self.b, self.c, self.joined = activation(), activation(-1, 3.03), activation(-2.1, 3), activation(-3, 3.3), activation(-3.3, 4)
        self.even = Conv(3, 6, (3, 2), padding="same")
        self.up = nn.ConvTranspose2d(6, 4, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.up_fake_quant = weight(self.up.weight, axis=1)
        self.point, self.last = Conv(6, 4, 1), Conv(8, 4, 3, stride=2)
        self.product, self.square, self.curve, self.mean = activation(-9, 9.2), activation(0, 9.1), activation(0, 9.3), activation(0, 9.4)

    def forward(self, x):
        a = self.a(F.hardswish(self.even(self.input(x))))
        up = self.up
        b = self.b(F.conv_transpose2d(a, self.up_fake_quant(up.weight), up.bias, up.stride, up.padding, up.output_padding, up.groups))
        c = F.interpolate(self.c(self.point(a)), scale_factor=2.0, mode="nearest")
        y = self.product(self.last(self.joined(torch.cat([b, c], 1))))
        y = self.curve(F.softplus(self.square(y * y)) * 0.5)
        return self.mean(F.avg_pool2d(F.pad(y, (1, 1, 1, 1)), 2)).permute(0, 2, 3, 1), (b, y)


def test_what_sits_between_layers_stays_on_integers():
    converted = convert(Unusual(), torch.randn(2, 3, 8, 8))
    names = op_names(converted)
    assert names.count("quantize") == 1
    assert set(kernels(converted).values()) == {"quantized_conv", "quantized_lookup", "cat", "quantized_mul", "quantized_avg_pool"}
    assert kernels(converted)["up"] == "quantized_conv"


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.input, self.hidden = Linear(6, 8), Linear(8, 8, bias=False)

    def forward(self, x):
        return unroll(self.input(rows(x)), self.hidden.weight_fake_quant(self.hidden.weight))


@torch.jit.script
def unroll(inputs, weight):
    hidden = torch.zeros_like(inputs[0])
    outputs = []
    for step in inputs:
        scale, zero_point = torch.ops.torchquant.choose_qparams(
            hidden, axis=-1, group_size=hidden.size(-1), symmetric=True, quant_min=-127, quant_max=127
        )
        rounded = torch.ops.torchquant.fake_quantize(
            hidden, scale, zero_point, axis=-1, group_size=hidden.size(-1), quant_min=-127, quant_max=127
        )
        hidden = torch.tanh(step + torch.nn.functional.linear(rounded, weight))
        outputs.append(hidden)
    return torch.stack(outputs)


def test_dynamic_layers_lower_inside_a_loop():
    converted = convert(Recurrent(), torch.randn(5, 2, 6))
    assert kernels(converted) == {"input": "quantized_linear_dynamic", "hidden": "quantized_linear_dynamic"}
    assert "fake_quantize" not in str(converted.script.graph)


@pytest.mark.parametrize(
    "settings",
    [{}, {"axis": -1, "group_size": 4}, {"axis": 1, "group_size": 8, "quant_min": -8, "quant_max": 7, "symmetric": False}, {"quant_min": 0, "quant_max": 255, "symmetric": False}],
)
def test_weight_only_linear(settings):
    converted = convert(nn.Sequential(Linear(16, 6, **settings), nn.GELU()), torch.randn(3, 5, 16))
    assert kernels(converted) == {"0": "quantized_linear_weight_only"}
    assert converted.receipt.rows[0]["precision"] == ("int4" if settings.get("quant_max") == 7 else "int8")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.table_fake_quant, self.x = weight(self.table.weight), activation()
        self.layer = Linear(6, 6)

    def forward(self, tokens):
        table = self.table_fake_quant(self.table.weight)
        x = self.x(F.embedding(tokens, table))
        x = self.x(self.layer(self.x(self.layer(x))))
        return x @ table.t()


def test_tied_weights_and_reused_modules_are_stored_once():
    converted = convert(Tied(), torch.randint(0, 11, (2, 3)))
    assert kernels(converted) == {
        "table": "quantized_embedding", "layer": "quantized_linear", "layer#2": "quantized_linear", "table#2": "quantized_linear",
    }  # fmt: skip
    assert sorted(name for name in converted.script.state_dict() if name.endswith("_int8")) == ["layer_weight_int8", "table_weight_int8"]


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.in_weight, self.in_bias = nn.Parameter(torch.randn(24, 8) * 0.3), nn.Parameter(torch.randn(24))
        self.in_weight_fake_quant = weight(self.in_weight)
        self.position, self.position_fake_quant = nn.Parameter(torch.randn(1, 5, 8)), activation()
        self.x, self.sum, self.mixed, self.out, self.norm = activation(), activation(-5, 5), activation(-1, 1), Linear(8, 8), nn.LayerNorm(8)

    def forward(self, x):
        x = self.sum(self.x(x) + self.position_fake_quant(self.position))
        pieces = self.in_weight_fake_quant(self.in_weight).chunk(3)
        q, k, v = (F.linear(x, w, b) for w, b in zip(pieces, self.in_bias.chunk(3)))
        return self.norm(self.out(self.mixed(F.scaled_dot_product_attention(q, k, v))) + x)


def test_pieces_of_a_weight_and_stored_activations():
    converted = convert(Attention(), torch.randn(2, 5, 8))
    by_kind = {row["kind"]: row for row in converted.receipt.rows}
    assert by_kind["add"]["kernel"] == f"quantized_add/{_C.selected_isa()}"  # the position embedding broadcasts
    assert [row["layer"] for row in converted.receipt.rows if row["kind"] == "linear"] == ["in_weight", "in_weight#2", "in_weight#3", "out"]
    assert by_kind["norm"]["reason"] == by_kind["matmul"]["reason"] == "float by design"


class GlobalContext(nn.Module):
    """A pooled branch of one pixel, added to the whole map: the add broadcasts, so no kernel may take it as its residual."""

    def __init__(self):
        super().__init__()
        self.x, self.pooled, self.sum, self.branch, self.conv = activation(), activation(), activation(-5, 5), Conv(4, 4, 1), Conv(4, 4, 3)

    def forward(self, x):
        x = self.x(x)
        return self.conv(self.sum(x + self.branch(self.pooled(F.adaptive_avg_pool2d(x, 1)))))


def test_a_broadcast_add_is_no_residual():
    converted = convert(GlobalContext(), torch.randn(2, 4, 6, 6))
    assert [row["fused"] for row in converted.receipt.rows if row["layer"] == "branch"] == [[]]


class Stuck(nn.Module):
    def __init__(self):
        super().__init__()
        self.no_input, self.x = Conv(3, 4, 3), activation()
        self.wrong_axis = nn.Conv2d(4, 4, 3)
        self.wrong_axis_fake_quant = weight(self.wrong_axis.weight, axis=1)

    def forward(self, x):
        return F.conv2d(self.x(self.no_input(x)), self.wrong_axis_fake_quant(self.wrong_axis.weight))


def test_one_error_lists_every_layer_that_cannot_be_lowered():
    with pytest.raises(RuntimeError, match="(?s)2 layers.*no_input .conv2d.: its input carries no fake-quant.*wrong_axis .conv2d.: its weight's scales"):
        convert(Stuck(), torch.randn(2, 3, 8, 8))


def test_allowed_fallbacks_stay_float_with_their_reason():
    converted = convert(Stuck(), torch.randn(2, 3, 8, 8), on_fallback="allow")
    assert [(row["layer"], row["precision"]) for row in converted.receipt.rows] == [("no_input", "float"), ("wrong_axis", "float")]
    assert all(row["reason"] for row in converted.receipt.rows)


def test_a_model_with_nothing_to_quantize_is_refused():
    with pytest.raises(RuntimeError, match="nothing to quantize.*Call prepare"):
        convert(nn.Linear(2, 2), torch.randn(1, 2))


def layer_by_layer(model, x):
    """Converted without joining layers."""
    with torch.no_grad():
        module, receipt = _C.convert(torch.jit.trace(model, (x,))._c, "error", islands=False)
    return QuantizedModel(torch.jit._recursive.wrap_cpp_module(module), Receipt.from_json(receipt))


class QueryKeyValue(nn.Module):
    """Query, key and value of one tensor; each has a fake-quant of its own on it, as layers that are prepared one by one do."""

    def __init__(self, key_bias=True, key_range=(-3.1, 3.3), tied=False):
        super().__init__()
        self.inputs = nn.ModuleList([activation(), activation(*key_range), activation()])
        self.query, self.key, self.value = Linear(12, 8), Linear(12, 8, bias=key_bias), Linear(12, 16)
        if tied:
            self.key = self.query

    def forward(self, x):
        q, k, v = (layer(fake_quant(x)) for layer, fake_quant in zip((self.query, self.key, self.value), self.inputs))
        return torch.cat([(q * k).sigmoid(), v.view(v.size(0), -1, 8).transpose(1, 2).flatten(1)], 1)


class DynamicQueryKeyValue(QueryKeyValue):
    def forward(self, x):
        q, k, v = (layer(rows(x)) for layer in (self.query, self.key, self.value))
        return torch.cat([(q * k).sigmoid(), v], 1)


@pytest.mark.parametrize(("model", "op"), [(QueryKeyValue, "quantized_linear"), (DynamicQueryKeyValue, "quantized_linear_dynamic")])
def test_linear_layers_of_one_input_become_one_op(model, op):
    torch.manual_seed(0)
    model, x = model(), torch.randn(5, 12)
    merged, single = convert(model, x), layer_by_layer(model, x)
    assert op_names(merged).count(op) == 1 and op_names(single).count(op) == 3
    assert op_names(merged).count("quantize") <= 1
    assert kernels(merged) == kernels(single) and set(kernels(merged)) >= {"query", "key", "value"}
    assert torch.equal(merged(x), single(x))


@pytest.mark.parametrize(
    ("model", "op", "ops_left"),
    [
        (QueryKeyValue(key_range=(-1, 1)), "quantized_linear", 2),
        (QueryKeyValue(tied=True), "quantized_linear", 3),
        (DynamicQueryKeyValue(key_bias=False), "quantized_linear_dynamic", 2),
    ],
    ids=["other codes", "tied weights", "no bias"],
)
def test_linear_layers_that_differ_stay_apart(model, op, ops_left):
    x = torch.randn(5, 12)
    merged, single = convert(model, x), layer_by_layer(model, x)
    assert op_names(merged).count(op) == ops_left
    assert torch.equal(merged(x), single(x))
