"""smooth_quant: what it smooths in transformers of every style, that it changes no result, and what it says about the rest."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant.methods import smooth_quant

WIDTH = 16


def report_of(model):
    return model.torchquant_methods[-1]


def with_outliers(x):
    return x * torch.where(torch.arange(x.size(-1)) == 3, 50.0, 1.0)


def assert_same_function(model, smoothed, x):
    expected = model(x)
    torch.testing.assert_close(smoothed(x), expected, rtol=1e-3, atol=1e-4 * expected.abs().max().item())


class RmsNorm(nn.Module):
    """Written out, as in Hugging Face's Llama."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.rand(WIDTH) + 0.5)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)


class Llama(nn.Module):
    def __init__(self, key_heads=4):
        super().__init__()
        self.norm1, self.norm2 = RmsNorm(), RmsNorm()
        self.q_proj, self.o_proj = nn.Linear(WIDTH, WIDTH, bias=False), nn.Linear(WIDTH, WIDTH, bias=False)
        self.k_proj, self.v_proj = (nn.Linear(WIDTH, 4 * key_heads, bias=False) for _ in range(2))
        self.gate_proj, self.up_proj, self.down_proj = nn.Linear(WIDTH, 24), nn.Linear(WIDTH, 24), nn.Linear(24, WIDTH)

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (t.repeat_interleave(q.size(1) // t.size(1), 1) if t.size(1) != q.size(1) else t for t in (k, v))
        weights = torch.softmax(torch.matmul(q, k.transpose(2, 3)) / 2, dim=-1)
        x = x + self.o_proj(torch.matmul(weights, v).transpose(1, 2).contiguous().reshape(x.shape))
        h = self.norm2(x)
        return x + self.down_proj(F.silu(self.gate_proj(h)) * self.up_proj(h))


class Gpt(nn.Module):
    """addmm on flattened inputs, one weight for q, k and v: as in Hugging Face's GPT-2."""

    def __init__(self, split="split"):
        super().__init__()
        self.split = split
        self.norm1, self.norm2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        for name, inputs, outputs in (("qkv", WIDTH, 3 * WIDTH), ("out", WIDTH, WIDTH), ("fc", WIDTH, 32), ("proj", 32, WIDTH)):
            self.register_parameter(f"{name}_weight", nn.Parameter(torch.randn(inputs, outputs) / 4))
            self.register_parameter(f"{name}_bias", nn.Parameter(torch.randn(outputs)))

    def product(self, name, x):
        weight, bias = getattr(self, f"{name}_weight"), getattr(self, f"{name}_bias")
        return torch.addmm(bias, x.view(-1, x.size(-1)), weight).view(*x.shape[:-1], weight.size(1))

    def forward(self, x):
        qkv = self.product("qkv", self.norm1(x))
        if self.split == "split":
            q, k, v = (t.unflatten(-1, (4, -1)).transpose(1, 2) for t in qkv.split(WIDTH, dim=2))
        else:
            qkv = qkv.reshape(x.size(0), x.size(1), 3, 4, WIDTH // 4).permute(2, 0, 3, 1, 4)
            q, k, v = qkv.unbind(0) if self.split == "unbind" else (qkv[0], qkv[1], qkv[2])
        mixed = F.scaled_dot_product_attention(q, k, v)
        if self.split == "reversed":
            mixed = mixed.flip(1)
        x = x + self.product("out", mixed.transpose(1, 2).reshape(x.shape))
        return x + self.product("proj", F.gelu(self.product("fc", self.norm2(x))))


def test_llama_style_is_smoothed_throughout():
    model, x = Llama().eval(), with_outliers(torch.randn(2, 5, WIDTH))
    state = copy.deepcopy(model.state_dict())
    smoothed = smooth_quant(model, x[:1], [x])
    assert_same_function(model, smoothed, torch.randn(3, 4, WIDTH))
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    absorbed = {row["layer"]: row["absorbed_by"] for row in report_of(smoothed).rows}
    assert absorbed == {
        "q_proj, k_proj, v_proj": "norm1", "o_proj": "v_proj", "gate_proj, up_proj": "norm2", "down_proj": "up_proj"}  # fmt: skip


def test_factors_are_those_of_the_paper():
    model = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2))
    model[0].weight.data = torch.tensor([16.0, 1.0])
    model[1].weight.data = torch.tensor([[1.0, 0.25], [0.5, -4.0]])
    x = torch.tensor([[1.0, -1.0]])  # normalized: 1, -1
    for alpha, factors in ((0.5, (4.0, 0.5)), (1.0, (16.0, 1.0)), (0.0, (1.0, 0.25))):
        smoothed = smooth_quant(model, x, [x], alpha=alpha)
        torch.testing.assert_close(smoothed[0].weight.detach() * torch.tensor(factors), model[0].weight.detach(), rtol=1e-4, atol=0)
        torch.testing.assert_close(smoothed[1].weight.detach(), model[1].weight.detach() * torch.tensor(factors), rtol=1e-4, atol=0)


@pytest.mark.parametrize("norm_first", [True, False])
def test_torch_encoder_layers(norm_first):
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 32, norm_first=norm_first, batch_first=True)
    model, x = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False).eval(), with_outliers(torch.randn(2, 5, WIDTH))
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    smoothed = smooth_quant(model, x, [x])
    assert_same_function(model, smoothed, torch.randn(2, 5, WIDTH))
    assert type(smoothed.layers[0].self_attn) is nn.MultiheadAttention
    changed = report_of(smoothed).changed
    inside = [f"layers.{i}.{name}" for i in range(2) for name in ("self_attn.out_proj", "linear2")]
    behind_norms = [f"layers.{i}.{name}" for i in range(2) for name in ("self_attn.in_proj_weight", "linear1")]
    assert set(changed) == {*inside, *(behind_norms if norm_first else ())}
    if not norm_first:
        assert "reads its input too" in report_of(smoothed).left_alone["layers.0.linear1"]
    rows = slice(2 * WIDTH, 3 * WIDTH)  # only the value's rows took the factors of out_proj in
    before, after = model.layers[0].self_attn.in_proj_bias, smoothed.layers[0].self_attn.in_proj_bias
    assert torch.equal(before[: rows.start], after[: rows.start]) and not torch.equal(before[rows], after[rows])


