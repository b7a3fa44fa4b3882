"""split_outlier_channels: the same function, a smaller range, and reasons where nothing can be split."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant.methods import split_outlier_channels

OUTLIER = 3


def conv_net(seed=0, batch_norm=True, affine=True):
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(16, affine=affine) if batch_norm else nn.Identity()
    first = nn.Conv2d(3, 16, 3, padding=1), norm, nn.ReLU(), nn.MaxPool2d(2)
    model = nn.Sequential(*first, nn.Conv2d(16, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 4)).eval()
    with torch.no_grad():
        stretched = model[1] if batch_norm and affine else model[0]
        stretched.weight[OUTLIER] *= 60
        model[4].weight[:, OUTLIER] /= 60  # as in trained models, the large channel says no more than the others
    return model


X = torch.linspace(-1, 1, 4 * 3 * 64).sin().view(4, 3, 8, 8)


@pytest.mark.parametrize("options", [{}, {"batch_norm": False}, {"affine": False}])
def test_the_function_stays_and_the_range_shrinks(options):
    model = conv_net(**options)
    split = split_outlier_channels(model, X, [X], expand_ratio=0.2)
    torch.testing.assert_close(split(X), model(X), rtol=1e-5, atol=1e-5)
    (row,) = split.torchquant_methods[-1].rows
    assert (row["layer"], row["producer"]) == ("4", "0")
    assert set(row["channels"]) == {OUTLIER} and len(row["channels"]) <= 4  # ceil(0.2 * 16)
    copies = len(row["channels"])
    assert split[0].out_channels == split[0].weight.shape[0] == split[4].in_channels == split[4].weight.shape[1] == 16 + copies
    before, after = model[:4](X).abs().amax((0, 2, 3)), split[:4](X).abs().amax((0, 2, 3))
    assert after.max() < 0.6 * before.max()
    assert row["absmax_before"] == pytest.approx(before.max().item()) and row["absmax_after"] == pytest.approx(after.max().item(), rel=1e-5)


def test_the_largest_channel_is_halved_until_the_ratio_is_spent():
    model = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 2)).eval()
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(10))
        model[0].weight[7, 7] = 40.0
        model[0].weight[2, 2] = 17.0
    x = torch.ones(1, 10)
    split = split_outlier_channels(model, x, [x], expand_ratio=0.3)
    # 40 -> 20 + 20; of 20, 20, 17 the first 20 -> 10 + 10; then the other 20
    assert split.torchquant_methods[-1].rows[0]["channels"] == [7, 7, 7]
    assert sorted(split[0](x)[0].tolist()) == [1.0] * 8 + [10.0, 10.0, 10.0, 10.0, 17.0]
    one = split_outlier_channels(model, x, [x], expand_ratio=0.01)
    assert one.torchquant_methods[-1].rows[0]["channels"] == [7]
    assert split_outlier_channels(model, x, [x], outlier_factor=50).torchquant_methods[-1].rows == []


def test_quantized_it_loses_less():
    model = conv_net()
    split = split_outlier_channels(model, X, [X], expand_ratio=0.5)

    def sqnr(candidate):
        prepared = tq.prepare(candidate, X, tq.qconfigs.int8_static(observer="min_max"))
        tq.calibrate(prepared, [X])
        assert "float" not in {row["precision"] for row in tq.convert(prepared, X).receipt.rows}
        return tq.compare(candidate, prepared, [X]).row("4").sqnr_db

    assert sqnr(split) > sqnr(model) + 6


def test_a_flattened_image_feeds_a_linear_layer():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 4)).eval()
    with torch.no_grad():
        model[0].weight[5] *= 100
        model[0].bias[5] *= 100
    split = split_outlier_channels(model, X, [X])
    assert split[3].in_features == 9 * 36
    torch.testing.assert_close(split(X), model(X), rtol=1e-4, atol=1e-4)


def test_calls_by_function_are_followed():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Linear(8, 2)

        def forward(self, x):
            x = F.relu(self.b(F.max_pool2d(F.relu(self.a(x)), 2)))
            return self.c(x.mean((2, 3)))

    torch.manual_seed(0)
    model = Net().eval()
    with torch.no_grad():
        model.a.bias[1] = 100.0
        model.b.bias[2] = 1000.0
    split = split_outlier_channels(model, X, [X])
    assert [(row["layer"], row["producer"], row["channels"]) for row in split.torchquant_methods[-1].rows] == [("b", "a", [1]), ("c", "b", [2])]
    torch.testing.assert_close(split(X), model(X), rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize(
    ("middle", "reason"),
    [
        (nn.GELU(), "its input comes through _1, behind which half a value is not half"),
        (nn.ReLU6(), "its input comes through _1, behind which half a value is not half"),
    ],
)
def test_what_cannot_be_split_says_why_and_stays(middle, reason):
    model = nn.Sequential(nn.Linear(8, 8), middle, nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight.abs_(), model[0].bias.zero_()
        model[0].weight.mul_(0.01)[0] *= 1000
    x = torch.ones(2, 8)
    split = split_outlier_channels(model, x, [x])
    (row,) = split.torchquant_methods[-1].rows
    assert (row["layer"], row["producer"], row["reason"]) == ("2", None, reason)
    assert torch.equal(split(x), model(x))


def test_a_residual_stream_is_left_alone():
    class Residual(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            x = self.a(x)
            return x + self.b(x)

    model = Residual().eval()
    with torch.no_grad():
        model.a.bias[0] = 1000.0
    x = torch.randn(2, 8)
    (row,) = split_outlier_channels(model, x, [x]).torchquant_methods[-1].rows
    assert row["layer"] == "b" and row["reason"] == "its input a is read by other layers too"


def test_transformers_split_what_torch_fx_sees():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.act, self.down = nn.LayerNorm(8), nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)

        def forward(self, x):
            return x + self.down(self.act(self.up(self.norm(x))))

    torch.manual_seed(0)
    x, block = torch.randn(2, 5, 8), Block().eval()
    encoder = nn.TransformerEncoderLayer(8, 2, 32, batch_first=True).eval()
    with torch.no_grad():
        block.up.bias[4] = encoder.linear1.bias[4] = 300.0
    split = split_outlier_channels(block, x, [x])
    assert [(row["layer"], row["channels"]) for row in split.torchquant_methods[-1].rows] == [("down", [4, 4])]
    torch.testing.assert_close(split(x), block(x), rtol=1e-4, atol=1e-3)
    (row,) = split_outlier_channels(nn.Sequential(encoder), x, [x]).torchquant_methods[-1].rows
    assert (row["layer"], row["reason"]) == ("0.linear2", "torch.fx does not see its call")


def test_a_layer_that_runs_twice_is_left_alone():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x):
            return self.b(self.b(F.relu(self.a(x))))

    model = Twice().eval()
    with torch.no_grad():
        model.a.bias[0] = 1000.0
        model.b.weight.mul_(1e-3)
    x = torch.randn(2, 8)
    (row,) = split_outlier_channels(model, x, [x]).torchquant_methods[-1].rows
    assert (row["layer"], row["reason"]) == ("b", "it runs more than once")


def test_tied_weights_are_left_alone():
    first, second, third = (nn.Linear(8, 8, bias=False) for _ in range(3))
    model = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), third).eval()
    model[4].weight = model[2].weight
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(8))
        model[0].weight[1] *= 100
    x = torch.ones(2, 8)
    (row, *_) = split_outlier_channels(model, x, [x]).torchquant_methods[-1].rows
    assert (row["layer"], row["reason"]) == ("2", "it shares its weight with another layer")


def test_the_model_is_not_changed_and_the_result_trains_and_copies():
    model = conv_net().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    split = split_outlier_channels(model, X, [X])
    assert model.training and split.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    split(X).sum().backward()
    assert all(parameter.grad is not None for parameter in split.parameters())
    assert copy.deepcopy(split).torchquant_methods[-1].rows == split.torchquant_methods[-1].rows


def test_wrong_arguments():
    model = conv_net()
    with pytest.raises(ValueError, match=r"expand_ratio must be in \(0, 1\], got 2"):
        split_outlier_channels(model, X, [X], expand_ratio=2)
    with pytest.raises(ValueError, match="outlier_factor must be at least 1, got 0"):
        split_outlier_channels(model, X, [X], outlier_factor=0)
    with pytest.raises(TypeError, match="split_outlier_channels: batches must be an iterable of batches"):
        split_outlier_channels(model, X, X)

    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return self.fc(x) if x.sum() > 0 else -self.fc(x)

    with pytest.raises(ValueError, match="torch.fx cannot trace Untraceable .*keep_float"):
        split_outlier_channels(Untraceable(), torch.ones(1, 4), [torch.ones(1, 4)])
