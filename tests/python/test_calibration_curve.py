"""calibration_curve: movements computed by hand, and the sentence that follows from them."""

import json

import pytest
import torch
from torch import nn

import torchquant as tq
from torchquant.methods import calibration_curve


def prepared_net(observer="min_max"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    return tq.prepare(model, torch.randn(2, 4), tq.qconfigs.int8_static(observer=observer))


def batch(size, samples=5):
    return torch.linspace(-size, size, samples * 4).view(samples, 4)


def test_movement_is_the_distance_to_the_final_range_over_its_width():
    curve = calibration_curve(prepared_net(), [batch(1), batch(2), batch(4), batch(3)])
    assert curve.movement["activation_fake_quants.input"] == pytest.approx([3 / 8, 2 / 8, 0, 0], abs=0.01)
    assert curve.samples == [5, 10, 15, 20]
    assert curve.batches_needed == 3
    assert curve.sentence == "After 3 batches (15 samples) no range moved by more than 1.0%."


def test_the_end_that_moves_more_counts():
    grown = torch.cat([batch(1), torch.full((1, 4), 3.0)])
    curve = calibration_curve(prepared_net(), [batch(1), grown])
    assert curve.movement["activation_fake_quants.input"] == pytest.approx([2 / 4, 0], abs=0.01)


def test_ranges_that_still_move_ask_for_more():
    curve = calibration_curve(prepared_net(), [batch(1), batch(2), batch(4)])
    assert curve.batches_needed == 3
    worst = max(curve.movement, key=lambda name: curve.movement[name][1])
    assert curve.sentence == (
        f"The ranges still moved by {curve.movement[worst][1]:.1%} with the last of 3 batches ({worst} most), which is more than 1.0%: "
        "give more batches."
    )
    assert calibration_curve(prepared_net(), [batch(1)]).sentence == "One batch shows no convergence; give more batches."


def test_tolerance_decides():
    batches = [batch(4), batch(4.1), batch(4.1)]
    assert calibration_curve(prepared_net(), batches, tolerance=0.05).batches_needed == 1
    assert calibration_curve(prepared_net(), batches, tolerance=0.005).batches_needed == 2


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "percentile", "mse", "entropy"])
def test_the_last_range_is_that_of_calibrate(observer):
    torch.manual_seed(1)
    batches = [torch.randn(16, 4) for _ in range(3)]
    prepared = prepared_net(observer)
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    curve = calibration_curve(prepared, batches)
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert all(values[-1] == 0 for values in curve.movement.values())
    tq.calibrate(prepared, batches)
    again = calibration_curve(prepared, batches)  # what was seen before is left out
    assert again.movement == curve.movement


def test_dict_and_drawing(tmp_path):
    curve = calibration_curve(prepared_net(), [batch(1), batch(2), batch(2)])
    values = json.loads(json.dumps(curve.to_dict()))
    assert values["batches_needed"] == 2 and values["worst"][-1] == 0
    curve.plot(tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_wrong_arguments():
    with pytest.raises(TypeError, match="calibration_curve: expected a model that torchquant.prepare returned, got Linear"):
        calibration_curve(nn.Linear(2, 2), [batch(1)])
    with pytest.raises(ValueError, match="calibration_curve: tolerance must be between 0 and 1, .* got 5"):
        calibration_curve(prepared_net(), [batch(1)], tolerance=5)
    with pytest.raises(ValueError, match="calibration_curve: batches is empty"):
        calibration_curve(prepared_net(), [])
    with pytest.raises(RuntimeError, match="calibration_curve: the model does not run on batch 1"):
        calibration_curve(prepared_net(), [batch(1), torch.randn(2, 3)])
    with pytest.raises(ValueError, match="no activation of this model has a range to calibrate"):
        calibration_curve(tq.prepare(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), tq.qconfigs.int8_dynamic()), [batch(1)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused(bad):
    x = torch.randn(4, 3)
    prepared = tq.prepare(nn.Sequential(nn.Linear(3, 2)), x, tq.qconfigs.int8_static())
    with pytest.raises(ValueError, match="calibration_curve: .* met infinite or NaN values"):
        tq.methods.calibration_curve(prepared, [x, x * bad])
