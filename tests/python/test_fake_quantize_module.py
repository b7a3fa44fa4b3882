"""The FakeQuantize module: training, calibration, learning, state, and what graphs see of it."""

import copy
import io
import math
import pickle
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from torchquant.fake_quantize import FakeQuantize, _update_qparams_of_ranges
from torchquant.qconfig import QuantSpec

ops = torch.ops.torchquant
UINT8 = {"quant_min": 0, "quant_max": 255}
INT8 = {"quant_min": -127, "quant_max": 127}

ACTIVATION = QuantSpec.activation(observer="moving_average")
STATIC_SPECS = {
    "moving_average": ACTIVATION,
    "delayed": replace(ACTIVATION, delayed=True),
    "min_max": QuantSpec.activation(observer="min_max"),
    "mse": QuantSpec.activation(observer="mse", bins=512),
    "weight": QuantSpec.weight(),
    "weight4_groups": QuantSpec.weight(4, axis=1, group_size=4),
    "learned": replace(QuantSpec.weight(4), learnable=True),
    "pact": QuantSpec.activation(4, learnable_clip=True),
    "power_of_two": QuantSpec.activation(observer="moving_average", power_of_two=True),
    "learned_offset": QuantSpec.activation(4, observer="mse", learnable=True, learnable_zero_point=True),
}
SPECS = {**STATIC_SPECS, "dynamic": QuantSpec.per_row()}
every_static_spec = pytest.mark.parametrize("spec", STATIC_SPECS.values(), ids=STATIC_SPECS.keys())
every_spec = pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS.keys())


def calibrated(spec, *batches):
    fake_quant = FakeQuantize(spec)
    fake_quant.enable_fake_quant(False)
    for batch in batches:
        fake_quant(batch)
    fake_quant.enable_observer(False)
    fake_quant.enable_fake_quant(True)
    return fake_quant


def reference(fake_quant, x):
    spec = fake_quant.spec
    return ops.fake_quantize(x, fake_quant.scale, fake_quant.zero_point, axis=spec.axis, group_size=spec.group_size,
                             quant_min=spec.quant_min, quant_max=spec.quant_max)  # fmt: skip


# ---- observing and fake-quantizing


def test_calibration_passes_values_through_and_ends_with_qparams():
    fake_quant = FakeQuantize(replace(ACTIVATION, observer="min_max")).eval()
    fake_quant.enable_fake_quant(False)
    for batch in (torch.tensor([-1.0, 0.5]), torch.tensor([0.0, 4.1])):
        assert fake_quant(batch) is batch
    fake_quant.enable_observer(False)
    fake_quant.enable_fake_quant(True)
    assert fake_quant.scale.item() == pytest.approx(5.1 / 255)
    assert fake_quant.zero_point.item() == 50.0
    assert fake_quant(torch.tensor([10.0])).item() == pytest.approx(4.1)


def test_turning_fake_quant_on_while_observing_uses_what_was_seen():
    fake_quant = FakeQuantize(ACTIVATION).eval()
    fake_quant.enable_fake_quant(False)
    fake_quant(torch.tensor([0.0, 2.55]))
    fake_quant.enable_fake_quant(True)
    assert fake_quant(torch.tensor([1.006])).item() == pytest.approx(1.01)


@every_static_spec
def test_training_observes_and_fake_quantizes(spec):
    fake_quant = FakeQuantize(spec)
    x = torch.randn(6, 8)
    y = fake_quant(x)
    assert torch.equal(y, reference(fake_quant, x))
    assert not torch.equal(y, x)
    assert fake_quant.scale.shape == {None: (1,)}.get(spec.axis, (6, 2) if spec.group_size else (6,))
    assert fake_quant.scale.dtype == fake_quant.zero_point.dtype == torch.float32


def test_the_fused_op_equals_observing_and_then_fake_quantizing():
    for spec in (replace(ACTIVATION, averaging_constant=0.3), QuantSpec.weight()):
        fused, apart = FakeQuantize(spec), FakeQuantize(spec)
        apart._fused = False
        for _ in range(3):
            x = torch.randn(5, 7)
            assert torch.equal(fused(x), apart(x))
        for a, b in zip(fused.state_dict().values(), apart.state_dict().values(), strict=True):
            assert torch.equal(a, b)


