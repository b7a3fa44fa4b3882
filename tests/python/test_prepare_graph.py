"""Where prepare puts fake-quants in a model that torch.fx traces."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant.fake_quantize import FakeQuantize


def placed(prepared, role):
    """Name -> path of its fake-quant, for everything of this role that has one."""
    rows = prepared.torchquant_report.rows
    return {row["name"]: row["fake_quant"] for row in rows if row["role"] == role and row["fake_quant"]}


def kept_float(prepared):
    return {row["name"]: row["reason"] for row in prepared.torchquant_report.rows if not row["fake_quant"]}


def fake_quants(prepared):
    return {name for name, module in prepared.named_modules() if isinstance(module, FakeQuantize)}


def prepare(model, *inputs, qconfig=None):
    return tq.prepare(model.eval(), inputs, qconfig or tq.qconfigs.int8_static())


class Residual(nn.Module):
    """The shapes of a ResNet block with a depthwise layer: conv + bn + relu, conv + bn + add + relu, pool, linear."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2, self.bn2 = nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8)
        self.pool, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 4)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(x))
        y += x
        return self.fc(torch.flatten(self.pool(F.relu(y)), 1))


def test_a_fused_group_has_one_fake_quant_and_its_inside_none():
    prepared = prepare(Residual(), torch.randn(2, 3, 8, 8))
    assert placed(prepared, "activation") == {
        "x": "activation_fake_quants.x",
        "relu": "activation_fake_quants.relu",  # read by conv2 and by the residual add: one fake-quant
        "relu#2": "activation_fake_quants.relu_2",
        "pool": "activation_fake_quants.pool",
    }
    assert kept_float(prepared) == {"fc": "it is the model's output"}
    assert set(placed(prepared, "weight")) == {"conv1.weight", "conv2.weight", "fc.weight"}
    assert fake_quants(prepared) == set(placed(prepared, "weight").values()) | set(placed(prepared, "activation").values())


def test_readers_of_one_tensor_share_its_fake_quant():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)

        def forward(self, x):
            return self.a(x) + self.b(x)

    prepared = prepare(Branches(), torch.randn(1, 3, 4, 4))
    assert placed(prepared, "activation") == {"x": "activation_fake_quants.x"}


def test_the_second_convolution_of_a_sum_is_its_quantized_residual():
    class Downsample(nn.Module):
        def __init__(self):
            super().__init__()
            self.main, self.skip, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.last(F.relu(self.main(x) + self.skip(x)))

    prepared = prepare(Downsample(), torch.randn(1, 3, 4, 4))
    assert set(placed(prepared, "activation")) == {"x", "skip", "relu"}


def test_inputs_of_a_concatenation_share_one_fake_quant_and_its_output_has_none():
    class Fire(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(8, 2, 1)

        def forward(self, x):
            return self.last(torch.cat([F.relu(self.a(x)), F.relu(self.b(x))], 1))

    prepared = prepare(Fire(), torch.randn(1, 3, 4, 4))
    activations = placed(prepared, "activation")
    assert activations["relu"] == activations["relu#2"] and set(activations) == {"x", "relu", "relu#2"}


def test_shape_operations_and_max_pool_carry_the_fake_quant_of_their_input():
    class Shapes(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.pool, self.drop, self.fc = nn.Conv2d(3, 4, 1), nn.MaxPool2d(2), nn.Dropout(), nn.Linear(16, 2)

        def forward(self, x):
            x = self.pool(F.relu(self.conv(x)))
            x = self.drop(x.permute(0, 2, 3, 1).contiguous().view(x.size(0), -1))
            return self.fc(x)

    prepared = prepare(Shapes(), torch.randn(2, 3, 4, 4))
    assert set(placed(prepared, "activation")) == {"x", "relu"}


def test_a_residual_stream_of_floats_is_not_quantized():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.up, self.down = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8)

        def forward(self, x):
            y = self.norm(x)
            return self.norm(y + self.down(F.gelu(self.up(y))))

    prepared = prepare(Block(), torch.randn(2, 8))
    assert set(placed(prepared, "activation")) == {"norm", "gelu"}
    source = type(prepared)._torchquant_recipe.graph.source
    assert "add = norm + down" in source  # the sum reads the float value, not the fake-quantized one that `up` reads
    assert kept_float(prepared)["add"] == "only float operations read it"


@pytest.mark.parametrize(
    ("resize", "own"),
    [
        (lambda x: F.interpolate(x, scale_factor=2.0), False),
        (lambda x: F.interpolate(x, (5, 7), None, "bilinear"), True),
        (nn.Upsample(scale_factor=2, mode="bilinear"), True),
        (nn.UpsamplingBilinear2d((5, 7)), True),
    ],
)
def test_smooth_resizes_have_their_own_qparams_and_nearest_ones_their_inputs(resize, own):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last, self.resize = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), resize

        def forward(self, x):
            return self.last(self.resize(self.first(x)))

    prepared = prepare(Decoder(), torch.randn(1, 3, 4, 4))
    assert len(placed(prepared, "activation")) == 2 + own


