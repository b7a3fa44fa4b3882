"""Products of two quantized activations: the op against the contract, and models whose QConfigMapping asks for them, from prepare to
the loaded file."""

import itertools
import operator

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support import integer_reference as reference
from torch import nn

import torchquant as tq
from torchquant import QConfigMapping, _C
from torchquant.fake_quantize import FakeQuantize
from torchquant.tracing import Trace

ops = torch.ops.torchquant
U8 = {"output_dtype": torch.uint8, "output_zero_point": 13, "output_quant_min": 0, "output_quant_max": 255}
S8 = {"output_dtype": torch.int8, "output_zero_point": -5, "output_quant_min": -128, "output_quant_max": 127}
STATIC = tq.qconfigs.int8_static()
TYPES = [torch.uint8, torch.int8]
ISAS = _C.available_isas()


def opted_in(default=STATIC):
    return QConfigMapping(default).set_object_type("matmul", STATIC)


def random_codes(*shape, dtype=torch.uint8):
    return torch.randint(0, 256, shape).to(torch.uint8).view(dtype)


def zero_point_of(dtype):
    return 117 if dtype == torch.uint8 else -21


def contract(a, b, multiplier, a_zero_point, b_zero_point):
    """v before the activation."""
    acc = (a.double() - a_zero_point) @ (b.double() - b_zero_point)
    return reference.scaled(acc, torch.full((acc.shape[-1],), multiplier), torch.zeros(acc.shape[-1]), axis=-1)


def codes_of(v, output):
    return reference.codes(
        v, output["output_zero_point"], output["output_quant_min"], output["output_quant_max"], output["output_dtype"]
    )


# The op


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("a_dtype,b_dtype", list(itertools.product(TYPES, repeat=2)))
def test_matmul_equals_the_contract(a_dtype, b_dtype, transposed):
    a = random_codes(2, 3, 17, 37, dtype=a_dtype)
    b = random_codes(2, 3, 45, 37, dtype=b_dtype).transpose(-1, -2) if transposed else random_codes(2, 3, 37, 45, dtype=b_dtype)
    factors = {"multiplier": 0.0021, "a_zero_point": zero_point_of(a_dtype), "b_zero_point": zero_point_of(b_dtype)}
    v = contract(a, b, **factors)
    for output in (U8, S8):
        assert torch.equal(ops.quantized_matmul(a, b, **factors, **output), codes_of(v, output))
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        assert torch.equal(ops.quantized_matmul(a, b, **factors, output_dtype=dtype), torch.from_numpy(v).to(dtype))


@pytest.mark.parametrize("a_code,a_zero_point", [(255, 0), (0, 255)])
@pytest.mark.parametrize("b_code,b_zero_point", [(255, 0), (0, 255)])
def test_matmul_is_exact_at_the_largest_depth(a_code, a_zero_point, b_code, b_zero_point):
    depth = (2**31 - 1) // (255 * 255)
    a, b = torch.full((2, depth), a_code, dtype=torch.uint8), torch.full((depth, 33), b_code, dtype=torch.uint8)
    zero_points = {"a_zero_point": a_zero_point, "b_zero_point": b_zero_point}
    out = ops.quantized_matmul(a, b, multiplier=1.0, **zero_points, output_dtype=torch.float32)
    assert (out.numpy() == np.float32((a_code - a_zero_point) * (b_code - b_zero_point) * depth)).all()


@pytest.mark.parametrize(
    "a_shape,b_shape",
    [
        ((5, 8), (8, 6)),
        ((2, 5, 8), (8, 6)),
        ((5, 8), (3, 8, 6)),
        ((2, 1, 5, 8), (1, 3, 8, 6)),
        ((3, 5, 8), (2, 1, 8, 6)),
        ((2, 3, 5, 1), (2, 3, 1, 6)),
        ((2, 3, 1, 8), (2, 3, 8, 1)),
        ((0, 5, 8), (8, 6)),
        ((2, 0, 8), (2, 8, 6)),
    ],
)
def test_matmul_broadcasts_as_torch_does(a_shape, b_shape):
    a, b = random_codes(*a_shape), random_codes(*b_shape, dtype=torch.int8)
    out = ops.quantized_matmul(a, b, multiplier=1.0, a_zero_point=3, b_zero_point=-2, output_dtype=torch.float32)
    expected = (a.double() - 3) @ (b.double() + 2)
    assert out.shape == expected.shape and torch.equal(out.double(), expected)


