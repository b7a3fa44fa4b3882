"""compare: which layer leaves the float model, what each row says, and the same from the command line."""

import copy
import gc
import json
import math

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner
from torch import nn

import torchquant as tq
from torchquant import cli
from torchquant.agreement import layer_agreement


class Net(nn.Module):
    """A fused group, a residual by function, an average by function and a float norm."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn, self.relu = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True)
        self.pool, self.conv2 = nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)
        self.fc, self.ln, self.head = nn.Linear(8, 4), nn.LayerNorm(4), nn.Linear(4, 2)

    def forward(self, x):
        x = self.pool(self.relu(self.bn(self.conv1(x))))
        x = torch.relu(self.conv2(x) + x).mean((2, 3))
        return self.head(self.ln(self.fc(x)))


def calibrated(model, x, qconfig=None):
    prepared = tq.prepare(model, x, qconfig or tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    return prepared


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(4, 3, 8, 8)
    prepared = calibrated(model, x)
    return model, x, prepared, tq.convert(prepared, x)


def test_rows_are_the_layers_and_joined_values_in_running_order(net):
    model, x, prepared, quantized = net
    rows = tq.compare(model, quantized, [x], prepared=prepared).rows
    assert [row.layer for row in rows] == ["x", "conv1", "bn", "relu", "pool", "conv2", "relu#2", "mean", "fc", "ln", "head"]
    assert [row.kind for row in rows[:4]] == ["operation", "Conv2d", "BatchNorm2d", "ReLU"]
    assert rows[3].place == "activation_fake_quants.relu"


def test_errors_are_those_of_the_values_over_all_batches(net):
    model, x, prepared, _ = net
    batches = [x, x[:1] * 2]
    comparison = tq.compare(model, prepared, batches)
    with torch.no_grad():
        expected, actual = (torch.cat([m(b) for b in batches]).double() for m in (model, prepared))
    errors = comparison.row("head").prepared.errors
    assert errors.sqnr_db == pytest.approx(10 * math.log10(expected.square().sum() / (actual - expected).square().sum()))
    assert errors.cosine == pytest.approx(F.cosine_similarity(expected.flatten(), actual.flatten(), dim=0).item())
    assert errors.max_abs_error == pytest.approx((actual - expected).abs().max().item())
    assert errors.count == expected.numel()


def test_a_value_with_a_fake_quant_is_compared_behind_it(net):
    model, x, prepared, _ = net
    fake_quant = prepared.activation_fake_quants.x
    row = tq.compare(model, prepared, [x]).row("x")
    assert row.prepared.errors.max_abs_error == pytest.approx((fake_quant(x) - x).abs().max().item())
    codes = tq.quantize(x, fake_quant.scale, fake_quant.zero_point, dtype=torch.uint8)
    assert row.prepared.saturation_rate == pytest.approx(((codes == 0) | (codes == 255)).float().mean().item())


def test_clipped_values_are_those_whose_code_would_leave_the_range():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.linspace(-1, 1, 40).view(10, 4)
    prepared = calibrated(model, x, tq.qconfigs.int8_static(observer="min_max"))
    assert tq.compare(model, prepared, [x]).rows[0].clipped_rate == 0
    row = tq.compare(model, prepared, [3 * x]).rows[0]
    scale, zero_point = 2 / 255, prepared.activation_fake_quants.input.zero_point.item()
    codes = torch.round(3 * x / scale) + zero_point
    assert row.clipped_rate == pytest.approx(((codes < 0) | (codes > 255)).float().mean().item(), abs=0.03)
    assert row.clipped_rate > 0.5
    assert row.range == pytest.approx((-1.0, 1.0), abs=scale)
    assert row.observed == pytest.approx((-3.0, 3.0))


def test_zeros_behind_a_relu_are_no_saturation():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    with torch.no_grad():
        model[0].bias.fill_(-100.0)
    x = torch.randn(16, 4)
    assert tq.compare(model, calibrated(model, x), [x]).row("1").prepared.saturation_rate == 0


def test_converted_rows_are_the_integers_of_the_ops(net):
    model, x, prepared, quantized = net
    comparison = tq.compare(model, quantized, [x], prepared=prepared)
    relu = comparison.row("relu")
    assert relu.computed_by == "conv1"
    assert relu.converted.errors.sqnr_db == pytest.approx(relu.prepared.errors.sqnr_db, abs=0.1)
    assert relu.against_prepared.sqnr_db > 60
    head = comparison.row("head").converted.errors
    assert head.max_abs_error == pytest.approx((quantized(x) - model(x)).abs().max().item(), rel=1e-4)
    assert comparison.row("mean").converted.errors.sqnr_db > 40
    assert comparison.row("x").converted.errors.sqnr_db == pytest.approx(comparison.row("x").prepared.errors.sqnr_db)


def test_a_layer_without_a_value_of_its_own_says_why(net):
    model, x, prepared, quantized = net
    notes = {row.layer: row.converted_note for row in tq.compare(model, quantized, [x]).rows}
    assert notes["conv1"] == notes["bn"] == "inside a fused op that ends at relu"
    assert notes["conv2"] == "inside a fused op that ends at relu#2"
    assert notes["pool"] == "moves integers and changes none"
    assert notes["mean"] == "the file does not hold its scale; give prepared= to compare it"
    assert notes["relu"] == notes["head"] == ""


def test_a_saved_and_loaded_file_compares_alike(net, tmp_path):
    model, x, prepared, quantized = net
    quantized.save(tmp_path / "model.pt")
    loaded = tq.load(tmp_path / "model.pt")
    assert tq.compare(model, loaded, [x]).to_dict() == tq.compare(model, quantized, [x]).to_dict()


@pytest.mark.parametrize("broken", ["conv1", "conv2", "fc"])
def test_the_first_bad_layer_is_the_one_that_was_broken(net, broken):
    model, x, _, _ = net
    prepared = calibrated(model, x)
    prepared.get_submodule(broken).weight_fake_quant.scale.mul_(150)
    comparison = tq.compare(model, prepared, [x])
    assert comparison.first_bad.layer == broken
    assert comparison.sentence.startswith(f"{broken!r} goes wrong first: its SQNR in the prepared model is ")


def test_a_range_that_cuts_is_named_with_its_share(net):
    model, x, _, _ = net
    prepared = calibrated(model, x)
    prepared.activation_fake_quants.relu.scale.mul_(0.02)
    comparison = tq.compare(model, prepared, [x])
    assert comparison.first_bad.layer == "relu"
    assert "of its float values lie outside the range" in comparison.sentence


def test_a_conversion_that_goes_wrong_is_told_from_a_quantization_that_does(net):
    model, x, prepared, _ = net
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.conv2.weight.neg_()
    broken = tq.convert(calibrated(other, x), x)
    comparison = tq.compare(model, broken, [x], prepared=prepared)
    assert comparison.first_bad.layer == "relu#2"
    assert comparison.sentence.startswith("'relu#2' goes wrong first: its SQNR in the converted model is ")


def test_the_saturation_of_few_bits_is_counted_alike(net):
    model, x, _, _ = net
    prepared = calibrated(model, x, tq.qconfigs.int8_static(activation_bits=4))
    row = tq.compare(model, tq.convert(prepared, x), [x], prepared=prepared, min_sqnr_db=0).row("x")
    assert row.converted.saturation_rate == row.prepared.saturation_rate > 0


def test_a_sound_model_has_no_bad_layer(net):
    model, x, prepared, _ = net
    comparison = tq.compare(model, prepared, [x])
    assert comparison.first_bad is None
    assert comparison.sentence.startswith("No layer falls below 15 dB; the weakest is ")
    assert tq.compare(model, prepared, [x], min_sqnr_db=1000).first_bad is not None


def test_values_that_are_not_finite_are_bad():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(8, 4)
    prepared = calibrated(model, x)
    with torch.no_grad():
        tq.float_parameter(prepared[2], "bias").fill_(math.nan)
    comparison = tq.compare(model, prepared, [x])
    assert comparison.first_bad.layer == "2"
    assert comparison.row("2").to_dict()["prepared"]["sqnr_db"] is None
    assert not comparison.row("2").to_dict()["prepared"]["exact"]
    json.dumps(comparison.to_dict(), allow_nan=False)


def test_a_float_value_of_zeros_is_no_signal_and_not_called_infinite():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval()
    x = torch.randn(8, 4)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    prepared = calibrated(model, x)
    with torch.no_grad():
        tq.float_parameter(prepared[2], "bias").fill_(0.5)
    comparison = tq.compare(model, prepared, [x])
    assert "its SQNR in the prepared model is no signal" in comparison.sentence
    assert "no signal" in str(comparison) and "not finite" not in str(comparison)


def test_functional_relu_in_place_is_a_row_of_its_own():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 2)

        def forward(self, x):
            return self.b(F.relu(self.a(x), inplace=True))

    model, x = InPlace().eval(), torch.randn(8, 4)
    comparison = tq.compare(model, calibrated(model, x), [x])
    assert [row.layer for row in comparison.rows] == ["x", "a", "relu", "b"]
    assert comparison.first_bad is None


def test_layers_by_function_have_rows_under_the_owner_of_their_weight():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv, self.out = nn.Linear(8, 24), nn.Linear(8, 8)

        def forward(self, x):
            q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, -1)
            return self.out(F.scaled_dot_product_attention(q, k, v))

    model, x = Attention().eval(), torch.randn(2, 5, 8)
    prepared = calibrated(model, x)
    comparison = tq.compare(model, tq.convert(prepared, x), [x], prepared=prepared)
    assert [row.layer for row in comparison.rows] == ["x", "qkv", "scaled_dot_product_attention", "out"]
    assert comparison.row("qkv").converted.errors.sqnr_db == pytest.approx(comparison.row("qkv").prepared.errors.sqnr_db, abs=0.1)


def test_a_model_that_is_one_layer():
    model, x = nn.Linear(4, 2).eval(), torch.randn(8, 4)
    prepared = calibrated(model, x)
    comparison = tq.compare(model, tq.convert(prepared, x), [x], prepared=prepared)
    assert [row.layer for row in comparison.rows] == ["input", "the model"]
    assert comparison.rows[1].converted.errors.sqnr_db > 30


def test_transformers_and_concatenations():
    torch.manual_seed(0)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 1).eval()
    x = torch.randn(2, 5, 16)
    prepared = calibrated(encoder, x)
    comparison = tq.compare(encoder, tq.convert(prepared, x), [x], prepared=prepared)
    assert comparison.row("layers.0.linear2").converted.errors.sqnr_db > 20
    assert comparison.row("layers.0.self_attn.out_proj").converted.errors.sqnr_db > 20

    class Concat(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.c(torch.cat([F.relu(self.a(x)), self.b(x)], 1))

    model, x = Concat().eval(), torch.randn(2, 3, 6, 6)
    prepared = calibrated(model, x)
    quantized = tq.convert(prepared, x)
    rows = {row.layer: row for row in tq.compare(model, quantized, [x], prepared=prepared).rows}
    assert rows["b"].computed_by == "b"
    assert rows["b"].converted.errors.sqnr_db > 20
    assert all(row.passed for row in layer_agreement(prepared, quantized, x))


def test_dynamic_and_weight_only_layers():
    model, x = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(6, 8)
    for qconfig in (tq.qconfigs.int8_dynamic(), tq.qconfigs.int8_weight_only()):
        prepared = tq.prepare(model, x, qconfig)  # nothing to calibrate
        flags = [module.get_extra_state() for module in prepared.modules() if isinstance(module, tq.FakeQuantize)]
        row = tq.compare(model, tq.convert(prepared, x), [x], prepared=prepared).row("2")
        assert 25 < row.converted.errors.sqnr_db < 80
        assert row.prepared.errors.sqnr_db == pytest.approx(row.converted.errors.sqnr_db, abs=0.1)
        after = [module.get_extra_state() for module in prepared.modules() if isinstance(module, tq.FakeQuantize)]
        assert all(torch.equal(*pair) for pair in zip(flags, after))
        assert tq.compare(model, tq.convert(prepared, x), [x]).row("2").converted.errors.sqnr_db > 25


def test_another_float_model_is_compared_at_its_modules(net):
    _, x, prepared, _ = net

    class Other(Net):
        def forward(self, x):
            return super().forward(x) + 1

    other = Other().eval()
    comparison = tq.compare(other, prepared, [x])
    assert comparison.remarks[0].startswith("only the outputs of modules are compared, because float_model is not the model")
    assert "relu" in [row.layer for row in comparison.rows]


def test_nothing_is_changed(net):
    model, x, prepared, quantized = net
    before = {name: value.clone() for name, value in prepared.state_dict().items()}
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in prepared.modules())
    model.train(), prepared.train()
    float_state = copy.deepcopy(model.state_dict())
    tq.compare(model, quantized, [x], prepared=prepared)
    assert model.training and prepared.training
    model.eval(), prepared.eval()
    for name, value in prepared.state_dict().items():
        assert torch.equal(value, before[name]), name
    for name, value in model.state_dict().items():
        assert torch.equal(value, float_state[name]), name
    assert sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in prepared.modules()) == hooks


def test_many_batches_hold_no_more_tensors_than_one(net):
    model, x, prepared, _ = net

    def tensors_after(count):
        comparison = tq.compare(model, prepared, [x] * count)
        gc.collect()
        return comparison, sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects())

    kept, few = tensors_after(1)
    del kept
    kept, many = tensors_after(6)
    assert many <= few


def test_histograms_are_drawn(net, tmp_path):
    model, x, prepared, _ = net
    comparison = tq.compare(model, prepared, [x])
    assert comparison.row("relu").histogram.histogram.shape[0] == 8  # channels
    assert int(comparison.row("relu").histogram.histogram.sum()) == 4 * 8 * 8 * 8
    for ending, start in (("png", b"\x89PNG"), ("svg", b"<?xml")):
        comparison.plot("relu", tmp_path / f"relu.{ending}")
        assert (tmp_path / f"relu.{ending}").read_bytes().startswith(start)
    values = json.loads(json.dumps(comparison.histogram("relu")))
    assert sum(map(sum, values["counts"])) == pytest.approx(4 * 8 * 8 * 8) and len(values["counts"]) == 8
    assert values["edges"][0] < values["range"][0] <= values["range"][1] < values["edges"][-1]
    with pytest.raises(ValueError, match="not supported"):
        comparison.plot("relu", tmp_path / "relu.unknown")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["relu.png", "relu.svg"]
    with pytest.raises(ValueError, match=r"Comparison: there is no layer 'rellu'; nearest: 'relu'"):
        comparison.plot("rellu", tmp_path / "x.png")


def test_histogram_edges_hold_the_values():
    from torchquant.analysis.comparison import histogram_of
    from torchquant.observers import make_observer

    observer = make_observer(tq.QuantSpec.activation(observer="mse", bins=64))
    x = torch.tensor([-0.3, 0.1, 0.1, 0.9])
    observer(x)
    ((edges, counts),) = histogram_of(observer)
    assert len(edges) == 65 and 0.0 in edges
    for value, count in ((-0.3, 1), (0.1, 2), (0.9, 1)):
        bin = next(i for i in range(64) if edges[i] < value <= edges[i + 1])
        assert counts[bin] == count


def test_wrong_arguments_are_refused_before_anything_runs(net):
    model, x, prepared, quantized = net
    with pytest.raises(TypeError, match=r"compare: float_model must be the float torch.nn.Module, got Prepared"):
        tq.compare(prepared, quantized, [x])
    with pytest.raises(TypeError, match=r"compare: quantized must come from torchquant.prepare or torchquant.convert, got Net"):
        tq.compare(model, model, [x])
    with pytest.raises(TypeError, match=r"compare: batches must be an iterable of batches.* got a Tensor"):
        tq.compare(model, prepared, x)
    with pytest.raises(ValueError, match="compare: batches is empty"):
        tq.compare(model, prepared, [])
    with pytest.raises(ValueError, match="compare: the model is not calibrated, run torchquant.calibrate first"):
        tq.compare(model, tq.prepare(model, x, tq.qconfigs.int8_static()), [x])
    with pytest.raises(ValueError, match="give prepared= only beside a converted one"):
        tq.compare(model, prepared, [x], prepared=prepared)
    with pytest.raises(RuntimeError, match="compare: batch 1 does not run"):
        tq.compare(model, prepared, [x, x[:, :2]])


# ---- TorchScript and the command line


@pytest.fixture(scope="module")
def files(net, tmp_path_factory):
    folder = tmp_path_factory.mktemp("compare")
    model, x, prepared, quantized = net
    torch.jit.trace(model, x).save(str(folder / "float.pt"))
    tq.trace(prepared, x).save(str(folder / "prepared.pt"))
    quantized.save(folder / "model.pt")
    torch.save([x, x[:2]], folder / "inputs.pt")
    return folder


def run(*arguments):
    return CliRunner().invoke(cli.main, [str(argument) for argument in arguments])


def test_scripts_give_the_errors_of_the_models_that_they_were_made_of(net, files):
    model, x, prepared, quantized = net
    script = {name: torch.jit.load(str(files / f"{name}.pt")).eval() for name in ("float", "prepared")}
    from_scripts = tq.compare(script["float"], quantized, [x], prepared=script["prepared"])
    from_models = tq.compare(model, quantized, [x], prepared=prepared)
    rows = {row.layer: row for row in from_scripts.rows}
    places = {f"activation_fake_quants.{name}" for name in ("x", "relu", "relu_2", "mean")}
    assert set(rows) == {"conv1", "bn", "conv2", "fc", "ln", "head"} | places
    for ours, theirs in (("activation_fake_quants.relu", "relu"), ("conv2", "conv2"), ("ln", "ln"), ("head", "head")):
        expected = from_models.row(theirs)
        assert rows[ours].prepared.errors.sqnr_db == pytest.approx(expected.prepared.errors.sqnr_db)
        assert rows[ours].clipped_rate == expected.clipped_rate
        assert rows[ours].converted.errors.count == expected.converted.errors.count
    assert rows["conv1"].kind == "Conv2d"
    assert from_scripts.remarks == []


def test_compare_on_the_command_line(files, tmp_path):
    result = run("compare", files / "float.pt", files / "prepared.pt", "--inputs", files / "inputs.pt")
    assert result.exit_code == 0, result.output
    assert "No layer falls below 15 dB" in result.stdout
    result = run("compare", files / "float.pt", files / "model.pt", "--prepared", files / "prepared.pt", "--inputs", files / "inputs.pt",
                 "--json", "--plot", "conv1", tmp_path / "conv1.svg")  # fmt: skip
    report = json.loads(result.stdout)
    assert report["batches"] == 2 and report["first_bad"] is None
    rows = {row["layer"]: row for row in report["rows"]}
    assert rows["head"]["converted"]["sqnr_db"] > 20 and rows["conv1"]["converted"] is None
    assert (tmp_path / "conv1.svg").exists()


def test_a_converted_file_alone_has_the_layers_that_end_in_floats(files):
    result = run("compare", files / "float.pt", files / "model.pt", "--inputs", files / "inputs.pt", "--json")
    report = json.loads(result.stdout)
    assert {row["layer"] for row in report["rows"] if row["converted"]} == {"fc", "ln", "head"}
    assert report["remarks"] == ["only the outputs of layers with weights are compared: give the prepared file for the rest"]


def test_a_bad_layer_is_named_on_the_command_line(net, files, tmp_path):
    model, x, _, _ = net
    script = tq.trace(calibrated(model, x), x)
    dict(script.named_buffers())["conv2.weight_fake_quant.scale"].mul_(150)
    script.save(str(tmp_path / "broken.pt"))
    result = run("compare", files / "float.pt", tmp_path / "broken.pt", "--inputs", files / "inputs.pt", "--json")
    assert json.loads(result.stdout)["first_bad"] == "conv2"


def test_mistakes_on_the_command_line_are_one_sentence(files, tmp_path):
    (tmp_path / "junk.pt").write_bytes(b"junk")
    sound = files / "float.pt", files / "prepared.pt"
    for arguments, message in (
        ((tmp_path / "junk.pt", files / "prepared.pt", "--inputs", files / "inputs.pt"), "is not a TorchScript file that can be read"),
        ((files / "float.pt", files / "float.pt", "--inputs", files / "inputs.pt"), "compare: quantized must come from torchquant.prepare"),
        ((*sound, "--inputs", tmp_path / "junk.pt"), "is not a file of tensors that torch.save wrote"),
        ((*sound, "--inputs", files / "inputs.pt", "--plot", "conw", "x.png"), "no layer 'conw'; nearest: 'conv"),
    ):
        result = run("compare", *arguments)
        assert result.exit_code != 0
        assert message in " ".join(result.stderr.split()) and "Traceback" not in result.stderr


def test_a_batch_with_nan_is_refused(net):
    model, x, prepared, quantized = net
    broken = x.clone()
    broken[1] = float("nan")
    with pytest.raises(RuntimeError, match="compare: batch 1 does not run: the float model's value of .* holds NaN; check the batch and the model"):
        tq.compare(model, quantized, [x, broken], prepared=prepared)
