"""torchquant.convert and quantize_model in Python: inputs and outputs of every form, the checks of the trace, the layer-agreement bar."""

import collections
import copy
import dataclasses
import gc
import pickle
import sys
import weakref

import pytest
import torch
from torch import nn

import torchquant as tq
from torchquant.agreement import layer_agreement


def prepare_and_calibrate(model, example, qconfig=None):
    prepared = tq.prepare(model, example, qconfig or tq.qconfigs.int8_static())
    tq.calibrate(prepared, [example])
    return prepared


def quantize(model, example, qconfig=None, **options):
    return tq.convert(prepare_and_calibrate(model.eval(), example, qconfig), example, **options)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.head = nn.Linear(8, 4)

    def forward(self, x):
        x = torch.relu(self.norm(self.stem(x)))
        x = torch.relu(self.depthwise(x) + x)
        return self.head(x.mean((2, 3)))


@pytest.fixture
def image_case():
    torch.manual_seed(0)
    return Residual().eval(), torch.randn(4, 3, 10, 10)


def test_the_whole_way(image_case, tmp_path):
    model, x = image_case
    before = copy.deepcopy(model.state_dict())
    quantized = quantize(model, x)
    assert quantized.drift["relative"] < 0.02
    assert (quantized(x) - model(x)).norm() / model(x).norm() < 0.2
    assert {row["layer"] for row in quantized.receipt.rows} >= {"stem", "depthwise", "head"}
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    quantized.save(tmp_path / "model.pt")
    assert torch.equal(tq.load(tmp_path / "model.pt")(x), quantized(x))


def test_every_layer_agrees_with_its_fake_quantized_self(image_case):
    model, x = image_case
    prepared = prepare_and_calibrate(model, x)
    rows = layer_agreement(prepared, tq.convert(prepared, x), x)
    assert {row.layer for row in rows} >= {"stem", "depthwise"}
    for row in rows:
        assert row.values > 0
        assert row.passed, row


@pytest.mark.parametrize("dims", [1, 2])
def test_batch_norms_that_no_layer_takes_in_are_layers(dims):
    conv, norm = (nn.Conv1d, nn.BatchNorm1d) if dims == 1 else (nn.Conv2d, nn.BatchNorm2d)

    class PreActivation(nn.Module):
        def __init__(self):
            super().__init__()
            self.stem, self.norm, self.conv, self.last, self.join = conv(3, 5, 1), norm(5), conv(5, 4, 3, padding=1), norm(9), conv(9, 2, 1)

        def forward(self, x):
            x = self.stem(x)
            return self.join(torch.relu(self.last(torch.cat([x, self.conv(torch.relu(self.norm(x)))], 1))))

    torch.manual_seed(0)
    model = PreActivation().train()
    example = torch.randn(2, 3, *[9] * dims)
    with torch.no_grad():
        for module in (model.norm, model.last):
            nn.init.uniform_(module.weight, -2, 2)  # a factor may be negative
            nn.init.normal_(module.bias)
        model(example)
    prepared = prepare_and_calibrate(model.eval(), example)
    quantized = tq.convert(prepared, example)
    rows = {row["layer"]: row for row in quantized.receipt.rows}
    assert not [row for row in quantized.receipt.rows if row["precision"] == "float"]
    assert [rows[name]["fused"] for name in ("norm", "last")] == [["relu"], ["relu"]]
    assert rows["norm"]["kind"] == "batch_norm" and rows["norm"]["kernel"].startswith("quantized_conv")
    for row in layer_agreement(prepared, quantized, example):
        assert row.passed, row


class OldStyle(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, factor=2.0):
        ctx.save_for_backward(x)
        ctx.factor = factor
        return x * torch.sigmoid(factor * x)


class NewStyle(torch.autograd.Function):
    @staticmethod
    def forward(x, factor=2.0):
        return x * torch.sigmoid(factor * x)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])


@pytest.mark.parametrize("function", [OldStyle, NewStyle])
def test_autograd_functions_of_python_become_their_ops(function, tmp_path):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)

        def forward(self, x):
            return self.b(function.apply(self.a(x), 1.5))

    apply, x = torch.autograd.Function.__dict__["apply"], torch.randn(4, 6)
    model = Model().eval()
    quantized = quantize(model, x)
    quantized.save(tmp_path / "model.pt")
    assert torch.equal(tq.load(tmp_path / "model.pt")(x), quantized(x))
    with torch.no_grad():
        hidden = model.a(x)
        assert torch.allclose(quantized(x), model.b(hidden * torch.sigmoid(1.5 * hidden)), atol=0.1)
    assert torch.autograd.Function.__dict__["apply"] is apply