def test_a_delayed_step_uses_the_range_of_the_steps_before_it():
    spec = replace(ACTIVATION, averaging_constant=0.3)
    delayed, exact = FakeQuantize(replace(spec, delayed=True)), FakeQuantize(spec)
    for step in range(4):
        x = torch.randn(50) * (step + 1)
        before = delayed.scale.clone(), delayed.zero_point.clone()
        y, newest = delayed(x), exact(x)
        assert torch.equal(y, newest if step == 0 else ops.fake_quantize(x, *before, **UINT8))
        assert step == 0 or not torch.equal(y, newest)
        for a, b in zip(delayed.state_dict().values(), exact.state_dict().values(), strict=True):
            assert torch.equal(a, b)  # the ranges, and what an evaluation uses, are the same
    assert torch.equal(delayed.eval()(x), exact.eval()(x))


def test_a_delayed_step_reads_the_tensor_once():
    fake_quant = FakeQuantize(STATIC_SPECS["delayed"])
    assert calls_of(fake_quant, torch.randn(3)) == ["fused_observe_fake_quantize"]  # nothing came before the first
    assert calls_of(fake_quant, torch.randn(3)) == ["fake_quantize_and_observe", "qparams_from_min_max"]


def calls_of(fake_quant, x):
    """Names of the torchquant ops that one forward runs."""
    from torch.utils._python_dispatch import TorchDispatchMode

    seen = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            if func.namespace == "torchquant":
                seen.append(func._opname)
            return func(*args, **(kwargs or {}))

    with Record():
        fake_quant(x)
    return seen


def test_a_training_step_is_one_op_for_averages_and_two_or_three_otherwise():
    assert calls_of(FakeQuantize(ACTIVATION), torch.randn(3)) == ["fused_observe_fake_quantize"]
    assert calls_of(FakeQuantize(QuantSpec.weight()), torch.randn(3, 2)) == ["fused_observe_fake_quantize"]
    assert calls_of(FakeQuantize(QuantSpec.activation(observer="mse")), torch.randn(3)) == [
        "observe_histogram", "qparams_from_histogram_mse", "fake_quantize",
    ]  # fmt: skip
    assert calls_of(FakeQuantize(QuantSpec.per_row()), torch.randn(3, 2)) == ["choose_qparams", "fake_quantize"]


def test_updating_many_at_once_is_updating_each():
    """What processes do after a forward."""
    specs = [
        ACTIVATION, QuantSpec.activation(4, observer="min_max"), QuantSpec.activation(observer="min_max", symmetric=True),
        STATIC_SPECS["power_of_two"], QuantSpec.activation(observer="moving_average", axis=1), ACTIVATION,
    ]  # fmt: skip
    together = [FakeQuantize(spec) for spec in specs]
    for step, fake_quant in enumerate(together):
        fake_quant(torch.randn(6, 5) + step)
    each = copy.deepcopy(together)
    for fake_quant in (*together, *each):
        fake_quant.observer.min_val.sub_(0.75)
    _update_qparams_of_ranges(together)
    for one, other in zip(together, each):
        before = one.scale.clone()
        other.update_qparams()
        assert torch.equal(one.scale, other.scale) and torch.equal(one.zero_point, other.zero_point)
        assert one.scale.shape == before.shape
    _update_qparams_of_ranges([])


def test_evaluating_in_training_moves_no_range():
    fake_quant = FakeQuantize(ACTIVATION)
    fake_quant(torch.tensor([0.0, 2.55]))
    before = copy.deepcopy(fake_quant.state_dict())
    fake_quant.eval()
    assert fake_quant(torch.tensor([100.0])).item() == pytest.approx(2.55)
    assert all(torch.equal(value, before[key]) for key, value in fake_quant.state_dict().items())


def test_evaluating_before_training_takes_the_first_range():
    fake_quant = FakeQuantize(ACTIVATION).eval()
    assert fake_quant(torch.tensor([0.0, 2.55])).tolist() == pytest.approx([0.0, 2.55])
    assert fake_quant(torch.tensor([9.0])).item() == pytest.approx(2.55)