@pytest.mark.parametrize("split", ["split", "unbind", "index"])
def test_one_weight_for_query_key_and_value(split):
    model, x = Gpt(split).eval(), with_outliers(torch.randn(2, 5, WIDTH))
    smoothed = smooth_quant(model, x, [x])
    assert_same_function(model, smoothed, x)
    assert report_of(smoothed).changed == ["qkv_weight", "out_weight", "fc_weight"]
    assert "gelu" in report_of(smoothed).left_alone["proj_weight"]


def test_channels_that_change_places_on_the_way_are_noticed_and_put_back():
    x = torch.randn(2, 5, WIDTH)
    smoothed = smooth_quant(Gpt("reversed").eval(), x, [x])
    assert "flip" in report_of(smoothed).left_alone["out_weight"]

    class Transposed(nn.Module):
        def __init__(self):
            super().__init__()
            self.v, self.out = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

        def forward(self, x):
            v = self.v(x).unflatten(-1, (4, 4)).transpose(-1, -2).flatten(-2)
            return 1e-6 * self.out(v)  # too small to be seen in the model's output

    model = Transposed()
    smoothed = smooth_quant(model, x, [x])
    assert "do not arrive" in report_of(smoothed).left_alone["out"]
    assert all(torch.equal(value, smoothed.state_dict()[name]) for name, value in model.state_dict().items())


class ExpandedHeads(Llama):
    """Repeats heads as Hugging Face's models do."""

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (t[:, :, None, :, :].expand(-1, -1, 2, -1, -1).reshape(q.shape) for t in (k, v))
        mixed = F.scaled_dot_product_attention(q, k, v)
        return x + self.o_proj(mixed.transpose(1, 2).reshape(x.shape))


class GroupedAttention(Llama):
    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        return x + self.o_proj(F.scaled_dot_product_attention(q, k, v, enable_gqa=True).transpose(1, 2).reshape(x.shape))