@pytest.mark.parametrize(
    "settings", [{"mode": "bicubic"}, {"mode": "bilinear", "antialias": True}, {"mode": "nearest-exact"}], ids=str
)
def test_other_resizes_stay_float(settings):
    class Decoder(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.last(F.interpolate(self.first(x), (5, 7), **settings))

    prepared = prepare(Decoder(), torch.randn(1, 3, 4, 4))
    assert set(placed(prepared, "activation")) == {"x", "interpolate"}


def test_squeeze_and_excite_products_are_quantized():
    class SqueezeExcite(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.gate, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
            self.activation, self.sigmoid = nn.Hardswish(), nn.Hardsigmoid()

        def forward(self, x):
            x = self.activation(self.conv(x))
            return self.last(x * self.sigmoid(self.gate(F.adaptive_avg_pool2d(x, 1))))

    prepared = prepare(SqueezeExcite(), torch.randn(1, 3, 4, 4))
    assert set(placed(prepared, "activation")) == {"x", "activation", "adaptive_avg_pool2d", "sigmoid", "mul"}


@pytest.mark.parametrize(
    "activation",
    [
        nn.ReLU(),
        nn.ReLU6(),
        nn.Hardswish(),
        nn.SiLU(),
        nn.GELU(),
        nn.Sigmoid(),
        F.relu,
        F.relu6,
        F.hardswish,
        F.silu,
        F.gelu,
        torch.sigmoid,
    ],
)
def test_activations_join_the_layer_before_them(activation):
    class Activated(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.activation, self.last = nn.Linear(4, 4), activation, nn.Linear(4, 4)

        def forward(self, x):
            return self.last(self.activation(self.first(x)))

    assert len(placed(prepare(Activated(), torch.randn(2, 4)), "activation")) == 2  # the input, and the activation's output


@pytest.mark.parametrize("function", [nn.ELU(), nn.LeakyReLU(), nn.Mish()])
def test_a_function_that_no_kernel_runs_is_a_table_between_two_fake_quants(function):
    model = nn.Sequential(nn.Linear(4, 4), function, nn.Linear(4, 4))
    assert set(placed(prepare(model, torch.randn(2, 4)), "activation")) == {"input", "0", "1"}


def test_a_function_without_table_stays_between_floats():
    model = nn.Sequential(nn.Linear(4, 4), nn.PReLU(), nn.Linear(4, 4))
    prepared = prepare(model, torch.randn(2, 4))
    assert set(placed(prepared, "activation")) == {"input", "1"}
    assert kept_float(prepared)["0"] == "only float operations read it"


def test_functional_calls_on_parameters_are_layers():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.qkv = nn.Linear(4, 12)
            self.kernel = nn.Parameter(torch.randn(5, 4, 1))

        def forward(self, x):
            q, k, v = F.linear(x, self.qkv.weight, self.qkv.bias).chunk(3, dim=-1)
            y = F.scaled_dot_product_attention(q, k, v)
            return F.conv1d(y.transpose(1, 2), self.kernel)

    model, x = Functional(), torch.randn(2, 3, 4)
    prepared = prepare(model, x)
    assert placed(prepared, "weight") == {"qkv.weight": "qkv.weight_fake_quant", "kernel": "kernel_fake_quant"}
    tq.calibrate(prepared, [x])
    assert not torch.equal(prepared.kernel, model.kernel) and torch.equal(prepared._parameters["kernel"], model.kernel)


@pytest.mark.parametrize("traceable", [True, False])
def test_layers_in_disguise_are_reported(traceable):
    class Disguised(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc, self.weight, self.batch = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(2, 4, 4))

        def forward(self, x):
            if not traceable and x.sum() > 1e9:
                return x
            return F.linear(self.fc(x), self.weight * 2) @ self.batch

    prepared = prepare(Disguised(), torch.randn(2, 4))
    reasons = kept_float(prepared)
    assert reasons["weight"].startswith("the weight of this linear is not a parameter itself")
    assert "with this parameter has no integer kernel" in reasons["batch"]


def test_transposed_convolutions_quantize_along_their_output_channels():
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 2, groups=2), nn.ConvTranspose1d(6, 5, 2))
    assert nn.ConvTranspose2d(4, 6, 2, groups=2).weight.shape == (4, 3, 2, 2)
    prepared = prepare(nn.Sequential(model[0], nn.Flatten(2), model[1]), torch.randn(1, 4, 3, 3))
    assert prepared[0].weight_fake_quant.spec.axis == 1 and prepared[0].weight_fake_quant.scale.shape == (3,)
    assert prepared[2].weight_fake_quant.scale.shape == (5,)


def test_a_module_used_twice_has_one_weight_fake_quant_and_two_for_activations():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(4, 4, 1)

        def forward(self, x):
            return self.conv(F.relu(self.conv(x)))

    prepared = prepare(Twice(), torch.randn(1, 4, 4, 4))
    assert placed(prepared, "weight") == {"conv.weight": "conv.weight_fake_quant"}
    assert set(placed(prepared, "activation")) == {"x", "relu"}
    assert kept_float(prepared) == {"conv#2": "it is the model's output"}


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding, self.head = nn.Embedding(10, 8), nn.Linear(8, 10, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def test_a_parameter_with_two_owners_has_one_fake_quant():
    model = Tied()
    prepared = prepare(model, torch.randint(10, (2, 3)))
    assert prepared.head.weight_fake_quant is prepared.embedding.weight_fake_quant
    assert len(list(prepared.parameters())) == len(list(model.parameters())) == 1
    assert prepared.embedding.weight_fake_quant.scale.shape == (10,)


def test_one_parameter_cannot_have_two_qconfigs():
    mapping = tq.QConfigMapping(tq.qconfigs.int8_static()).set_module_name("head", tq.qconfigs.int4_weight_static())
    with pytest.raises(ValueError, match="embedding.weight and head.weight are one parameter, so they need one QConfig"):
        prepare(Tied(), torch.randint(10, (2, 3)), qconfig=mapping)


def test_weight_only_places_nothing_on_activations():
    prepared = prepare(Tied(), torch.randint(10, (2, 3)), qconfig=tq.qconfigs.int8_weight_only())
    assert placed(prepared, "activation") == {} and len(placed(prepared, "weight")) == 2


def test_dynamic_inputs_are_shared_by_the_layers_that_read_them():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.q, self.k, self.v, self.out = nn.LayerNorm(8), *(nn.Linear(8, 8) for _ in range(4))

        def forward(self, x):
            y = self.norm(x)
            return x + self.out(F.scaled_dot_product_attention(self.q(y), self.k(y), self.v(y)))

    prepared = prepare(Attention(), torch.randn(2, 3, 8), qconfig=tq.qconfigs.int8_dynamic())
    assert set(placed(prepared, "activation")) == {"norm", "scaled_dot_product_attention"}
    assert all(prepared.get_submodule(path).spec.dynamic for path in placed(prepared, "activation").values())


def test_a_layer_without_a_kernel_for_its_qconfig_says_so():
    model = nn.Sequential(nn.Conv1d(2, 3, 1), nn.Flatten(), nn.Linear(12, 2))
    prepared = prepare(model, torch.randn(2, 2, 4), qconfig=tq.qconfigs.int8_dynamic())
    assert kept_float(prepared) == {"0": "a dynamic QConfig quantizes linear and recurrent layers and embeddings, no conv1d"}


def test_group_size_must_divide_the_layer():
    with pytest.raises(ValueError, match=r"0\.weight: group_size=128 does not divide its number of inputs, 100"):
        prepare(nn.Sequential(nn.Linear(100, 4)), torch.randn(1, 100), qconfig=tq.qconfigs.int4_weight_only())


def test_learned_scales_train():
    model, x = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)), torch.randn(8, 4)
    prepared = tq.prepare_qat(model, x, tq.qconfigs.learned())
    prepared(x).square().mean().backward()
    learned = {name for name, parameter in prepared.named_parameters() if name.endswith("scale") and parameter.grad is not None}
    assert learned == {f"{row['fake_quant']}.scale" for row in prepared.torchquant_report.rows if row["fake_quant"]}


