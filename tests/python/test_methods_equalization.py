"""cross_layer_equalization: which layers it pairs, that it changes no result, and what it says about the rest."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant.methods import cross_layer_equalization


def randomize(model):
    """Batch norms with statistics and weights of their own, of either sign; channels of very different size."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.Conv1d, nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.weight.data *= 10 ** torch.empty(module.weight.size(0)).uniform_(-1, 1, generator=generator).view(
                -1, *[1] * (module.weight.dim() - 1)
            )
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor, low, high in (
                (module.running_mean, -1, 1), (module.running_var, 0.1, 3), (module.weight.data, -2, 2), (module.bias.data, -1, 1)
            ):  # fmt: skip
                tensor.uniform_(low, high, generator=generator)
    return model.eval()


def report_of(model):
    return model.torchquant_methods[-1]


def assert_same_function(model, equalized, x):
    torch.testing.assert_close(equalized(x), model(x), rtol=1e-4, atol=1e-4 * model(x).abs().max().item())


class Mobile(nn.Sequential):
    def __init__(self):
        super().__init__(
            nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU(inplace=True),
            nn.Conv2d(8, 12, 1), nn.LeakyReLU(0.2), nn.MaxPool2d(2),
            nn.Conv2d(12, 12, 1, groups=3), nn.Dropout(),
            nn.ConvTranspose2d(12, 6, 2, groups=2), nn.PReLU(6),
            nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2, bias=False),
        )  # fmt: skip


def test_a_chain_of_all_kinds_of_layers_keeps_its_function_and_gets_like_ranges():
    model, x = randomize(Mobile()), torch.randn(2, 3, 12, 12)
    state = copy.deepcopy(model.state_dict())
    equalized = cross_layer_equalization(model, x)
    assert_same_function(model, equalized, torch.randn(3, 3, 12, 12))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    rows = {row["layer"]: row for row in report_of(equalized).rows}
    assert {name: row["with_layer"] for name, row in rows.items()} == {
        "0": "3", "3": "6", "6": "9", "9": "11", "11": "15", "15": "17", "17": None}  # fmt: skip
    first, last = equalized[15].weight, equalized[17].weight
    torch.testing.assert_close(first.abs().amax(1), last.abs().amax(0), rtol=2e-3, atol=0)
    for convolution in (equalized[0], equalized[3]):  # before a batch norm every row has one range
        ranges = convolution.weight.abs().amax((1, 2, 3))
        torch.testing.assert_close(ranges, ranges.max().expand_as(ranges))


def test_factors_are_those_of_the_paper():
    model = nn.Sequential(nn.Linear(1, 2), nn.ReLU(), nn.Linear(2, 1))
    model[0].weight.data, model[0].bias.data = torch.tensor([[8.0], [1.0]]), torch.tensor([4.0, 3.0])
    model[2].weight.data = torch.tensor([[2.0, 9.0]])
    equalized = cross_layer_equalization(model, torch.randn(2, 1))
    # r1 = 8, 1 and r2 = 2, 9: both become 4, 3; s = 8/4, 1/3
    torch.testing.assert_close(equalized[0].weight.detach(), torch.tensor([[4.0], [3.0]]))
    torch.testing.assert_close(equalized[0].bias.detach(), torch.tensor([2.0, 9.0]))
    torch.testing.assert_close(equalized[2].weight.detach(), torch.tensor([[4.0, 3.0]]))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.tied = nn.Conv2d(4, 4, 1)

    def forward(self, x):
        x = self.a(x)
        x = x + self.b(F.relu(x))
        x = self.d(F.relu6(self.c(x)))
        return self.tied(F.relu(self.tied(torch.sigmoid(x))))


def test_what_is_left_alone_says_why():
    model, x = randomize(Branches()), torch.randn(1, 4, 3, 3)
    equalized = cross_layer_equalization(model, x)
    assert report_of(equalized).changed == []
    reasons = report_of(equalized).left_alone
    assert "read more than once, by relu, add" in reasons["a"]
    assert "add comes next" in reasons["b"]
    assert "hardtanh comes next" in reasons["c"] or "relu6 comes next" in reasons["c"]
    assert "sigmoid comes next" in reasons["d"]
    assert "used more than once" in reasons["tied"]
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in equalized.state_dict().items())
    assert "changed 0 of" in str(report_of(equalized))


def test_dead_channels_stay_as_they_are():
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2))
    model[0].weight.data[1], model[2].weight.data[:, 2] = 0, 0
    x = torch.randn(4, 3)
    equalized = cross_layer_equalization(model, x)
    assert_same_function(model, equalized, x)
    assert equalized[2].weight.isfinite().all()
    assert torch.equal(equalized[0].weight[1:], model[0].weight[1:])


def test_functional_layers_and_torchvision_networks():
    torchvision = pytest.importorskip("torchvision")
    model, x = randomize(torchvision.models.mobilenet_v2()), torch.randn(1, 3, 64, 64)
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU6):
                setattr(module, name, nn.ReLU())
    equalized = cross_layer_equalization(model, x)
    assert_same_function(model, equalized, x)
    paired = [row for row in report_of(equalized).rows if row["with_layer"]]
    # 33 inside the 17 blocks, the stem, the head, and the two bottlenecks that no residual reads
    assert len(paired) == 37


def test_it_takes_back_what_a_rescaling_cost_and_composes_with_prepare_convert_and_training():
    torch.manual_seed(2)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()
    x, factors = torch.randn(32, 3, 8, 8), 10 ** torch.linspace(-1, 1, 8)
    rescaled = copy.deepcopy(model)
    for tensor, factor in ((rescaled[0].weight, factors), (rescaled[0].bias, factors), (rescaled[2].weight, 1 / factors)):
        tensor.data *= factor.view(-1, *[1] * (tensor.dim() - 1))
    equalized = cross_layer_equalization(rescaled, x[:2])
    qconfig = tq.QConfig(tq.QuantSpec.weight(4, axis=None), tq.QuantSpec.activation(8))
    cost = [(tq.quantize_model(m, x[:2], qconfig, [x])(x) - model(x)).square().mean().item() for m in (model, rescaled, equalized)]
    assert cost[2] < 1.2 * cost[0] < cost[1] / 2
    trained = tq.prepare_qat(equalized, x[:2], tq.qconfigs.int8_static())
    trained(x).sum().backward()
    assert trained.torchquant_methods[-1].method == "cross_layer_equalization"


def test_bad_models_are_refused():
    with pytest.raises(TypeError, match="cross_layer_equalization: model must be a float torch.nn.Module, got str"):
        cross_layer_equalization("model", torch.ones(1))
    prepared = tq.prepare(nn.Linear(2, 2), torch.randn(1, 2), tq.qconfigs.int8_static())
    with pytest.raises(TypeError, match="the model itself is prepared already; call cross_layer_equalization before prepare"):
        cross_layer_equalization(prepared, torch.randn(1, 2))
    with pytest.raises(RuntimeError, match="cross_layer_equalization: the model does not run on example_inputs"):
        cross_layer_equalization(nn.Linear(2, 2), torch.randn(1, 3))
