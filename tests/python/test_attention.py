"""torchquant::attention, and the pass that puts it in the place of torch's: the same values, the same bits on every CPU."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant import _C

attention = torch.ops.torchquant.attention


def heads(*shape, seed=0):
    """[batch, heads, rows, depth] as a merged projection leaves them: heads side by side in memory."""
    batch, count, rows, depth = shape
    return torch.randn(batch, rows, count, depth, generator=torch.Generator().manual_seed(seed)).transpose(1, 2)


CASES = {
    "plain": ((2, 3, 33, 16), (2, 3, 40, 16), {}),
    "scaled": ((1, 2, 5, 8), (1, 2, 5, 8), {"scale": 0.7}),
    "causal": ((1, 2, 37, 8), (1, 2, 37, 8), {"is_causal": True}),
    "added mask": ((2, 2, 5, 8), (2, 2, 7, 8), {"attn_mask": torch.randn(2, 1, 5, 7)}),
    "mask per key": ((2, 2, 5, 8), (2, 2, 7, 8), {"attn_mask": torch.tensor([1, 1, 0, 1, 0, 1, 1]).bool()[None, None, None].expand(2, 1, 1, 7)}),
    "half": ((2, 2, 5, 8), (2, 2, 7, 8), {"dtype": torch.half}),
    "no keys": ((1, 2, 5, 8), (1, 2, 0, 8), {}),
    "no queries": ((1, 2, 0, 8), (1, 2, 4, 8), {}),
    "broadcast keys": ((2, 4, 5, 8), (1, 4, 6, 8), {}),
}


@pytest.mark.parametrize("name", CASES)
def test_equals_torch(name):
    q_shape, k_shape, options = CASES[name]
    options = dict(options)
    dtype = options.pop("dtype", torch.float32)
    q, k, v = (heads(*shape, seed=i).to(dtype) for i, shape in enumerate((q_shape, k_shape, k_shape)))
    torch.testing.assert_close(attention(q, k, v, **options), F.scaled_dot_product_attention(q, k, v, **options))


def test_three_dimensions():
    x = torch.randn(2, 5, 8)
    torch.testing.assert_close(attention(x, x, x), F.scaled_dot_product_attention(x, x, x))


def test_a_mask_and_causal_are_refused():
    x = torch.randn(1, 2, 4, 8)
    with pytest.raises(ValueError, match="attention: give attn_mask or is_causal=True, not both; got both"):
        attention(x, x, x, torch.zeros(4, 4), True)


class Block(nn.Module):
    def __init__(self, dropout=0.0, causal=False):
        super().__init__()
        self.project, self.out = nn.Linear(32, 96), nn.Linear(32, 32)
        self.dropout, self.causal = dropout, causal

    def forward(self, x):
        batch, rows, _ = x.shape
        q, k, v = (t.reshape(batch, rows, 4, 8).transpose(1, 2) for t in self.project(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=self.causal)
        return self.out(y.transpose(1, 2).reshape(batch, rows, 32))


@pytest.fixture(scope="module")
def converted():
    torch.manual_seed(0)
    x = torch.randn(3, 21, 32)
    return tq.quantize_model(Block(causal=True).eval(), (x,), tq.qconfigs.int8_static(), [x]), x


def test_the_converter_puts_it_in_and_the_receipt_says_so(converted):
    model, _ = converted
    row = next(row for row in model.receipt.rows if row["kind"] == "matmul")
    assert (row["precision"], row["kernel"], row["reason"]) == ("float", f"attention/{_C.selected_isa()}", "float by design")
    graph = str(model.script.inlined_graph)
    assert "torchquant::attention" in graph and "scaled_dot_product_attention" not in graph


def test_every_instruction_set_gives_the_same_codes(converted):
    model, x = converted
    selected = _C.selected_isa()
    try:
        outputs = {}
        for isa in _C.available_isas():
            _C.force_isa(isa)
            outputs[isa] = model(x)
    finally:
        _C.force_isa(selected)
    assert all(torch.equal(output, outputs["reference"]) for output in outputs.values())
