"""Integer and fp8 layers on the GPU against torch's own in bf16, fp16, int8 and fp8, and decode attention over int8 and fp8 caches.

    python benchmarks/cuda/inference_ops.py [--only dynamic static weight_only fp8 conv kv_cache]

Ours are layers as a user converts them, so a static layer's time holds the quantization of its float input. Writes
results/cuda_inference_ops_<gpu>.json.
"""

from __future__ import annotations

import copy
import sys

import torch
from torch import nn

from common import Case, main

WIDTH = 4096
ROWS = (1, 16, 512, 4096)


def converted(layer, example, qconfig, calibrated):
    import torchquant as tq

    model = nn.Sequential(layer).eval()
    return tq.quantize_model(model, (example,), qconfig, calibration=[example] if calibrated else None).script.to("cuda")


def linear_layer():
    return nn.Linear(WIDTH, WIDTH)


def linear_cases(name, qconfig, calibrated, weight_bits, peers):
    """bf16 first; `peers` maps a name to a function of (weight in bf16 on the GPU) that returns a call of x."""
    weight_only = name.endswith("weight-only")  # such a layer takes the peers' bf16, the others quantize fp32
    layer = linear_layer()
    ours = converted(layer, torch.randn(16, WIDTH), qconfig, calibrated)
    weight = layer.weight.detach().to("cuda", torch.bfloat16)
    made = {"bf16 linear": lambda x: nn.functional.linear(x, weight), **{peer: make(weight) for peer, make in peers.items()}}
    for rows in ROWS:
        x = torch.randn(rows, WIDTH, device="cuda")
        low = x.bfloat16()
        given = low if weight_only else x
        calls = {"torchquant": lambda x=given: ours(x)} | {peer: lambda call=call, x=low: call(x) for peer, call in made.items()}
        if rows <= 16:
            calls.pop("_int_mm + dequant", None)  # it takes more than 16 rows
        moved = WIDTH * WIDTH * weight_bits // 8 + 2 * given.nbytes
        yield Case(f"{name}, {rows} x {WIDTH} x {WIDTH}", calls, moved,
                   2 * rows * WIDTH * WIDTH, "bf16" if weight_only else "int8")  # fmt: skip


def int_mm_and_dequant(weight):
    scale = weight.float().abs().amax(1) / 127
    codes = (weight.float() / scale[:, None]).round().to(torch.int8).t()

    def call(x):
        row = x.float().abs().amax(1, keepdim=True) / 127
        return (torch._int_mm((x / row).round().to(torch.int8), codes) * (row * scale)).bfloat16()

    return call


def int4pack_mm(weight, group=128):
    grouped = weight.float().view(WIDTH, -1, group)
    scale = (grouped.abs().amax(-1) / 7).clamp_min(1e-8)
    codes = ((grouped / scale[..., None]).round() + 8).to(torch.int32).view(WIDTH, WIDTH)
    packed = torch._convert_weight_to_int4pack((codes[:, ::2] << 4 | codes[:, 1::2]).to(torch.uint8), 8)
    scales = torch.stack([scale.t(), torch.zeros_like(scale.t())], -1).bfloat16().contiguous()
    return lambda x: torch._weight_int4pack_mm(x, packed, group, scales)


def dynamic_cases():
    import torchquant as tq

    peers = {"_int_mm + dequant": int_mm_and_dequant}
    yield from linear_cases("dynamic W8A8", tq.qconfigs.int8_dynamic(), False, 8, peers)


def static_cases():
    import torchquant as tq

    yield from linear_cases("static int8 linear", tq.qconfigs.int8_static(), True, 8, {})


def weight_only_cases():
    import torchquant as tq

    yield from linear_cases("int8 weight-only", tq.qconfigs.int8_weight_only(), False, 8, {})
    peers = {"_weight_int4pack_mm": int4pack_mm}
    yield from linear_cases("int4 weight-only", tq.qconfigs.int4_weight_only(group_size=128), False, 4, peers)