class TiledHeads(Llama):
    """Query head i reads value head i % 2: no neighbours share one."""

    def forward(self, x):
        h = self.norm1(x)
        q, k, v = (p(h).unflatten(-1, (-1, 4)).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        k, v = (t.unsqueeze(1).expand(-1, 2, -1, -1, -1).reshape(q.shape) for t in (k, v))
        return x + self.o_proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(x.shape))


@pytest.mark.parametrize("kind", [Llama, ExpandedHeads, GroupedAttention])
def test_query_heads_that_share_a_value_head_share_its_factors(kind):
    model, x = kind(key_heads=2).eval(), with_outliers(torch.randn(2, 5, WIDTH))
    model.v_proj.weight.data[5] *= 100  # of both query heads that read it
    smoothed = smooth_quant(model, x, [x])
    assert_same_function(model, smoothed, torch.randn(3, 4, WIDTH))
    row = next(row for row in report_of(smoothed).rows if row["layer"] == "o_proj")
    assert row["absorbed_by"] == "v_proj" and row["largest_input_after"] < row["largest_input_before"] / 5
    moved = smoothed.o_proj.weight / model.o_proj.weight  # [out, 4 heads of 4 channels]: heads 0 and 1 read value head 0, 2 and 3 the other
    factors = moved.detach().mean(0).view(2, 2, 4)
    torch.testing.assert_close(factors[:, 0], factors[:, 1])


def test_heads_that_are_shared_in_another_order_are_put_back():
    model, x = TiledHeads(key_heads=2).eval(), torch.randn(2, 5, WIDTH)
    smoothed = smooth_quant(model, x, [x])
    assert_same_function(model, smoothed, x)
    assert "do not arrive" in report_of(smoothed).left_alone["o_proj"]
    assert torch.equal(smoothed.o_proj.weight, model.o_proj.weight)


def test_it_recovers_what_outliers_cost_and_composes():
    torch.manual_seed(3)
    model = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
    model[0].weight.data[3] *= 100
    model[1].weight.data[:, 3] /= 100
    x = torch.randn(64, WIDTH)
    smoothed = smooth_quant(model, x[:2], [x])
    qconfig = tq.qconfigs.int8_static()
    plain, better = (float((tq.quantize_model(m, x[:2], qconfig, [x])(x) - model(x)).detach().square().mean()) for m in (model, smoothed))
    assert better < plain / 4
    both = tq.methods.cross_layer_equalization(smoothed, x)
    assert [report.method for report in both.torchquant_methods] == ["smooth_quant", "cross_layer_equalization"]
    assert_same_function(model, both, x)
    tq.prepare_qat(both, x[:2], qconfig)(x).sum().backward()


def outlier_norms(model):
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data[3] *= 30


CROSS = "multihead_attn.in_proj_weight"


@pytest.mark.parametrize("bias", [True, False])
def test_cross_attention_is_smoothed_where_its_inputs_are_made_in_the_model(bias):
    model = nn.Transformer(WIDTH, 4, 2, 2, 32, norm_first=True, batch_first=True, bias=bias).eval()
    outlier_norms(model)
    inputs = torch.randn(2, 5, WIDTH), torch.randn(2, 3, WIDTH)
    smoothed = smooth_quant(model, inputs, [inputs])
    torch.testing.assert_close(smoothed(*inputs), model(*inputs), rtol=1e-3, atol=1e-3)
    absorbed = {row["layer"]: row.get("absorbed_by") for row in report_of(smoothed).rows}
    layers = [f"decoder.layers.{i}" for i in range(2)]
    assert absorbed[", ".join(f"{layer}.{CROSS}[16:48]" for layer in layers)] == "encoder.norm"  # keys and values of both
    for layer in layers:
        assert absorbed[f"{layer}.{CROSS}[0:16]"] == f"{layer}.norm2"  # queries
        assert absorbed[f"{layer}.multihead_attn.out_proj"] == f"{layer}.{CROSS}[16:48]"
    before, after = (module.decoder.layers[0].multihead_attn.in_proj_weight for module in (model, smoothed))
    assert not any(torch.equal(before[rows], after[rows]) for rows in (slice(0, 16), slice(16, 32), slice(32, 48)))


