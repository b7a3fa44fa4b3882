"""What a prepared model keeps of the user's: class, state, hyper-parameters, train() and eval(); and what prepare refuses."""

import copy
import io
import pickle

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import prune

import torchquant as tq
from torchquant.fake_quantize import FakeQuantize
from torchquant.prepare import PreparedModel


class Net(nn.Module):
    """Module level, so that it can be pickled."""

    labels = ("a", "b")

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8, momentum=0.3), nn.Linear(8, 4)
        self.classes = {"a": 0}

    def forward(self, x, scale=None, *, flip=False):
        x = F.relu(self.bn(self.conv(x))) if scale is None else self.conv(x) * scale
        x = F.dropout(x.mean((2, 3)), 0.5, self.training)
        return self.fc(-x if flip else x)

    def describe(self):
        return f"net of {self.conv.out_channels}"


class Untraceable(Net):
    def forward(self, x):
        return super().forward(x) if x.sum() < 1e9 else x


X = torch.randn(2, 3, 6, 6, generator=torch.Generator().manual_seed(3))


def prepared_net(cls=Net):
    model = cls().eval()
    prepared = tq.prepare(model, X, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [X, 2 * X])
    return model, prepared


@pytest.fixture(params=[Net, Untraceable])
def pair(request):
    return prepared_net(request.param)


def test_the_given_model_does_not_change():
    model = Net().train()
    before = copy.deepcopy(model.state_dict())
    prepared = tq.prepare(model, X, tq.qconfigs.int8_static())
    assert prepared.training and type(model) is Net and type(model.conv) is nn.Conv2d
    assert not hasattr(model, "activation_fake_quants") and not model._forward_hooks and not model.conv._forward_hooks
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)


def test_prepare_leaves_the_random_state_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tq.prepare(Net().train(), X, tq.qconfigs.int8_static())
    torch.manual_seed(5)
    model = Net()
    torch.manual_seed(5)
    tq.prepare(model, X, tq.qconfigs.int8_static())
    torch.testing.assert_close(torch.rand(3), expected, rtol=0, atol=0)


def test_the_users_class_stays(pair):
    model, prepared = pair
    assert isinstance(prepared, type(model)) and isinstance(prepared, PreparedModel) and isinstance(prepared.conv, nn.Conv2d)
    assert prepared.describe() == "net of 8" and prepared.labels == ("a", "b") and prepared.classes == {"a": 0}
    assert prepared.bn.momentum == 0.3
    assert prepared.classes is not model.classes


def test_the_float_state_dict_stays_and_loads(pair):
    model, prepared = pair
    state = prepared.state_dict()
    for name, value in model.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=0, atol=0)
    assert all("fake_quant" in name for name in state.keys() - model.state_dict().keys())
    other = type(model)()
    result = prepared.load_state_dict(other.state_dict(), strict=False)
    assert result.unexpected_keys == [] and all("fake_quant" in name for name in result.missing_keys)
    assert dict(prepared.named_parameters()).keys() == dict(model.named_parameters()).keys()
    torch.testing.assert_close(prepared._modules["fc"]._parameters["weight"], other.fc.weight, rtol=0, atol=0)


def _saved(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=False)


@pytest.mark.parametrize(
    "copied",
    [copy.deepcopy, copy.copy, lambda m: pickle.loads(pickle.dumps(m)), _saved],
    ids=["deepcopy", "copy", "pickle", "save"],
)
def test_copies_compute_the_same(pair, copied):
    _, prepared = pair
    again = copied(prepared)
    torch.testing.assert_close(again(X), prepared(X), rtol=0, atol=0)
    assert isinstance(again, Net) and isinstance(again, PreparedModel)
    assert again.torchquant_report.rows == prepared.torchquant_report.rows


def test_a_deepcopy_is_independent():
    _, prepared = prepared_net()
    again = copy.deepcopy(prepared)
    with torch.no_grad():
        again.fc._parameters["weight"].zero_()
        again.activation_fake_quants.x.scale.fill_(3.0)
    assert prepared.fc.weight.abs().sum() > 0 and not torch.equal(
        prepared.activation_fake_quants.x.scale, again.activation_fake_quants.x.scale
    )