def scaled_mm(weight):
    """Codes and scales by torch, of the input in each call."""
    scale = weight.float().abs().amax(1) / 448
    codes = (weight.float() / scale[:, None]).to(torch.float8_e4m3fn).t()

    def call(x):
        row = x.float().abs().amax(1, keepdim=True) / 448
        return torch._scaled_mm((x / row).to(torch.float8_e4m3fn), codes, row, scale[None], out_dtype=torch.bfloat16)

    return call


def fp8_cases():
    from torchquant import functional

    weight = torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16, device="cuda")
    codes, scale = functional.quantize_fp8_dynamic(weight)
    by_torch = scaled_mm(weight)
    for rows in ROWS:
        x = torch.randn(rows, WIDTH, dtype=torch.bfloat16, device="cuda")
        yield Case(f"fp8 linear, {rows} x {WIDTH} x {WIDTH}", {
            "torchquant": lambda x=x: torch.ops.torchquant.quantized_linear_fp8(x, codes, scale),
            "bf16 linear": lambda x=x: nn.functional.linear(x, weight),
            "torch quantization + _scaled_mm": lambda x=x: by_torch(x),
        }, WIDTH * WIDTH + 2 * x.nbytes, 2 * rows * WIDTH * WIDTH, "int8")  # whose peak fp8 shares  # fmt: skip


def conv_cases():
    import torchquant as tq

    for batch, channels, size, kernel in ((1, 256, 14, 3), (32, 64, 56, 3), (32, 256, 14, 3), (32, 1024, 14, 1)):
        layer = nn.Conv2d(channels, channels, kernel, padding=kernel // 2, bias=False)
        ours = converted(layer, torch.randn(1, channels, size, size), tq.qconfigs.int8_static(), True)
        x = torch.randn(batch, channels, size, size, device="cuda").to(memory_format=torch.channels_last)
        calls = {"torchquant": lambda x=x, f=ours: f(x)}
        for name, dtype in (("cudnn fp16", torch.float16), ("bf16 conv2d", torch.bfloat16)):
            low = copy.deepcopy(layer).to("cuda", dtype, memory_format=torch.channels_last).requires_grad_(False)
            calls[name] = lambda x=x.to(dtype), f=low: f(x)
        pixels = batch * size * size
        yield Case(f"int8 conv {kernel}x{kernel}, {batch} x {channels} x {size} x {size}", calls,
                   8 * pixels * channels, 2 * pixels * channels**2 * kernel**2)  # fmt: skip


def kv_cache_cases():
    ops = torch.ops.torchquant
    batch, heads, depth = 8, 32, 128
    for tokens in (1024, 8192):
        query = torch.randn(batch, heads, 1, depth, dtype=torch.bfloat16, device="cuda")
        shape = (batch, heads, tokens, depth)
        key, value = (torch.randn(shape, dtype=torch.bfloat16, device="cuda") for _ in range(2))
        scales = [torch.rand(shape[:3], device="cuda") * 0.05 for _ in range(2)]
        lengths = torch.full((batch,), tokens, dtype=torch.int32, device="cuda")
        for name, dtype in (("int8", torch.int8), ("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)):
            codes = [torch.randint(-127, 128, shape, dtype=torch.int8, device="cuda").to(dtype) for _ in range(2)]
            arguments = (query, codes[0], scales[0], codes[1], scales[1], lengths)
            yield Case(f"{name} cache decode, {batch} x {heads} heads x {tokens} tokens", {
                "torchquant": lambda a=arguments: ops.kv_cache_attention(*a),
                "bf16 SDPA": lambda q=query, k=key, v=value: nn.functional.scaled_dot_product_attention(q, k, v),
            }, 2 * batch * heads * tokens * (depth + 4))  # fmt: skip


FAMILIES = {
    "dynamic": (("quantized_linear_dynamic",), dynamic_cases),
    "static": (("quantized_linear", "quantize"), static_cases),
    "weight_only": (("quantized_linear_weight_only",), weight_only_cases),
    "fp8": (("quantized_linear_fp8",), fp8_cases),
    "conv": (("quantized_conv", "quantize"), conv_cases),
    "kv_cache": (("kv_cache_attention",), kv_cache_cases),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, "cuda_inference_ops", FAMILIES))
