"""Layers that stay float: what a QConfig asks for and cannot have is an error, everything else says why in the receipt."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq

STATIC, DYNAMIC, WEIGHT_ONLY = tq.qconfigs.int8_static(), tq.qconfigs.int8_dynamic(), tq.qconfigs.int8_weight_only()
INT4 = tq.qconfigs.int4_weight_only(group_size=4)


def prepared(model, x, qconfig):
    result = tq.prepare(model.eval(), x, qconfig)
    tq.calibrate(result, [x])
    return result


def rows(quantized):
    return {row["layer"]: row for row in quantized.receipt.rows}


# Matrix products with parameters


class Conv1D(nn.Module):
    """GPT-2's linear layer, whose weight is [inputs, outputs]."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight, self.bias = nn.Parameter(0.2 * torch.randn(inputs, outputs)), nn.Parameter(torch.randn(outputs))

    def forward(self, x):
        y = torch.addmm(self.bias, x.view(-1, x.size(-1)), self.weight)
        return y.view(*x.shape[:-1], y.size(-1))


class Products(nn.Module):
    def __init__(self, traceable):
        super().__init__()
        self.traceable = traceable
        self.up, self.down = Conv1D(8, 16), Conv1D(16, 8)
        self.weight, self.bias, self.last = (nn.Parameter(0.3 * torch.randn(shape)) for shape in ((8, 8), (8,), (8, 4)))

    def forward(self, x):
        if not self.traceable and x.sum() > 1e9:
            return x
        x = self.down(F.gelu(self.up(x)))
        x = torch.relu(torch.matmul(x, self.weight) + self.bias)
        return x @ self.last


@pytest.mark.parametrize("traceable", [True, False])
@pytest.mark.parametrize(
    ("qconfig", "kernel", "tolerance"),
    [
        pytest.param(STATIC, "quantized_linear/", 0.05, id="static"),
        pytest.param(DYNAMIC, "quantized_linear_dynamic/", 0.05, id="dynamic"),
        pytest.param(WEIGHT_ONLY, "quantized_linear_weight_only/", 0.05, id="weight only"),
        pytest.param(INT4, "quantized_linear_weight_only/", 0.3, id="int4 groups"),
    ],
)
def test_products_with_a_matrix_of_parameters_are_linear_layers(qconfig, kernel, tolerance, traceable):
    model, x = Products(traceable), torch.randn(2, 5, 8)
    quantized = tq.convert(prepared(model, x, qconfig), x)
    assert {name for name, row in rows(quantized).items() if row["kind"] == "linear"} == {"up", "down", "weight", "last"}
    assert all(row["kernel"].startswith(kernel) for row in quantized.receipt.rows if row["kind"] == "linear")
    with torch.no_grad():
        assert (quantized(x) - model(x)).norm() < tolerance * model(x).norm()


def test_groups_of_a_matrix_run_along_its_inputs():
    with pytest.raises(ValueError, match="up.weight: group_size=3 does not divide its number of inputs, 8"):
        tq.prepare(Products(True), torch.randn(2, 5, 8), tq.qconfigs.int4_weight_only(group_size=3))


class ActivationsOnly(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(8, 8)

    def forward(self, x):
        y = self.fc(x)
        return y @ y.transpose(1, 2)


@pytest.mark.parametrize("qconfig", [STATIC, DYNAMIC, WEIGHT_ONLY])
def test_products_of_activations_stay_float_by_design(qconfig):
    x = torch.randn(2, 5, 8)
    reason = rows(tq.convert(prepared(ActivationsOnly(), x, qconfig), x))["matmul"]["reason"]
    assert reason == 'float by design: QConfigMapping.set_object_type("matmul", ...) quantizes products of two activations'


# Asked for and impossible


class Behind(nn.Module):
    """A layer behind one that can be quantized."""

    def __init__(self, layer, first=8):
        super().__init__()
        self.fc, self.layer = nn.Linear(first, first), layer

    def forward(self, x):
        y = self.layer(self.fc(x))
        return y[0] if isinstance(y, tuple) else y


class Standardized(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias)


class HalfAWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 8))

    def forward(self, x):
        return F.linear(x, self.weight.split(4)[0])


class BatchedProduct(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 8, 4))

    def forward(self, x):
        return torch.bmm(x, self.weight)


class TwoInputs(nn.Bilinear):
    def __init__(self):
        super().__init__(8, 8, 3)

    def forward(self, x):
        return super().forward(x, x)


class MyLSTM(nn.LSTM):
    def forward(self, x):
        return super().forward(x)[0]


