"""calibrate: what it leaves behind, and what it says about batches that it cannot use."""

import time

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant import progress
from torchquant.fake_quantize import FakeQuantize


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.drop, self.b = nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 2)
        self.drop.eval()

    def forward(self, x, offset=None):
        x = x if offset is None else x + offset
        return self.b(self.drop(F.relu(self.a(x))))


def prepared_net(inputs=None, observer="min_max"):
    return tq.prepare(Net(), torch.randn(2, 4) if inputs is None else inputs, tq.qconfigs.int8_static(observer=observer))


def test_calibration_ends_with_observers_off_and_fake_quants_on():
    model = prepared_net()
    x = torch.randn(8, 4)
    before = model(x)
    tq.calibrate(model, [x])
    state = {name: value.clone() for name, value in model.state_dict().items()}
    assert not torch.equal(model(x), before)
    model(100 * x)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, state[name], rtol=0, atol=0, equal_nan=True)


def test_the_scale_is_that_of_all_batches_of_all_calls():
    x = torch.linspace(-1, 1, 8).view(2, 4)
    model = prepared_net(x)
    tq.calibrate(model, [x, 2 * x])
    scale = model.activation_fake_quants.x.scale
    torch.testing.assert_close(scale.flatten(), torch.tensor([4 / 255]))
    tq.calibrate(model, [5 * x])
    torch.testing.assert_close(model.activation_fake_quants.x.scale.flatten(), torch.tensor([10 / 255]))


def test_the_model_runs_in_eval_mode_without_gradients_and_every_module_keeps_its_mode():
    seen = []

    class Watch(nn.Module):
        def forward(self, x):
            seen.append((self.training, torch.is_grad_enabled()))
            return x

    model = nn.Sequential(nn.Linear(4, 4), Watch(), nn.Sequential(nn.Dropout())).train()
    model[2].eval()
    model[0].register_forward_hook(lambda *args: seen.append("called"))
    prepared = tq.prepare(model, torch.randn(2, 4), tq.qconfigs.int8_static())
    mode = {name: module.training for name, module in prepared.named_modules()}
    seen.clear()
    tq.calibrate(prepared, [torch.randn(2, 4)])
    assert {name: module.training for name, module in prepared.named_modules()} == mode
    assert True not in [item[0] for item in seen if item != "called"] and "called" in seen


def test_items_are_tensors_tuples_and_dicts():
    x = torch.randn(2, 4)
    model = prepared_net((x, torch.ones(4)))
    tq.calibrate(model, [(x, torch.ones(4)), {"x": x, "offset": torch.zeros(4)}])
    tq.calibrate(prepared_net(), iter([x, (x,), {"x": x}]))


def test_calibration_runs_before_the_progress_bar_is_due(capsys):
    tq.calibrate(prepared_net(), [torch.randn(2, 4)])
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_the_progress_bar_shows_on_a_terminal_after_a_while(monkeypatch, capsys, terminal):
    monkeypatch.setattr(progress, "SHOW_AFTER_SECONDS", 0.0)
    monkeypatch.setenv("TERM", "xterm")
    if terminal:
        monkeypatch.setenv("FORCE_COLOR", "1")

    def batches():
        yield torch.randn(2, 4)
        deadline = time.monotonic() + 30
        while terminal and progress._display is None and time.monotonic() < deadline:
            time.sleep(0.01)
        yield torch.randn(2, 4)

    tq.calibrate(prepared_net(), batches())
    assert ("calibrating" in capsys.readouterr().err) == terminal


# Errors


def test_only_prepared_models_are_calibrated():
    with pytest.raises(TypeError, match=r"calibrate: expected a model that torchquant\.prepare returned, got Net"):
        tq.calibrate(Net(), [torch.randn(2, 4)])


def test_empty_batches():
    with pytest.raises(ValueError, match="calibrate: batches is empty"):
        tq.calibrate(prepared_net(), [])


