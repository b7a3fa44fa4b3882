"""Methods of quantization-aware training: learned ranges, powers of two, stochastic rounding, noise, pruned weights, mixed widths."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

import torchquant as tq
from torchquant.fake_quantize import FakeQuantize
from torchquant.qconfig import QConfig, QuantSpec

ops = torch.ops.torchquant
X = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))


def net():
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))


def train(model, steps=3, lr=0.05, optimizer=torch.optim.SGD, **settings):
    optimizer = optimizer(model.parameters(), lr=lr, **settings)
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        loss = (model(X) - X[:, :4]).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def converted_codes(prepared):
    """The integer weights of a converted model, one tensor per layer."""
    quantized = tq.convert(prepared, X)
    return [value for value in quantized.script.buffers() if value.dtype == torch.int8 and value.dim() == 2]


# ---- every method: trains, and converts to what it evaluates to

WEIGHT, ACTIVATION = QuantSpec.weight(4), QuantSpec.activation(4)
METHODS = {
    "lsq": tq.qconfigs.learned(weight_bits=4, activation_bits=4),
    "lsq+": tq.qconfigs.learned(weight_bits=4, activation_bits=4, learn_zero_point=True),
    "pact": tq.qconfigs.pact(weight_bits=4, activation_bits=4),
    "power_of_two": tq.qconfigs.power_of_two(weight_bits=4, activation_bits=4),
    "stochastic": QConfig(replace(WEIGHT, rounding="stochastic"), replace(ACTIVATION, rounding="stochastic")),
    "noise": QConfig(replace(WEIGHT, rounding="noise"), replace(ACTIVATION, rounding="noise")),
}
every_method = pytest.mark.parametrize("qconfig", METHODS.values(), ids=METHODS.keys())


@every_method
def test_training_lowers_the_loss_and_converts(qconfig):
    prepared = tq.prepare_qat(net(), X, qconfig)
    losses = train(prepared, steps=30, lr=0.1)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert tq.convert(prepared, X).drift["relative"] < 0.02


@every_method
def test_training_follows_calibration(qconfig):
    prepared = tq.prepare_qat(net(), X, qconfig)
    tq.calibrate(prepared, [X, 2 * X])
    calibrated = {name: module.scale.detach().clone() for name, module in prepared.activation_fake_quants.named_children()}
    prepared.train()(9 * X)
    for name, scale in calibrated.items():  # the calibrated range holds, or starts what is learned
        assert torch.equal(prepared.activation_fake_quants.get_submodule(name).scale, scale)
    assert len(calibrated) == 2


@every_method
def test_autocast_and_averaging(qconfig):
    prepared = tq.prepare_qat(net(), X, qconfig)
    average = torch.optim.swa_utils.AveragedModel(prepared, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.5))
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.05)
    for _ in range(4):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            output = prepared(X)
        assert output.dtype == torch.bfloat16
        output.float().square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        average.update_parameters(prepared)
    assert all(value.dtype != torch.bfloat16 for value in prepared.state_dict().values())
    assert tq.convert(average, X)(X).isfinite().all()


@every_method
def test_a_resumed_training_has_the_bits_of_an_uninterrupted_one(qconfig, tmp_path):
    def start():
        prepared = tq.prepare_qat(net(), X, qconfig)
        schedule = tq.training.Schedule(prepared, start_fake_quant_after=1, stop_observers_after=4)
        return prepared, torch.optim.Adam(prepared.parameters(), lr=0.01), schedule

    def run(prepared, optimizer, schedule, steps):
        for _ in range(steps):
            optimizer.zero_grad()
            prepared(X).square().mean().backward()
            optimizer.step()
            schedule.step()

    torch.manual_seed(3)
    whole = start()
    run(*whole, steps=6)
    torch.manual_seed(3)
    first = start()
    run(*first, steps=3)
    parts = [part.state_dict() for part in first]
    torch.save({"parts": parts, "random": torch.get_rng_state()}, tmp_path / "checkpoint.pt")
    second = start()
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    for part, state in zip(second, saved["parts"]):
        part.load_state_dict(state)
    torch.set_rng_state(saved["random"])
    run(*second, steps=3)
    for (name, value), other in zip(second[0].state_dict().items(), whole[0].state_dict().values(), strict=True):
        assert torch.equal(value, other), name


# ---- LSQ and LSQ+


@pytest.mark.parametrize("weight_bits", [3, 8])
def test_learned_ranges_start_from_calibration(weight_bits):
    weights = QuantSpec.weight(weight_bits, **({"observer": "mse", "bins": 128} if weight_bits == 3 else {}))
    observed = tq.prepare_qat(net(), X, QConfig(weights, QuantSpec.activation(4, observer="mse")))
    tq.calibrate(observed, [X, 3 * X])
    for learn_zero_point in (False, True):
        qconfig = tq.qconfigs.learned(weight_bits=weight_bits, activation_bits=4, learn_zero_point=learn_zero_point)
        learned = tq.prepare_qat(net(), X, qconfig)
        tq.calibrate(learned, [X, 3 * X])
        for name, module in observed.named_modules():
            if isinstance(module, FakeQuantize):
                twin = learned.get_submodule(name)
                assert torch.equal(twin.scale, module.scale) and torch.equal(twin.zero_point, module.zero_point)
                assert isinstance(twin.scale, nn.Parameter) and not twin.observer_enabled
        zero_points = [module.zero_point for module in learned.activation_fake_quants.children()]
        assert all(isinstance(value, nn.Parameter) == learn_zero_point for value in zero_points)


def test_quantization_parameters_are_those_that_the_method_learns():
    def names(qconfig):
        prepared = tq.prepare_qat(net(), X, qconfig)
        found = {id(parameter) for parameter in tq.training.quantization_parameters(prepared)}
        return {name.rpartition(".")[2] for name, parameter in prepared.named_parameters() if id(parameter) in found}

    assert names(tq.qconfigs.learned()) == {"scale"}
    assert names(tq.qconfigs.learned(learn_zero_point=True)) == {"scale", "zero_point"}
    assert names(tq.qconfigs.pact()) == {"clip"}
    assert names(tq.qconfigs.int8_static()) == set()


def test_parameter_groups_hold_every_parameter_once_and_slow_the_scales():
    def groups(qconfig):
        prepared = tq.prepare_qat(net(), X, qconfig)
        found = tq.training.parameter_groups(prepared, lr=0.5)
        assert sorted(id(p) for group in found for p in group["params"]) == sorted(id(p) for p in prepared.parameters())
        names = {id(parameter): name.rpartition(".")[2] for name, parameter in prepared.named_parameters()}
        return [({names[id(p)] for p in group["params"]} & {"scale", "zero_point", "clip"}, group["lr"]) for group in found]

    learned = tq.qconfigs.learned(weight_bits=4, learn_zero_point=True)
    assert sorted(groups(learned), key=lambda group: group[1]) == [({"scale"}, 0.5 / 255), ({"scale"}, 0.5 / 7), ({"zero_point"}, 0.5)]
    assert groups(tq.qconfigs.pact()) == [({"clip"}, 0.5)] and groups(tq.qconfigs.int8_static()) == [(set(), 0.5)]
    assert len(tq.training.parameter_groups(net(), lr=0.5)) == 1
    with pytest.raises(ValueError, match="parameter_groups: lr must be positive, got 0"):
        tq.training.parameter_groups(net(), lr=0)


def test_a_step_of_adam_moves_the_end_of_a_range_by_no_more_than_the_learning_rate():
    prepared = tq.prepare_qat(net(), X, tq.qconfigs.learned())
    tq.calibrate(prepared, [X])
    optimizer = torch.optim.AdamW(tq.training.parameter_groups(prepared, lr=1e-3), lr=1e-3, weight_decay=0.1)
    quantizers = [module for module in prepared.modules() if isinstance(module, FakeQuantize)]
    before = [module.scale.detach().clone() for module in quantizers]
    prepared.train()(X).square().sum().backward()
    optimizer.step()
    moved = [((module.scale - scale).abs() * module.spec.quant_max).max() for module, scale in zip(quantizers, before)]
    assert 0 < max(moved) <= 1.01e-3


# ---- PACT

PACT = QuantSpec.activation(4, learnable_clip=True)


def test_pact_clips_at_the_learned_value_and_learns_it():
    fake_quant = FakeQuantize(PACT)
    fake_quant(torch.tensor([0.0, 3.0]))  # the first batch starts it
    assert fake_quant.clip.item() == pytest.approx(3.0) and fake_quant.zero_point.item() == 0.0
    with torch.no_grad():
        fake_quant.clip.fill_(1.5)
    x = torch.tensor([-1.0, 0.04, 0.74, 1.49, 2.0, 7.0], requires_grad=True)
    y = fake_quant(x)
    assert y.tolist() == pytest.approx([0.0, 0.0, 0.7, 1.5, 1.5, 1.5])
    y.backward(torch.tensor([1.0, 2.0, 4.0, 8.0, 16.0, 32.0]))
    assert x.grad.tolist() == [0.0, 2.0, 4.0, 8.0, 0.0, 0.0]
    assert fake_quant.clip.grad.item() == 16.0 + 32.0  # Choi et al., equation 3: 1 beyond alpha, 0 below


def test_pact_of_values_of_both_signs_moves_both_ends():
    fake_quant = FakeQuantize(PACT)
    fake_quant(torch.tensor([-1.0, 2.0]))
    zero_point = fake_quant.zero_point.item()
    assert zero_point == 5.0 and fake_quant.clip.item() == pytest.approx(2.0)
    x = torch.tensor([-9.0, 0.1, 9.0])
    fake_quant(x).backward(torch.tensor([2.0, 1.0, 4.0]))
    assert fake_quant.clip.grad.item() == pytest.approx(4.0 - 2.0 * zero_point / (15 - zero_point))


def last_activation(prepared):
    return list(prepared.activation_fake_quants.children())[-1]


def test_the_scale_follows_the_clipping_value_into_evaluation():
    prepared = tq.prepare_qat(net(), X, tq.qconfigs.pact(activation_bits=4))
    prepared(X)
    fake_quant = last_activation(prepared)
    with torch.no_grad():
        fake_quant.clip.fill_(0.6)
    restored = copy.deepcopy(prepared).eval()
    restored.load_state_dict(prepared.state_dict())
    for model in (prepared.eval(), restored):
        fake_quant = last_activation(model)
        assert fake_quant.scale.item() == pytest.approx(0.6 / 15) and fake_quant(torch.tensor([5.0])).item() == pytest.approx(0.6)


def test_a_clipping_value_stays_above_zero():
    fake_quant = FakeQuantize(PACT)
    fake_quant(torch.tensor([0.0, 1.0]))
    with torch.no_grad():
        fake_quant.clip.fill_(-2.0)
    assert fake_quant(torch.tensor([1.0])).isfinite().all()
    assert 2.0**-100 <= fake_quant.eval().scale.item() < 1e-20


def test_weight_decay_shrinks_a_clipping_value_that_nothing_reaches():
    prepared = tq.prepare_qat(net(), X, tq.qconfigs.pact())
    prepared(4 * X)  # no later value comes near
    clips = [clip.item() for clip in tq.training.quantization_parameters(prepared)]
    train(prepared, weight_decay=0.1)
    assert all(clip.item() < before for clip, before in zip(tq.training.quantization_parameters(prepared), clips))


# ---- powers of two


@pytest.mark.parametrize("observer", ["min_max", "moving_average", "mse", "percentile", "entropy"])
@pytest.mark.parametrize("symmetric", [False, True])
def test_scales_are_powers_of_two_and_the_range_stays_whole(observer, symmetric):
    quant = {"quant_min": -8, "quant_max": 7} if symmetric else {"quant_min": 0, "quant_max": 15}
    spec = QuantSpec(**quant, symmetric=symmetric, observer=observer)
    x = torch.randn(4096) * 3 + 1
    plain, rounded = FakeQuantize(spec), FakeQuantize(replace(spec, power_of_two=True))
    plain(x), rounded(x)
    mantissa, _ = torch.frexp(rounded.scale)
    assert mantissa.item() == 0.5
    assert plain.scale.item() <= rounded.scale.item() < 2 * plain.scale.item()
    half = rounded.scale.item() * 0.5001
    for fake_quant, slack in ((plain, 0.0), (rounded, half)):
        low, high = ((code - fake_quant.zero_point.item()) * fake_quant.scale.item() for code in quant.values())
        if fake_quant is plain:
            expected = low, high
    assert low <= expected[0] + half and high >= expected[1] - half
    if symmetric:
        assert rounded.zero_point.item() == plain.zero_point.item()


def test_a_power_of_two_stays_what_it_is_and_others_round_up():
    scale = torch.tensor([2.0**-100, 0.25, 0.2500001, 0.3, 1.0, 3.0, 3e38])
    zero_point = torch.zeros(7)
    result, _ = ops.power_of_two_qparams(scale, zero_point, symmetric=True, quant_min=-7, quant_max=7)
    assert result.tolist() == [2.0**-100, 0.25, 0.5, 0.5, 1.0, 4.0, 2.0**127]


def test_a_converted_model_has_powers_of_two():
    prepared = tq.prepare(net(), X, tq.qconfigs.power_of_two())
    tq.calibrate(prepared, [X])
    for module in prepared.modules():
        if isinstance(module, FakeQuantize):
            assert (torch.frexp(module.scale).mantissa == 0.5).all()
    assert (tq.convert(prepared, X)(X) - net()(X)).norm() < 0.05 * net()(X).norm()


# ---- stochastic rounding and noise


def noisy(rounding, x, **settings):
    fake_quant = FakeQuantize(replace(QuantSpec.weight(4, axis=None), rounding=rounding, **settings))
    fake_quant(torch.tensor([-7.0, 7.0]))  # a scale of 1
    fake_quant.enable_observer(False)
    return fake_quant, fake_quant(x)


@pytest.mark.parametrize("rounding", ["stochastic", "noise"])
def test_the_expectation_is_the_value(rounding):
    count = 40_000
    values = torch.tensor([-6.4, -2.5, -0.01, 0.3, 0.5, 3.0, 5.99])
    _, result = noisy(rounding, values.repeat(count, 1))
    deviation = 0.5 / count**0.5  # the largest standard deviation of a rounding up or down, of the mean
    assert ((result.mean(0) - values).abs() < 4.5 * deviation).all()


def test_stochastic_rounding_gives_the_two_neighbouring_codes():
    _, result = noisy("stochastic", torch.tensor([0.25, -2.75, 4.0]).repeat(2000, 1))
    assert [sorted(set(column.tolist())) for column in result.T] == [[0.0, 1.0], [-3.0, -2.0], [4.0]]
    assert (result[:, 0] == 1.0).float().mean().item() == pytest.approx(0.25, abs=0.05)


def test_noise_is_uniform_over_one_step_and_spares_zero():
    fake_quant, result = noisy("noise", torch.tensor([1.25, 0.0, 9.0]).repeat(4000, 1))
    error = result[:, 0] - 1.25
    assert -0.5 <= error.min() < -0.49 and 0.49 < error.max() < 0.5
    assert error.var().item() == pytest.approx(1 / 12, rel=0.05)  # that of the rounding error
    assert (result[:, 1] == 0).all() and (result[:, 2] == 7).all()


@pytest.mark.parametrize("rounding", ["stochastic", "noise"])
def test_noise_is_that_of_the_generator_and_absent_in_evaluation(rounding):
    x = torch.randn(100) * 3
    fake_quant, _ = noisy(rounding, x)
    torch.manual_seed(11)
    first, other = fake_quant(x), fake_quant(x)
    torch.manual_seed(11)
    assert torch.equal(fake_quant(x), first) and not torch.equal(first, other)
    fake_quant.eval()
    nearest = ops.fake_quantize(x, torch.ones(1), torch.zeros(1), quant_min=-7, quant_max=7)
    assert torch.equal(fake_quant(x), nearest) and torch.equal(fake_quant(x), nearest)


@pytest.mark.parametrize("rounding", ["stochastic", "noise"])
@pytest.mark.parametrize("granularity", [{"axis": None}, {"axis": 0}, {"axis": 1, "group_size": 4}])
def test_noise_in_every_granularity_and_its_gradient(rounding, granularity):
    fake_quant = FakeQuantize(replace(QuantSpec.weight(4, **granularity), rounding=rounding))
    x = (torch.randn(6, 8) * torch.arange(1, 7)[:, None]).requires_grad_()
    fake_quant(x)
    fake_quant.enable_observer(False)
    step = fake_quant.scale if not fake_quant.spec.group_size else fake_quant.scale.repeat_interleave(4, 1)
    step = step[:, None] if fake_quant.spec.axis == 0 else step
    y = fake_quant(2 * x)
    inside = (2 * x).abs() < 6.4 * step
    assert ((y - 2 * x).abs() <= step * 1.0001)[inside].all()
    y.sum().backward()
    assert (x.grad[inside] == 2).all() and (x.grad[(2 * x).abs() > 8 * step] == 0).all()


def test_noise_in_bfloat16_is_not_rounded_away():
    x = torch.full((20_000,), 101.0, dtype=torch.bfloat16)
    scale, zero_point = torch.tensor([0.8]), torch.zeros(1)  # 126.25 steps
    noise = torch.empty(x.shape).uniform_(-0.5, 0.5)
    y = ops.noisy_fake_quantize(x, noise, scale, zero_point, quant_min=-127, quant_max=127, round=True)
    assert y.dtype == torch.bfloat16
    assert (y == torch.tensor(127 * 0.8).bfloat16()).float().mean().item() == pytest.approx(0.25, abs=0.02)


# ---- widths by layer


def test_widths_differ_by_layer():
    qconfig = tq.QConfigMapping(tq.qconfigs.int8_static()).set_module_name("2", tq.qconfigs.int8_static(weight_bits=3, activation_bits=4))
    prepared = tq.prepare_qat(net(), X, qconfig)
    train(prepared)
    specs = {name: module.spec.bits for name, module in prepared.named_modules() if isinstance(module, FakeQuantize)}
    assert specs["0.weight_fake_quant"] == 8 and specs["2.weight_fake_quant"] == 3
    assert sorted(bits for name, bits in specs.items() if "activation" in name) == [4, 8]
    precisions = {row["layer"]: row["precision"] for row in tq.convert(prepared, X).receipt.rows}
    assert precisions["0"] == "int8" and precisions["2"] in ("int4", "int8")


# ---- pruned weights


def pruned_net(how):
    model = net()
    if how == "prune":
        prune.l1_unstructured(model[0], "weight", amount=0.5)
        prune.random_unstructured(model[0], "weight", amount=0.25)  # a second one makes a container of both
    else:
        with torch.no_grad():
            model[0].weight[:, ::2] = 0.0
    return model


@pytest.mark.parametrize("how", ["prune", "zeros"])
@pytest.mark.parametrize("qconfig", [*METHODS.values(), tq.qconfigs.int4_weight_only(8)], ids=[*METHODS, "groups"])
def test_zeros_stay_zero_in_training_and_in_codes(how, qconfig):
    model = pruned_net(how)
    zeros = model[0].weight == 0
    assert 0.3 < zeros.float().mean() < 0.8
    prepared = tq.prepare_qat(tq.training.keep_zeros(model), X, qconfig)
    before = tq.float_parameter(prepared[0], "weight").detach().clone()
    train(prepared, steps=4, momentum=0.9, weight_decay=0.01)
    after = tq.float_parameter(prepared[0], "weight").detach()
    assert (after[zeros] == 0).all() and (after != before)[~zeros].float().mean() > 0.9
    assert (prepared[0].weight[zeros] == 0).all()
    assert tq.convert(prepared, X).drift["relative"] < 0.02


def test_the_codes_of_pruned_weights_are_zero():
    model = pruned_net("prune")
    zeros = model[0].weight == 0
    prepared = tq.prepare_qat(tq.training.keep_zeros(model), X, tq.qconfigs.int8_static())
    train(prepared, steps=4, momentum=0.9)
    codes = next(value for value in converted_codes(prepared) if value.shape == zeros.shape)
    assert (codes[zeros] == 0).all() and (codes[~zeros] != 0).float().mean() > 0.9


def test_keep_zeros_leaves_the_model_alone_and_keeps_float_layers_pruned():
    model = pruned_net("prune")
    x, before = X.clone(), {name: value.clone() for name, value in model.state_dict().items()}
    masked = tq.training.keep_zeros(model)
    assert before.keys() == model.state_dict().keys() and prune.is_pruned(model) and not prune.is_pruned(masked)
    torch.testing.assert_close(masked(x), model(x))
    qconfig = tq.QConfigMapping(tq.qconfigs.int8_static()).set_module_name("0", None)
    prepared = tq.prepare_qat(masked, X, qconfig)
    train(prepared, steps=3, momentum=0.9)
    assert (prepared[0].weight[model[0].weight == 0] == 0).all()
    restored = tq.prepare_qat(tq.training.keep_zeros(model), X, qconfig)
    restored.load_state_dict(prepared.state_dict())
    assert torch.equal(restored[0].weight, prepared[0].weight)


def test_convolutions_and_attention_keep_their_zeros():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.attention = nn.Conv1d(8, 8, 3, padding=1), nn.MultiheadAttention(8, 2, batch_first=True)

        def forward(self, x):
            x = self.conv(x.transpose(1, 2)).transpose(1, 2)
            return self.attention(x, x, x, need_weights=False)[0]

    model, x = Block(), torch.randn(2, 5, 8)
    prune.l1_unstructured(model.conv, "weight", amount=0.5)
    prune.l1_unstructured(model.attention, "in_proj_weight", amount=0.5)
    with torch.no_grad():
        model.attention.out_proj.weight[0] = 0.0
    zeros = model.conv.weight == 0, model.attention.in_proj_weight == 0, model.attention.out_proj.weight == 0
    prepared = tq.prepare_qat(tq.training.keep_zeros(model), x, tq.qconfigs.int8_static())
    for _ in range(3):
        prepared(x).square().mean().backward()
        with torch.no_grad():
            for parameter in prepared.parameters():
                parameter -= 0.1 * parameter.grad + 0.01
    weights = prepared.conv.weight, prepared.attention.in_proj_weight, prepared.attention.out_proj.weight
    for weight, zero in zip(weights, zeros):
        assert (weight[zero] == 0).all() and (weight[~zero] != 0).any()
    assert tq.convert(prepared, x)(x).isfinite().all()


def test_zeros_that_attention_holds_itself_stay():
    model, x = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 5, 8)
    y = torch.randn(2, 3, 8)
    with torch.no_grad():
        model.in_proj_weight[:, 3] = 0.0
    prepared = tq.prepare_qat(tq.training.keep_zeros(model), (x, y, y), tq.qconfigs.int8_static())
    prepared(x, y, y)[0].sum().backward()
    assert (prepared.in_proj_weight[:, 3] == 0).all()
    assert tq.convert(prepared, (x, y, y)).drift["relative"] < 0.02


@pytest.mark.parametrize("pruned", [True, False])
def test_zeros_of_recurrent_layers_are_refused(pruned):
    model = nn.Sequential(nn.LSTM(4, 4))
    if pruned:
        prune.l1_unstructured(model[0], "weight_hh_l0", amount=0.5)
    else:
        with torch.no_grad():
            model[0].weight_hh_l0[0] = 0.0
    with pytest.raises(ValueError, match="keep_zeros: 0: the zeros of a LSTM cannot be held, .*; leave recurrent weights unpruned"):
        tq.training.keep_zeros(model)


def test_what_keep_zeros_refuses():
    with pytest.raises(ValueError, match=r"keep_zeros: no weight of Sequential has a zero; prune the model first"):
        tq.training.keep_zeros(net())
    with pytest.raises(TypeError, match="keep_zeros: the model is prepared already; call keep_zeros on the float model"):
        tq.training.keep_zeros(tq.prepare_qat(net(), X, tq.qconfigs.int8_static()))
    with pytest.raises(TypeError, match="model must be a torch.nn.Module, got int"):
        tq.training.keep_zeros(3)
    with pytest.raises(ValueError, match="0.weight is a plain tensor that a hook recomputes: after .*prune call .*keep_zeros"):
        tq.prepare_qat(pruned_net("prune"), X, tq.qconfigs.int8_static())


# ---- wrong specs


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: QuantSpec.activation(rounding="floor"), "rounding must be one of nearest, stochastic, noise, got 'floor'"),
        (lambda: replace(QuantSpec.per_row(), rounding="noise"), "rounding must be nearest when dynamic, got 'noise'"),
        (lambda: replace(QuantSpec.per_row(), power_of_two=True), "power_of_two must be False when dynamic"),
        (lambda: replace(QuantSpec.per_row(), learnable_clip=True), r"axis must be None"),
        (lambda: QuantSpec.weight(learnable_clip=True), r"axis must be None \(.*\) when learnable_clip is given, got 0"),
        (lambda: replace(PACT, learnable=True), "learnable must be False when learnable_clip is given"),
        (lambda: replace(PACT, power_of_two=True), "power_of_two must be False where the scale or clipping value is learned"),
        (lambda: QuantSpec.activation(learnable=True, power_of_two=True), "power_of_two must be False where the scale"),
        (lambda: QuantSpec.activation(learnable=True, rounding="noise"), "rounding must be nearest where the scale or clipping value"),
    ],
)
def test_a_wrong_combination_says_what_is_allowed(make, message):
    with pytest.raises(ValueError, match=message):
        make()
