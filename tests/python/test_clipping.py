"""clipping_report: shares counted by hand, outlier channels, and the layers that it proposes to keep float."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant.methods import clipping_report


class Net(nn.Module):
    """One layer called as a module, one by function, one behind a pool."""

    def __init__(self):
        super().__init__()
        self.conv, self.pool, self.second = nn.Conv2d(3, 16, 3), nn.MaxPool2d(2), nn.Conv2d(16, 16, 1)
        self.by_function, self.head = nn.Linear(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        x = self.second(self.pool(F.relu(self.conv(x)))).mean((2, 3))
        return self.head(F.relu(F.linear(x, self.by_function.weight)))


X = torch.linspace(-1, 1, 4 * 3 * 36).view(4, 3, 6, 6)


def net(outlier=None):
    torch.manual_seed(0)
    model = Net().eval()
    if outlier:
        with torch.no_grad():
            model.conv.weight[outlier] *= 100
            model.second.weight[:, outlier] /= 100
    return model


def calibrated(model, batches=(X,), observer="min_max", example=X):
    prepared = tq.prepare(model, example, tq.qconfigs.int8_static(observer=observer))
    tq.calibrate(prepared, batches)
    return prepared


def rows_of(prepared, batches, **options):
    return {row.fake_quant.removeprefix("activation_fake_quants."): row for row in clipping_report(prepared, batches, **options).rows}


def test_each_tensor_names_the_layers_that_read_it():
    rows = rows_of(calibrated(net()), [X])
    assert {name: row.layers for name, row in rows.items()} == {
        "x": ["conv"], "relu": ["second"], "mean": ["by_function"], "relu_2": ["head"], "second": [],
    }  # fmt: skip


def test_readers_where_layers_hold_their_own_fake_quants():
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    x = torch.randn(2, 5, 16)
    rows = rows_of(calibrated(encoder, [x], example=x), [x])
    layers = [layer for row in rows.values() for layer in row.layers]
    assert layers == [f"layers.0.{name}" for name in ("self_attn", "self_attn.out_proj", "linear1", "linear2")]


def test_nothing_is_clipped_by_min_max_on_the_calibration_data():
    report = clipping_report(calibrated(net()), [X])
    assert all(row.clipped_rate == 0 and row.clipped_per_channel == [0.0] * len(row.clipped_per_channel) for row in report.rows)
    assert report.flagged == []


def test_shares_per_tensor_and_channel():
    prepared = calibrated(net())
    wider = X.clone()
    wider[:, 2] *= 4
    row = rows_of(prepared, [wider, X])["x"]
    outside = wider.abs() > 1.01
    assert row.clipped_per_channel[:2] == [0.0, 0.0]
    assert row.clipped_per_channel[2] == pytest.approx(outside[:, 2].float().mean().item() / 2, abs=0.01)
    assert row.clipped_rate == pytest.approx(outside.float().mean().item() / 2, abs=0.01)
    assert row.range == pytest.approx((-1, 1), abs=0.01)
    assert row.observed == pytest.approx((wider.min().item(), wider.max().item()))
    assert "of the values are cut: calibrate on data like these" in row.advice


def test_an_outlier_channel_is_found_with_its_ratio():
    prepared = calibrated(net(outlier=5))
    row = rows_of(prepared, [X])["relu"]
    assert row.outlier_channels == [5]
    absmax = F.relu(net(outlier=5).conv(X)).amax((0, 2, 3))
    assert row.absmax_per_channel == pytest.approx(absmax.tolist())
    assert row.outlier_ratio == pytest.approx((absmax.max() / absmax[absmax > 0].quantile(0.5)).item(), rel=1e-4)
    assert row.advice.startswith(f"channels 5 reach {row.outlier_ratio:.0f} times the median channel's magnitude: split them")
    assert rows_of(prepared, [X], outlier_factor=1e6)["relu"].outlier_channels == []


def test_a_dead_channel_is_no_yardstick():
    model = net()
    with torch.no_grad():
        model.conv.weight[:12] = 0
        model.conv.bias[:12] = 0
    assert rows_of(calibrated(model), [X])["relu"].outlier_channels == []


def test_keep_float_gives_back_what_the_outliers_cost():
    model = net(outlier=5)
    prepared = calibrated(model)
    mapping = clipping_report(prepared, [X]).keep_float(tq.qconfigs.int8_static(observer="min_max"))
    kept = tq.prepare(model, X, mapping)
    assert mapping.resolve(model)["second"] is None and mapping.resolve(model)["conv"] is not None
    tq.calibrate(kept, [X])

    before, after = (tq.compare(model, candidate, [X]).row("second").sqnr_db for candidate in (prepared, kept))
    assert after > before + 6


def test_the_model_stays_as_it_was_and_the_report_is_plain(tmp_path):
    prepared = calibrated(net(outlier=5))
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    report = clipping_report(prepared, [X])
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, before[name]), name
    assert json.loads(json.dumps(report.to_dict()))["rows"][1]["outlier_channels"] == [5]
    assert "outliers" in str(report) and "channels 5 reach" in str(report)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="clipping_report: expected a model that torchquant.prepare returned, got Net"):
        clipping_report(net(), [X])
    with pytest.raises(ValueError, match="clipping_report: the model is not calibrated"):
        clipping_report(tq.prepare(net(), X, tq.qconfigs.int8_static()), [X])
    with pytest.raises(ValueError, match="clipping_report: batches is empty"):
        clipping_report(calibrated(net()), [])
    with pytest.raises(ValueError, match="outlier_factor must be at least 1, got 0.5"):
        clipping_report(calibrated(net()), [X], outlier_factor=0.5)
    with pytest.raises(RuntimeError, match="clipping_report: the model does not run on batch 0"):
        clipping_report(calibrated(net()), [X[:, :1]])