def test_a_pickle_loads_in_a_process_that_prepared_nothing(tmp_path):
    import subprocess
    import sys

    model = tq.prepare(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), X, tq.qconfigs.int8_static()
    )
    tq.calibrate(model, [X])
    torch.save({"model": model, "x": X, "y": model(X)}, tmp_path / "model.pt")
    code = (
        "import sys, torch, torchquant; saved = torch.load(sys.argv[1], weights_only=False); "
        "assert torch.equal(saved['model'](saved['x']), saved['y'])"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "model.pt")], check=True)


def test_dropout_follows_train_and_eval(pair):
    _, prepared = pair
    prepared.train()
    assert not torch.equal(prepared(X), prepared(X))
    prepared.eval()
    torch.testing.assert_close(prepared(X), prepared(X), rtol=0, atol=0)


def test_what_train_mode_chooses_is_chosen_by_the_module_that_asked():
    class Noisy(nn.Module):
        def forward(self, x):
            return F.dropout(x, p=0.9 if self.training else 0.1, training=not self.training)

    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.noisy = nn.Linear(64, 64), Noisy()

        def forward(self, x):
            return self.noisy(self.fc(x))

    prepared = tq.prepare(Outer().eval(), torch.randn(4, 64), tq.qconfigs.int8_static())
    assert prepared.torchquant_report.graph == "torch.fx"
    assert 0 < (prepared(torch.randn(4, 64)) == 0).float().mean() < 0.3
    prepared.noisy.train()
    assert (prepared(torch.randn(4, 64)) != 0).all()


HYPER_PARAMETERS = ("momentum", "eps", "affine", "track_running_stats", "p", "inplace", "stride", "padding", "dilation", "groups")


class Tuned(nn.Sequential):
    """Module level, so that it can be pickled."""

    def __init__(self, momentum, eps, p):
        conv = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        norm, drop = nn.BatchNorm2d(4, momentum=momentum, eps=eps), nn.Dropout(p, inplace=True)
        super().__init__(conv, norm, nn.ReLU(inplace=True), drop, nn.Flatten(), nn.Linear(36, 2))


def hyper_parameters(model):
    return {
        (path, name): getattr(module, name)
        for path, module in model.named_modules() for name in HYPER_PARAMETERS
        if not isinstance(module, FakeQuantize) and hasattr(module, name)
    }  # fmt: skip


def train_one_step(prepared):
    prepared.train()(X).square().sum().backward()


ACTIONS = {
    "train": nn.Module.train, "eval": nn.Module.eval, "step": train_one_step, "run": lambda prepared: prepared(X),
    "calibrate": lambda prepared: tq.calibrate(prepared, [X]), "freeze": tq.freeze_batch_norm,
    "unfreeze": lambda prepared: tq.freeze_batch_norm(prepared, frozen=False), "convert": lambda prepared: tq.convert(copy.deepcopy(prepared).eval(), X),
}  # fmt: skip


@settings(max_examples=15, deadline=None, derandomize=True)
@given(
    actions=st.lists(st.sampled_from([name for name in ACTIONS if name != "convert"]), max_size=6),
    momentum=st.sampled_from([None, 0.01, 0.97]), eps=st.sampled_from([1e-3, 1e-5]), p=st.sampled_from([0.0, 0.3]),
)  # fmt: skip
def test_no_way_through_train_and_eval_changes_a_hyper_parameter(actions, momentum, eps, p):
    model = Tuned(momentum, eps, p)
    prepared = tq.prepare_qat(model, X, tq.qconfigs.int8_static())
    expected = hyper_parameters(model)
    for name in ["step", *actions, "convert"]:
        ACTIONS[name](prepared)
        assert hyper_parameters(prepared) == expected, name
    for path, module in model.named_modules():
        assert isinstance(prepared.get_submodule(path), type(module))


