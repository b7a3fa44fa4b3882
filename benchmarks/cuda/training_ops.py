"""Training ops on the GPU against torch's own: forward, backward, learnable backward, observe + fake-quantize, exact and delayed.

    python benchmarks/cuda/training_ops.py [--only forward learnable_backward ...]

Per tensor and per channel, fp32 and bf16, 16,384 x 4,096 elements. Writes results/cuda_training_ops_<gpu>.json.
"""

from __future__ import annotations

import sys

import torch

from common import Case, main

SHAPE = (16384, 4096)
CODES = {"quant_min": 0, "quant_max": 255}
DTYPES = (torch.float32, torch.bfloat16)


class Inputs:
    def __init__(self, dtype, axis):
        self.axis, self.dtype = axis, dtype
        channels = 1 if axis is None else SHAPE[axis]
        self.x, self.grad = (torch.randn(SHAPE, device="cuda").mul_(3).to(dtype) for _ in range(2))
        self.scale = torch.full((channels,), 0.03, device="cuda")
        self.zero_point = torch.full((channels,), 128.0, device="cuda")
        self.int_zero_point = self.zero_point.int()
        infinity = torch.full((channels,), float("inf"), device="cuda")
        nonfinite_count = torch.zeros(1, dtype=torch.int64, device="cuda")
        self.state = (infinity, -infinity, nonfinite_count, self.scale.clone(), self.zero_point.clone())

    def name(self, op):
        return f"{op}, per {'tensor' if self.axis is None else 'channel'}, {str(self.dtype).removeprefix('torch.')}"

    def bytes(self, passes):
        return passes * self.x.numel() * self.x.element_size()

    def torch_fake_quantize(self, x):
        if self.axis is None:
            return torch.fake_quantize_per_tensor_affine(x, self.scale, self.int_zero_point, *CODES.values())
        return torch.fake_quantize_per_channel_affine(x, self.scale, self.int_zero_point, self.axis, *CODES.values())


def inputs():
    return [Inputs(dtype, axis) for dtype in DTYPES for axis in (None, 0)]


def forward_cases():
    ops = torch.ops.torchquant
    for i in inputs():
        yield Case(i.name("fake_quantize"), {
            "torchquant": lambda i=i: ops.fake_quantize(i.x, i.scale, i.zero_point, axis=i.axis, **CODES),
            "torch": lambda i=i: i.torch_fake_quantize(i.x),
        }, i.bytes(2))  # fmt: skip


def backward_cases():
    ops = torch.ops.torchquant
    for i in inputs():
        leaf = i.x.clone().requires_grad_()
        result = i.torch_fake_quantize(leaf)
        yield Case(i.name("backward"), {
            "torchquant": lambda i=i: ops.fake_quantize_backward(i.grad, i.x, i.scale, i.zero_point, axis=i.axis, **CODES),
            "torch": lambda i=i, y=result, x=leaf: torch.autograd.grad(y, x, i.grad, retain_graph=True),
        }, i.bytes(3))  # fmt: skip


def torch_learnable(i, leaves):
    x, scale, zero_point = leaves
    if i.axis is None:
        return torch._fake_quantize_learnable_per_tensor_affine(x, scale, zero_point, *CODES.values(), 1.0)
    return torch._fake_quantize_learnable_per_channel_affine(x, scale, zero_point, i.axis, *CODES.values(), 1.0)


def learnable_backward_cases():
    ops = torch.ops.torchquant
    for i in inputs():
        leaves = [t.clone().requires_grad_() for t in (i.x, i.scale, i.zero_point)]
        calls = {"torchquant": lambda i=i: ops.fake_quantize_learnable_backward(
            i.grad, i.x, i.scale, i.zero_point, axis=i.axis, grad_factor=1.0, **CODES)}  # fmt: skip
        if i.dtype == torch.float32:  # torch's learnable ops take nothing else
            result = torch_learnable(i, leaves)
            calls["torch"] = lambda i=i, y=result, leaves=leaves: torch.autograd.grad(y, leaves, i.grad, retain_graph=True)
        yield Case(i.name("learnable backward"), calls, i.bytes(3))


def torch_observe(i):
    """{"torch": call}; nothing for 16-bit x, because torch's op keeps its state in the dtype of x."""
    if i.dtype != torch.float32:
        return {}
    on = torch.ones(1, dtype=torch.int32, device="cuda")
    state = [t.clone() for t in (*i.state[:2], i.scale, i.int_zero_point)]
    return {"torch": lambda: torch.fused_moving_avg_obs_fake_quant(
        i.x, on, on, *state, 0.01, *CODES.values(), i.axis or 0, i.axis is not None)}  # fmt: skip


def observe_cases():
    ops = torch.ops.torchquant
    for i in inputs():
        passes = 3 if i.axis is None else 2  # a channel is kept on the chip, a tensor is read twice
        calls = {"torchquant": lambda i=i: ops.fused_observe_fake_quantize(
            i.x, *i.state, averaging_constant=0.01, axis=i.axis, symmetric=False, **CODES)}  # fmt: skip
        yield Case(i.name("observe + fake_quantize"), calls | torch_observe(i), i.bytes(passes))


def delayed_cases():
    """A step of a FakeQuantize whose range is delayed, the update of its scale included; torch's range is exact."""
    ops = torch.ops.torchquant
    for i in (Inputs(dtype, None) for dtype in DTYPES):

        def step(i=i):
            ops.fake_quantize_and_observe(i.x, i.scale, i.zero_point, *i.state[:3], averaging_constant=0.01, **CODES)
            ops.qparams_from_min_max(*i.state[:2], symmetric=False, **CODES)

        yield Case(i.name("delayed observe + fake_quantize"), {"torchquant": step} | torch_observe(i), i.bytes(2))


FAMILIES = {
    "forward": (("fake_quantize",), forward_cases),
    "backward": (("fake_quantize_backward",), backward_cases),
    "learnable_backward": (("fake_quantize_learnable_backward",), learnable_backward_cases),
    "observe": (("fused_observe_fake_quantize",), observe_cases),
    "delayed": (("fake_quantize_and_observe", "qparams_from_min_max"), delayed_cases),
}

if __name__ == "__main__":
    sys.exit(main(__doc__, "cuda_training_ops", FAMILIES))