def test_fake_quantizing_before_anything_was_seen_is_an_error():
    fake_quant = FakeQuantize(ACTIVATION, name="encoder.conv_fake_quant")
    fake_quant.enable_observer(False)
    with pytest.raises(RuntimeError, match=r"encoder.conv_fake_quant has no scale.*\(empty calibration\).*run calibrate"):
        fake_quant(torch.randn(3))


def test_observed_and_nonfinite_count():
    fake_quant = FakeQuantize(ACTIVATION)
    assert not fake_quant.observed
    fake_quant(torch.tensor([float("nan"), 1.0, float("inf")]))
    assert fake_quant.observed and fake_quant.nonfinite_count == 2
    dynamic = FakeQuantize(QuantSpec.per_row())
    assert dynamic.observed and dynamic.nonfinite_count == 0


def test_a_wrong_axis_is_the_ops_error():
    with pytest.raises(RuntimeError, match=r"axis must be in \[-1, 0\] .*got 2"):
        FakeQuantize(replace(ACTIVATION, axis=2))(torch.randn(3))
    with pytest.raises(RuntimeError, match="group_size must divide the size of axis 1, which is 6, got 4"):
        FakeQuantize(SPECS["weight4_groups"])(torch.randn(3, 6))


def test_the_public_name_is_the_function_though_a_module_has_it_too():
    import torchquant

    assert torchquant.fake_quantize is torchquant.functional.fake_quantize
    assert torchquant.FakeQuantize is FakeQuantize


# ---- dynamic


def test_dynamic_rows_have_their_own_scales():
    fake_quant = FakeQuantize(QuantSpec.per_row())
    x = torch.randn(2, 5, 8) * torch.tensor([0.01, 1.0, 100.0, 0.0, 5.0])[:, None]
    scale = x.abs().amax(-1, keepdim=True) / 127
    scale[scale == 0] = 1.0
    expected = ops.fake_quantize(x, scale, torch.zeros_like(scale), axis=-1, group_size=8, **INT8)
    assert torch.equal(fake_quant(x), expected)
    assert list(fake_quant.state_dict()) == ["_extra_state"]
    fake_quant.enable_fake_quant(False)
    assert fake_quant(x) is x


# ---- gradients and learning


def test_gradient_passes_straight_through():
    fake_quant = calibrated(ACTIVATION, torch.tensor([0.0, 1.0]))
    x = torch.tensor([-0.5, 0.3, 1.5], requires_grad=True)
    fake_quant(x).backward(torch.tensor([1.0, 2.0, 3.0]))
    assert x.grad.tolist() == [0.0, 2.0, 0.0]


@pytest.mark.parametrize("axis", [None, 0])
def test_learned_scale_gets_the_lsq_gradient(axis):
    spec = replace(QuantSpec.weight(4, axis=axis), learnable=True)
    fake_quant = FakeQuantize(spec)
    x = torch.randn(6, 8, requires_grad=True)
    fake_quant(x).sum().backward()
    scale = fake_quant.scale.detach()
    _, expected, _ = ops.fake_quantize_learnable_backward(torch.ones(6, 8), x.detach(), scale, torch.zeros_like(scale),
                                                          axis=axis, quant_min=-7, quant_max=7)  # fmt: skip
    per_scale = 48 if axis is None else 8
    torch.testing.assert_close(fake_quant.scale.grad, expected / math.sqrt(per_scale * 7))
    assert dict(fake_quant.named_parameters()).keys() == {"scale"}


def test_learned_zero_point_is_a_parameter_and_learns():
    fake_quant = FakeQuantize(STATIC_SPECS["learned_offset"])
    fake_quant(torch.randn(100)).square().sum().backward()
    assert {name for name, _ in fake_quant.named_parameters()} == {"scale", "zero_point"}
    fake_quant.zero_grad()
    fake_quant(torch.full((4,), 100.0)).sum().backward()  # outside, where the offset has a gradient
    assert fake_quant.zero_point.grad.item() != 0.0