def test_batch_norm_statistics_follow_train_and_eval():
    model = Net().train()
    prepared = tq.prepare_qat(model, X, tq.qconfigs.int8_static())
    prepared(X)
    assert prepared.bn.num_batches_tracked == 1 and model.bn.num_batches_tracked == 0
    prepared.eval()(X)
    assert prepared.bn.num_batches_tracked == 1


def test_frozen_batch_norm_survives_train():
    prepared = tq.prepare_qat(Net().train(), X, tq.qconfigs.int8_static())
    assert tq.freeze_batch_norm(prepared) is prepared
    prepared.train()
    before = prepared.bn.running_mean.clone()
    prepared(X).sum().backward()
    assert torch.equal(prepared.bn.running_mean, before) and prepared.bn.weight.grad.abs().sum() > 0
    again = pickle.loads(pickle.dumps(prepared)).train()
    assert not again.bn.training
    tq.freeze_batch_norm(prepared, frozen=False)
    assert prepared.bn.training and type(prepared.bn) is nn.BatchNorm2d
    prepared(X)
    assert not torch.equal(prepared.bn.running_mean, before)


def test_a_model_with_frozen_batch_norm_can_be_prepared():
    prepared = tq.prepare_qat(tq.freeze_batch_norm(Net()).train(), X, tq.qconfigs.int8_static())
    assert prepared.training and not prepared.bn.training


def test_training_reaches_every_parameter_through_the_fake_quants(pair):
    model, _ = pair
    prepared = tq.prepare_qat(model.train(), X, tq.qconfigs.int8_static())
    optimizer, target = torch.optim.SGD(prepared.parameters(), lr=0.1), torch.tensor([0, 1])
    before = F.cross_entropy(prepared.eval()(X), target)
    prepared.train()
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(prepared(X), target).backward()
        assert all(parameter.grad is not None for parameter in prepared.parameters())
        optimizer.step()
    assert F.cross_entropy(prepared.eval()(X), target) < before


def test_prepare_observes_and_does_not_quantize_and_prepare_qat_does_both():
    model = Net().eval()
    prepared, training = (make(model, X, tq.qconfigs.int8_static()) for make in (tq.prepare, tq.prepare_qat))
    torch.testing.assert_close(prepared(X), model(X), rtol=0, atol=0)
    assert not torch.equal(training(X), model(X))
    assert all(
        fake_quant.observed for p in (prepared, training) for fake_quant in p.modules() if isinstance(fake_quant, FakeQuantize)
    )


@pytest.mark.parametrize("inputs", [X, (X,), {"x": X}], ids=["tensor", "tuple", "dict"])
def test_example_inputs(inputs):
    prepared = tq.prepare(Net().eval(), inputs, tq.qconfigs.int8_static())
    assert prepared(X).shape == prepared(x=X).shape == (2, 4)


def test_an_argument_that_decides_what_forward_does_is_held_to():
    prepared = tq.prepare(Net().eval(), {"x": X, "flip": True}, tq.qconfigs.int8_static())
    assert torch.equal(prepared(X, flip=True), prepared(X, None, flip=True))
    with pytest.raises(ValueError, match="the model was prepared with flip=True, which decided what its forward does"):
        prepared(X)
    with pytest.raises(ValueError, match="the model was prepared with scale=None"):
        prepared(X, torch.ones(1), flip=True)


def test_hooks_on_inner_modules_keep_firing():
    seen = []
    model = nn.Sequential(nn.Sequential(nn.Linear(4, 4), nn.ReLU()), nn.Linear(4, 2))
    model[0].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    prepared = tq.prepare(model, torch.randn(3, 4), tq.qconfigs.int8_static())
    assert "'0' has forward hooks" in prepared.torchquant_report.graph
    seen.clear()
    prepared(torch.randn(5, 4))
    assert seen == [(5, 4)]