def test_a_wrong_layer_fails_the_bar(image_case):
    model, x = image_case
    prepared = prepare_and_calibrate(model, x)
    quantized = tq.convert(prepared, x)
    with torch.no_grad():
        dict(prepared.named_parameters())["depthwise.weight"].mul_(0.5)
    by_layer = {row.layer: row for row in layer_agreement(prepared, quantized, x)}
    assert not by_layer["depthwise"].passed
    assert by_layer["stem"].passed, "an error must not count against another layer"


def test_an_error_before_float_operations_does_not_count_against_later_layers():
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner, self.norm = torch.nn.Linear(32, 64), torch.nn.LayerNorm(32)
            self.down, self.first, self.last = torch.nn.Linear(64, 32), torch.nn.Linear(32, 48), torch.nn.Linear(48, 5)

        def forward(self, x):
            x = self.norm(self.down(self.inner(x).relu()) + x)  # floats between integer layers
            return self.last(self.first(x).relu())

    torch.manual_seed(0)
    x = torch.randn(16, 32)
    prepared = prepare_and_calibrate(Net().eval(), x)
    quantized = tq.convert(prepared, x)
    with torch.no_grad():
        dict(prepared.named_parameters())["down.weight"].mul_(0.9)  # ends in floats, so it has no codes of its own to compare
    by_layer = {row.layer: row for row in layer_agreement(prepared, quantized, x)}
    assert by_layer["inner"].passed and by_layer["first"].passed


def test_conversion_does_not_change_the_prepared_model(image_case):
    model, x = image_case
    prepared = prepare_and_calibrate(model, x).train()
    state, expected = copy.deepcopy(prepared.state_dict()), type(prepared)
    tq.convert(prepared, x)
    assert prepared.training and type(prepared) is expected
    assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())


@dataclasses.dataclass
class Scores:
    logits: torch.Tensor
    loss: torch.Tensor = None
    features: torch.Tensor = None


class ManyForms(nn.Module):
    """Inputs by keyword with a None, a flag and a default; a dataclass and a dict as outputs."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(6, 6)
        self.head = nn.Linear(6, 2)

    def forward(self, features, mask=None, bias=None, as_dict=False):
        hidden = torch.relu(self.body(features))
        if mask is not None:
            hidden = hidden * mask
        if as_dict:
            return {"logits": self.head(hidden), "hidden": hidden}
        return Scores(self.head(hidden), features=hidden)


def test_keyword_inputs_and_dataclass_outputs():
    torch.manual_seed(0)
    inputs = {"features": torch.randn(5, 6), "mask": torch.ones(5, 6), "bias": None}
    quantized = quantize(ManyForms(), inputs)
    by_name = quantized(features=inputs["features"], mask=inputs["mask"])
    assert isinstance(by_name, tuple) and [leaf.shape for leaf in by_name] == [(5, 2), (5, 6)]
    by_position = quantized(inputs["features"], inputs["mask"])
    assert torch.equal(by_name[0], by_position[0])


def test_dict_outputs_become_tuples():
    torch.manual_seed(0)
    x = torch.randn(5, 6)
    logits, hidden = quantize(ManyForms(), {"features": x, "as_dict": True})(x)
    assert logits.shape == (5, 2) and hidden.shape == (5, 6)


def test_checks_are_reported(image_case):
    model, x = image_case
    checks = {check["check"]: check for check in quantize(model, x).checks}
    assert checks["batch size"]["shapes"] == [[5, 3, 10, 10]]


class OnlyBatchOfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x.view(2, 4))


def test_a_model_of_one_batch_size_is_checked_there_and_says_so():
    checks = quantize(OnlyBatchOfTwo(), torch.randn(2, 4)).checks
    assert "takes only 2" in next(check for check in checks if check["check"] == "batch size")["skipped"]


class BakesLength(nn.Module):
    """Runs at every length, but a trace keeps the length that it saw."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x) * float(x.shape[1])