def test_the_first_batch_starts_a_learned_scale_and_training_moves_it():
    fake_quant = FakeQuantize(replace(QuantSpec.weight(axis=None), learnable=True))
    fake_quant(torch.tensor([-1.27, 0.5]))
    assert fake_quant.scale.item() == pytest.approx(0.01)
    with torch.no_grad():
        fake_quant.scale.fill_(0.5)
    assert fake_quant(torch.tensor([1.27])).item() == 1.5
    assert fake_quant.scale.item() == 0.5


def test_calibration_starts_a_learned_scale():
    fake_quant = calibrated(replace(QuantSpec.weight(axis=None), learnable=True, observer="min_max"),
                            torch.tensor([-1.27]), torch.tensor([2.54]))  # fmt: skip
    fake_quant(torch.tensor([100.0]))
    assert fake_quant.scale.item() == pytest.approx(0.02)


@pytest.mark.parametrize("then", ["train", "eval"])
def test_a_learned_scale_is_kept_above_2_to_the_minus_100(then):
    fake_quant = FakeQuantize(replace(QuantSpec.weight(axis=None), learnable=True))
    fake_quant(torch.randn(5))
    with torch.no_grad():
        fake_quant.scale.fill_(-1.0)  # as an optimizer step may leave it
    if then == "eval":
        fake_quant.eval()
    else:
        fake_quant(torch.randn(5, requires_grad=True)).sum().backward()
    assert fake_quant.scale.item() == 2.0**-100


def test_a_learned_fake_quant_used_twice_before_backward():
    fake_quant = FakeQuantize(replace(ACTIVATION, learnable=True))
    x = torch.randn(5, requires_grad=True)
    (fake_quant(x) + fake_quant(x * 2)).sum().backward()
    assert fake_quant.scale.grad.isfinite().all()


@pytest.mark.parametrize("spec", [ACTIVATION, STATIC_SPECS["power_of_two"], STATIC_SPECS["delayed"]], ids=["one op", "several ops", "delayed"])
def test_a_later_forward_leaves_an_earlier_backward_alone(spec):
    fake_quant = FakeQuantize(spec)
    fake_quant(torch.tensor([0.0, 1.0]))
    x = torch.tensor([3.0], requires_grad=True)
    y = fake_quant(x)  # beyond the range, which has moved by a hundredth
    for _ in range(5):
        fake_quant(torch.tensor([0.0, 500.0]))
    assert fake_quant.scale.item() * 255 > 3.0
    y.backward()
    assert x.grad.item() == 0.0


# ---- state


@every_spec
@pytest.mark.parametrize("via", ["deepcopy", "pickle", "state_dict"])
def test_copies_behave_alike(spec, via):
    fake_quant = FakeQuantize(spec)
    fake_quant(torch.randn(6, 8))
    fake_quant.enable_observer(False)
    if via == "deepcopy":
        other = copy.deepcopy(fake_quant)
    elif via == "pickle":
        other = pickle.loads(pickle.dumps(fake_quant))
    else:
        file = io.BytesIO()
        torch.save(fake_quant.state_dict(), file)
        file.seek(0)
        other = FakeQuantize(spec)
        other.load_state_dict(torch.load(file, weights_only=True))
    x = torch.randn(6, 8)
    assert torch.equal(other(x), fake_quant(x))
    assert (other.observer_enabled, other.fake_quant_enabled, other.observed) == (False, True, True)


def test_every_entry_of_the_state_dict_is_a_tensor():
    assert all(isinstance(value, torch.Tensor) for value in FakeQuantize(ACTIVATION).state_dict().values())
    assert {"scale", "zero_point"} <= FakeQuantize(ACTIVATION).state_dict().keys()


def test_calibration_may_be_interrupted_by_a_checkpoint():
    fake_quant = FakeQuantize(replace(ACTIVATION, observer="min_max"))
    fake_quant.enable_fake_quant(False)
    fake_quant(torch.tensor([0.0, 2.55]))
    other = FakeQuantize(fake_quant.spec)
    other.load_state_dict(fake_quant.state_dict())
    other.enable_observer(False)
    assert other.scale.item() == pytest.approx(0.01)


