"""choose_observers: the choice that the measurements say, the groups that share a range, and what stays of the QConfig."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant.methods import choose_observers


def chain():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()


BATCHES = [torch.linspace(-1, 1, 80).view(10, 8), torch.linspace(-0.5, 0.8, 80).view(10, 8)]
STATIC = tq.qconfigs.int8_static()


def observers_of(model, mapping):
    resolved = mapping.resolve(model)
    return {path: resolved[path].activation.observer for path, module in model.named_modules() if isinstance(module, nn.Linear)}


def measured_sqnr(model, layer, observer, batches, qconfig=STATIC):
    """By hand: the layer alone, its float input quantized with the range that calibrating with this observer finds."""
    prepared = tq.prepare(model, batches[0], tq.QConfigMapping(tq.QConfig(qconfig.weight, replace(qconfig.activation, observer=observer))))
    tq.calibrate(prepared, batches)
    fake_quant = prepared.activation_fake_quants.input if layer == "0" else prepared.activation_fake_quants.value_1
    signal = noise = 0.0
    with torch.no_grad():
        for x in batches:
            x = x if layer == "0" else F.relu(model[0](x))
            expected = model.get_submodule(layer)(x).double()
            noise += (model.get_submodule(layer)(fake_quant(x)) - expected).square().sum().item()
            signal += expected.square().sum().item()
    return 10 * torch.tensor(signal / noise).log10().item()


@pytest.mark.parametrize("bits", [8, 4])
def test_the_sqnr_is_that_of_each_layer_by_hand_and_the_best_is_chosen(bits):
    model, qconfig = chain(), tq.qconfigs.int8_static(activation_bits=bits)
    candidates = ("min_max", "moving_average", "percentile", "mse", "entropy")
    report = choose_observers(model, BATCHES[0], BATCHES, qconfig, candidates=candidates).report
    assert [row.layers for row in report.rows] == [["0"], ["2"]]
    for row in report.rows:
        for candidate in candidates:
            assert row.sqnr_db[candidate] == pytest.approx(measured_sqnr(model, row.layers[0], candidate, BATCHES, qconfig), abs=0.02)
        assert row.sqnr_db[row.observer] == max(row.sqnr_db.values())
        assert row.gain_db == pytest.approx(row.sqnr_db[row.observer] - row.sqnr_db["mse"])


def test_a_far_outlier_takes_min_max_out_of_the_race_and_uniform_values_bring_it_back():
    x = torch.rand(64, 8)
    far = x.clone()
    far[0, 0] = 60.0
    model = chain()
    with torch.no_grad():
        model[0].weight[:, 0] *= 1e-3  # what the far value says does not matter
    qconfig = tq.qconfigs.int8_static(activation_bits=4)
    mapping = choose_observers(model, x, [far], qconfig, candidates=("min_max", "percentile", "mse"))
    assert observers_of(model, mapping)["0"] != "min_max"
    assert observers_of(model, choose_observers(model, x, [x], qconfig, candidates=("min_max", "entropy")))["0"] == "min_max"


def test_the_mapping_prepares_and_keeps_the_rest_of_the_qconfig():
    model = chain()
    given = tq.QConfigMapping(tq.qconfigs.int8_static(weight_bits=4, observer="min_max")).set_module_name("2", None)
    mapping = choose_observers(model, BATCHES[0], BATCHES, given, candidates=("percentile",))
    resolved = mapping.resolve(model)
    assert resolved["2"] is None
    assert resolved["0"].weight == tq.QuantSpec.weight(4)
    assert resolved["0"].activation == tq.QuantSpec.activation(observer="percentile")
    assert given == tq.QConfigMapping(tq.qconfigs.int8_static(weight_bits=4, observer="min_max")).set_module_name("2", None)
    prepared = tq.prepare(model, BATCHES[0], mapping)
    assert prepared.activation_fake_quants.input.spec.observer == "percentile"


class Residual(nn.Module):
    """A sum and a concatenation, through which layers share ranges, and a common input."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 1)
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.left, self.right = nn.Conv2d(8, 4, 1), nn.Conv2d(8, 4, 1)
        self.joined, self.head = nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

    def forward(self, x):
        x = F.relu(self.stem(x))
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        x = torch.cat([F.relu(self.left(x)), F.relu(self.right(x))], 1)
        return self.head(F.relu(self.joined(x)).mean((2, 3)))


def test_layers_whose_tensors_share_a_fake_quant_get_one_observer():
    torch.manual_seed(0)
    model, x = Residual().eval(), torch.randn(2, 3, 6, 6)
    mapping = choose_observers(model, x, [x], STATIC)
    assert [set(row.layers) for row in mapping.report.rows] == [{"stem"}, {"a", "left", "right"}, {"b"}, {"joined"}, {"head"}]
    chosen, plain = (tq.prepare(model, x, qconfig) for qconfig in (mapping, STATIC))
    assert list(chosen.activation_fake_quants._modules) == list(plain.activation_fake_quants._modules)
    tq.calibrate(chosen, [x])
    assert "float" not in {row["precision"] for row in tq.convert(chosen, x).receipt.rows}


def test_transformers_too_where_layers_hold_their_own_fake_quants():
    torch.manual_seed(0)
    encoder, x = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval(), torch.randn(2, 5, 16)
    report = choose_observers(encoder, x, [x], STATIC).report
    assert [row.layers for row in report.rows] == [[f"layers.0.{n}"] for n in ("self_attn", "self_attn.out_proj", "linear1", "linear2")]


def test_the_report_is_plain_and_printable_and_the_mapping_can_be_saved(tmp_path):
    mapping = choose_observers(chain(), BATCHES[0], BATCHES, STATIC)
    assert json.loads(json.dumps(mapping.report.to_dict(), allow_nan=False))["rows"][0]["layers"] == ["0"]
    assert "entropy" in str(mapping.report)
    mapping.save(tmp_path / "q.yaml")
    assert tq.QConfigMapping.load(tmp_path / "q.yaml") == mapping


def test_nothing_is_changed():
    model = chain().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    choose_observers(model, BATCHES[0], BATCHES, STATIC)
    assert model.training and type(model[0]) is nn.Linear
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_wrong_arguments_are_refused_before_anything_runs():
    model = chain()
    with pytest.raises(ValueError, match="candidates must be out of min_max, moving_average, .*; got 'median'"):
        choose_observers(model, BATCHES[0], BATCHES, STATIC, candidates=("mse", "median"))
    with pytest.raises(ValueError, match=r"candidates must be several of .*; got 'mse'"):
        choose_observers(model, BATCHES[0], BATCHES, STATIC, candidates="mse")
    with pytest.raises(TypeError, match="batches are read more than once, so they must be a list or a DataLoader, got a list_iterator"):
        choose_observers(model, BATCHES[0], iter(BATCHES), STATIC)
    with pytest.raises(ValueError, match="no layer has a static activation range to choose"):
        choose_observers(model, BATCHES[0], BATCHES, tq.qconfigs.int8_weight_only())
    with pytest.raises(ValueError, match="batches is empty"):
        choose_observers(model, BATCHES[0], [], STATIC)