@pytest.mark.parametrize(
    ("batch", "error", "message"),
    [
        (
            [torch.randn(2, 4)],
            TypeError,
            "calibrate: batch 1: expected a tensor, a tuple of arguments or a dict of keyword arguments, got list",
        ),
        (torch.randn(2, 5), RuntimeError, "calibrate: the model does not run on batch 1: "),
        ({"y": torch.randn(2, 4)}, RuntimeError, "calibrate: the model does not run on batch 1: "),
        ((torch.randn(2, 4), None, 3), RuntimeError, "batch 1; a tuple is the model's arguments: leave labels out of it: "),
    ],
)
def test_bad_batches_are_named(batch, error, message):
    model = prepared_net().train()
    with pytest.raises(error, match=message):
        tq.calibrate(model, [torch.randn(2, 4), batch])
    assert model.training
    x = torch.randn(2, 4)
    assert not any(module.fake_quant_enabled for module in model.modules() if isinstance(module, FakeQuantize))
    tq.calibrate(model, [x])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nonfinite_values_name_the_layers(value):
    x = torch.randn(2, 4)
    x[0, 0] = value
    model = prepared_net()
    with pytest.raises(ValueError, match=r"calibrate: activation_fake_quants\.x.* met infinite or NaN values"):
        tq.calibrate(model, [x])


def test_layers_that_no_batch_reaches_are_named():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) if x.sum() > 0 else self.b(x)

    model = tq.prepare(nn.Sequential(Branch(), Branch()), torch.ones(2, 4), tq.qconfigs.int8_static(observer="min_max"))
    with pytest.raises(ValueError, match=r"calibrate: no batch reached 0\.a\.input_fake_quant"):
        tq.calibrate(model, [-torch.ones(2, 4)])
    tq.calibrate(model, [torch.ones(2, 4)])


@pytest.mark.parametrize("batches", [torch.randn(3, 4), {"x": torch.randn(2, 4)}, None, "data.pt"])
def test_a_single_batch_is_no_list_of_batches(batches):
    with pytest.raises(TypeError, match=f"calibrate: batches must be an iterable of batches, .* got a {type(batches).__name__}"):
        tq.calibrate(prepared_net(), batches)


@pytest.mark.parametrize(
    ("batches", "error"),
    [([], ValueError), ([torch.randn(2, 4), torch.randn(2, 5)], RuntimeError), ([torch.full((2, 4), torch.nan)], ValueError)],
)
def test_a_failed_call_leaves_a_calibrated_model_calibrated(batches, error):
    x = torch.randn(8, 4)
    model = prepared_net()
    tq.calibrate(model, [x])
    expected = model(x)
    with pytest.raises(error):
        tq.calibrate(model, batches)
    assert torch.equal(model(x), expected)


def test_an_interrupted_source_of_batches_leaves_a_calibrated_model_calibrated():
    def batches():
        yield torch.randn(2, 4)
        raise OSError("the disk is gone")

    x = torch.randn(8, 4)
    model = prepared_net()
    tq.calibrate(model, [x])
    expected = model(x)
    with pytest.raises(OSError, match="the disk is gone"):
        tq.calibrate(model, batches())
    assert torch.equal(model(x), expected)


# What convert makes of it


def test_convert_refuses_what_met_nonfinite_values():
    x = torch.randn(2, 4)
    model = prepared_net(x)
    with pytest.raises(ValueError, match="met infinite or NaN"):
        tq.calibrate(model, [x, torch.full((2, 4), torch.nan)])
    with pytest.raises(ValueError, match=r"convert: activation_fake_quants\.x.* met infinite or NaN values"):
        tq.convert(model, x)
    tq.calibrate(model, [x])
    tq.convert(model, x)


def test_convert_refuses_training_on_nonfinite_values():
    x = torch.randn(2, 4)
    model = tq.prepare_qat(Net(), x, tq.qconfigs.int8_static())
    model(x)
    model(torch.tensor([[1.0, float("inf"), 0.0, 0.0]]))
    with pytest.raises(ValueError, match="convert: .* met infinite or NaN values in calibration or training"):
        tq.convert(model, x)
