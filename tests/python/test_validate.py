"""torchquant.validate: the figures against hand-computed ones, the interval's statistics, limits, and one sentence for bad data."""

import json
import math
import re

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import torchquant as tq
from torchquant.analysis import accuracy, speed
from torchquant.analysis.accuracy import paired_proportions, top1

SAMPLES = 40


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Dropout(), nn.Linear(16, 4))

    def forward(self, x):
        return self.layers(x)


@pytest.fixture(scope="module")
def case():
    """(float model, quantized model, inputs, labels): the labels are the float model's own answers but for four of them."""
    torch.manual_seed(0)
    model, inputs = Net(), torch.randn(SAMPLES, 6)
    quantized = tq.quantize_model(model, inputs, tq.qconfigs.int8_static(), [inputs])
    with torch.no_grad():
        labels = model.eval()(inputs).argmax(1)
    labels[:4] = (labels[:4] + 1) % 4
    return model.train(), quantized, inputs, labels


def quick(case, data=None, metric=None, **options):
    model, quantized, inputs, labels = case
    return tq.validate(model, quantized, (inputs, labels) if data is None else data, metric, runs=3, processes=0, **options)


def cross_entropy(outputs, labels):
    return nn.functional.cross_entropy(outputs, labels, reduction="none")


def mean_cross_entropy(outputs, labels):
    return nn.functional.cross_entropy(outputs, labels)


# What it reports


def test_accuracy_is_that_of_the_models_called_by_hand(case):
    model, quantized, inputs, labels = case
    report = quick(case)
    by_hand = (quantized(inputs).argmax(1) == labels).double().mean().item()
    assert report.accuracy.float == 0.9
    assert report.accuracy.quantized == by_hand
    assert report.accuracy.drop == pytest.approx(0.9 - by_hand)
    assert report.accuracy.interval[0] <= report.accuracy.drop <= report.accuracy.interval[1]
    assert (report.accuracy.metric, report.accuracy.samples) == ("top-1 accuracy", SAMPLES)


def test_speed_and_size_of_both(case, tmp_path):
    report = quick(case)
    for side in (report.float, report.quantized):
        latency = side["latency_ms"]
        assert latency["runs"] == 3 and 0 < latency["p50_ms"] <= latency["p95_ms"] <= latency["p99_ms"]
        assert side["throughput"] > 0 and side["timed_by"] == "C++"
        assert side["cold_start_ms"] is None and side["peak_memory_bytes"] is None  # processes=0
    case[1].save(tmp_path / "model.pt")
    assert report.quantized["bytes"] == (tmp_path / "model.pt").stat().st_size
    assert report.latency_shapes == [[1, 6]] and report.throughput_shapes == [[32, 6]]
    assert report.ratios()["latency"] == report.quantized["latency_ms"]["p50_ms"] / report.float["latency_ms"]["p50_ms"]
    assert report.ratios()["memory"] is None


def test_cold_start_and_memory_in_fresh_processes(case):
    model, quantized, inputs, labels = case

    class Heavy(Net):
        def __init__(self):
            super().__init__()
            self.ballast = nn.Embedding(1 << 18, 64)  # 64 MiB that only the float file holds

        def forward(self, x):
            return super().forward(x) + 0 * self.ballast(x[:, 0].abs().long()).sum()

    heavy = Heavy()
    heavy.load_state_dict(model.state_dict(), strict=False)
    report = tq.validate(heavy, quantized, (inputs, labels), runs=1, processes=1)
    assert report.float["cold_start_ms"] > 0 and report.quantized["cold_start_ms"] > 0
    assert report.float["model_memory_bytes"] > 64 << 20 > report.quantized["model_memory_bytes"]
    assert report.float["peak_memory_bytes"] > report.quantized["peak_memory_bytes"] > report.quantized["model_memory_bytes"]
    assert report.ratios()["memory"] < 1 and report.ratios()["size"] < 0.1


def test_nothing_is_changed(case):
    model, quantized, inputs, labels = case
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    attributes, state = set(vars(model)), torch.get_rng_state()
    quick(case)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert set(vars(model)) == attributes and type(model) is Net
    assert all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)


def test_every_form_of_data_gives_the_same(case):
    model, quantized, inputs, labels = case
    pairs = list(zip(inputs.split(16), labels.split(16)))
    forms = [
        pairs,
        tuple(pairs),
        iter(pairs),
        [((x,), y) for x, y in pairs],
        [({"x": x}, y) for x, y in pairs],
        torch.utils.data.DataLoader(torch.utils.data.TensorDataset(inputs, labels), batch_size=7),
    ]
    expected = quick(case).accuracy
    assert all(quick(case, data).accuracy == expected for data in forms)