def test_parametrized_weights_are_quantized_after_their_parametrization():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    model, x = nn.Sequential(layer), torch.randn(2, 4)
    prepared = tq.prepare(model, x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    torch.testing.assert_close(prepared[0].weight, prepared[0].weight_fake_quant(layer.weight))
    assert set(model.state_dict()) < set(prepared.state_dict())


def test_constants_made_in_forward_move_with_the_model():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.register_buffer("offset", torch.ones(6))

        def forward(self, x):
            return self.fc(x) + torch.tensor([1.0, 2.0, 3.0, 4.0]) + self.offset[:4]

    model, x = Constant(), torch.randn(2, 4)
    prepared = tq.prepare(model, x, tq.qconfigs.int8_static())
    torch.testing.assert_close(prepared(x), model(x))
    assert (
        prepared.state_dict().keys() - {name for name in prepared.state_dict() if "fake_quant" in name}
        == model.state_dict().keys()
    )
    assert copy.deepcopy(prepared).bfloat16()(x.bfloat16()).dtype == torch.bfloat16
    prepared.offset += 1
    torch.testing.assert_close(prepared(x), model(x) + 1)


# Deployment and speed


def test_trace_holds_a_fake_quant_for_every_weight_and_activation(pair):
    _, prepared = pair
    traced = torch.jit.trace(prepared, X)
    torch.testing.assert_close(traced(2 * X), prepared(2 * X), rtol=0, atol=0)
    nodes = [node for node in traced.inlined_graph.nodes() if node.kind() == "torchquant::fake_quantize"]
    assert len(nodes) == len([row for row in prepared.torchquant_report.rows if row["fake_quant"]])


def test_scripting_past_the_fake_quants_is_refused(pair):
    with pytest.raises(RuntimeError, match="torch.jit.script would read the float weights"):
        torch.jit.script(pair[1])


@pytest.mark.parametrize("training", [False, True])
def test_compile_without_graph_breaks(training):
    _, prepared = prepared_net()
    compiled = torch.compile(prepared, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(X), prepared(X))
    qat = tq.prepare_qat(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU()).train(training), X, tq.qconfigs.int8_static()
    )
    other = copy.deepcopy(qat)
    compiled = torch.compile(qat, backend="aot_eager", fullgraph=True)
    for model in (compiled, other):
        for _ in range(2):
            model(X).square().mean().backward()
    for ours, theirs in zip(qat.parameters(), other.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)
    for (name, ours), theirs in zip(qat.named_buffers(), other.buffers()):
        torch.testing.assert_close(ours, theirs, msg=lambda text: f"{name}: {text}")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains_in_half_precision(pair, dtype):
    prepared = tq.prepare_qat(pair[0].train(), X, tq.qconfigs.int8_static())
    with torch.autocast("cpu", dtype=dtype):
        output = prepared(X)
    assert output.dtype == dtype
    output.float().square().mean().backward()
    assert all(parameter.grad.dtype == torch.float32 for parameter in prepared.parameters())
    assert all(buffer.dtype != dtype for buffer in prepared.buffers())


# Errors


def test_preparing_twice_is_refused():
    prepared = tq.prepare(Net(), X, tq.qconfigs.int8_static())
    for model in (prepared, nn.Sequential(prepared)):
        with pytest.raises(ValueError, match="the model is prepared already"):
            tq.prepare(model, X, tq.qconfigs.int8_static())


def test_nothing_to_quantize_is_refused_with_the_reasons():
    with pytest.raises(ValueError, match="there is nothing to quantize in ReLU:\n  it has no layer that TorchQuant knows"):
        tq.prepare(nn.ReLU(), X, tq.qconfigs.int8_static())
    with pytest.raises(ValueError, match="nothing to quantize in Sequential:\n  0: a weight-only QConfig quantizes linear and .*, no conv2d"):
        tq.prepare(nn.Sequential(nn.Conv2d(3, 3, 1)), X, tq.qconfigs.int8_weight_only())
    with pytest.raises(ValueError, match="0: the QConfig keeps it float"):
        tq.prepare(
            nn.Sequential(nn.Conv2d(3, 3, 1)), X, tq.QConfigMapping(tq.qconfigs.int8_static()).set_module_type(nn.Conv2d, None)
        )