def test_a_trace_that_bakes_in_a_length_is_refused():
    torch.manual_seed(0)
    x = torch.randn(2, 7, 4)
    prepared = prepare_and_calibrate(BakesLength().eval(), x)
    with pytest.raises(ValueError, match="fixes the dimension 1 at 7, while the model also runs with 6; pass fixed_shapes=True"):
        tq.convert(prepared, x)
    assert tq.convert(prepared, x, fixed_shapes=True)(x).shape == (2, 7, 4)


class DependsOnData(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return self.linear(x) * self.calls


def test_a_model_that_a_trace_cannot_follow_is_refused():
    prepared = prepare_and_calibrate(DependsOnData().eval(), torch.randn(2, 4), tq.qconfigs.int8_weight_only())
    with pytest.raises(ValueError, match="holds data-dependent Python control flow or randomness"):
        tq.convert(prepared, torch.randn(2, 4))


def test_mistakes_are_named():
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="Linear holds no fake-quant; make one with torchquant.prepare"):
        tq.convert(nn.Linear(4, 4), x)
    with pytest.raises(ValueError, match="have seen no data, run torchquant.calibrate first: "):
        tq.convert(tq.prepare(nn.Sequential(nn.Linear(4, 4)).eval(), x, tq.qconfigs.int8_static()), x)
    prepared = prepare_and_calibrate(nn.Sequential(nn.Linear(4, 4)).eval(), x)
    with pytest.raises(ValueError, match="on_fallback must be one of 'error', 'allow'; got 'ignore'"):
        tq.convert(prepared, x, on_fallback="ignore")
    with pytest.raises(TypeError, match="expected a tensor, a tuple of arguments or a dict of keyword arguments, got str"):
        tq.convert(prepared, "x")


class ReturnsNumber(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x), 3


def test_an_output_that_torchscript_cannot_hold_is_named():
    prepared = prepare_and_calibrate(ReturnsNumber().eval(), torch.randn(2, 4), tq.qconfigs.int8_weight_only())
    with pytest.raises(TypeError, match="the model returns int; allowed are tensors"):
        tq.convert(prepared, torch.randn(2, 4))


def test_transformer_layer_does_not_take_the_fast_path():
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    x = torch.randn(2, 5, 16)
    quantized = quantize(layer, x)
    layers = {row["layer"] for row in quantized.receipt.rows if row["precision"] == "int8"}
    assert layers >= {"linear1", "linear2"}
    assert torch.backends.mha.get_fastpath_enabled()


@pytest.mark.parametrize("name", ["int8_dynamic", "int8_weight_only"])
def test_quantize_model_without_calibration(name):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(3, 16)
    quantized = tq.quantize_model(model, x, getattr(tq.qconfigs, name)())
    assert (quantized(x) - model(x)).abs().max() < 0.1
    assert quantized.receipt.summary()["int8"] == 2


def test_quantize_model_with_calibration():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4)).eval(), torch.randn(64, 16)
    quantized = tq.quantize_model(model, x, tq.qconfigs.int8_static(), [x])
    assert (quantized(x) - model(x)).abs().max() < 0.2
    with pytest.raises(ValueError, match="have seen no data"):
        tq.quantize_model(model, x, tq.qconfigs.int8_static())


def test_half_precision_models_convert():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(16, 8)).bfloat16().eval(), torch.randn(3, 16, dtype=torch.bfloat16)
    quantized = quantize(model, x)
    assert quantized(x.float()).dtype == torch.float32


class Flagged(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x, double=False, offset=None, *, scale=1.0):
        x = self.linear(x) * (2 if double else 1) * scale
        return x if offset is None else x + offset


def test_arguments_keep_the_order_of_forward_whatever_the_dict_says():
    class TwoInputs(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, first, second):
            return self.a(first) - 2 * self.b(second)

    first, second = torch.randn(2, 4), torch.randn(2, 4)
    model = TwoInputs().eval()
    quantized = tq.quantize_model(model, {"second": second, "first": first}, tq.qconfigs.int8_weight_only())
    torch.testing.assert_close(quantized(first, second), model(first, second), rtol=0.1, atol=0.05)
    assert torch.equal(quantized(first, second), quantized(second=second, first=first))