CASES = [
    pytest.param(lambda: nn.Conv3d(2, 3, 1), (1, 2, 4, 4, 8), "there is no integer kernel for Conv3d", [STATIC], id="conv3d"),
    pytest.param(lambda: nn.LSTMCell(8, 6), (2, 8), "there is no integer kernel for LSTMCell", [STATIC, DYNAMIC, WEIGHT_ONLY], id="cell"),
    pytest.param(lambda: nn.RNN(8, 6), (2, 3, 8), "there is no integer kernel for RNN", [STATIC, DYNAMIC], id="rnn"),
    pytest.param(TwoInputs, (2, 8), "there is no integer kernel for TwoInputs", [STATIC, DYNAMIC], id="bilinear"),
    pytest.param(lambda: Standardized(2, 3, 1), (1, 2, 4, 8), "the weight of this conv2d is not a parameter itself", [STATIC], id="standardized"),
    pytest.param(HalfAWeight, (2, 8), "the weight of this linear is not a parameter itself", [STATIC, DYNAMIC], id="split"),
    pytest.param(BatchedProduct, (2, 3, 8), "bmm with this parameter has no integer kernel", [STATIC, WEIGHT_ONLY], id="bmm"),
    pytest.param(lambda: MyLSTM(8, 6), (2, 3, 8), "MyLSTM has a forward of its own", [STATIC, DYNAMIC], id="subclass"),
]


@pytest.mark.parametrize(("make", "shape", "reason", "qconfigs"), CASES)
def test_what_was_asked_for_and_stays_float_is_an_error_with_its_reason(make, shape, reason, qconfigs):
    x = torch.randn(shape)
    for qconfig in qconfigs:
        model = prepared(Behind(make()), x, qconfig)
        with pytest.raises(RuntimeError, match=rf"convert: 1 layer cannot run on integers:\n  layer \(\w+\): {reason}"):
            tq.convert(model, x, fixed_shapes=True)
        allowed = tq.convert(model, x, on_fallback="allow", fixed_shapes=True)
        assert rows(allowed)["layer"]["reason"].startswith(reason) and rows(allowed)["layer"]["precision"] == "float"


@pytest.mark.parametrize(("make", "shape", "reason", "qconfigs"), CASES)
def test_a_qconfig_of_none_silences_it(make, shape, reason, qconfigs):
    x = torch.randn(shape)
    qconfig = tq.QConfigMapping(qconfigs[0]).set_module_name("layer", None)
    quantized = tq.convert(prepared(Behind(make()), x, qconfig), x, fixed_shapes=True)
    assert rows(quantized)["layer"]["reason"] == "the QConfig keeps it float"


def test_an_embedding_bag_is_asked_for_too():
    bag = nn.Sequential(nn.EmbeddingBag(10, 8), nn.Linear(8, 2))
    tokens = torch.randint(10, (2, 3))
    with pytest.raises(RuntimeError, match="0 .embedding_bag.: there is no integer kernel for EmbeddingBag"):
        tq.convert(prepared(bag, tokens, WEIGHT_ONLY), tokens)


def test_the_command_line_and_cpp_see_it_in_the_traced_file(tmp_path):
    x = torch.randn(2, 3, 8)
    tq.trace(prepared(Behind(nn.RNN(8, 6)), x, STATIC), x, fixed_shapes=True).save(str(tmp_path / "prepared.pt"))
    from torchquant.convert import convert_script

    with pytest.raises(RuntimeError, match="layer .rnn.: there is no integer kernel for RNN"):
        convert_script(torch.jit.load(str(tmp_path / "prepared.pt")))


# Not asked for


@pytest.mark.parametrize("qconfig", [DYNAMIC, WEIGHT_ONLY])
def test_a_qconfig_for_linear_layers_does_not_ask_for_convolutions(qconfig):
    model, x = nn.Sequential(nn.Conv2d(2, 3, 1), nn.Flatten(), nn.Linear(48, 2)), torch.randn(1, 2, 4, 4)
    row = rows(tq.convert(prepared(model, x, qconfig), x))["0"]
    assert row["precision"] == "float" and "QConfig quantizes linear and recurrent layers and embeddings, no conv2d" in row["reason"]


@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_kept_float_have_a_row(cls):
    x = torch.randn(2, 3, 8)
    qconfig = tq.QConfigMapping(STATIC).set_module_type(cls, None)
    row = rows(tq.convert(prepared(Behind(cls(8, 6)), x, qconfig), x))["layer"]
    assert row["precision"] == "float" and row["reason"] == "the QConfig keeps it float" and cls.__name__.lower() in row["kind"]


def test_weights_computed_from_the_input_are_no_layers():
    class Hyper(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, x):
            return F.linear(x, self.fc(x))

    x = torch.randn(2, 8)
    tq.convert(prepared(Hyper(), x, STATIC), x, fixed_shapes=True)