@pytest.mark.parametrize(
    ("model", "inputs", "error", "message"),
    [
        (
            Net,
            [X],
            TypeError,
            "example_inputs: expected a tensor, a tuple of arguments or a dict of keyword arguments, got list",
        ),
        (Net, torch.randn(2, 5), RuntimeError, "the model does not run on example_inputs"),
        (lambda: 3, X, TypeError, "model must be a torch.nn.Module, got int"),
        (
            lambda: torch.jit.trace(nn.Linear(2, 2), torch.randn(1, 2)),
            X,
            TypeError,
            "the model itself is a TorchScript module",
        ),
    ],
)
def test_bad_arguments(model, inputs, error, message):
    with pytest.raises(error, match=message):
        tq.prepare(model(), inputs, tq.qconfigs.int8_static())


def test_a_model_without_values_is_refused():
    with torch.device("meta"):
        model = nn.Sequential(nn.Linear(5, 2))
    with pytest.raises(ValueError, match=r"0\.weight is on the meta device, which holds no values: call model\.to_empty\(device='cpu'\) and load"):
        tq.prepare(model, X, tq.qconfigs.int8_static())


@pytest.mark.parametrize("prepare", [tq.prepare, tq.prepare_qat])
def test_a_compiled_model_is_refused(prepare):
    for model in (torch.compile(Net()), nn.Sequential(torch.compile(Net()))):
        with pytest.raises(TypeError, match="is what torch.compile returned .the model is its _orig_mod; compile what prepare returns.; prepare the"):
            prepare(model, X, tq.qconfigs.int8_static())


def test_weight_norm_by_hooks_is_refused():
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(4, 4))
    with pytest.raises(ValueError, match=r"0\.weight is a plain tensor that a hook recomputes"):
        tq.prepare(nn.Sequential(layer), torch.randn(2, 4), tq.qconfigs.int8_static())


def test_a_model_with_an_attribute_in_the_way_is_refused():
    model = nn.Sequential(nn.Linear(4, 4))
    model.activation_fake_quants = 3
    with pytest.raises(ValueError, match="already has an attribute named 'activation_fake_quants'"):
        tq.prepare(model, torch.randn(2, 4), tq.qconfigs.int8_static())


def sqnr(reference, result):
    return 20 * torch.log10(reference.norm() / (result - reference).norm())


@pytest.mark.parametrize("qconfig", [tq.qconfigs.int8_weight_only(), tq.qconfigs.int8_dynamic(), tq.qconfigs.int8_static()])
def test_weights_that_are_loaded_after_prepare_get_their_own_scales(qconfig):
    model, trained, x = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8)), torch.randn(4, 8)
    with torch.no_grad():
        trained[0].weight.mul_(20)
    prepared = tq.prepare(model, x, qconfig)
    tq.calibrate(prepared, [x])
    prepared.load_state_dict(trained.state_dict(), strict=False)
    with torch.no_grad():
        assert sqnr(trained(x), tq.convert(prepared, x)(x)) > 30


def test_weights_keep_their_observers_when_training_follows_calibration():
    x = torch.randn(4, 8)
    prepared = tq.prepare_qat(nn.Sequential(nn.Linear(8, 8)), x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    with torch.no_grad():
        tq.float_parameter(prepared[0], "weight").mul_(20)
    weight = tq.float_parameter(prepared[0], "weight")
    assert sqnr(weight, prepared.train()[0].weight) > 30


def test_scales_set_by_hand_reach_the_converted_model():
    x = torch.randn(4, 8)
    prepared = tq.prepare(nn.Sequential(nn.Linear(8, 8)), x, tq.qconfigs.int8_weight_only())
    prepared[0].weight_fake_quant.scale.fill_(0.125)
    quantized = tq.convert(prepared, x)
    assert any((buffer == 0.125).all() for name, buffer in quantized.script.named_buffers() if buffer.is_floating_point())


@pytest.mark.parametrize("frozen", [True, False])
def test_scales_that_training_froze_stay(frozen):
    x = torch.randn(4, 8)
    prepared = tq.prepare_qat(nn.Sequential(nn.Linear(8, 8)), x, tq.qconfigs.int8_static())
    prepared(x)
    scale = prepared[0].weight_fake_quant.scale.clone()
    if frozen:
        prepared[0].weight_fake_quant.enable_observer(False)
    with torch.no_grad():
        tq.float_parameter(prepared[0], "weight").mul_(2)
    traced = tq.trace(prepared, x)
    assert torch.equal(traced.get_submodule("0.weight_fake_quant").scale, scale) == frozen


@pytest.mark.parametrize("use_buffers", [True, False])
@pytest.mark.parametrize("qconfig", [tq.qconfigs.int8_static(), tq.qconfigs.learned()])
def test_averaged_models_convert(qconfig, use_buffers):
    x = torch.randn(4, 8)
    prepared = tq.prepare_qat(nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)), x, qconfig)
    average = torch.optim.swa_utils.AveragedModel(prepared, use_buffers=use_buffers)
    prepared(x)
    for _ in range(2):
        average.update_parameters(prepared)
    for converted in (tq.convert(average.module, x), tq.convert(average, x)):
        torch.testing.assert_close(converted(x), prepared.eval()(x), rtol=0.02, atol=0.02)