def test_arguments_that_tracing_fixed_may_be_given_again():
    x, offset = torch.randn(2, 4), torch.randn(2, 4)
    quantized = tq.quantize_model(Flagged().eval(), (x, True, offset), tq.qconfigs.int8_weight_only())
    expected = quantized(x, offset=offset)
    for given in (quantized(x, True, offset), quantized(x, True, offset=offset, scale=1.0), quantized(x=x, offset=offset, double=True)):
        assert torch.equal(given, expected)


@pytest.mark.parametrize(
    ("args", "kwargs", "error", "message"),
    [
        ((False,), {}, ValueError, "takes \\(x, offset\\); 'double' was fixed at True by the example_inputs of convert, got False"),
        ((), {"scale": 2.0}, ValueError, "'scale' was fixed at 1.0 by the example_inputs of convert, got 2.0"),
        ((torch.ones(4),), {}, ValueError, "'double' was fixed at True .* got a tensor of shape \\[4\\]"),
        ((), {"shift": 1}, TypeError, "takes \\(x, offset\\); 'shift' is no argument"),
        ((True, torch.ones(4), 3), {}, TypeError, "got 4 positional arguments"),
        ((), {"x": torch.ones(2, 4)}, TypeError, "got 'x' twice"),
    ],
)
def test_other_values_of_fixed_arguments_are_named(args, kwargs, error, message):
    x, offset = torch.randn(2, 4), torch.randn(2, 4)
    quantized = tq.quantize_model(Flagged().eval(), (x, True, offset), tq.qconfigs.int8_weight_only())
    with pytest.raises(error, match=message):
        quantized(x, *args, **kwargs)


def test_a_converted_model_pickles():
    x = torch.randn(2, 4)
    quantized = tq.quantize_model(Flagged().eval(), (x, True, x), tq.qconfigs.int8_weight_only())
    copy = pickle.loads(pickle.dumps(quantized))
    assert torch.equal(copy(x, True, x), quantized(x, True, x))
    assert copy.receipt.rows == quantized.receipt.rows and copy.drift == quantized.drift


@pytest.mark.parametrize("changed", ["model", "script", "model around it"])
@pytest.mark.parametrize(
    "change",
    [
        lambda module: module.half(),
        lambda module: module.bfloat16(),
        lambda module: module.double(),
        lambda module: module.to(torch.float16),
        lambda module: module.to("cpu", torch.bfloat16),
        lambda module: module.type(torch.float32),
        lambda module: module.to("meta"),
    ],
    ids=["half", "bfloat16", "double", "dtype", "device and dtype", "type", "meta"],
)
def test_the_dtypes_of_a_converted_model_are_its_own(change, changed):
    x = torch.randn(3, 4)
    quantized = quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), x)
    for model in (quantized, copy.deepcopy(quantized), pickle.loads(pickle.dumps(quantized))):
        expected = model(x)
        # some of these torch itself refuses of any script
        refusals = "computes on integers with fp32 scales|cannot move to the meta device|is not supported on ScriptModules"
        with pytest.raises((TypeError, RuntimeError), match=refusals):
            change({"model": model, "script": model.script, "model around it": nn.Sequential(model)}[changed])
        assert torch.equal(model(x), expected)
        assert torch.equal(model.to("cpu").float()(x), expected)


def test_a_converted_model_cannot_be_emptied():
    x = torch.randn(3, 4)
    quantized = quantize(nn.Sequential(nn.Linear(4, 4)), x)
    expected = quantized(x)
    with pytest.raises(TypeError, match="cannot be emptied"):
        quantized.to_empty(device="cpu")
    assert torch.equal(quantized(x), expected)


def test_a_converted_model_is_freed_with_its_last_user():
    x = torch.randn(3, 4)
    quantized = quantize(nn.Sequential(nn.Linear(4, 4)), x)
    quantized(x)
    script = weakref.ref(quantized.script)
    gc.disable()
    try:
        del quantized
        assert script() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "arguments, message",
    [(([1.0],), "tensors; got list for 'input'"), (("a",), "tensors; got str for 'input'"), ((), "'input' is missing")],
    ids=["list", "str", "nothing"],
)
def test_what_is_no_tensor_is_named(arguments, message):
    quantized = quantize(nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4))
    with pytest.raises(TypeError, match=message):
        quantized(*arguments)


