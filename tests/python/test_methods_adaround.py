"""adaround: better codes than nearest rounding, the very codes in the converted model, determinism, and what it leaves alone."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant.agreement import layer_agreement
from torchquant.methods import adaround
from torchquant.prepare.quantized_parameter import weight_fake_quants

FAST = {"iterations": 40, "learning_rate": 0.1}


def weights(bits, **changes):
    return tq.QConfig(tq.QuantSpec.weight(bits, **changes), tq.QuantSpec.activation(8))


def calibrated(model, x, qconfig, prepare=tq.prepare):
    prepared = prepare(model, x[:2], qconfig)
    tq.calibrate(prepared, [x])
    return prepared


def report_of(model):
    return model.torchquant_methods[-1]


def correlated(*shape):
    """Inputs whose channels go together, where rounding errors can cancel each other."""
    return torch.randn(shape[0], 1, *shape[2:]) + 0.3 * torch.randn(*shape)


def codes(prepared):
    """Path -> the values of the codes that the weights have now."""
    return {
        fake_quant.name: fake_quant(tq.float_parameter(module, name)).detach().clone()
        for module, name, fake_quant in weight_fake_quants(prepared)
    }


class Cnn(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(6, 8, 3, bias=False), nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.up = nn.ConvTranspose2d(8, 6, 2)
        self.head = nn.Linear(6, 4)

    def forward(self, x):
        x = F.relu(self.norm(self.conv(x)))
        x = F.relu(self.up(F.relu(self.depthwise(x))))
        return self.head(x.mean((2, 3)))


@pytest.mark.parametrize("bits,axis", [(8, 0), (8, None), (4, None), (3, 0)])
def test_convert_writes_the_chosen_codes_and_agrees(bits, axis):
    model, x = Cnn().eval(), correlated(24, 6, 8, 8)
    prepared = calibrated(model, x, weights(bits, axis=axis))
    scales = {name: value.clone() for name, value in prepared.state_dict().items() if name.endswith(".scale")}
    nearest = codes(prepared)
    assert adaround(prepared, list(x.split(8)), **FAST) is prepared
    rows = {row["layer"]: row for row in report_of(prepared).rows}
    assert set(rows) == {"conv", "depthwise", "up", "head"}
    assert all(row["error_learned"] <= row["error_nearest"] for row in rows.values())
    assert any(row["moved"] > 0 for row in rows.values())
    chosen = codes(prepared)
    for module, name, fake_quant in weight_fake_quants(prepared):
        path = fake_quant.name
        torch.testing.assert_close(tq.float_parameter(module, name), chosen[path], rtol=1e-6, atol=0)  # on the grid already
        shape = [1] * chosen[path].dim()
        if fake_quant.spec.axis is not None:
            shape[fake_quant.spec.axis] = -1
        assert ((chosen[path] - nearest[path]).abs() / fake_quant.scale.view(shape)).max() < 1.001  # the code below or above
    quantized = tq.convert(prepared, x[:2])
    for name, scale in scales.items():
        assert torch.equal(prepared.state_dict()[name], scale)
    stored = {tuple(q.shape): q for q in quantized.script.state_dict().values() if q.dtype == torch.int8 and q.dim() >= 2}
    if bits == 8:
        fake_quant = prepared.head.weight_fake_quant
        expected = tq.quantize(tq.float_parameter(prepared.head, "weight"), fake_quant.scale, fake_quant.zero_point, axis=axis)
        assert any(torch.equal(q.reshape(-1), expected.reshape(-1)) for q in stored.values() if q.numel() == expected.numel())
    assert all(row.passed for row in layer_agreement(prepared, quantized, x[:2]))
    assert quantized.drift["relative"] < 1e-2


def test_it_beats_nearest_rounding_on_correlated_inputs_and_not_only_on_the_batches_it_saw():
    torch.manual_seed(1)
    model, x, unseen = nn.Linear(32, 16), correlated(512, 32), correlated(512, 32)
    prepared = calibrated(model, x, weights(3))
    nearest = (prepared(unseen) - model(unseen)).square().mean().item()
    adaround(prepared, list(x.split(128)), iterations=200)
    learned = (prepared(unseen) - model(unseen)).square().mean().item()
    assert learned < nearest / 3


def test_rounding_against_every_choice():
    """Six weights, all 64 ways to round them: the learned one is among the best two."""
    torch.manual_seed(5)
    model, x = nn.Linear(6, 1, bias=False), correlated(64, 6)
    prepared = calibrated(model, x, tq.QConfig(tq.QuantSpec.weight(3)))
    scale, weight = prepared.weight_fake_quant.scale, model.weight.detach()
    below = (weight / scale).floor().clamp(-3, 2)
    choices = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 6)
    errors = ((below + choices) * scale @ x.t() - weight @ x.t()).square().mean(1).sort().values
    adaround(prepared, [x], iterations=400)
    learned = ((tq.float_parameter(prepared, "weight").detach() - weight) @ x.t()).square().mean()
    assert learned <= errors[1] * 1.001


def test_the_same_seed_gives_the_same_codes_and_a_second_call_finds_nothing_to_choose():
    model, x = Cnn().eval(), correlated(24, 6, 8, 8)
    results = [adaround(calibrated(model, x, weights(4)), list(x.split(8)), seed=seed, batch_size=4, **FAST) for seed in (3, 3, 4)]
    states = [torch.cat([value.flatten() for value in codes(result).values()]) for result in results]
    assert torch.equal(states[0], states[1]) and not torch.equal(states[0], states[2])
    adaround(results[0], [x], seed=9, **FAST)
    assert all(row["moved"] == 0 for row in report_of(results[0]).rows)
    assert torch.equal(torch.cat([value.flatten() for value in codes(results[0]).values()]), states[0])


def test_random_state_modes_and_flags_are_left_as_they_were():
    model, x = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)), torch.randn(16, 4)
    prepared = calibrated(model, x, weights(4)).train()
    before, flags = torch.get_rng_state(), [m.get_extra_state() for m in prepared.modules() if isinstance(m, tq.FakeQuantize)]
    adaround(prepared, [x], **FAST)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(module.training for module in prepared.modules())
    now = [m.get_extra_state() for m in prepared.modules() if isinstance(m, tq.FakeQuantize)]
    assert all(torch.equal(*pair) for pair in zip(now, flags, strict=True))
    assert all(parameter.grad is None for parameter in prepared.parameters())


@pytest.mark.parametrize(
    "qconfig",
    [
        tq.qconfigs.int4_weight_only(group_size=4),
        tq.qconfigs.int4_weight_only(group_size=4, symmetric=False),
        tq.qconfigs.int8_dynamic(weight_bits=4),
    ],
)
def test_groups_zero_points_and_dynamic_activations(qconfig):
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), correlated(64, 8)
    prepared = tq.prepare(model, x[:2], qconfig)
    tq.calibrate(prepared, [x])
    adaround(prepared, [x], **FAST)
    assert all(row["moved"] > 0 for row in report_of(prepared).rows)
    quantized = tq.convert(prepared, x[:2])
    torch.testing.assert_close(quantized(x), prepared(x), rtol=1e-3, atol=1e-3)


def test_attention_products_and_embeddings():
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(20, 8)
            self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
            self.product = nn.Parameter(torch.randn(8, 6) / 3)

        def forward(self, ids):
            x = self.embedding(ids)
            return self.attention(x, x + 1, x + 1, need_weights=False)[0] @ self.product

    model, ids = Model().eval(), torch.randint(20, (16, 5))
    prepared = calibrated(model, ids, tq.QConfigMapping(weights(4)))
    adaround(prepared, [ids], **FAST)
    assert set(report_of(prepared).changed) == {"attention.in_proj_weight", "attention.out_proj", "product"}
    assert "embedding" in report_of(prepared).left_alone["embedding"]
    tq.convert(prepared, ids[:2])


def test_it_composes_with_the_other_methods_and_training_starts_from_its_codes():
    model, x = Cnn().eval(), correlated(24, 6, 8, 8)
    equalized = tq.methods.cross_layer_equalization(model, x[:2])
    prepared = calibrated(equalized, x, weights(4, axis=None), tq.prepare_qat)
    adaround(prepared, [x], **FAST)
    tq.methods.bias_correction(prepared, [x])
    assert [report.method for report in prepared.torchquant_methods] == ["cross_layer_equalization", "adaround", "bias_correction"]
    chosen = codes(prepared)
    prepared.train()(x)  # one step of training mode observes the weights again
    for path, values in codes(prepared).items():
        torch.testing.assert_close(values, chosen[path], rtol=1e-5, atol=1e-7)
    prepared(x).square().sum().backward()
    tq.convert(prepared.eval(), x[:2])


def test_bad_input_is_refused_and_changes_nothing():
    x = torch.randn(4, 4)
    with pytest.raises(TypeError, match="adaround: expected a model that torchquant.prepare or prepare_qat returned, got Linear"):
        adaround(nn.Linear(4, 4), [x])
    with pytest.raises(ValueError, match="the model is not calibrated, run torchquant.calibrate first"):
        adaround(tq.prepare(nn.Linear(4, 4), x, weights(4)), [x])
    prepared = calibrated(nn.Linear(4, 4), x, weights(4))
    state = copy.deepcopy(prepared.state_dict())
    for arguments, text in (
        ({"iterations": 0}, "adaround: iterations must be a positive integer, got 0"),
        ({"learning_rate": 0.0}, "adaround: learning_rate must be positive"),
        ({"regularization": -1.0}, "adaround: regularization must be 0 or more"),
        ({"beta": (2.0, 20.0)}, "adaround: beta must be two positive numbers, the larger first"),
        ({"warm_start": 1.0}, "adaround: warm_start must be from 0 to below 1"),
        ({"batch_size": 0}, "adaround: batch_size must be a positive integer"),
    ):
        with pytest.raises(ValueError, match=text):
            adaround(prepared, [x], **arguments)
    for batches, error, text in (
        (x, TypeError, "put a single batch into a list"),
        ([], ValueError, "batches is empty"),
        ([torch.randn(2, 3)], RuntimeError, "does not run on batch 0"),
        ([torch.full((1, 4), torch.nan)], ValueError, "infinite or NaN"),
    ):
        with pytest.raises(error, match=text):
            adaround(prepared, batches)
    assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())
