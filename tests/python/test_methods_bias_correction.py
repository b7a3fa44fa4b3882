"""bias_correction: the means that it restores, where it finds a bias or makes one, and what it says about the rest."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant.methods import bias_correction

COARSE = tq.QConfig(tq.QuantSpec.weight(3, axis=None), tq.QuantSpec.activation(8))


def calibrated(model, x, qconfig=COARSE, prepare=tq.prepare):
    prepared = prepare(model, x[:2], qconfig)
    tq.calibrate(prepared, [x])
    return prepared


def report_of(model):
    return model.torchquant_methods[-1]


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2, bias=False)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.up(F.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


def test_every_layer_keeps_its_float_mean_in_the_quantized_model():
    model, x = Cnn().eval(), torch.rand(64, 3, 8, 8)
    prepared = calibrated(model, x)
    assert bias_correction(prepared, list(x.split(16))) is prepared
    for name in ("conv", "depthwise", "up", "head"):
        outputs = {}
        for which, m in (("float", model), ("quantized", prepared)):
            handle = getattr(m, name).register_forward_hook(lambda module, args, output, which=which: outputs.update({which: output}))
            m(x)
            handle.remove()
        dims = (0,) if name == "head" else (0, 2, 3)
        torch.testing.assert_close(outputs["quantized"].mean(dims), outputs["float"].mean(dims), rtol=1e-4, atol=1e-5)
    rows = {row["layer"]: row for row in report_of(prepared).rows}
    assert {name: row["new_bias"] for name, row in rows.items()} == {"conv": True, "depthwise": False, "up": True, "head": False}


def test_the_correction_is_the_one_computed_by_hand():
    model = nn.Linear(2, 1)
    model.weight.data, model.bias.data = torch.tensor([[1.0, 0.4]]), torch.tensor([0.5])
    x = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
    prepared = calibrated(model, x, tq.QConfig(tq.QuantSpec.weight(2)))  # codes -1, 0, 1: the weight becomes 1, 0
    bias_correction(prepared, [x])
    torch.testing.assert_close(prepared.bias.detach(), torch.tensor([0.9]))


def test_the_output_of_the_converted_model_is_nearer_and_training_goes_on():
    model, x = Cnn().eval(), torch.rand(64, 3, 8, 8)
    plain, corrected = calibrated(model, x), bias_correction(calibrated(model, x), [x])
    errors = [(tq.convert(m, x[:2])(x) - model(x)).square().mean().item() for m in (plain, corrected)]
    assert errors[1] < errors[0] / 2
    trained = bias_correction(calibrated(model, x, tq.qconfigs.int8_static(), tq.prepare_qat), [x])
    before = trained.head.bias.detach().clone()
    trained.train()
    optimizer = torch.optim.SGD(trained.parameters(), 0.1)
    trained(x).square().sum().backward()
    optimizer.step()
    assert trained.conv.bias.grad is not None and not torch.equal(trained.head.bias, before)
    tq.convert(trained.eval(), x[:2])


def test_state_is_left_as_it_was():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)), torch.randn(16, 4)
    for prepare in (tq.prepare, tq.prepare_qat):
        prepared = calibrated(model, x, prepare=prepare).train()
        state = copy.deepcopy(prepared.state_dict())
        bias_correction(prepared, [x])
        assert all(module.training for module in prepared.modules())
        for name, value in prepared.state_dict().items():
            assert torch.equal(value, state[name]) or name.endswith(".bias")


def test_attention_and_encoder_layers():
    model, x = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval(), torch.randn(8, 5, 8)
    prepared = bias_correction(calibrated(model, x), [x])
    assert sorted(report_of(prepared).changed) == ["linear1", "linear2", "self_attn.in_proj_weight", "self_attn.out_proj"]
    tq.convert(prepared, x[:2])


def test_cross_attention_corrects_each_part_of_its_bias():
    class Cross(nn.Module):
        def __init__(self):
            super().__init__()
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x, memory):
            return self.attention(x, memory, memory, need_weights=False)[0]

    model, inputs = Cross().eval(), (torch.randn(8, 5, 8), torch.rand(8, 6, 8))
    prepared = tq.prepare(model, inputs, COARSE)
    tq.calibrate(prepared, [inputs])
    bias_correction(prepared, [inputs])
    assert report_of(prepared).changed == ["attention.in_proj_weight", "attention.in_proj_weight[8:]", "attention.out_proj"]
    moved = prepared.attention.in_proj_bias - model.attention.in_proj_bias
    assert (moved != 0).all()


class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(5, 4)
        self.weight = nn.Parameter(torch.randn(3, 4))
        self.unused = nn.Linear(4, 4)

    def forward(self, ids):
        return F.linear(self.embedding(ids), self.weight)


def test_what_has_no_place_for_a_bias_says_so():
    model, ids = Functional().eval(), torch.randint(5, (4, 6))
    prepared = bias_correction(calibrated(model, ids), [ids])
    reasons = report_of(prepared).left_alone
    assert "functional call without bias" in reasons["weight"]
    assert "embedding" in reasons["embedding"]


def test_bad_input_is_refused_and_changes_nothing():
    x = torch.randn(4, 4)
    with pytest.raises(TypeError, match="expected a model that torchquant.prepare or prepare_qat returned, got Linear"):
        bias_correction(nn.Linear(4, 4), [x])
    with pytest.raises(ValueError, match="bias_correction: the model is not calibrated, run torchquant.calibrate first"):
        bias_correction(tq.prepare(nn.Linear(4, 4), x, COARSE), [x])
    prepared = calibrated(nn.Linear(4, 4), x)
    state = copy.deepcopy(prepared.state_dict())
    for batches, error, text in (
        (x, TypeError, "put a single batch into a list"),
        ([], ValueError, "batches is empty"),
        ([x, torch.randn(2, 3)], RuntimeError, "does not run on batch 1"),
        ([torch.full((1, 4), torch.nan)], ValueError, "infinite or NaN"),
    ):
        with pytest.raises(error, match=text):
            bias_correction(prepared, batches)
    assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())
    assert all(fake_quant.fake_quant_enabled for fake_quant in prepared.modules() if isinstance(fake_quant, tq.FakeQuantize))


@pytest.mark.parametrize("method", [tq.methods.bias_correction, tq.methods.adaround])
def test_a_model_that_ran_but_was_not_calibrated_is_refused(method):
    x = torch.randn(4, 3)
    prepared = tq.prepare(nn.Sequential(nn.Linear(3, 2)), x, tq.qconfigs.int8_static())
    prepared(x)
    before = copy.deepcopy(prepared.state_dict())
    with pytest.raises(ValueError, match=f"{method.__name__}: the model is not calibrated, run torchquant.calibrate first"):
        method(prepared, [x])
    assert all(torch.equal(value, before[name]) for name, value in prepared.state_dict().items())