def test_inputs_that_do_not_fit_are_named_with_what_the_layer_takes():
    x = torch.randn(2, 3, 8, 8)
    quantized = quantize(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), x)
    message = (
        r"this converted model does not run on inputs of shape \[2, 4, 8, 8\]: quantized_conv: x must have 3 channels .its second dimension. "
        r"for weight of shape \[4, 3, 3, 3\] and groups 1, got x of shape \[2, 4, 8, 8\]$"
    )
    with pytest.raises(RuntimeError, match=message):
        quantized(torch.randn(2, 4, 8, 8))


def test_one_forward_is_no_calibration_for_anyone(tmp_path):
    model, x = nn.Sequential(nn.Linear(4, 4)), torch.randn(3, 4)
    prepared = tq.prepare(model, x, tq.qconfigs.int8_static())
    takers = {
        "convert": lambda: tq.convert(prepared, x),
        "compare": lambda: tq.compare(model, prepared, [x]),
        "bias_correction": lambda: tq.methods.bias_correction(prepared, [x]),
        "adaround": lambda: tq.methods.adaround(prepared, [x]),
        "clipping_report": lambda: tq.methods.clipping_report(prepared, [x]),
        "save_calibration": lambda: tq.methods.save_calibration(prepared, tmp_path / "ranges.json"),
    }
    for name, take in takers.items():
        with pytest.raises(ValueError, match="run torchquant.calibrate first"):
            take()
    prepared(x)
    for name, take in takers.items():
        with pytest.raises(ValueError, match=f"{name}: the model is not calibrated, run torchquant.calibrate first .*of whatever the model ran on"):
            take()
    tq.calibrate(prepared, [x])
    for take in takers.values():
        take()
    prepared[0].weight_fake_quant.enable_fake_quant(False)  # by somebody who looks into it; calibration ran
    tq.convert(prepared, x)
    qat = tq.prepare_qat(model, x, tq.qconfigs.int8_static())
    qat(x)
    tq.convert(qat, x)


def test_a_converted_model_that_computes_something_else_is_an_error(monkeypatch):
    x = torch.randn(2, 4)
    module = sys.modules["torchquant.convert"]
    honest = module.convert_script

    def broken(*arguments):
        model = honest(*arguments)
        for name, buffer in model.script.named_buffers():
            if buffer.dtype == torch.int8:
                buffer.neg_()
        return model

    prepared = prepare_and_calibrate(nn.Sequential(nn.Linear(4, 4)).eval(), x)
    monkeypatch.setattr(module, "convert_script", broken)
    with pytest.raises(RuntimeError, match="outputs differ from the fake-quantized model's by .* of their norm, and max_drift allows 0.5"):
        tq.convert(prepared, x)
    assert tq.convert(prepared, x, max_drift=10.0).drift["relative"] > 0.5


def test_a_wrong_entry_fails_the_bar():
    x = torch.randn(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 1)).eval()
    prepared = prepare_and_calibrate(model, x)
    quantized = tq.convert(prepared, x)
    (entry,) = [row for row in layer_agreement(prepared, quantized, x) if row.entry]
    assert entry.passed and entry.layer.startswith("activation_fake_quants.")
    quantized.script = _OtherInput(quantized.script)
    (entry,) = [row for row in layer_agreement(prepared, quantized, x) if row.entry]
    assert not entry.passed


class _OtherInput(nn.Module):
    def __init__(self, script):
        super().__init__()
        self.script = script

    def forward(self, x):
        return self.script(x.flip(0))


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        return self.layer(x) if x.mean() > 0 else -self.layer(x)


def test_a_branch_on_values_is_warned_of_by_its_line():
    x = torch.rand(3, 4)
    with pytest.warns(UserWarning, match=r"convert: the model decides by a tensor at .*test_convert_api.py:\d+; the converted model always"):
        tq.quantize_model(Branching().eval(), x, tq.qconfigs.int8_static(), [x])


def test_inputs_may_be_any_mapping():
    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)

        def forward(self, x):
            return self.layer(x)

    inputs = collections.UserDict(x=torch.randn(3, 4))
    model = tq.quantize_model(Named().eval(), inputs, tq.qconfigs.int8_static(), [inputs])
    assert torch.equal(model(**inputs), model(inputs["x"]))