def test_a_float_model_as_torchscript(case):
    model, quantized, inputs, labels = case
    script = torch.jit.trace(model.eval(), inputs)
    model.train()
    report = quick((script, quantized, inputs, labels))
    assert report.accuracy == quick(case).accuracy and report.float["timed_by"] == "C++"


def test_a_float_model_that_cannot_be_traced_is_timed_from_python(case):
    class Untraceable(Net):
        def forward(self, x):
            if torch.jit.is_tracing():
                raise RuntimeError("no tracing, please")
            return super().forward(x)

    model = Untraceable()
    model.load_state_dict(case[0].state_dict())
    report = quick((model, *case[1:]))
    assert "no tracing, please" in report.float["timed_by"] and report.quantized["timed_by"] == "C++"
    assert report.float["bytes"] == sum(parameter.nbytes for parameter in model.parameters())
    assert report.failures(max_memory_ratio=1) == ["the peak memory ratio (quantized / float) was not measured, and max_memory_ratio asks for at most 1"]
    assert "no tracing, please" in str(report.to_dict()["float"]["timed_by"])


def test_a_model_that_fails_in_a_fresh_process_does_not_cost_the_rest(case, monkeypatch):
    monkeypatch.setattr(speed.sys, "executable", "/bin/false")
    model, quantized, inputs, labels = case
    report = tq.validate(model, quantized, (inputs, labels), runs=1, processes=1)
    assert report.accuracy.float == 0.9 and report.quantized["cold_start_ms"] is None
    assert report.quantized["not_measured"] == "it does not run in a fresh process: exit code 1"
    assert "cold start and memory of the quantized model were not measured: it does not run in a fresh process" in report.table().caption


def test_a_metric_may_write_into_the_outputs(case):
    def metric(outputs, labels):
        outputs -= outputs.max(1, keepdim=True).values
        return top1(outputs, labels)

    assert quick(case, metric=metric).accuracy.float == 0.9


def test_a_frozen_float_model(case):
    script = torch.jit.freeze(torch.jit.trace(Net().eval(), case[2]))
    assert quick((script, *case[1:])).float["timed_by"] == "C++"


def test_dict_outputs_reach_the_metric_as_tuples():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(3, 5)

        def forward(self, x):
            return {"scores": self.a(x), "boxes": self.b(x)}

    torch.manual_seed(0)
    model, x = Two().eval(), torch.randn(8, 3)
    quantized = tq.quantize_model(model, x, tq.qconfigs.int8_static(), [x])
    labels = torch.randn(8, 5)

    def error(outputs, labels):
        scores, boxes = outputs
        assert scores.shape[1] == 2
        return (boxes - labels).abs().mean(1)

    report = tq.validate(model, quantized, [(x, labels)], error, higher_is_better=False, runs=1, processes=0)
    assert report.accuracy.float == pytest.approx((model(x)["boxes"] - labels).abs().mean().item(), rel=1e-5)
    assert report.accuracy.metric == "error"


def test_a_model_for_one_batch_size_alone_is_timed_on_the_batch():
    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, x):
            return self.layer(x.reshape(4, 3))

    torch.manual_seed(0)
    model, x = Fixed().eval(), torch.randn(4, 3)
    quantized = tq.quantize_model(model, x, tq.qconfigs.int8_static(), [x], fixed_shapes=True)
    report = tq.validate(model, quantized, [(x, torch.tensor([0, 1, 0, 1]))], runs=1, processes=0)
    assert report.latency_shapes == [[4, 3]]


def test_layers_that_fell_back_are_listed():
    class Computed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.weight = nn.Linear(3, 3), nn.Parameter(torch.randn(2, 3))

        def forward(self, x):
            return nn.functional.linear(self.layer(x), self.weight * 2)

    torch.manual_seed(0)
    model, x = Computed().eval(), torch.randn(8, 3)
    quantized = tq.quantize_model(model, x, tq.qconfigs.int8_static(), [x], on_fallback="allow")
    report = tq.validate(model, quantized, [(x, torch.zeros(8, dtype=torch.long))], runs=1, processes=0)
    assert [row["layer"] for row in report.fallbacks] == ["weight"]
    assert report.failures(max_fallbacks=0) == ["the number of fallbacks (weight) is 1, and max_fallbacks allows 0"]
    assert report.failures(max_fallbacks=1) == []