def test_matmul_reads_any_strides():
    call = {"multiplier": 0.01, "a_zero_point": 3, "b_zero_point": 9, **U8}
    a, b = random_codes(2, 3, 10, 8), random_codes(2, 3, 8, 12)
    expected = ops.quantized_matmul(a, b, **call)
    heads = b.transpose(1, 2).contiguous().transpose(1, 2)
    for same_a in (a.transpose(-1, -2).contiguous().transpose(-1, -2), a.transpose(1, 2).contiguous().transpose(1, 2)):
        for same_b in (heads, b.repeat_interleave(2, -1)[..., ::2], b.flip(-1).flip(-1)):
            assert torch.equal(ops.quantized_matmul(same_a, same_b, **call), expected)
    side_by_side = ops.quantized_matmul(a, heads, **call)
    assert side_by_side.transpose(1, 2).is_contiguous()  # joining the heads is a view
    expanded = b[:, :1].expand(2, 3, 8, 12)
    assert torch.equal(ops.quantized_matmul(a, expanded, **call), ops.quantized_matmul(a, expanded.contiguous(), **call))


# Models


class Attention(nn.Module):
    """Written out, with a mask, as models do that need its weights."""

    def __init__(self, traceable=True, scale=True):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(16, 16) for _ in range(4))
        self.traceable, self.scale = traceable, scale

    def heads(self, x):
        return x.view(x.shape[0], x.shape[1], 4, 4).transpose(1, 2)

    def forward(self, x):
        if not self.traceable and x.sum() > 1e9:
            return x
        q, k, v = (self.heads(layer(x)) for layer in (self.query, self.key, self.value))
        weights = F.softmax(torch.matmul(q, k.transpose(-1, -2)) / 2, dim=-1)
        context = weights @ v
        return self.out(context.transpose(1, 2).reshape(x.shape)) + x


def inputs():
    return torch.randn(3, 11, 16)


def calibrated(model, x, qconfig):
    prepared = tq.prepare(model.eval(), x, qconfig)
    tq.calibrate(prepared, [x, torch.randn_like(x)])
    return prepared


def product_rows(converted):
    return [row for row in converted.receipt.rows if row["kind"] == "matmul"]


def sqnr(reference, actual):
    return float(10 * torch.log10(reference.square().sum() / (reference - actual).square().sum()))


@pytest.mark.parametrize("traceable", [True, False])
def test_attention_from_prepare_to_the_loaded_file(tmp_path, traceable):
    model, x = Attention(traceable), inputs()
    prepared = calibrated(model, x, opted_in())
    assert prepared.torchquant_report.graph.startswith("torch.fx" if traceable else "module by module")
    converted = tq.convert(prepared, x)
    rows = product_rows(converted)
    assert [row["precision"] for row in rows] == ["int8", "int8"]
    assert {row["kernel"] for row in rows} == {f"quantized_matmul/{_C.selected_isa()}"}
    assert rows[0]["output"] is None and rows[1]["output"]  # to the softmax in floats, to the last layer in codes
    with torch.no_grad():
        simulated = prepared(x)
    assert sqnr(simulated, converted(x)) > 45
    assert sqnr(model(x).detach(), converted(x)) > 25
    converted.save(tmp_path / "model.pt")
    assert torch.equal(tq.load(tmp_path / "model.pt")(x), converted(x))


@pytest.mark.parametrize("traceable", [True, False])
def test_without_being_asked_nothing_changes(traceable):
    model, x = Attention(traceable), inputs()
    prepared = calibrated(model, x, STATIC)
    assert not any("matmul" in name or "softmax" in name for name, _ in prepared.named_modules())
    rows = product_rows(tq.convert(prepared, x))
    assert [row["precision"] for row in rows] == ["float", "float"]
    assert {row["reason"] for row in rows} == {
        'float by design: QConfigMapping.set_object_type("matmul", ...) quantizes products of two activations'
    }


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set_gives_the_same_codes(isa):
    x = inputs()
    converted = tq.convert(calibrated(Attention(), x, opted_in()), x)
    expected, selected = converted(x), _C.selected_isa()
    try:
        _C.force_isa(isa)
        actual = converted(x)
    finally:
        _C.force_isa(selected)
    assert torch.equal(actual, expected)