def test_branches_of_a_concatenation_keep_the_widest_range_in_training():
    class Branches(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(8, 2)

        def forward(self, x):
            return self.c(torch.cat([self.a(x), self.b(x)], 1))

    model, x = Branches(), torch.randn(8, 4)
    with torch.no_grad():
        model.b.weight.mul_(100)
    prepared = tq.prepare_qat(model, x, tq.qconfigs.int8_static())
    prepared(x)
    y = model.b(x)
    fake_quant = prepared.activation_fake_quants.a
    torch.testing.assert_close(fake_quant.scale * 255, (y.max() - y.min()).view(1), rtol=0.05, atol=0)


def test_tensors_with_two_specs_have_a_fake_quant_for_each():
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.a(x), self.b(x)

    mapping = tq.QConfigMapping(tq.qconfigs.int8_static()).set_module_name("b", tq.qconfigs.int8_static(activation_bits=4))
    prepared = prepare(Mixed(), torch.randn(2, 4), qconfig=mapping)
    container = prepared.activation_fake_quants
    assert sorted(fake_quant.spec.quant_max for fake_quant in container.children()) == [15, 255]


class PreActivation(nn.Module):
    """Batch norms that no convolution can take in: behind a concatenation, and in front of a residual."""

    def __init__(self, norm=nn.BatchNorm2d):
        super().__init__()
        self.conv, self.norm, self.last = nn.Conv2d(3, 3, 1), norm(6), nn.Conv2d(6, 2, 1)

    def forward(self, x):
        return self.last(F.relu(self.norm(torch.cat([x, self.conv(x)], 1))))


def test_a_batch_norm_that_no_layer_takes_in_reads_and_gives_integers():
    prepared = prepare(PreActivation(), torch.randn(1, 3, 4, 4))
    assert set(placed(prepared, "activation")) == {"x", "conv", "relu"}


def test_a_batch_norm_without_statistics_is_float_and_says_nothing_about_the_layer_before_it():
    prepared = prepare(PreActivation(lambda n: nn.BatchNorm2d(n, track_running_stats=False)), torch.randn(1, 3, 4, 4))
    assert set(placed(prepared, "activation")) == {"x", "relu"}


def test_indexing_by_a_tensor_and_arithmetic_with_numbers_are_float():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            self.register_buffer("order", torch.tensor([1, 0]))

        def forward(self, x):
            return self.b(self.a(x)[self.order] * 2)

    prepared = prepare(Odd(), torch.randn(2, 4))
    assert set(placed(prepared, "activation")) == {"x", "mul"}


@pytest.mark.parametrize(
    ("name", "weights", "activations"),
    [
        ("resnet18", 21, 22),  # 17 groups and the input; 3 downsamplings; the pool
        ("mobilenet_v2", 53, 54),
        ("mobilenet_v3_small", 54, 73),
        ("densenet121", 121, 187),
        ("shufflenet_v2_x0_5", 57, 58),
        ("squeezenet1_1", 26, 26),
    ],
)
def test_torchvision_models(name, weights, activations):
    models = pytest.importorskip("torchvision.models")
    model = models.get_model(name, weights=None).eval()
    x = torch.randn(2, 3, 64, 64)
    prepared = prepare(model, x)
    assert prepared.torchquant_report.graph == "torch.fx"
    assert len(placed(prepared, "weight")) == weights and len(placed(prepared, "activation")) == activations
    with torch.no_grad():
        expected = model(x)
        torch.testing.assert_close(prepared(x), expected)
        tq.calibrate(prepared, [x])
        assert torch.isfinite(prepared(x)).all() and not torch.equal(prepared(x), expected)


def test_googlenet_with_auxiliary_heads_is_prepared_module_by_module():
    models = pytest.importorskip("torchvision.models")
    model = models.googlenet(weights=None, aux_logits=True, init_weights=False)
    prepared = prepare(model, torch.randn(2, 3, 64, 64))
    assert "something else in train mode" in prepared.torchquant_report.graph
    prepared.train()
    assert prepared(torch.randn(2, 3, 64, 64)).aux_logits1 is not None
    assert kept_float(prepared)["aux1.fc1"] == "example_inputs do not reach it"


def test_a_slice_up_to_a_size_of_the_input_traces():
    class Positions(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(4, 4)
            self.register_buffer("table", torch.randn(8, 4))

        def forward(self, x):
            return self.layer(x + self.table[: x.size(1)])

    prepared = tq.prepare(Positions(), torch.randn(2, 5, 4), tq.qconfigs.int8_static())
    assert prepared.torchquant_report.graph == "torch.fx"
    assert prepared(torch.randn(1, 3, 4)).shape == (1, 3, 4)
