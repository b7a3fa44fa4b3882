"""The key-value cache in int8 and fp8: appended rows against the contract, attention against torch's on the dequantized cache."""

import pytest
import torch
import torch.nn.functional as F

from torchquant import functional as TF


FP8 = {torch.float8_e4m3fn: 448, torch.float8_e5m2: 57344}


def empty_cache(batch, heads, capacity, depth, codes=torch.int8):
    codes = [torch.zeros(batch, heads, capacity, depth, dtype=codes) for _ in range(2)]
    scales = [torch.zeros(batch, heads, capacity) for _ in range(2)]
    return [codes[0], scales[0], codes[1], scales[1]]


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_append_quantizes_each_row_by_its_largest_value(dtype):
    key, value = (torch.randn(2, 3, 4, 8) * 5).to(dtype), torch.randn(2, 3, 4, 8).to(dtype)
    key[0, 0, 0] = 0
    cache = empty_cache(2, 3, 9, 8)
    TF.kv_cache_append(key, value, *cache, int32(0, 5))
    for x, codes, scales in ((key, *cache[:2]), (value, *cache[2:])):
        for batch, first in ((0, 0), (1, 5)):
            rows = x[batch].float()
            scale = rows.abs().amax(-1) / 127
            scale[scale == 0] = 1
            expected = torch.round(rows * (1 / scale)[..., None]).clamp(-127, 127)
            assert torch.equal(scales[batch, :, first : first + 4], scale)
            assert torch.equal(codes[batch, :, first : first + 4].float(), expected)
        assert not codes[0, :, 4:].any() and not codes[1, :, :5].any()


@pytest.mark.parametrize("codes", FP8)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_fp8_append_quantizes_each_row_by_its_largest_value(codes, dtype):
    key, value = (torch.randn(2, 3, 4, 8) * 5).to(dtype), torch.randn(2, 3, 4, 8).to(dtype)
    key[0, 0, 0] = 0
    cache = empty_cache(2, 3, 9, 8, codes)
    TF.kv_cache_append(key, value, *cache, int32(0, 5))
    for x, stored, scales in ((key, *cache[:2]), (value, *cache[2:])):
        for batch, first in ((0, 0), (1, 5)):
            rows = x[batch].float()
            scale = rows.abs().amax(-1) / FP8[codes]
            scale[scale == 0] = 1
            expected = (rows * (1 / scale)[..., None]).clamp(-FP8[codes], FP8[codes]).to(codes)
            assert torch.equal(scales[batch, :, first : first + 4], scale)
            assert torch.equal(stored[batch, :, first : first + 4].view(torch.uint8), expected.view(torch.uint8))


@pytest.mark.parametrize("query_heads, heads, depth", [(4, 4, 64), (8, 2, 12), (16, 1, 128)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("codes", [torch.int8, *FP8])
def test_attention_equals_torch_on_the_dequantized_cache(query_heads, heads, depth, dtype, codes):
    cache = empty_cache(3, heads, 20, depth, codes)
    TF.kv_cache_append(torch.randn(3, heads, 20, depth), torch.randn(3, heads, 20, depth), *cache, int32(0, 0, 0))
    query, lengths = torch.randn(3, query_heads, 1, depth).to(dtype), int32(1, 20, 13)
    actual = TF.kv_cache_attention(query, *cache, lengths)
    keys, values = cache[0].float() * cache[1][..., None], cache[2].float() * cache[3][..., None]
    for b, length in enumerate(lengths.tolist()):
        k, v = (t[b : b + 1, :, :length].repeat_interleave(query_heads // heads, dim=1) for t in (keys, values))
        expected = F.scaled_dot_product_attention(query[b : b + 1].float(), k, v).to(dtype)
        torch.testing.assert_close(actual[b : b + 1], expected)


@pytest.mark.parametrize("codes, error", [(torch.int8, 0.03), (torch.float8_e4m3fn, 0.1), (torch.float8_e5m2, 0.2)])
def test_a_decode_loop_is_near_float_attention(codes, error):
    torch.manual_seed(0)
    cache, lengths = empty_cache(2, 2, 16, 32, codes), int32(0, 3)
    keys, values = torch.randn(2, 2, 16, 32), torch.randn(2, 2, 16, 32)
    TF.kv_cache_append(keys[1:, :, :3], values[1:, :, :3], *(t[1:] for t in cache), int32(0))
    for _ in range(10):
        new = [torch.stack([x[b, :, n] for b, n in enumerate(lengths.tolist())])[:, :, None] for x in (keys, values)]
        TF.kv_cache_append(*new, *cache, lengths)
        lengths += 1
    query = torch.randn(2, 2, 1, 32)
    actual = TF.kv_cache_attention(query, *cache, lengths, scale=0.2)
    for b, length in enumerate(lengths.tolist()):
        expected = F.scaled_dot_product_attention(query[b], keys[b, :, :length], values[b, :, :length], scale=0.2)
        assert (actual[b] - expected).abs().max() < error


def test_no_tokens_give_zeros():
    out = TF.kv_cache_attention(torch.randn(1, 2, 1, 8), *empty_cache(1, 2, 4, 8), int32(0))
    assert torch.equal(out, torch.zeros_like(out))


def bad(index, tensor):
    """Arguments of an append with one replaced; 0 is key, 6 is lengths."""
    arguments = [torch.randn(1, 2, 1, 8), torch.randn(1, 2, 1, 8), *empty_cache(1, 2, 4, 8), int32(0)]
    arguments[index] = tensor
    return arguments


@pytest.mark.parametrize(
    "index, tensor, message",
    [
        (0, torch.randn(1, 2, 8), r"key must have the shape \[batch, heads, tokens, head_dim\]"),
        (1, torch.randn(1, 2, 2, 8), r"value must have shape \[1, 2, 1, 8\], got \[1, 2, 2, 8\]"),
        (2, torch.zeros(1, 2, 4, 8), "key_cache must be int8, float8_e4m3fn or float8_e5m2, got float32"),
        (2, torch.zeros(1, 2, 4, 8, dtype=torch.float8_e5m2), "value_cache must be float8_e5m2, got int8"),
        (2, torch.zeros(1, 2, 4, 6, dtype=torch.int8), "head_dim must be a multiple of 4"),
        (3, torch.zeros(1, 2, 5), "key_scale must have shape"),
        (4, torch.zeros(1, 4, 2, 8, dtype=torch.int8).transpose(1, 2), "value_cache must be contiguous"),
        (6, torch.zeros(1, dtype=torch.int64), "lengths must be int32, got int64"),
        (6, int32(4), r"lengths must lie in \[0, 3\] \(the capacity less the tokens to append\), got 4 at index 0"),
    ],
)
def test_append_refuses(index, tensor, message):
    arguments = bad(index, tensor)
    before = [t.clone() for t in arguments]
    with pytest.raises(RuntimeError, match="kv_cache_append: " + message):
        TF.kv_cache_append(*arguments)
    assert all(torch.equal(a, b) for a, b in zip(arguments, before))


def test_attention_refuses():
    cache = empty_cache(1, 2, 4, 8)
    with pytest.raises(RuntimeError, match="kv_cache_attention: query must have the shape .* a multiple of the heads"):
        TF.kv_cache_attention(torch.randn(1, 3, 1, 8), *cache, int32(1))
    with pytest.raises(RuntimeError, match=r"kv_cache_attention: lengths must lie in \[0, 4\] \(the capacity\), got 5 at index 0"):
        TF.kv_cache_attention(torch.randn(1, 2, 1, 8), *cache, int32(5))
