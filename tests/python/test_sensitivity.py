"""tq.sensitivity_scan: what it switches, what it reports and proposes, how it resumes, and each of its errors."""

import dataclasses
import json
import math
import multiprocessing
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

import torchquant as tq
from torchquant import _C
from torchquant.analysis.processes import Processes
from torchquant.analysis.scan_candidate import Candidate
from torchquant.analysis.scan_journal import Journal
from torchquant.calibrate import named_fake_quants

INT8, INT4 = tq.qconfigs.int8_static(), tq.qconfigs.int4_weight_static()


class Net(nn.Module):
    """Two convolutions and a residual, a pool and a linear layer."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Conv2d(8, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.relu(x + self.body(x))
        return self.head(self.pool(x).flatten(1))


LAYERS = ["stem.0", "body", "head"]


@pytest.fixture
def net():
    return Net().eval()


@pytest.fixture
def x():
    return torch.randn(16, 1, 8, 8)


def distance_from(net, x):
    """A metric that every layer moves, higher is better."""
    expected = net(x).detach()
    return lambda model: -(model(x) - expected).abs().mean().item()


def scan(net, x, **changes):
    evaluate = changes.pop("evaluate") if "evaluate" in changes else distance_from(net, x)
    return tq.sensitivity_scan(net, x, [x], evaluate, changes.pop("qconfig", INT8), **{"measure_latency": False, **changes})


# ---- what is switched


def test_a_layer_alone_is_the_model_in_which_only_it_has_a_qconfig(net, x):
    report = scan(net, x, mode="each_alone")
    assert [row["layer"] for row in report.rows] == LAYERS
    for row in report.rows:
        alone = tq.prepare(net, x, tq.QConfigMapping().set_module_name(re.escape(row["layer"]), INT8))
        tq.calibrate(alone, [x])
        # The sum reads what body reads; a switch cannot quantize it for one reader alone.
        tolerance = 0.1 if row["layer"] == "body" else 0
        assert row["alone_metric"] == pytest.approx(distance_from(net, x)(alone), rel=tolerance, abs=0)
        assert row["alone_drop"] == -row["alone_metric"] > 0


def test_all_but_one_leaves_off_its_weights_and_what_only_it_reads(net, x):
    report = scan(net, x, mode="each_but_one")
    prepared = tq.prepare(net, x, INT8)
    tq.calibrate(prepared, [x])
    assert report.candidates["int8"]["metric"] == distance_from(net, x)(prepared)
    fake_quants = named_fake_quants(prepared)
    # The sum reads what body reads, so that stays quantized when body does not.
    for off, row in zip((["stem.0.weight", "x"], ["body.weight"], ["head.weight", "pool"]), report.rows):
        endings = tuple(ending for name in off for ending in (f"{name}_fake_quant", f".{name}"))
        switched = [fake_quant for path, fake_quant in fake_quants.items() if path.endswith(endings)]
        if row["layer"] == "body":
            switched += [fq for path, fq in fake_quants.items() if path.endswith("stem_2")]  # read by body; the sum alone is no layer
        for fake_quant in switched:
            fake_quant.enable_fake_quant(False)
        assert row["but_one_metric"] == distance_from(net, x)(prepared), row["layer"]
        assert row["but_one_gain"] == row["but_one_metric"] - report.candidates["int8"]["metric"]
        for fake_quant in switched:
            fake_quant.enable_fake_quant(True)


def test_a_tensor_that_two_layers_read_stays_quantized_for_the_other():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x) * self.b(x)

    x = torch.randn(5, 4)
    candidate = Candidate("int8", Branches(), x, INT8)
    candidate.calibrate([x], [])
    first, second = candidate.layers
    assert first.inputs == second.inputs and len(first.inputs) == 1
    assert set(candidate.but_one(first)) == {*second.weights, *first.inputs}
    assert set(candidate.alone(first)) == {*first.weights, *first.inputs}


@pytest.mark.parametrize("qconfig", [INT8, tq.qconfigs.int8_dynamic(), tq.qconfigs.int8_weight_only()])
def test_transformers(qconfig):
    layer = nn.TransformerEncoderLayer(16, 4, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    report = tq.sensitivity_scan(layer, x, [x], None, qconfig, mode="each_alone")
    assert [row["layer"] for row in report.rows] == ["self_attn", "self_attn.out_proj", "linear1", "linear2"]
    assert all(20 < row["alone_sqnr_db"] < 80 and row["kernel"].startswith("quantized_linear") for row in report.rows)
    mapping = report.propose(max_size_mb=report.float_size_mb - 0.001)
    assert report.predict(mapping)["size_mb"] <= report.float_size_mb - 0.001
    tq.quantize_model(layer, x, mapping, [x])


def test_a_recurrent_layer_is_one_layer():
    lstm = nn.LSTM(6, 5, num_layers=2)
    x = torch.randn(3, 2, 6)
    report = tq.sensitivity_scan(lstm, x, None, None, tq.qconfigs.int8_dynamic())
    assert len(report.rows) == 1 and report.rows[0]["modules"] == [""]
    assert report.rows[0]["kernel"].startswith("quantized_linear_dynamic")
    weights = [parameter for name, parameter in lstm.named_parameters() if "weight" in name]
    assert report.rows[0]["quantized_mb"] == sum(weight.numel() + 4 * weight.size(0) for weight in weights) / 1e6


def test_tied_weights_are_one_layer_that_a_proposal_quantizes_whole():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(12, 8)
            self.mixer = nn.Linear(8, 8)
            self.head = nn.Linear(8, 12, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(torch.tanh(self.mixer(self.embedding(tokens))))

    model, tokens = Tied().eval(), torch.randint(0, 12, (2, 5))
    report = tq.sensitivity_scan(model, tokens, None, None, tq.qconfigs.int8_weight_only())
    assert [sorted(row["modules"]) for row in report.rows] == [["embedding", "head"], ["mixer"]]
    tq.prepare(model, tokens, report.propose(max_size_mb=report.float_size_mb * 0.6))  # one weight, one QConfig


def test_the_model_given_is_not_changed(net, x):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    modes = [module.training for module in net.train().modules()]
    scan(net, x, evaluate=None)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert [module.training for module in net.modules()] == modes


def test_evaluate_gets_an_eval_model_without_gradients_and_one_seed(net, x):
    seen = []

    def evaluate(model):
        seen.append((model.training, torch.is_grad_enabled(), torch.rand(1).item(), isinstance(model, Net)))
        model.train()  # as a careless function may leave it
        return 0.0

    scan(net, x, evaluate=evaluate)
    assert set(seen) == {(False, False, seen[0][2], True)} and len(seen) == 1 + 1 + 2 * len(LAYERS)


# ---- ranking


def test_ranking_is_the_same_on_a_rerun(net, x):
    first, second = scan(net, x, qconfig={"int8": INT8, "int4": INT4}), scan(net, x, qconfig={"int8": INT8, "int4": INT4})
    assert first.ranking == second.ranking and len(first.ranking) == 2 * len(LAYERS)
    drops = [row["alone_drop"] for row in first.ranking]
    assert drops == sorted(drops, reverse=True)


def test_equal_drops_are_ranked_by_sqnr(net, x):
    report = scan(net, x, evaluate=lambda model: 1.0)
    sqnr = [row["alone_sqnr_db"] for row in report.ranking]
    assert sqnr == sorted(sqnr) and len(set(sqnr)) == len(LAYERS)
    by_sqnr = scan(net, x, evaluate=None)
    assert [row["layer"] for row in by_sqnr.ranking] == [row["layer"] for row in report.ranking]


def test_lower_is_better_turns_the_drop_around(net, x):
    metric = distance_from(net, x)
    higher, lower = scan(net, x), scan(net, x, evaluate=lambda model: -metric(model), higher_is_better=False)
    assert [row["alone_drop"] for row in lower.rows] == [row["alone_drop"] for row in higher.rows]
    assert [row["but_one_gain"] for row in lower.rows] == [row["but_one_gain"] for row in higher.rows]


def test_sqnr_agrees_with_the_formula(net, x):
    row = scan(net, x, mode="each_alone").rows[2]
    alone = tq.prepare(net, x, tq.QConfigMapping().set_module_name("head", INT8))
    tq.calibrate(alone, [x])
    with torch.no_grad():
        wanted, actual = net(x).double(), alone(x).double()
    assert row["alone_sqnr_db"] == pytest.approx(10 * math.log10(wanted.square().sum() / (wanted - actual).square().sum()))


def test_python_and_cpp_rank_alike(net, x):
    report = scan(net, x, evaluate=None)
    prepared = tq.prepare(net, x, INT8)
    tq.calibrate(prepared, [x])
    steps = []
    result = _C.scan_sensitivity(tq.trace(prepared, x)._c, [[x]], lambda done, total: steps.append((done, total)))
    assert [row["layer"] for row in result["ranking"]] == [row["layer"] for row in report.ranking]
    for ours, row in zip(result["ranking"], report.ranking):
        assert ours["alone_sqnr_db"] == pytest.approx(row["alone_sqnr_db"], abs=1e-3)
        assert ours["but_one_sqnr_db"] == pytest.approx(row["but_one_sqnr_db"], abs=1e-3)
    assert result["quantized_sqnr_db"] == pytest.approx(report.candidates["int8"]["sqnr_db"], abs=1e-3)
    assert steps == [(i + 1, 2 * len(LAYERS) + 1) for i in range(2 * len(LAYERS) + 1)]


# ---- latency and size


def test_latency_is_that_of_the_fused_op_and_of_all_that_it_replaces(net, x):
    prepared = tq.prepare(net, x, INT8)
    tq.calibrate(prepared, [x])
    pairs = {pair["layer"]: pair for pair in _C.layer_pairs(tq.trace(prepared, x)._c, [x])}
    assert list(pairs) == LAYERS
    module, inputs = pairs["body"]["float"]  # conv, residual, relu
    float_layer = torch.jit._recursive.wrap_cpp_module(module)
    (source,) = inputs  # what the convolution reads is the residual too
    weight = prepared.body.weight_fake_quant(tq.float_parameter(prepared.body, "weight"))
    expected = torch.relu(torch.conv2d(source, weight, net.body.bias, padding=1) + source)
    assert torch.allclose(float_layer(*inputs), expected, atol=1e-6)
    module, inputs = pairs["body"]["quantized"]
    codes = torch.jit._recursive.wrap_cpp_module(module)(*inputs)
    assert codes.dtype == torch.uint8 and codes.shape == expected.shape
    fake_quant = next(fq for path, fq in named_fake_quants(prepared).items() if path.endswith("relu"))
    wanted = tq.quantize(expected, fake_quant.scale, fake_quant.zero_point, dtype=torch.uint8)
    assert (codes.int() - wanted.int()).abs().max() <= 1

    report = scan(net, x, measure_latency=True)
    for row in report.rows:
        assert row["float_ms"] > 0 and row["latency_gain_ms"] == row["float_ms"] - row["quantized_ms"]
        assert row["kernel"].startswith("quantized_linear" if row["layer"] == "head" else "quantized_conv")
    assert report.float_latency_ms > 0 and report.candidates["int8"]["latency_ms"] > 0


def test_gains_add_up_to_what_the_whole_model_gains(net, x):
    report = scan(net, x, measure_latency=True)
    report.float_latency_ms, report.candidates["int8"]["latency_ms"], report.candidates["int8"]["layers_gain_ms"] = 10.0, 4.0, 3.0
    for row, gain in zip(report.rows, (0.5, 1.5, 1.0)):
        row["latency_gain_ms"] = gain
    quantized = tq.QConfigMapping(tq.QConfig.from_dict(report.rows[0]["qconfig"]))
    assert report.predict(quantized)["latency_ms"] == pytest.approx(4.0)
    assert report.predict(tq.QConfigMapping())["latency_ms"] == 10.0
    one = tq.QConfigMapping().set_module_name("body", quantized.default)
    assert report.predict(one)["latency_ms"] == pytest.approx(10 - 2 * 1.5)
    assert report.choices(one) == {"stem.0": "float", "body": "int8", "head": "float"}
    report.rows = [row for row in report.rows if row["layer"] == "body"]  # as a scan of that layer alone would have
    assert report.predict(one)["latency_ms"] == pytest.approx(10 - 2 * 1.5)


def test_a_layer_that_conversion_leaves_float_is_never_proposed(net, x):
    report = scan(net, x, measure_latency=True)
    report.rows[1]["kernel"] = ""
    assert report.choices(report.propose(max_size_mb=0.0027)) == {"stem.0": "int8", "body": "float", "head": "int8"}
    with pytest.raises(ValueError, match="the least reachable is 0.002672 MB"):
        report.propose(max_size_mb=0.0016)
    assert "stays float" in str(report)


def test_float_module_is_the_float_model(net, x):
    prepared = tq.prepare(net, x, INT8)
    tq.calibrate(prepared, [x])
    with torch.no_grad():
        assert torch.equal(torch.jit._recursive.wrap_cpp_module(_C.float_module(tq.trace(prepared, x)._c))(x), net(x))


def test_sizes_are_those_of_the_converted_weights(net, x):
    report = scan(net, x, qconfig={"int8": INT8, "int4": INT4}, evaluate=None)
    body8, body4 = (next(row for row in report.rows if row["layer"] == "body" and row["candidate"] == name) for name in ("int8", "int4"))
    assert body8["float_mb"] == 8 * 8 * 9 * 4 / 1e6
    assert body8["quantized_mb"] == (8 * 8 * 9 + 8 * 4) / 1e6
    assert body4["quantized_mb"] == (8 * 8 * 9 / 2 + 8 * 4) / 1e6
    everything = [*net.parameters(), *net.buffers()]
    assert report.float_size_mb == sum(t.numel() * t.element_size() for t in everything) / 1e6


# ---- proposals


def test_a_proposal_holds_its_budget_and_is_ready_for_prepare(net, x):
    report = scan(net, x, qconfig={"int8": INT8, "int4": INT4})
    budget = report.float_size_mb * 0.5
    mapping = report.propose(max_size_mb=budget)
    promised = report.predict(mapping)
    assert promised["size_mb"] <= budget and promised["drop"] >= 0
    assert promised["metric"] == pytest.approx(report.float_metric - promised["drop"])
    quantized = tq.quantize_model(net, x, mapping, [x])
    assert {row["layer"]: row["precision"] for row in quantized.receipt.rows if row["layer"] in LAYERS}.keys() == set(LAYERS)


def test_a_large_budget_keeps_everything_float(net, x):
    report = scan(net, x)
    assert all(entry["qconfig"] is None for entry in report.propose(max_size_mb=1e9).to_dict()["names"])


def test_proposal_is_the_best_of_all_configurations(net, x):
    report = scan(net, x, qconfig={"int8": INT8, "int4": INT4})
    _, options = report._options()
    import itertools

    every = [report._prediction(list(choice)) for choice in itertools.product(*options)]
    for share in (0.3, 0.5, 0.7, 0.9):
        budget = report.float_size_mb * share
        best = min((p["drop"] for p in every if p["size_mb"] <= budget), default=None)
        if best is not None:
            assert report.predict(report.propose(max_size_mb=budget))["drop"] == pytest.approx(best)
    drop = sorted(p["drop"] for p in every)[len(every) // 2]
    smallest = min(p["size_mb"] for p in every if p["drop"] <= drop)
    assert report.predict(report.propose(max_accuracy_drop=drop))["size_mb"] == pytest.approx(smallest)


def test_a_proposal_is_measured_by_one_conversion(net, x, monkeypatch):
    report = scan(net, x, measure_latency=True)
    mapping = report.propose(max_size_mb=report.float_size_mb * 0.6)
    assert len(set(report.choices(mapping).values())) == 2
    conversions, convert = [], _C.convert
    monkeypatch.setattr(_C, "convert", lambda *arguments: conversions.append(1) or convert(*arguments))
    measured = report.measure(mapping, net, x, [x], evaluate=distance_from(net, x))
    assert conversions == [1]
    assert measured["latency_ms"] > 0 and measured["float_latency_ms"] > 0
    quantized = tq.quantize_model(net, x, mapping, [x])
    assert measured["metric"] == pytest.approx(distance_from(net, x)(quantized), rel=1e-6)
    assert report.measure(mapping, net, x, [x])["metric"] is None


def test_a_proposal_that_stays_float_is_what_the_scan_began_with(net, x):
    report = scan(net, x, measure_latency=True)
    measured = report.measure(report.propose(max_latency_ms=1e6), net, x)
    assert measured == {"latency_ms": report.float_latency_ms, "float_latency_ms": report.float_latency_ms, "metric": report.float_metric}


def test_pareto_points_improve_one_way_or_the_other(net, x):
    points = scan(net, x, qconfig={"int8": INT8, "int4": INT4}).pareto("size_mb")
    assert len(points) > 2
    for smaller, larger in zip(points, points[1:]):
        assert smaller["size_mb"] < larger["size_mb"] and smaller["drop"] >= larger["drop"]
    assert set(points[-1]["choices"].values()) == {"float"}


def test_a_mapping_survives_its_dict(net, x):
    report = scan(net, x)
    mapping = report.propose(max_size_mb=report.float_size_mb * 0.6)
    copied = tq.QConfigMapping.from_dict(json.loads(json.dumps(mapping.to_dict())))
    assert report.predict(copied) == report.predict(mapping)


@pytest.mark.parametrize(
    ("budgets", "message"),
    [
        ({}, "propose: give at least one of max_latency_ms, max_size_mb, max_accuracy_drop"),
        ({"max_size_mb": math.nan}, "propose: max_size_mb must be a finite number of at least 0; got nan"),
        ({"max_size_mb": 1e-6}, r"propose: the budget cannot be met: max_size_mb=1e-06, and the least reachable is 0\.00\d+ MB"),
        ({"max_latency_ms": 1.0}, "propose: max_latency_ms needs a scan with measure_latency=True"),
        ({"max_size_mb": 0.0015, "max_accuracy_drop": 0.0}, "max_size_mb=0.0015, and the least reachable with the other budgets is .* MB"),
    ],
)
def test_budgets_that_cannot_be_met(net, x, budgets, message):
    with pytest.raises(ValueError, match=message):
        scan(net, x).propose(**budgets)


def test_the_least_latency_is_named(net, x):
    report = scan(net, x, measure_latency=True)
    with pytest.raises(ValueError, match=r"max_latency_ms=0, and the least reachable is [\d.e-]+ ms"):
        report.propose(max_latency_ms=0)
    assert report.predict(report.propose(max_latency_ms=report.float_latency_ms))["drop"] == 0


# ---- the report


def test_reports_are_saved_and_loaded_whole(net, x, tmp_path):
    report = scan(net, x, qconfig=tq.QConfigMapping(INT8).set_module_name("head", None))
    report.save(tmp_path / "report.json")
    assert tq.SensitivityReport.load(tmp_path / "report.json") == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other.json' is not a saved SensitivityReport"):
        tq.SensitivityReport.load(tmp_path / "other.json")


def test_a_layer_that_quantization_does_not_change_has_infinite_sqnr(x, tmp_path):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4), nn.Linear(4, 4))
    with torch.no_grad():
        model[2].weight.copy_(torch.eye(4))
        model[1].weight.zero_()
        model[1].bias.copy_(torch.tensor([0.0, 1.0, 51.0, 255.0]))  # codes of a scale of 1
    mapping = tq.QConfigMapping(INT8).set_module_name("2", None)
    report = tq.sensitivity_scan(model, x, [x], None, mapping, mode="each_alone", measure_latency=False)
    assert report.rows[0]["alone_sqnr_db"] == math.inf
    report.save(tmp_path / "report.json")
    assert tq.SensitivityReport.load(tmp_path / "report.json") == report
    document = report.to_dict()
    assert tq.SensitivityReport.from_dict(document) == report and document == report.to_dict()
    assert "exact" in str(report)


class ThatBreaks(nn.Module):
    """Gives `broken` where its input is quantized: where values differ from those that the model was made for."""

    def __init__(self, x, broken):
        super().__init__()
        self.linear, self.broken = nn.Linear(64, 4), broken
        self.register_buffer("expected", self.linear(x.flatten(1)).detach())

    def forward(self, x):
        x = self.linear(x.flatten(1))
        return x + torch.where((x - self.expected).abs() > 1e-4, self.broken, 0.0)


@pytest.mark.parametrize("broken", [math.inf, math.nan])
@pytest.mark.parametrize("mode", ["both", "each_alone"])
def test_an_output_that_is_not_finite_is_the_worst_and_is_saved(x, tmp_path, broken, mode):
    model = ThatBreaks(x, broken).eval()
    report = tq.sensitivity_scan(model, x, [x], None, INT8, mode=mode, measure_latency=False)
    assert report.rows[0]["alone_sqnr_db"] == report.candidates["int8"]["sqnr_db"] == -math.inf
    report.save(tmp_path / "report.json")
    assert tq.SensitivityReport.load(tmp_path / "report.json") == report
    assert report.to_dict()["rows"][0]["alone_sqnr_db"] == "-inf" and "not finite" in str(report)
    assert report.predict(report.propose(max_size_mb=report.float_size_mb))["size_mb"] == report.float_size_mb  # stays float
    report.plot(tmp_path / "scan.png")
    tq.report.write(tmp_path / "report.html", sensitivity=report)
    assert "not finite" in (tmp_path / "report.html").read_text()


def test_a_model_of_one_layer_gets_a_proposal_from_all_but_each(x):
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    report = scan(model, x, mode="each_but_one")
    assert report.rows[0]["but_one_sqnr_db"] == math.inf
    assert report.choices(report.propose(max_size_mb=report.float_size_mb)) == {"1": "float"}
    assert report.choices(report.propose(max_size_mb=report.float_size_mb / 2)) == {"1": "int8"}


def test_a_dataclass_in_a_dataclass_is_an_output(x):
    @dataclass
    class Inner:
        logits: torch.Tensor

    @dataclass
    class Outer:
        inner: Inner

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 4)

        def forward(self, x):
            return Outer(Inner(self.linear(x.flatten(1))))

    report = tq.sensitivity_scan(Model().eval(), x, [x], None, INT8, measure_latency=False)
    assert 0 < report.rows[0]["alone_sqnr_db"] < math.inf


def test_table_and_plot(net, x, tmp_path):
    report = scan(net, x, measure_latency=True)
    text = str(report)
    assert all(layer in text for layer in LAYERS) and "float: metric" in text
    for name in ("scan.png", "scan.svg"):
        report.plot(tmp_path / name)
    assert (tmp_path / "scan.png").read_bytes().startswith(b"\x89PNG")
    assert all(layer in (tmp_path / "scan.svg").read_text() for layer in LAYERS)
    scan(net, x, evaluate=None).plot(tmp_path / "sqnr.png")
    with pytest.raises(ValueError, match="not supported"):
        report.plot(tmp_path / "scan.unknown")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["scan.png", "scan.svg", "sqnr.png"]


# ---- journals


def test_a_scan_that_is_killed_goes_on(net, x, tmp_path):
    path = tmp_path / "scan.jsonl"
    whole = scan(net, x)
    metric, calls = distance_from(net, x), []

    def dies_at_the_fifth(model):
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return metric(model)

    with pytest.raises(KeyboardInterrupt):
        scan(net, x, evaluate=dies_at_the_fifth, resume=path)
    calls.clear()
    resumed = scan(net, x, evaluate=lambda model: calls.append(1) or metric(model), resume=path)
    assert len(calls) == 1 + 7 - 3  # the float model again, and what was not finished
    assert resumed.rows == whole.rows and resumed.ranking == whole.ranking
    calls.clear()
    scan(net, x, evaluate=lambda model: calls.append(1) or metric(model), resume=path)
    assert len(calls) == 1


def test_half_a_line_that_a_kill_left_is_cut_off(net, x, tmp_path):
    path = tmp_path / "scan.jsonl"
    whole = scan(net, x, resume=path)
    content = path.read_bytes()
    for cut in (len(content) - 10, len(content) - 200, 5):
        path.write_bytes(content[:cut])
        assert scan(net, x, resume=path).rows == whole.rows
        assert all(json.loads(line) for line in path.read_text().splitlines())
    lines = content.splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:2], b"{broken\n", *lines[2:]]))
    with pytest.raises(ValueError, match="line 3 of .*scan.jsonl' is damaged"):
        scan(net, x, resume=path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"net": True}, "the model differs"),
        ({"qconfig": {"int8": tq.qconfigs.int8_static(observer="min_max")}}, "the QConfig of 'int8' differs"),
        ({"evaluate": lambda model: 0.5}, r"the evaluation data differs; the metric of the float model was -?\d\S* and is 0.5"),
        ({"higher_is_better": False}, "the higher_is_better"),
    ],
)
def test_the_journal_of_another_scan_is_refused_and_left_alone(net, x, tmp_path, change, message):
    path = tmp_path / "scan.jsonl"
    metric = distance_from(net, x)
    scan(net, x, resume=path, evaluate=metric)
    before = path.read_bytes()
    if change.pop("net", None):
        net.head.bias.data += 1
    with pytest.raises(ValueError, match=f"scan.jsonl' is the journal of another scan: .*{message}"):
        scan(net, x, **{"resume": path, "evaluate": metric, **change})
    assert path.read_bytes() == before


def test_another_evaluation_set_with_the_same_metric_is_refused(net, x, tmp_path):
    path = tmp_path / "scan.jsonl"
    scan(net, x, resume=path, evaluate=lambda model: float(model(x).shape[0]))
    with pytest.raises(ValueError, match="journal of another scan: the evaluation data differs"):
        scan(net, x, resume=path, evaluate=lambda model: float(model(x + 1).shape[0]))


def test_other_calibration_data_is_refused(net, x, tmp_path):
    path = tmp_path / "scan.jsonl"
    scan(net, x, resume=path)
    with pytest.raises(ValueError, match="the calibrated range of 'int8: activation_fake_quants.x' differs"):
        tq.sensitivity_scan(net, x, [x * 2], distance_from(net, x), INT8, measure_latency=False, resume=path)


def test_a_file_that_is_no_journal_is_left_alone(net, x, tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("my notes\n")
    with pytest.raises(ValueError, match="line 1 of .*notes.txt' is damaged|notes.txt' is not the journal of a scan"):
        scan(net, x, resume=path)
    assert path.read_text() == "my notes\n"


def _hold(path, ready, done):
    import fcntl

    file = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    ready.set()
    done.wait(60)


def test_two_processes_on_one_journal(net, x, tmp_path):
    context = multiprocessing.get_context("fork")
    ready, done = context.Event(), context.Event()
    other = context.Process(target=_hold, args=(tmp_path / "scan.jsonl", ready, done))
    other.start()
    try:
        assert ready.wait(60)
        with pytest.raises(RuntimeError, match="another process is writing .*scan.jsonl"):
            scan(net, x, resume=tmp_path / "scan.jsonl")
    finally:
        done.set()
        other.join()
    scan(net, x, resume=tmp_path / "scan.jsonl")


def test_journals_of_other_processes_are_found_whatever_the_file_is_called(tmp_path):
    for name in ("scan[1].rank1.jsonl", "scan1.rank1.jsonl"):
        (tmp_path / name).touch()
    journal = Journal(tmp_path / "scan[1].jsonl", Processes())
    journal.close()
    assert [path.name for path in journal.siblings] == ["scan[1].rank1.jsonl"]


# ---- bad input


@pytest.mark.parametrize("value", [math.nan, math.inf, "good", None, torch.zeros(2)])
def test_a_metric_must_be_a_finite_number_and_finished_work_is_kept(net, x, tmp_path, value):
    path = tmp_path / "scan.jsonl"
    metric, calls = distance_from(net, x), []

    def evaluate(model):
        calls.append(1)
        return value if len(calls) == 4 else metric(model)

    message = r"with all layers but 'stem.0' in 'int8' it returned .*finished evaluations are kept in '.*scan.jsonl'"
    with pytest.raises(ValueError, match=message):
        scan(net, x, evaluate=evaluate, resume=path)
    assert len(path.read_text().splitlines()) == 1 + 2
    scan(net, x, evaluate=metric, resume=path)


def test_nan_on_the_float_model_is_seen_first(net, x):
    message = "evaluate must return a finite number; with the float model it returned nan .resume='scan.jsonl' would keep"
    with pytest.raises(ValueError, match=message):
        scan(net, x, evaluate=lambda model: math.nan)


def test_layer_names_that_match_nothing_get_the_nearest(net, x):
    with pytest.raises(ValueError, match=r"sensitivity_scan: 'stem\\\\\.1' matches no layer; nearest: 'stem.0'"):
        scan(net, x, layers=[r"stem\.1"])
    assert [row["layer"] for row in scan(net, x, layers=["stem", "h.*"]).rows] == ["stem.0", "head"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"mode": "alone"}, ValueError, "mode must be one of 'each_alone', 'each_but_one', 'both'; got 'alone'"),
        ({"evaluate": 3}, TypeError, "evaluate must be a function of a model, or None; got a int"),
        ({"qconfig": {"float": INT8}}, ValueError, "none of them 'float'"),
        ({"qconfig": {}}, ValueError, "at least one QConfig"),
        ({"qconfig": "int8"}, TypeError, "qconfig must be a QConfig"),
        ({"resume": "nowhere/scan.jsonl"}, ValueError, "resume='nowhere/scan.jsonl' lies in a folder that does not exist"),
    ],
)
def test_mistakes_are_named(net, x, changes, error, message):
    with pytest.raises(error, match=message):
        scan(net, x, **changes)


def test_calibration_mistakes(net, x):
    with pytest.raises(RuntimeError, match="calibrate: the model does not run on batch 0"):
        tq.sensitivity_scan(net, x, [torch.randn(2, 3, 8, 8)], None, INT8)
    with pytest.raises(ValueError, match="'int8' has activations with fixed scales, so it needs calibration batches; got None"):
        tq.sensitivity_scan(net, x, None, None, INT8)


def test_calibration_from_a_generator_serves_several_qconfigs(net, x):
    several = {"mse": INT8, "int4": INT4, "min_max": tq.qconfigs.int8_static(observer="min_max")}
    from_list = tq.sensitivity_scan(net, x, [x, x + 1], None, several, measure_latency=False)
    from_generator = tq.sensitivity_scan(net, x, iter([x, x + 1]), None, several, measure_latency=False)
    assert from_list.rows == from_generator.rows


# ---- several processes

PROGRAM = """
import pathlib
import sys
import torch
import torchquant as tq
from tests.python.test_sensitivity import Net, INT8, INT4, distance_from