def test_projections_of_three_inputs_and_widths_are_smoothed():
    class Crossing(nn.Module):
        def __init__(self):
            super().__init__()
            self.norms = nn.ModuleList([nn.LayerNorm(WIDTH), nn.LayerNorm(8), nn.LayerNorm(8)])
            self.attention = nn.MultiheadAttention(WIDTH, 4, kdim=8, vdim=8, batch_first=True)

        def forward(self, query, key, value):
            return self.attention(*(norm(x) for norm, x in zip(self.norms, (query, key, value))))[0]

    model = Crossing().eval()
    outlier_norms(model)
    inputs = torch.randn(2, 5, WIDTH), torch.randn(2, 3, 8), torch.randn(2, 3, 8)
    smoothed = smooth_quant(model, inputs, [inputs])
    torch.testing.assert_close(smoothed(*inputs), model(*inputs), rtol=1e-3, atol=1e-3)
    weights = {f"attention.{name}_proj_weight" for name in "qkv"}
    assert set(report_of(smoothed).changed) == weights | {"attention.out_proj"}


def test_what_cross_attention_reads_from_outside_is_left_alone_and_named():
    layer, x = nn.TransformerDecoderLayer(WIDTH, 4, 32, norm_first=True, batch_first=True).eval(), torch.randn(2, 5, WIDTH)
    smoothed = smooth_quant(layer, (x, x + 1), [(x, x + 1)])
    torch.testing.assert_close(smoothed(x, x + 1), layer(x, x + 1), rtol=1e-3, atol=1e-4)
    inside = {"self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2", f"{CROSS}[0:16]", "multihead_attn.out_proj"}
    assert inside == set(report_of(smoothed).changed)
    assert report_of(smoothed).left_alone == {f"{CROSS}[16:48]": "its input is the model's"}


def test_rows_that_are_read_twice_are_left_alone():
    class Overlapping(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.weight = nn.LayerNorm(8), nn.Parameter(torch.randn(12, 8))

        def forward(self, x):
            x = self.norm(x)
            return F.linear(x, self.weight[:8]) + F.linear(x, self.weight[4:])

    model, x = Overlapping().eval(), torch.randn(3, 8)
    smoothed = smooth_quant(model, x, [x])
    assert torch.equal(smoothed.weight, model.weight)
    assert "used more than once" in next(iter(report_of(smoothed).left_alone.values()))


@pytest.mark.parametrize("alpha", [-0.1, 1.5, "half", True])
def test_alpha_must_be_a_share(alpha):
    with pytest.raises(ValueError, match="smooth_quant: alpha must be a number from 0 to 1"):
        smooth_quant(nn.Linear(2, 2), torch.randn(1, 2), [torch.randn(1, 2)], alpha=alpha)


def test_bad_batches_are_refused():
    model, x = nn.Sequential(nn.LayerNorm(2), nn.Linear(2, 2)), torch.randn(1, 2)
    with pytest.raises(TypeError, match="smooth_quant: batches must be an iterable of batches.*put a single batch into a list"):
        smooth_quant(model, x, x)
    with pytest.raises(ValueError, match="smooth_quant: batches is empty"):
        smooth_quant(model, x, [])
    with pytest.raises(RuntimeError, match="smooth_quant: the model does not run on batch 1"):
        smooth_quant(model, x, [x, torch.randn(1, 3)])
    with pytest.raises(ValueError, match="smooth_quant: the inputs of 1 are infinite or NaN"):
        smooth_quant(model, x, [torch.full((1, 2), torch.nan)])


def test_layers_of_post_norm_attention_that_are_skipped_are_named_with_the_reason():
    x = torch.randn(2, 5, 8)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, dropout=0.0, batch_first=True).eval()
    report = smooth_quant(decoder, (x, torch.randn(2, 3, 8)), [(x, torch.randn(2, 3, 8))]).torchquant_methods[-1]
    assert "reads its input too" in report.left_alone[f"{CROSS}[0:8]"]
    assert report.left_alone[f"{CROSS}[8:24]"] == "its input is the model's"
    assert "multihead_attn.out_proj" in report.changed