def test_a_float_checkpoint_loads_into_a_prepared_model():
    model = nn.Sequential(nn.Linear(2, 2), FakeQuantize(ACTIVATION))
    model[1](torch.tensor([0.0, 2.55]))
    model.load_state_dict(nn.Sequential(nn.Linear(2, 2)).state_dict())
    assert model[1].scale.item() == pytest.approx(0.01)


def test_a_checkpoint_with_a_part_of_the_state_is_refused():
    state = FakeQuantize(ACTIVATION).state_dict()
    del state["scale"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"scale"'):
        FakeQuantize(ACTIVATION).load_state_dict(state)


@every_static_spec
def test_qparams_stay_fp32_when_the_model_becomes_bf16(spec):
    model = nn.Sequential(FakeQuantize(spec)).bfloat16()
    x = torch.randn(6, 8, dtype=torch.bfloat16, requires_grad=True)
    y = model(x)
    y.sum().backward()
    assert y.dtype == x.grad.dtype == torch.bfloat16
    assert model[0].scale.dtype == model[0].zero_point.dtype == torch.float32
    assert torch.equal(y, reference(model[0], x))


@every_spec
def test_autocast(spec):
    model = nn.Sequential(nn.Linear(8, 8), FakeQuantize(spec), nn.Linear(8, 8))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = model(torch.randn(6, 8))
    y.sum().backward()
    assert model[0].weight.grad.isfinite().all()
    if not spec.dynamic:
        assert model[1].scale.dtype == torch.float32


# ---- graphs


@every_static_spec
def test_a_trace_holds_one_op_with_its_parameters_as_attributes(spec):
    fake_quant = calibrated(spec, torch.randn(6, 8)).eval()
    traced = torch.jit.trace(fake_quant, torch.randn(6, 8))
    nodes = [node for node in traced.inlined_graph.nodes() if not node.kind().startswith("prim::Constant")]
    assert [node.kind() for node in nodes] == ["prim::GetAttr", "prim::GetAttr", "torchquant::fake_quantize"]
    x, scale, zero_point = list(nodes[-1].inputs())[:3]
    assert (scale.debugName(), zero_point.debugName()) == ("scale", "zero_point")
    x = torch.randn(6, 8)
    assert torch.equal(traced(x), fake_quant(x))


def test_a_trace_of_dynamic_rows_takes_any_batch():
    fake_quant = FakeQuantize(QuantSpec.per_row()).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error", torch.jit.TracerWarning)
        traced = torch.jit.trace(fake_quant, torch.randn(2, 8))
    kinds = [node.kind() for node in traced.inlined_graph.nodes() if node.kind().startswith("torchquant")]
    assert kinds == ["torchquant::choose_qparams", "torchquant::fake_quantize"]
    x = torch.randn(5, 3, 8)
    assert torch.equal(traced(x), fake_quant(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("dynamic_shapes", [False, True])
@every_spec
def test_compiled_training_equals_eager(spec, dynamic_shapes):
    eager = nn.Sequential(nn.Linear(8, 8), FakeQuantize(spec))
    if spec.axis is not None:
        eager[1](torch.randn(6, 8))  # weights are seen when they are prepared
        eager[1].enable_observer(True)
    compiled_model = copy.deepcopy(eager)
    torch._dynamo.reset()
    compiled = torch.compile(compiled_model, fullgraph=True, backend="aot_eager", dynamic=dynamic_shapes)
    for rows in (6, 6, 6) if spec.axis == 0 or spec.group_size else (6, 6, 4):
        x = torch.randn(rows, 8)
        expected, got = eager(x), compiled(x)
        torch.testing.assert_close(got, expected)
        expected.square().sum().backward()
        got.square().sum().backward()
    for (name, a), b in zip(eager.named_parameters(), compiled_model.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
    for (name, a), b in zip(eager.state_dict().items(), compiled_model.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, msg=name)


@every_static_spec
def test_export_of_a_calibrated_module_holds_one_op(spec):
    fake_quant = calibrated(spec, torch.randn(6, 8)).eval()
    exported = torch.export.export(fake_quant, (torch.randn(6, 8),))
    calls = [node.target for node in exported.graph.nodes if node.op == "call_function"]
    assert calls == [ops.fake_quantize.default]