folder = pathlib.Path(sys.argv[1])
torch.manual_seed(0)
net = Net().eval()
x = torch.randn(16, 1, 8, 8)
metric, calls = distance_from(net, x), []

def scan(evaluate, name):
    return tq.sensitivity_scan(net, x, [x], evaluate, {"int8": INT8, "int4": INT4}, measure_latency=False, resume=folder / name)

torch.distributed.init_process_group("gloo")
rank = torch.distributed.get_rank()
report = scan(lambda model: calls.append(1) or metric(model), "scan.jsonl")
report.save(folder / f"report{rank}.json")
(folder / f"calls{rank}").write_text(str(len(calls)))
try:
    scan(lambda model: metric(model) if rank == 0 else float("nan"), "nan.jsonl")
except (RuntimeError, ValueError) as error:
    (folder / f"error{rank}").write_text(str(error))
"""


def test_two_processes_share_the_work_and_their_errors(tmp_path):
    (tmp_path / "program.py").write_text(PROGRAM)
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path / "program.py", tmp_path],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}, capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    torch.manual_seed(0)
    net, x = Net().eval(), torch.randn(16, 1, 8, 8)
    metric, calls = distance_from(net, x), []
    arguments = {"qconfig": {"int8": INT8, "int4": INT4}}
    one = scan(net, x, **arguments)
    for rank in (0, 1):
        shared = tq.SensitivityReport.load(tmp_path / f"report{rank}.json")
        assert shared.rows == one.rows and shared.ranking == one.ranking and shared.candidates == one.candidates
    tasks = 2 * (1 + 2 * len(LAYERS))
    assert [int((tmp_path / f"calls{rank}").read_text()) for rank in (0, 1)] == [1 + tasks // 2, tasks // 2]
    # one process goes on where the two ended
    scan(net, x, evaluate=lambda model: calls.append(1) or metric(model), resume=tmp_path / "scan.jsonl", **arguments)
    assert len(calls) == 1
    # an error in one process ends all, once the others have done their share
    assert "process 1 failed: ValueError" in (tmp_path / "error0").read_text()
    assert "it returned nan" in (tmp_path / "error1").read_text()
    assert len((tmp_path / "nan.jsonl").read_text().splitlines()) == 1 + tasks // 2


def test_a_candidate_that_was_measured_as_a_whole_is_not_proposed_past_the_budget():
    """Each layer alone costs nothing, all together cost 0.01: a sum of the layers would call that free."""
    rows = [
        {"layer": layer, "modules": [layer], "kind": "linear", "candidate": "int8", "qconfig": tq.qconfigs.int8_static().to_dict(), "kernel": "x",
         "alone_metric": 0.9, "alone_drop": 0.0, "alone_sqnr_db": 30.0, "but_one_metric": 0.89, "but_one_gain": 0.0, "but_one_sqnr_db": 30.0,
         "float_ms": None, "quantized_ms": None, "latency_gain_ms": None, "float_mb": 1.0, "quantized_mb": 0.25}
        for layer in ("a", "b")
    ]  # fmt: skip
    whole = {"metric": 0.89, "sqnr_db": 20.0, "latency_ms": None, "layers_gain_ms": 0.0}
    known = {"rows": rows, "candidates": {"int8": whole}, "float_metric": 0.9, "float_latency_ms": None, "float_size_mb": 2.0, "higher_is_better": True}
    report = tq.SensitivityReport(**{item.name: known.get(item.name) for item in dataclasses.fields(tq.SensitivityReport)})
    mapping = report.propose(max_accuracy_drop=0.005)
    assert sorted(report.choices(mapping).values()) == ["float", "int8"]
    everywhere = report.propose(max_accuracy_drop=0.02)
    assert set(report.choices(everywhere).values()) == {"int8"}
    assert report.predict(everywhere)["metric"] == pytest.approx(0.89) and report.predict(everywhere)["drop"] == pytest.approx(0.01)