def test_what_stays_float_by_choice_is_no_fallback():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3)).eval(), torch.randn(8, 3)
    mapping = tq.QConfigMapping(tq.qconfigs.int8_static()).set_module_name("2", None)
    receipt = tq.quantize_model(model, x, mapping, [x]).receipt
    assert [row["precision"] for row in receipt.rows] == ["int8", "float"] and receipt.fallbacks() == []


def test_the_report_as_json_and_as_a_table(case):
    report = quick(case)
    assert json.loads(json.dumps(report.to_dict())) == report.to_dict()
    text = str(report.rows()) + str(report.table().caption)
    for word in ("top-1 accuracy", "latency P99", "throughput", "McNemar", "Bonett and Price"):
        assert word in text


# The statistics


def test_paired_proportions_by_hand():
    differences = np.array([1] * 8 + [-1] * 2 + [0] * 90)
    (low, high), _, p_value = paired_proportions(differences, 0.95)
    center, width = 6 / 102, 1.959963984540054 * math.sqrt((12 / 102 - (6 / 102) ** 2) / 102)
    assert (low, high) == pytest.approx((center - width, center + width))
    # McNemar, exact: 8 or more heads of 10 tosses, on either side
    assert p_value == pytest.approx(2 * (math.comb(10, 8) + math.comb(10, 9) + 1) / 2**10)


def test_models_that_never_disagree_still_have_an_interval():
    (low, high), _, p_value = paired_proportions(np.zeros(100), 0.95)
    assert low == -high and 0.01 < high < 0.05 and p_value == 1  # the rule of three says 3 %


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 50))
def test_swapping_the_models_mirrors_the_interval(first, second, same):
    differences = np.array([1] * first + [-1] * second + [0] * same)
    (low, high), _, p_value = paired_proportions(differences, 0.9)
    (mirrored_low, mirrored_high), _, mirrored_p = paired_proportions(-differences, 0.9)
    assert (low, high, p_value) == pytest.approx((-mirrored_high, -mirrored_low, mirrored_p))
    assert -1 <= low < high <= 1


def test_the_interval_covers_the_true_drop_as_often_as_it_says():
    draws = np.random.default_rng(0)
    truth = 0.05 - 0.02
    hits = 0
    for _ in range(400):
        differences = draws.choice([1, -1, 0], p=[0.05, 0.02, 0.93], size=200)
        (low, high), _, _ = paired_proportions(differences, 0.9)
        hits += low <= truth <= high
    assert 0.86 < hits / 400 < 0.96


def test_a_score_per_sample_and_one_number_agree(case, monkeypatch):
    monkeypatch.setattr(accuracy, "RESAMPLES", 200)
    by_sample = quick(case, metric=cross_entropy, higher_is_better=False).accuracy
    whole = quick(case, metric=mean_cross_entropy, higher_is_better=False).accuracy
    assert (whole.float, whole.quantized) == pytest.approx((by_sample.float, by_sample.quantized), rel=1e-5)
    assert "paired t" in by_sample.method and "bootstrap" in whole.method
    for found in (by_sample, whole):
        assert found.interval[0] < found.drop < found.interval[1] and found.p_value is None
    width = by_sample.interval[1] - by_sample.interval[0]
    assert np.allclose(by_sample.interval, whole.interval, atol=0.3 * width)
    assert quick(case, metric=mean_cross_entropy, higher_is_better=False).accuracy == whole  # the same resamples again


def test_a_drop_is_positive_where_the_quantized_model_is_worse(case):
    loss = quick(case, metric=cross_entropy, higher_is_better=False).accuracy
    gain = quick(case, metric=lambda outputs, labels: -cross_entropy(outputs, labels)).accuracy
    assert loss.drop == pytest.approx(loss.quantized - loss.float) == pytest.approx(gain.drop)
    assert loss.interval == pytest.approx(gain.interval)


def test_top1_by_hand():
    outputs = torch.tensor([[1.0, 2.0], [3.0, 0.0], [0.0, 5.0]])
    assert top1(outputs, torch.tensor([1, 1, 1])).tolist() == [1, 0, 1]


# Limits


def test_each_limit_that_is_exceeded_is_named_with_figure_and_limit(case):
    report = quick(case)
    report.accuracy.drop, report.quantized["bytes"], report.float["bytes"] = 0.25, 300, 1000
    for name, figure in (("max_accuracy_drop", "0.25"), ("max_size_ratio", "0.3")):
        (sentence,) = report.failures(**{name: 0.125})
        assert f" is {figure}, and {name} allows 0.125" in sentence
        assert report.failures(**{name: float(figure)}) == []
    ratio = report.ratios()["latency"]
    assert f"is {ratio:.4g}, and max_latency_ratio allows" in report.failures(max_latency_ratio=ratio / 2)[0]
    assert len(report.failures(max_accuracy_drop=0, max_size_ratio=0, max_latency_ratio=0)) == 3
    assert report.failures() == []
    with pytest.raises(ValueError, match="max_size_ratio must be a number, got nan"):
        report.failures(max_size_ratio=float("nan"))


