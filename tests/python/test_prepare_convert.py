"""Prepared models all the way through the converter: every layer that prepare quantized has its integer kernel."""

import pytest
import torch
import torch.nn.functional as F
from support.handwritten import op_names
from torch import nn

import torchquant as tq
from torchquant.calibrate import named_fake_quants


class Recurrent(nn.Module):
    def __init__(self, cls, bidirectional=True):
        super().__init__()
        self.embedding, self.rnn = nn.Embedding(20, 16), cls(16, 8, 2, batch_first=True, bidirectional=bidirectional)
        self.head = nn.Linear(16 if bidirectional else 8, 3)

    def forward(self, tokens):
        return self.head(self.rnn(self.embedding(tokens))[0][:, -1])


class Encoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)
        self.encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2)

    def forward(self, tokens):
        return self.head(self.encoder(self.embedding(tokens)).mean(1))


class CrossAttention(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(16, 4, batch_first=True), nn.Linear(16, 3)

    def forward(self, x, memory):
        return self.head(self.attention(x, memory, memory, need_weights=False)[0])


class FunctionalUntraceable(nn.Module):
    def __init__(self):
        super().__init__()
        self.q, self.out = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x):
        x = F.relu(F.linear(x, self.q.weight, self.q.bias)) if x.sum() < 1e9 else x
        return self.out(x)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens):
        return self.head(self.embedding(tokens))


class Convolutional(nn.Module):
    """Residual, depthwise, squeeze and excite, concatenation, transposed, table."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.depthwise = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.BatchNorm2d(8),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
        )
        self.gate, self.branch, self.up = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1), nn.ConvTranspose2d(12, 4, 2, stride=2)
        self.elu, self.last = nn.ELU(), nn.Linear(4, 3)

    def forward(self, x):
        x = F.hardswish(self.bn(self.conv(x)))
        x = F.relu(self.depthwise(x) + x)
        x = x * F.hardsigmoid(self.gate(F.adaptive_avg_pool2d(x, 1)))
        x = self.up(F.max_pool2d(torch.cat([x, F.silu(self.branch(x))], 1), 2))
        return self.last(F.dropout(self.elu(x), 0.2, self.training).mean((2, 3)))


class Segmentation(nn.Module):
    """The decoder of a segmentation network: features of two sizes, resized to one, and the result to the image's."""

    def __init__(self):
        super().__init__()
        self.high, self.low, self.context = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.head = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        high = F.relu(self.high(x))
        low = F.relu(self.low(high))
        context = F.relu(self.context(F.adaptive_avg_pool2d(low, 1)))
        context = F.interpolate(context, size=low.shape[-2:], mode="bilinear", align_corners=False)
        up = F.interpolate(torch.cat([low, context], 1), size=high.shape[-2:], mode="bilinear", align_corners=False)
        return F.interpolate(self.head(up), scale_factor=2.0, mode="bilinear")


TOKENS = torch.randint(20, (2, 6))
CASES = [
    pytest.param(lambda: Recurrent(nn.LSTM), TOKENS, id="lstm"),
    pytest.param(lambda: Recurrent(nn.GRU), TOKENS, id="gru"),
    pytest.param(lambda: Recurrent(nn.LSTM, bidirectional=False), TOKENS, id="one-way lstm"),
    pytest.param(lambda: Recurrent(nn.GRU, bidirectional=False), TOKENS, id="one-way gru"),
    pytest.param(Encoder, TOKENS, id="encoder"),
    pytest.param(CrossAttention, (torch.randn(2, 5, 16), torch.randn(2, 7, 16)), id="cross attention"),
    pytest.param(FunctionalUntraceable, torch.randn(3, 16), id="functional"),
    pytest.param(Tied, TOKENS, id="tied"),
]


def assert_converts(model, inputs, qconfig, tolerance):
    prepared = tq.prepare(model.eval(), inputs, qconfig)
    tq.calibrate(prepared, [inputs])
    quantized = tq.convert(prepared, inputs)
    args = inputs if isinstance(inputs, tuple) else (inputs,)
    with torch.no_grad():
        expected = prepared(*args)
        difference = (quantized(*args) - expected).norm() / expected.norm()
    assert difference < tolerance
    weights = [row for row in prepared.torchquant_report.rows if row["role"] == "weight"]
    integer = [row for row in quantized.receipt.rows if row["precision"] == "int8"]
    assert len(integer) >= len(weights)
    return quantized