class Product(nn.Module):
    """A product whose operands are the model's inputs, so that simulation and kernel see the same integers."""

    def __init__(self, function=torch.matmul):
        super().__init__()
        self.function, self.out = function, nn.Linear(24, 4)

    def forward(self, a, b):
        return self.out(self.function(a, b))


@pytest.mark.parametrize("function", [torch.matmul, torch.bmm, operator.matmul, torch.Tensor.matmul, torch.Tensor.bmm])
def test_simulated_integers_and_kernel_agree(function):
    """fp32 holds the sums of these codes exactly, so that both sides round the same value."""
    a, b = torch.randn(3, 10, 8), torch.randn(3, 8, 24)
    prepared = tq.prepare(Product(function).eval(), (a, b), opted_in())
    tq.calibrate(prepared, [(a, b)])
    for module in prepared.modules():
        if isinstance(module, FakeQuantize) and not module.of_parameter:
            module.scale.copy_(2.0 ** torch.round(torch.log2(module.scale)))  # products of scales are exact as well
    converted = tq.convert(prepared, (a, b))
    assert [row["precision"] for row in product_rows(converted)] == ["int8"]
    with torch.no_grad():
        torch.testing.assert_close(converted(a, b), prepared(a, b), rtol=0, atol=1e-5)


class ChannelsLast(nn.Module):
    """A product whose result a convolution wants with its channels innermost."""

    def __init__(self):
        super().__init__()
        self.mix, self.conv, self.last = nn.Conv1d(6, 6, 1), nn.Conv1d(6, 5, 3, padding=1), nn.Conv1d(5, 2, 1)

    def forward(self, x):
        x = self.mix(x)
        return self.last(F.relu(self.conv(torch.bmm(torch.bmm(x, x.transpose(1, 2)), x))))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("model,shape", [(Attention(), (3, 11, 16)), (ChannelsLast(), (2, 6, 9))])
def test_an_island_gives_the_bits_of_its_ops(model, shape, isa):
    x = torch.randn(shape)
    prepared = calibrated(model, x, opted_in())
    script = Trace(prepared, x, fixed_shapes=False).script
    joined, single = (torch.jit._recursive.wrap_cpp_module(_C.convert(script._c, "error", islands)[0]) for islands in (True, False))
    programs = [node.inputsAt(3).toIValue() for node in joined.graph.findAllNodes("torchquant::quantized_island")]
    assert sum(program.count("quantized_matmul") for program in programs) == 2
    selected = _C.selected_isa()
    try:
        _C.force_isa(isa)
        for batch in (shape[0], 5, shape[0]):
            x = torch.randn(batch, *shape[1:])
            torch.testing.assert_close(joined(x), single(x), rtol=0, atol=0, check_stride=True)
    finally:
        _C.force_isa(selected)
    with torch.no_grad():
        assert sqnr(prepared(x), joined(x)) > 30


class Nested(nn.Module):
    """An untraceable module with a product of its own around one that a name keeps float, and around torch's attention."""

    def __init__(self):
        super().__init__()
        self.inner, self.torch_attention, self.fc = Attention(False), nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 16)

    def forward(self, x):
        if x.sum() > 1e9:
            return x
        y = self.inner(x) + self.torch_attention(x, x, x)[0]
        return self.fc(y @ y.transpose(1, 2) @ y)


def test_a_module_that_a_name_keeps_float_keeps_its_products():
    x = inputs()
    prepared = tq.prepare(Nested().eval(), x, opted_in().set_module_name("inner", None))
    tq.calibrate(prepared, [x])
    modules = prepared.named_modules(remove_duplicate=False)  # one tensor is read by two products
    names = {name for name, module in modules if isinstance(module, FakeQuantize) and "matmul" in name}
    assert names == {f"matmul_fake_quants.{side}_{index}" for side in ("input", "other") for index in (0, 1)}
    precisions = [row["precision"] for row in product_rows(tq.convert(prepared, x))]
    assert sorted(precisions) == ["float"] * 4 + ["int8"] * 2