# Bad input


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "data is empty; give an iterable of (inputs, labels) batches"),
        (torch.zeros(3, 6), "data is a Tensor; give an iterable of (inputs, labels) batches"),
        (3, "data is a int; give"),
        ([torch.zeros(3, 6)], "batch 0 of data must be (inputs, labels), got a Tensor"),
        ([(torch.zeros(3, 6), torch.zeros(3), torch.zeros(3))], "batch 0 of data must be (inputs, labels), got 3 things"),
        ([(torch.zeros(3, 6), torch.zeros(2, dtype=torch.long))], "batch 0 has 3 samples and labels of shape [2]; each sample needs one label"),
        ((torch.zeros(0, 6), torch.zeros(0, dtype=torch.long)), "batch 0 of data is empty (inputs of shape [0, 6])"),
        ([(torch.zeros(3, 5), torch.zeros(3, dtype=torch.long))], "the float model does not run on batch 0 of shape [3, 5]: "),
        ([("text", torch.zeros(3))], "the inputs of batch 0: expected a tensor, a tuple of arguments or a dict of keyword arguments, got str"),
        ([(torch.zeros(3, 6), torch.zeros(3))], "top-1 accuracy needs labels of shape [N] with class indices, got [3] of torch.float32"),
        ([(torch.zeros(3, 6), torch.full((3,), 4))], "labels go from 4 to 4 and the model has 4 classes"),
        ([(torch.zeros(3, 6), ["a", "b", "c"])], "top-1 accuracy needs labels of shape [N] with class indices, got a list"),
    ],
)
def test_data_that_cannot_be_used(case, data, message):
    with pytest.raises((TypeError, ValueError), match="^validate: .*" + re.escape(message)) as error:
        quick(case, data)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda outputs, labels: float("nan"), "metric gives nan for the float model"),
        (lambda outputs, labels: torch.full((len(labels),), float("nan")), "metric gives nan for sample 0 of batch 0 with the float model"),
        (lambda outputs, labels: torch.zeros(3), "metric must return one number, or one score for each of the 32 samples of batch 0; it returned [3]"),
        (lambda outputs, labels: outputs.missing, "metric failed on batch 0 for the float model: 'Tensor' object has no attribute 'missing'"),
        (3, "metric must be callable as metric(outputs, labels), got int"),
    ],
)
def test_a_metric_that_cannot_be_used(case, metric, message):
    with pytest.raises((TypeError, ValueError), match="^validate: " + re.escape(message)):
        quick(case, metric=metric)


def test_one_sample_has_no_bootstrap_interval(case):
    with pytest.raises(ValueError, match="^validate: the confidence interval of a metric of the data as a whole needs at least 2 samples"):
        quick(case, (case[2][:1], case[3][:1]), mean_cross_entropy)


def test_a_metric_that_resamples_make_nan_says_so(case):
    def accuracy_of_a_rare_class(outputs, labels):
        rare = labels == labels.new_tensor(rarest)
        return ((outputs.argmax(1) == labels) & rare).sum().item() / rare.sum().item() if rare.any() else float("nan")

    rarest = 7
    labels = case[3].clone()
    labels[0] = rarest
    with pytest.raises(ValueError, match="metric is not finite on a random resample of the 40 samples"):
        quick(case, (case[2], labels), accuracy_of_a_rare_class, batch_size=SAMPLES)


def test_models_and_arguments_that_cannot_be_used(case):
    model, quantized, inputs, labels = case
    other = tq.quantize_model(nn.Linear(6, 3), inputs, tq.qconfigs.int8_static(), [inputs])
    cases = [
        (lambda: tq.validate(model, model, (inputs, labels)), "quantized must be a model from torchquant.convert or torchquant.load, got Net"),
        (lambda: tq.validate(quantized, quantized, (inputs, labels)), "float_model must be the float torch.nn.Module or TorchScript, got QuantizedModel"),
        (lambda: quick((model, other, inputs, labels)), "the float model returns [32, 4] and the quantized one [32, 3]; are they the same network?"),
        (lambda: quick(case, batch_size=0), "batch_size must be an integer of at least 1, got 0"),
        (lambda: quick(case, confidence=95), "confidence must lie between 0 and 1, such as 0.95; got 95"),
    ]
    for call, message in cases:
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            call()
