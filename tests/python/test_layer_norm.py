"""torchquant::layer_norm, the pass that puts it in the place of torch's, and islands that hold float work: the same values, the same
bits on every CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant import _C
from torchquant.tracing import Trace

layer_norm = torch.ops.torchquant.layer_norm


@pytest.mark.parametrize("columns", [1, 15, 16, 17, 768])
@pytest.mark.parametrize("affine", [True, False])
def test_equals_torch(columns, affine):
    x = torch.randn(3, 5, columns) + 1
    parameters = (torch.rand(columns) + 0.5, torch.randn(columns)) if affine else (None, None)
    torch.testing.assert_close(layer_norm(x, *parameters, eps=1e-3), F.layer_norm(x, (columns,), *parameters, eps=1e-3))


def test_other_types_layouts_and_empty_tensors_equal_torch():
    weight, bias = torch.rand(6), torch.randn(6)
    for x in (torch.randn(4, 6).double(), torch.randn(4, 6).bfloat16(), torch.randn(0, 6), torch.randn(6, 4).t(), torch.randn(6)):
        parameters = weight.to(x.dtype), bias.to(x.dtype)
        torch.testing.assert_close(layer_norm(x, *parameters), F.layer_norm(x, (6,), *parameters))


def test_error_text():
    with pytest.raises(ValueError, match="layer_norm: x must have at least one dimension, got a scalar"):
        layer_norm(torch.tensor(1.0))
    with pytest.raises(RuntimeError, match="(?i)weight"):
        layer_norm(torch.randn(2, 4), torch.rand(3))


class Encoder(nn.Module):
    """A transformer layer, with its norms behind the sums or in front of the projections."""

    def __init__(self, norm_first=False, masked=False):
        super().__init__()
        self.norm_first, self.masked = norm_first, masked
        self.project, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.up, self.down = nn.Linear(32, 48), nn.Linear(48, 32)
        self.first, self.second = nn.LayerNorm(32), nn.LayerNorm(32, bias=norm_first)
        self.head = nn.Linear(32, 4)

    def attend(self, x):
        batch, rows, _ = x.shape
        q, k, v = (t.reshape(batch, rows, 4, 8).transpose(1, 2) for t in self.project(x).chunk(3, -1))
        mask = x.mean(-1)[:, None, None, :] if self.masked else None
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).reshape(batch, rows, 32))

    def forward(self, x):
        if self.norm_first:
            x = x + self.attend(self.first(x))
            x = x + self.down(F.gelu(self.up(self.second(x))))
        else:
            x = self.first(x + self.attend(x))
            x = self.second(x + self.down(F.gelu(self.up(x))))
        return self.head(x)


VARIANTS = {"post_norm": {}, "pre_norm": {"norm_first": True}, "masked": {"masked": True}}


@pytest.fixture(scope="module", params=VARIANTS)
def pair(request):
    """Converted with islands and without, and an input."""
    torch.manual_seed(0)
    x = torch.randn(3, 21, 32)
    prepared = tq.prepare(Encoder(**VARIANTS[request.param]).eval(), x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    script = Trace(prepared, x, fixed_shapes=False).script
    return [torch.jit._recursive.wrap_cpp_module(_C.convert(script._c, "error", islands)[0]) for islands in (True, False)], x


def test_a_transformer_layer_is_one_island(pair):
    (island, layers), _ = pair
    count = {op: len(island.graph.findAllNodes(op)) for op in ("torchquant::quantized_island", "torchquant::attention", "aten::add")}
    assert count == {"torchquant::quantized_island": 1, "torchquant::attention": 0, "aten::add": 0}
    assert len(layers.graph.findAllNodes("torchquant::layer_norm")) == 2


def test_a_norm_of_what_no_island_made_stays_outside(pair):
    (island, _), x = pair
    norms = island.graph.findAllNodes("torchquant::layer_norm")
    assert all(norm.inputsAt(0) in list(island.graph.inputs()) for norm in norms)


@pytest.mark.parametrize("isa", _C.available_isas())
def test_the_island_gives_the_bits_of_single_ops_and_of_every_instruction_set(pair, isa):
    (island, layers), x = pair
    selected = _C.selected_isa()
    _C.force_isa("reference")
    try:
        expected = {shape: layers(batch) for shape, batch in ((s, x[: s[0], : s[1]].contiguous()) for s in ((3, 21), (1, 8), (2, 1)))}
        _C.force_isa(isa)
        for (images, rows), result in expected.items():
            for _ in range(2):  # the second call finds its plan
                assert torch.equal(island(x[:images, :rows].contiguous()), result)
    finally:
        _C.force_isa(selected)


def test_the_receipt_names_the_kernels():
    torch.manual_seed(0)
    x = torch.randn(2, 5, 32)
    model = tq.quantize_model(Encoder().eval(), (x,), tq.qconfigs.int8_static(), [x])
    rows = [row for row in model.receipt.rows if row["kind"] == "norm"]
    assert [row["layer"] for row in rows] == ["first", "second"]
    kernel = f"layer_norm/{_C.selected_isa()}"
    assert {(row["precision"], row["kernel"], row["reason"]) for row in rows} == {("float", kernel, "float by design")}


class TwoDimensionalNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(8, 8), nn.LayerNorm((4, 8))

    def forward(self, x):
        return self.linear(self.norm(self.linear(x)))


def test_a_norm_over_several_dimensions_stays_torchs():
    x = torch.randn(2, 4, 8)
    model = tq.quantize_model(TwoDimensionalNorm().eval(), (x,), tq.qconfigs.int8_static(), [x])
    graph = str(model.script.inlined_graph)
    assert "aten::layer_norm" in graph and "torchquant::layer_norm" not in graph


class OffsetView(nn.Module):
    """A part of what a norm gave is read by a layer and returned."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(64, 64), nn.Linear(64, 64)
        self.first, self.second = nn.LayerNorm(64), nn.LayerNorm(64)

    def forward(self, x):
        part = self.first(self.a(x))[:, 1:]
        return self.b(self.second(part)), part


class WrittenView(OffsetView):
    """A view of what a norm gave is written to, which the tensor behind it has to show."""

    def forward(self, x):
        whole = self.first(self.a(x))
        view = whole.transpose(0, 1)
        y = self.b(self.second(view))
        view.clamp_(min=0.0)
        return y, whole


@pytest.mark.parametrize("network", [OffsetView, WrittenView])
def test_views_that_leave_an_island(network):
    x = torch.randn(4, 30, 64)
    prepared = tq.prepare(network().eval(), x, tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    for actual, expected in zip(tq.convert(prepared, x)(x), prepared(x)):
        torch.testing.assert_close(actual, expected, atol=0.02, rtol=0)


def test_a_norm_without_weight_checks_the_length_of_rows():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x):
            return self.layer(x), F.layer_norm(x, (8,))

    x = torch.randn(4, 8)
    converted = tq.quantize_model(Norm().eval(), x, tq.qconfigs.int8_static(), calibration=[x])
    assert "aten::layer_norm" in str(converted.script.inlined_graph)