class Loop(nn.Module):
    """As many products as twice the batch, in a forward that cannot be traced."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        x = self.fc(x)
        for _ in range(x.shape[0] if bool(x.sum() < 1e9) else 0):
            x = x @ x.transpose(1, 2) @ x
        return x


@pytest.mark.parametrize("example, batch, how_many", [(1, 2, "more than the 2"), (2, 1, "fewer than the 4")])
def test_other_products_than_the_example_had_are_an_error(example, batch, how_many):
    prepared = tq.prepare(Loop().eval(), torch.randn(example, 3, 4), opted_in())
    with pytest.raises(RuntimeError, match=f"computes {how_many} matrix products .* keep the module float with QConfigMapping"):
        prepared(torch.randn(batch, 3, 4))


def test_a_module_that_runs_several_times_has_one_set_of_fake_quants():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.block = Attention(False)

        def forward(self, x):
            for _ in range(3 if bool(x.sum() < 1e9) else 0):
                x = self.block(x)
            return x

    x = inputs()
    prepared = tq.prepare(Shared().eval(), x, opted_in())
    tq.calibrate(prepared, [x])
    assert [row["precision"] for row in product_rows(tq.convert(prepared, x))] == ["int8"] * 6


def test_a_wish_for_products_that_finds_none_is_said():
    with pytest.warns(UserWarning, match="found no product of two activations; scaled_dot_product_attention is none"):
        tq.prepare(nn.Sequential(nn.Linear(4, 4)), torch.randn(2, 4), opted_in())


def test_products_alone_can_be_quantized():
    x = torch.randn(2, 5, 8)

    class Gram(nn.Module):
        def forward(self, x):
            return x @ x.mT

    prepared = tq.prepare(Gram(), x, opted_in(default=None))
    tq.calibrate(prepared, [x])
    converted = tq.convert(prepared, x)
    assert [row["kind"] for row in converted.receipt.rows] == ["matmul"]
    assert sqnr(x @ x.mT, converted(x)) > 30


def test_training_with_quantized_products():
    x = inputs()
    prepared = tq.prepare_qat(Attention(), x, opted_in())
    prepared.train()
    prepared(x).square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in prepared.parameters())
    assert [row["precision"] for row in product_rows(tq.convert(prepared, x))] == ["int8", "int8"]


# The mapping


def test_every_spelling_of_a_product_is_one_kind():
    x = inputs()
    for object_type in ("matmul", torch.matmul, torch.bmm, torch.mm, operator.matmul):
        prepared = tq.prepare(Attention().eval(), x, QConfigMapping(STATIC).set_object_type(object_type, STATIC))
        assert sum("softmax" in name for name, module in prepared.named_modules() if isinstance(module, FakeQuantize)) == 1
    prepared = tq.prepare(Attention().eval(), x, opted_in().set_object_type("matmul", None))  # the later wins
    assert not any("softmax" in name for name, _ in prepared.named_modules())


@pytest.mark.parametrize("ending", ["yaml", "json"])
def test_object_types_survive_a_file(tmp_path, ending):
    mapping = opted_in().set_object_type("matmul", None)
    mapping.save(tmp_path / f"q.{ending}")
    assert QConfigMapping.load(tmp_path / f"q.{ending}") == mapping
    assert "object_types" not in QConfigMapping(STATIC).to_dict()


@pytest.mark.parametrize(
    "object_type,qconfig,text",
    [
        ("softmax", STATIC, "object_type must be 'matmul', torch.matmul, torch.bmm, torch.mm or operator.matmul, got 'softmax'"),
        (nn.Linear, STATIC, "got <class 'torch.nn.modules.linear.Linear'>; for modules there is set_module_type"),
        ("matmul", tq.qconfigs.int8_dynamic(), "qconfig must quantize activations with one fixed scale, as torchquant.qconfigs.int8_"),
        ("matmul", tq.qconfigs.int8_weight_only(), "does, got activation=None"),
    ],
)
def test_wrong_object_types(object_type, qconfig, text):
    with pytest.raises(ValueError) as error:
        QConfigMapping(STATIC).set_object_type(object_type, qconfig)
    assert text in str(error.value)