def test_a_parameter_is_written_through_its_float_self():
    prepared = tq.prepare_qat(nn.Sequential(nn.Linear(8, 2)), torch.randn(4, 8), tq.qconfigs.int8_static())
    weight = tq.float_parameter(prepared[0], "weight")
    assert weight is dict(prepared.named_parameters())["0.weight"]
    with torch.no_grad():
        weight.fill_(3.0)
    assert torch.allclose(prepared[0].weight, torch.tensor(3.0))
    prepared(torch.randn(4, 8)).sum().backward()
    assert weight.grad is not None
    with pytest.raises(AttributeError, match="float_parameter: PreparedLinear has no parameter 'wait'"):
        tq.float_parameter(prepared[0], "wait")


def test_pruning_a_prepared_layer_says_what_to_do():
    prepared = tq.prepare_qat(nn.Sequential(nn.Linear(8, 2)), torch.randn(4, 8), tq.qconfigs.int8_static())
    with pytest.raises(TypeError, match=r"Linear.weight_orig: a fake-quantized value cannot become a parameter; .* before prepare"):
        prune.l1_unstructured(prepared[0], "weight", amount=0.5)


def test_a_converted_part_is_refused():
    x = torch.randn(4, 8)
    quantized = tq.quantize_model(nn.Sequential(nn.Linear(8, 8)), x, tq.qconfigs.int8_weight_only())
    for part, text in ((quantized, "1 is converted already"), (quantized.script, "1 is a TorchScript module")):
        with pytest.raises(TypeError, match=f"prepare: model must be made of Python modules, and {text}"):
            tq.prepare(nn.Sequential(nn.Linear(8, 8), part), x, tq.qconfigs.int8_static())


def test_a_double_precision_parameter_is_named():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8).double())
    with pytest.raises(ValueError, match=r"prepare: 1\.weight is torch.float64; allowed are float32, bfloat16 and float16"):
        tq.prepare(model, torch.randn(4, 8), tq.qconfigs.int8_static())


def test_states_of_the_two_preparations_do_not_mix():
    x = torch.randn(4, 8)
    make = lambda prepare, **settings: prepare(nn.Sequential(nn.Linear(8, 8)), x, tq.qconfigs.int8_static(**settings))  # noqa: E731
    calibrated = make(tq.prepare)
    tq.calibrate(calibrated, [x])
    with pytest.raises(RuntimeError, match="the saved observers are of another kind: prepare and prepare_qat choose different ones"):
        make(tq.prepare_qat).load_state_dict(calibrated.state_dict())
    same = make(tq.prepare, observer="moving_average")
    tq.calibrate(same, [x])
    make(tq.prepare_qat, observer="moving_average").load_state_dict(same.state_dict())


@pytest.mark.parametrize("training", [True, False])
def test_fake_quants_have_the_mode_of_the_model(training):
    prepared = tq.prepare_qat(nn.Sequential(nn.Linear(3, 2)).train(training), torch.randn(4, 3), tq.qconfigs.int8_static())
    assert {module.training for module in prepared.modules() if isinstance(module, FakeQuantize)} == {training}
