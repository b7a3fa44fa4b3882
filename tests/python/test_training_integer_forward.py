"""training.integer_forward: the steps of a prepared model on the integer kernels, beside the same steps in floats."""

import copy
import warnings

import pytest
import torch
from torch import nn

import torchquant as tq
from torchquant.training import integer_forward

X = torch.randn(16, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(16) % 5


def network():
    """With biases before the ReLUs: where codes cancel to exactly 0, the float product leaves a rounding error, whose sign decides what a
    ReLU's gradient is."""
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, groups=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(16 * 9, 32), nn.ReLU(), nn.Linear(32, 5, bias=False),
    )  # fmt: skip


def prepared_pair(qconfig=None):
    floats = tq.prepare_qat(network(), (X,), qconfig or tq.qconfigs.int8_static())
    integers = copy.deepcopy(floats)
    assert integer_forward(integers) == ["0", "3", "6", "8"]
    return floats, integers


def step(model):
    model.zero_grad()
    loss = nn.functional.cross_entropy(model(X), LABELS)
    loss.backward()
    return loss.detach(), [parameter.grad for parameter in model.parameters()]


class Calls(torch.utils._python_dispatch.TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(function._schema.name)
        return function(*args, **(kwargs or {}))


QCONFIGS = {
    "static": tq.qconfigs.int8_static(),
    "int4 weights": tq.qconfigs.int4_weight_static(),
    "learned": tq.qconfigs.learned(),
    "weights per tensor": tq.QConfig(tq.QuantSpec.weight(8, axis=None), tq.QuantSpec.activation(8)),
}


@pytest.mark.parametrize("name", QCONFIGS)
def test_loss_and_gradients_are_those_of_the_float_products(name):
    floats, integers = prepared_pair(QCONFIGS[name])
    for _ in range(2):  # the second step uses scales that the first one moved
        (loss, gradients), (integer_loss, integer_gradients) = step(floats), step(integers)
        torch.testing.assert_close(integer_loss, loss, rtol=1e-5, atol=1e-6)
        for gradient, expected in zip(integer_gradients, gradients, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_every_product_of_a_step_runs_on_integers_and_none_of_an_evaluation():
    _, integers = prepared_pair()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Calls() as training:
            integers(X)
        with Calls() as evaluation, torch.no_grad():
            integers.eval()(X)
    assert training.names.count("torchquant::quantized_conv") == training.names.count("torchquant::quantized_linear") == 2
    assert not any("quantized" in name for name in evaluation.names)


def test_training_follows_the_same_curve_and_converts():
    losses = []
    for model in prepared_pair():
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
        losses.append([])
        for _ in range(10):
            losses[-1].append(float(step(model)[0]))
            optimizer.step()
    assert losses[0][-1] < losses[0][0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)
    converted = tq.convert(model, (X,))
    assert converted.receipt.summary()["int8"] >= 4


def test_a_shared_fake_quant_that_moved_on_is_not_taken_for_the_old_one():
    """Both parts of a concatenation go through one fake-quant, whose range the second part moves before the first is read."""

    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            a, b = torch.relu(self.a(x)), torch.relu(self.b(x) * 9)
            return self.head(a), torch.cat([a, b], 1)

    torch.manual_seed(0)
    x = torch.randn(8, 4)
    floats = tq.prepare_qat(Shared(), (x,), tq.qconfigs.int8_static())
    integers = copy.deepcopy(floats)
    integer_forward(integers)
    torch.testing.assert_close(integers(x)[0], floats(x)[0], rtol=1e-5, atol=1e-6)


def test_a_layer_that_computes_in_floats_is_named_once():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 3)

        def forward(self, x):
            return self.fc(x)

    x = torch.randn(2, 4)
    prepared = tq.prepare_qat(Scaled(), (x,), tq.qconfigs.int8_static())
    integer_forward(prepared)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        with pytest.warns(UserWarning, match="integer_forward: fc computes in floats: it is not in fp32, or autocast is on"):
            prepared(x)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            prepared(x)


def test_what_it_refuses():
    with pytest.raises(TypeError, match="integer_forward: expected a model that torchquant.prepare_qat returned, got Sequential"):
        integer_forward(network())
    dynamic = tq.prepare_qat(nn.Sequential(nn.Linear(4, 4)), (torch.randn(2, 4),), tq.QConfigMapping(tq.qconfigs.int8_weight_only()))
    with pytest.raises(ValueError, match="integer_forward: no Linear or Conv2d layer .* prepare with qconfigs.int8_static"):
        integer_forward(dynamic)
