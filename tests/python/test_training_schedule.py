"""What surrounds training: schedules, distillation, checkpointed and compiled steps, SyncBatchNorm."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

import torchquant as tq
from torchquant.fake_quantize import FakeQuantize
from torchquant.qconfig import QConfig, QuantSpec

X = torch.randn(6, 3, 6, 6, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    """`checkpointed`: "reentrant", "not reentrant" or False; a branch keeps torch.fx away either way."""

    def __init__(self, checkpointed=False):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.body = nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5))
        self.checkpointed = checkpointed

    def forward(self, x):
        x = self.bn(self.conv(x))
        if x.sum() > 1e9:
            return x
        return checkpoint(self.body, x, use_reentrant=self.checkpointed == "reentrant") if self.checkpointed else self.body(x)


def traceable_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 5))


def prepared_net(qconfig=None, make=traceable_net):
    torch.manual_seed(4)
    return tq.prepare_qat(make(), X, qconfig or tq.qconfigs.int8_static())


def flags(prepared):
    """(observers of activations, observers of weights, fake-quants): which are on, each as one value if all agree."""
    modules = [module for module in prepared.modules() if isinstance(module, FakeQuantize)]
    found = ({m.observer_enabled for m in modules if not m.of_parameter}, {m.observer_enabled for m in modules if m.of_parameter},
             {m.fake_quant_enabled for m in modules})  # fmt: skip
    return tuple(values.pop() if len(values) == 1 else values for values in found)


# ---- Schedule


def test_each_part_turns_at_its_step():
    prepared = prepared_net()
    schedule = tq.training.Schedule(
        prepared, start_observers_after=1, start_fake_quant_after=2, stop_observers_after=4, freeze_batch_norm_after=3
    )
    seen = []
    for _ in range(6):
        seen.append((*flags(prepared), prepared[1].training))
        prepared.train()(X).sum().backward()
        schedule.step()
    on, off = True, False
    assert seen == [
        (off, on, off, on), (on, on, off, on), (on, on, on, on), (on, on, on, off), (off, on, on, off), (off, on, on, off),
    ]  # fmt: skip


def test_nothing_is_quantized_before_its_start_and_the_range_is_that_of_what_was_observed():
    prepared = prepared_net()
    reference = traceable_net()
    reference.load_state_dict(prepared.state_dict(), strict=False)
    schedule = tq.training.Schedule(prepared, start_fake_quant_after=2)
    for factor in (1.0, 1.0):
        assert torch.equal(prepared(factor * X), reference(factor * X))
        schedule.step()
    assert not torch.equal(prepared(X), reference(X))
    assert prepared.activation_fake_quants.input.observer.max_val.item() == pytest.approx(X.max().item(), rel=1e-5)


def test_stopped_observers_keep_activations_and_follow_weights():
    prepared = prepared_net()
    schedule = tq.training.Schedule(prepared, stop_observers_after=1)
    prepared(X)
    schedule.step()
    activation, weight = prepared.activation_fake_quants.input, prepared[0].weight_fake_quant
    before = activation.scale.clone(), weight.scale.clone()
    with torch.no_grad():
        tq.float_parameter(prepared[0], "weight").mul_(3)
    prepared(5 * X)
    assert torch.equal(activation.scale, before[0])
    torch.testing.assert_close(weight.scale, 3 * before[1])


def test_batch_norm_freezes_and_survives_train():
    prepared = prepared_net()
    schedule = tq.training.Schedule(prepared, freeze_batch_norm_after=1)
    prepared.train()(X)
    schedule.step()
    before = prepared[1].running_mean.clone()
    prepared.train()(X + 1)
    assert torch.equal(prepared[1].running_mean, before)


@pytest.mark.parametrize("qconfig", [tq.qconfigs.learned(), tq.qconfigs.pact()], ids=["learned", "pact"])
def test_learned_ranges_start_late_and_are_never_observed_again(qconfig):
    prepared = prepared_net(qconfig)
    settings = {"start_observers_after": 1, "start_fake_quant_after": 2}
    schedule = tq.training.Schedule(prepared, **settings)
    for _ in range(3):
        prepared(X).sum().backward()
        schedule.step()
    activation = prepared.activation_fake_quants.input
    assert activation.has_learned_range and not activation.observer_enabled
    learned = tq.training.quantization_parameters(prepared)[0]
    with torch.no_grad():
        learned.mul_(0.5)
    value = learned.clone()
    tq.training.Schedule(prepared, **settings).load_state_dict(schedule.state_dict())
    prepared(X)
    assert torch.equal(tq.training.quantization_parameters(prepared)[0], value)


@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("model_first", [True, False])
def test_a_schedule_resumes_in_any_order_of_loading(steps, model_first):
    settings = {"start_observers_after": 1, "start_fake_quant_after": 2, "stop_observers_after": 4, "freeze_batch_norm_after": 3}
    prepared = prepared_net()
    schedule = tq.training.Schedule(prepared, **settings)
    for _ in range(steps):
        prepared.train()(X)
        schedule.step()
    restored = prepared_net()
    if model_first:
        restored.load_state_dict(prepared.state_dict())
    resumed = tq.training.Schedule(restored, **settings)
    resumed.load_state_dict(schedule.state_dict())
    if not model_first:
        restored.load_state_dict(prepared.state_dict())
    assert (flags(restored), restored[1].training) == (flags(prepared), prepared[1].training) and resumed.steps == steps
    for name, value in prepared.state_dict().items():
        assert torch.equal(restored.state_dict()[name], value), name


def test_a_schedule_leaves_what_calibration_decided():
    prepared = prepared_net()
    tq.calibrate(prepared, [X])
    tq.training.Schedule(prepared, freeze_batch_norm_after=5).step()
    assert flags(prepared) == (False, True, True)
    tq.training.Schedule(prepared, stop_observers_after=0)  # allowed: ranges are known


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"start_fake_quant_after": -1}, "start_fake_quant_after must be a number of steps, 0 or more, got -1"),
        ({"start_fake_quant_after": None}, "start_fake_quant_after must be a number of steps, 0 or more, got None"),
        ({"freeze_batch_norm_after": 1.5}, "freeze_batch_norm_after must be a number of steps, 0 or more, or None, got 1.5"),
        ({"start_observers_after": 3}, "start_fake_quant_after must not come before start_observers_after, because .*, got 0 and 3"),
        ({"stop_observers_after": 0}, "stop_observers_after must be greater than start_observers_after, 0, because nothing"),
    ],
)
def test_a_wrong_schedule_says_what_is_allowed_and_changes_nothing(settings, message):
    prepared = prepared_net()
    with pytest.raises(ValueError, match=f"Schedule: {message}"):
        tq.training.Schedule(prepared, **settings)
    assert flags(prepared) == (True, True, True)


def test_a_schedule_wants_a_prepared_model_and_its_own_state():
    with pytest.raises(TypeError, match=r"Schedule: expected a model that torchquant.prepare_qat returned, got Sequential"):
        tq.training.Schedule(traceable_net())
    schedule = tq.training.Schedule(prepared_net())
    with pytest.raises(ValueError, match=r"expected what Schedule.state_dict returned, got the keys \['epochs'\]"):
        schedule.load_state_dict({"epochs": 3})


# ---- distillation


def test_the_distillation_loss_is_hintons():
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    labels = torch.tensor([0, 3, 1, 2, 2])
    p = F.softmax(teacher.detach() / 3.0, 1)
    soft = 9.0 * (p * (p.log() - F.log_softmax(student / 3.0, 1))).sum(1).mean()
    hard = F.cross_entropy(student, labels)
    loss = tq.training.distillation_loss(student, teacher, labels, temperature=3.0, alpha=0.7)
    torch.testing.assert_close(loss, 0.7 * soft + 0.3 * hard)
    torch.testing.assert_close(tq.training.distillation_loss(student, teacher, temperature=3.0), soft)
    loss.backward()
    assert teacher.grad is None and student.grad.abs().sum() > 0


def test_a_student_like_its_teacher_has_no_loss_and_every_position_counts_alike():
    logits = torch.randn(2, 4, 7)
    assert tq.training.distillation_loss(logits, logits).item() == pytest.approx(0.0, abs=1e-6)
    teacher = torch.randn(2, 4, 7)
    flat = [tensor.transpose(1, 2).reshape(-1, 4) for tensor in (logits, teacher)]
    torch.testing.assert_close(tq.training.distillation_loss(logits, teacher), tq.training.distillation_loss(*flat))


def test_the_gradient_keeps_its_size_at_every_temperature():
    def gradient(temperature):
        student = (0.01 * torch.randn(64, 4, generator=torch.Generator().manual_seed(1))).requires_grad_()
        teacher = 0.01 * torch.randn(64, 4, generator=torch.Generator().manual_seed(2))
        tq.training.distillation_loss(student, teacher, temperature=temperature).backward()
        return student.grad

    torch.testing.assert_close(gradient(8.0), gradient(2.0), rtol=0.05, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": torch.zeros(5, 3)}, r"student and teacher must be logits of one shape, .*, got \[5, 4\] and \[5, 3\]"),
        ({"student": torch.zeros(4), "teacher": torch.zeros(4)}, r"got \[4\] and \[4\]"),
        ({"temperature": 0}, "temperature must be greater than 0, got 0"),
        ({"alpha": 1.2}, "alpha must be from 0 to 1, got 1.2"),
    ],
)
def test_a_wrong_distillation_says_what_is_allowed(settings, message):
    with pytest.raises(ValueError, match=f"distillation_loss: .*{message}"):
        tq.training.distillation_loss(**{"student": torch.zeros(5, 4), "teacher": torch.zeros(5, 4), **settings})


# ---- gradient checkpointing

NOISY = QConfig(QuantSpec.weight(4, rounding="stochastic"), QuantSpec.activation(4, rounding="noise", observer="moving_average"))
CHECKPOINTED = {
    "int8": tq.qconfigs.int8_static(), "min_max": tq.qconfigs.int8_static(observer="min_max"), "dynamic": tq.qconfigs.int8_dynamic(),
    "learned": tq.qconfigs.learned(learn_zero_point=True), "pact": tq.qconfigs.pact(), "power_of_two": tq.qconfigs.power_of_two(),
    "noise": NOISY, "delayed": QConfig(QuantSpec.weight(), QuantSpec.activation(delayed=True)),
}  # fmt: skip


@pytest.mark.parametrize("prepare", [tq.prepare, tq.prepare_qat])
def test_delayed_specs_are_placed_where_tensors_share_a_range(prepare):
    class Join(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    specs = {m.spec for m in prepare(Join(), torch.randn(2, 4), CHECKPOINTED["delayed"]).activation_fake_quants.children()}
    assert {(spec.observer, spec.delayed) for spec in specs} == {("moving_average", True), ("min_max", False)}


@pytest.mark.parametrize("kind", ["reentrant", "not reentrant"])
@pytest.mark.parametrize("qconfig", CHECKPOINTED.values(), ids=CHECKPOINTED.keys())
def test_a_checkpointed_step_has_the_bits_of_a_plain_one(kind, qconfig):
    states = []
    for checkpointed in (False, kind):
        prepared = prepared_net(qconfig, make=lambda checkpointed=checkpointed: Net(checkpointed))
        optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
        torch.manual_seed(9)
        for step in range(3):
            optimizer.zero_grad()
            prepared((1 + step) * X).square().mean().backward()
            optimizer.step()
        states.append({**prepared.state_dict(), **{name: value.grad for name, value in prepared.named_parameters()}})
    plain, repeated = states
    for name, value in plain.items():
        assert torch.equal(value, repeated[name]), name


def test_preparing_keeps_the_checkpoints():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.body = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

        def forward(self, x):
            return checkpoint(self.body, x, use_reentrant=False)

    x = torch.randn(3, 4)
    prepared = tq.prepare_qat(Block(), x, tq.qconfigs.int8_static())
    assert "it uses torch.utils.checkpoint" in prepared.torchquant_report.graph
    runs = []
    prepared.body[0].register_forward_hook(lambda *_: runs.append(1))
    prepared(x).sum().backward()
    assert len(runs) == 2


# ---- torch.compile


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("name", ["learned", "pact", "power_of_two"])
def test_compiled_methods_train_like_eager_ones(name):
    torch._dynamo.reset()
    eager = prepared_net(CHECKPOINTED[name])
    other = copy.deepcopy(eager)
    compiled = torch.compile(other, backend="aot_eager", fullgraph=True)
    for model in (eager, compiled):
        for _ in range(2):
            model(X).square().mean().backward()
    for (path, ours), theirs in zip(eager.named_parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, msg=lambda text: f"{path}: {text}")
    for (path, ours), theirs in zip(eager.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, msg=lambda text: f"{path}: {text}")


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_compiled_noise_is_noise():
    torch._dynamo.reset()
    prepared = prepared_net(NOISY)
    compiled = torch.compile(prepared, backend="aot_eager", fullgraph=True)
    assert not torch.equal(compiled(X), compiled(X))
    assert torch.equal(compiled.eval()(X), compiled(X))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
@pytest.mark.parametrize("cls", [nn.LSTM, nn.GRU])
def test_recurrent_layers_compile_once_torch_is_told_to(cls):
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = cls(4, 6, batch_first=True)

        def forward(self, x):
            return self.rnn(x)[0]

    x = torch.randn(2, 3, 4)
    prepared = tq.prepare_qat(Recurrent(), x, tq.qconfigs.int8_static())
    torch._dynamo.reset()
    with pytest.raises(torch._dynamo.exc.Unsupported, match="RNN, GRU, and LSTM"):  # torch's rule for every nn.LSTM and nn.GRU
        torch.compile(prepared, backend="aot_eager", fullgraph=True)(x)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(allow_rnn=True):
        compiled = torch.compile(prepared, backend="aot_eager", fullgraph=True)
        torch.testing.assert_close(compiled(x), prepared(x))


# ---- SyncBatchNorm


@pytest.mark.parametrize("make", [traceable_net, Net], ids=["torch.fx", "module by module"])
def test_sync_batch_norm_keeps_the_quantization(make):
    prepared = prepared_net(make=make)
    prepared(X)
    expected = prepared.eval()(X)
    synchronized = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(prepared))
    assert any(isinstance(module, nn.SyncBatchNorm) for module in synchronized.modules())
    assert torch.equal(synchronized.eval()(X), expected)
    assert synchronized.state_dict().keys() == prepared.state_dict().keys()
    tq.freeze_batch_norm(synchronized.train())
    assert not any(m.training for m in synchronized.modules() if isinstance(m, nn.SyncBatchNorm))
    receipts = [tq.convert(model, X).receipt.rows for model in (prepared, synchronized)]
    assert [(row["layer"], row["kernel"], row["fused"]) for row in receipts[0]] == [
        (row["layer"], row["kernel"], row["fused"]) for row in receipts[1]
    ]


def test_a_model_with_sync_batch_norm_is_prepared_like_one_with_batch_norm():
    torch.manual_seed(4)
    model = nn.SyncBatchNorm.convert_sync_batchnorm(traceable_net()).eval()
    prepared = tq.prepare_qat(model, X, tq.qconfigs.int8_static())
    names = {name for name, module in prepared.named_modules() if isinstance(module, FakeQuantize)}
    assert names == {name for name, module in prepared_net().named_modules() if isinstance(module, FakeQuantize)}