@pytest.mark.parametrize(("model", "inputs"), CASES)
@pytest.mark.parametrize("qconfig", [tq.qconfigs.int8_static, tq.qconfigs.int8_dynamic, tq.qconfigs.int8_weight_only])
def test_sequence_models(model, inputs, qconfig):
    assert_converts(model(), inputs, qconfig(), tolerance=0.02)


def test_convolutional_model():
    quantized = assert_converts(Convolutional(), torch.randn(2, 3, 8, 8), tq.qconfigs.int8_static(), tolerance=0.05)
    assert [row["layer"] for row in quantized.receipt.rows if row["precision"] == "float"] == []


@pytest.mark.parametrize(("model", "inputs"), [*CASES, pytest.param(Convolutional, torch.randn(2, 3, 8, 8), id="convolutional")])
@pytest.mark.parametrize("qconfig", [tq.qconfigs.int8_static, tq.qconfigs.int8_weight_only])
def test_every_tensor_has_a_fake_quant_or_a_reason_to_be_float(model, inputs, qconfig):
    prepared = tq.prepare(model().eval(), inputs, qconfig())
    rows = prepared.torchquant_report.rows
    assert all(row["reason"] or row["role"] == "weight" for row in rows)
    placed = {prepared.get_submodule(row["fake_quant"]) for row in rows if row["fake_quant"]}  # one may stand at several places
    assert placed == set(named_fake_quants(prepared).values())


class SharedConvolution(nn.Module):
    """One convolution, two batch norms behind it."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn1, self.bn2 = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x):
        return F.relu(self.bn1(self.conv(x))) + F.relu(self.bn2(self.conv(x * 2)))


def test_batch_norms_are_folded_in_the_converted_model_alone_and_never_twice():
    model, x = SharedConvolution().eval(), torch.randn(4, 3, 8, 8)
    for norm, factor in ((model.bn1, 2.0), (model.bn2, -0.5)):
        norm.weight.data.fill_(factor)
        norm.running_mean.data.uniform_(-1, 1)
        norm.running_var.data.uniform_(0.5, 2)
    prepared = tq.prepare(model, x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    state = {name: value.clone() for name, value in prepared.state_dict().items()}
    first, second = tq.convert(prepared, x), tq.convert(prepared, x)
    assert torch.equal(first(x), second(x))  # converting is no step of the prepared model
    assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())
    expected = prepared(x)
    assert (first(x) - expected).norm() < 0.02 * expected.norm()
    folded = {row["layer"]: "batch_norm" in row["fused"] for row in first.receipt.rows if row["kind"] == "conv2d"}
    assert folded == {"conv": True, "conv#2": True}


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small", "squeezenet1_1"])
def test_torchvision_models(name):
    models = pytest.importorskip("torchvision.models")
    quantized = assert_converts(models.get_model(name, weights=None), torch.randn(2, 3, 64, 64), tq.qconfigs.int8_static(), 0.2)
    assert [row["layer"] for row in quantized.receipt.rows if row["precision"] == "float"] == []


class WholeSequence(nn.Module):
    def __init__(self, cls):
        super().__init__()
        self.rnn, self.head = cls(8, 6, batch_first=True), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_a_static_layer_behind_a_whole_sequence(cls):
    assert_converts(WholeSequence(cls), torch.randn(2, 5, 8), tq.qconfigs.int8_static(), tolerance=0.02)


@torch.jit.script
def shifted_copies(x):
    pieces = [x]
    for i in range(x.size(0)):
        pieces.append(x * (0.5 + float(i)))
    return torch.cat(pieces, 2)


class JoinsInALoop(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv1d(3, 4, 1), nn.Conv1d(4, 5, 1)

    def forward(self, x):
        return self.second(shifted_copies(self.first(x)))


def test_a_list_that_a_loop_appends_to_keeps_all_its_elements():
    quantized = assert_converts(JoinsInALoop(), torch.randn(3, 3, 6), tq.qconfigs.int8_static(), tolerance=0.02)
    assert quantized(torch.randn(2, 3, 6)).shape == (2, 5, 18)


def test_segmentation_stays_in_integers_between_its_layers():
    inputs = torch.randn(2, 3, 9, 12)
    quantized = assert_converts(Segmentation(), inputs, tq.qconfigs.int8_static(), tolerance=0.02)
    names = op_names(quantized)
    assert names.count("quantized_resize_linear") == 2
    assert names.count("upsample_bilinear2d") == 1  # of the logits, which are floats
    assert names.count("quantize") == 1 and "dequantize" not in names
    other = torch.randn(1, 3, 6, 5)
    assert quantized(other).shape == (1, 5, 12, 10)  # sizes are the input's, not the example's
