"""Every op that has a CUDA kernel gives on CUDA what it gives on CPU: integers and fake-quantized values to the bit,
gradient sums within rounding. Skipped, visibly, where there is no GPU; TORCHQUANT_REQUIRE_CUDA=1 turns that into a failure.
"""

import os

import pytest
import torch
from support.handwritten import Linear, activation
from support.op_samples import SAMPLES
from torch.utils import _pytree as pytree

import torchquant
from torchquant.convert import convert_script

# Sums of fp32 gradients are added in another order on a GPU: the named exception to bit-equality.
SUMMED = {"fake_quantize_learnable_backward"}

HAS_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(
    not HAS_GPU and os.environ.get("TORCHQUANT_REQUIRE_CUDA") != "1", reason="no CUDA GPU: the kernels are compiled, not run"
)


def ops_with_cuda():
    if not torchquant._build_info.CUDA:
        return []
    names = sorted(SAMPLES)
    return [name for name in names if torch._C._dispatch_has_kernel_for_dispatch_key(f"torchquant::{name}", "CUDA")]


def to(device, tree):
    """Copies, so that an op that writes its arguments writes only its own."""
    return pytree.tree_map_only(torch.Tensor, lambda t: t.detach().clone().to(device), tree)


@needs_gpu
def test_training_ops_have_cuda_kernels():
    assert HAS_GPU, "TORCHQUANT_REQUIRE_CUDA=1, but torch sees no CUDA GPU"
    expected = {"fake_quantize", "fake_quantize_backward", "fake_quantize_learnable_backward", "quantize", "dequantize",
                "choose_qparams", "qparams_from_min_max", "fused_observe_fake_quantize"}  # fmt: skip
    assert expected <= set(ops_with_cuda())


@needs_gpu
@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_cuda_agrees_with_cpu(name):
    if name not in ops_with_cuda():
        pytest.skip(f"{name} has no CUDA kernel")
    op = getattr(torch.ops.torchquant, name).default
    for args, kwargs in SAMPLES[name]():
        cpu, gpu = to("cpu", (args, kwargs)), to("cuda", (args, kwargs))
        on_cpu = (op(*cpu[0], **cpu[1]), cpu)  # the arguments too: some ops write them
        on_gpu = to("cpu", (op(*gpu[0], **gpu[1]), gpu))
        for expected, actual in zip(pytree.tree_leaves(on_cpu), pytree.tree_leaves(on_gpu)):
            if isinstance(expected, torch.Tensor):
                tolerance = {"rtol": 1e-5, "atol": 1e-5} if name in SUMMED else {"rtol": 0, "atol": 0}
                torch.testing.assert_close(actual, expected, equal_nan=True, **tolerance)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [1, 7, 4096, 1_000_003])
def test_odd_sizes_and_special_values(dtype, size):
    x = (torch.randn(size) * 40).to(dtype)
    x[: min(size, 5)] = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.25, -0.75])[: min(size, 5)].to(dtype)
    scale, zero_point = torch.tensor([0.5]), torch.tensor([7.0])
    expected = torchquant.fake_quantize(x, scale, zero_point, quant_min=0, quant_max=255)
    actual = torchquant.fake_quantize(x.cuda(), scale.cuda(), zero_point.cuda(), quant_min=0, quant_max=255)
    torch.testing.assert_close(actual.cpu(), expected, rtol=0, atol=0, equal_nan=True)


@needs_gpu
def test_observers_store_no_negative_zero():
    for x in (torch.full((3,), -0.0), torch.full((3,), -0.0).cuda()):
        state = (torch.full((1,), torch.inf), torch.full((1,), -torch.inf), torch.zeros(1, dtype=torch.int64))
        min_val, max_val, nonfinite_count = (tensor.to(x.device) for tensor in state)
        torch.ops.torchquant.observe_min_max(x, min_val, max_val, nonfinite_count)
        assert not min_val.signbit().item() and not max_val.signbit().item()


@needs_gpu
def test_a_module_on_the_gpu_converts_as_its_copy_on_the_cpu():
    model = torch.nn.Sequential(activation(), Linear(8, 6, quant_min=-7, quant_max=7)).eval()
    x = torch.randn(2, 8)
    script = torch.jit.trace(model, x)
    expected = convert_script(script)
    actual = convert_script(script.to("cuda"))
    assert torch.equal(actual(x), expected(x))
    assert next(script.parameters()).is_cuda
