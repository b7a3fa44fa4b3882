"""Every op that has a CUDA kernel gives on CUDA what it gives on CPU: integers and fake-quantized values to the bit,
gradient sums within rounding. Skipped, visibly, where there is no GPU; TORCHQUANT_REQUIRE_CUDA=1 turns that into a failure.
"""

import os

import pytest
import torch
from support import quantized_op_samples  # noqa: F401  (registers the samples of the integer ops)
from support.handwritten import Linear, activation
from support.op_samples import SAMPLES
from torch.utils import _pytree as pytree

import torchquant
from torchquant.convert import convert_script

# Sums of fp32 gradients are added in another order on a GPU: the named exception to bit-equality.
SUMMED = {"fake_quantize_learnable_backward"}
# Sums of an order of their own whose results are in the input's type: torch's usual tolerances for it.
SUMMED_AND_NARROWED = {"attention", "kv_cache_attention", "layer_norm", "quantized_linear_weight_only"}
# The tensor cores add products of 8-bit floats with about 14 bits.
SUMMED_BY_FP8_CORES = {"quantized_linear_fp8"}

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


def shifted(tensor, device, shift):
    """A copy on `device` that begins `shift` elements behind an address that is a multiple of 16 bytes."""
    return torch.empty(tensor.numel() + shift, dtype=tensor.dtype, device=device)[shift:].view(tensor.shape).copy_(tensor)


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
                if name in SUMMED_AND_NARROWED:
                    tolerance = {}
                if name in SUMMED_BY_FP8_CORES:
                    tolerance = {"rtol": 1e-2, "atol": 1e-2}
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


@needs_gpu
@pytest.mark.parametrize("axis, group_size", [(None, None), (0, None), (1, None), (-1, 32)])
@pytest.mark.parametrize("shift", [0, 1])
def test_learnable_backward_of_large_tensors(axis, group_size, shift):
    """Sums that many blocks share, with addresses that are no multiple of 16 bytes where `shift` is 1."""
    shape = (130, 4096)
    x, grad = torch.randn(shape), torch.randn(shape)
    params = (1,) if axis is None else (shape[axis],) if group_size is None else (shape[0], shape[1] // group_size)
    scale, zero_point = torch.rand(params) * 0.05 + 0.02, torch.full(params, 3.0)
    on_cpu, on_gpu = (
        torch.ops.torchquant.fake_quantize_learnable_backward(
            *(shifted(t, device, shift) for t in (grad, x)), scale.to(device), zero_point.to(device), axis=axis, group_size=group_size, quant_min=-8, quant_max=7,
            grad_factor=0.5)
        for device in ("cpu", "cuda")
    )  # fmt: skip
    assert torch.equal(on_gpu[0].cpu(), on_cpu[0])
    for expected, actual in zip(on_cpu[1:], on_gpu[1:]):
        torch.testing.assert_close(actual.cpu(), expected, rtol=1e-4, atol=1e-3)


def check_capture(step):
    """A CUDA graph of `step` gives what a call before the capture gave."""
    expected = step()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    graph.replay()
    for a, b in zip(captured, expected):
        assert torch.equal(a, b)


@needs_gpu
def test_training_ops_are_captured_by_a_graph():
    x, grad = torch.randn(256, 512, device="cuda"), torch.randn(256, 512, device="cuda")
    state = [torch.full((256,), v, device="cuda") for v in (float("inf"), -float("inf"))]
    nonfinite = torch.zeros(1, dtype=torch.int64, device="cuda")
    scale, zero_point = torch.ones(256, device="cuda"), torch.zeros(256, device="cuda")
    ops, codes = torch.ops.torchquant, {"quant_min": 0, "quant_max": 255}

    def step():
        y = ops.fused_observe_fake_quantize(
            x, *state, nonfinite, scale, zero_point, averaging_constant=1.0, axis=0, symmetric=False, **codes
        )
        return y, *ops.fake_quantize_learnable_backward(grad, x, scale, zero_point, axis=0, **codes)

    check_capture(step)


@needs_gpu
def test_a_delayed_step_is_captured_and_every_replay_moves_the_range():
    spec = torchquant.QuantSpec.activation(delayed=True, averaging_constant=0.3)
    on_cpu, on_gpu = (torchquant.FakeQuantize(spec.with_observer_for(training=True)).to(device) for device in ("cpu", "cuda"))
    x = torch.empty(5, 1001, device="cuda")

    def batch():
        x.copy_(values := torch.randn(5, 1001))
        return values

    for _ in range(2):  # the first range, and a delayed step before the capture
        on_cpu(batch())
        on_gpu(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = on_gpu(x)
    for _ in range(3):
        expected = on_cpu(batch())
        graph.replay()
        assert torch.equal(captured.cpu(), expected)
        for a, b in zip(on_gpu.state_dict().values(), on_cpu.state_dict().values(), strict=True):
            assert torch.equal(a.cpu(), b)


@needs_gpu
@pytest.mark.parametrize("rows, depth", [(15, 3072), (4, 12160)])
def test_dynamic_linear_beside_the_48_kb_of_a_block(rows, depth):
    """Dynamic and static shared memory that only together exceed what a launch gets unasked."""
    x, weight = torch.randn(rows, depth), torch.randint(-127, 128, (64, depth), dtype=torch.int8)
    args = (x, weight, torch.rand(64) * 0.01 + 0.001)
    expected = torch.ops.torchquant.quantized_linear_dynamic(*args)
    actual = torch.ops.torchquant.quantized_linear_dynamic(*(t.cuda() for t in args))
    assert torch.equal(actual.cpu(), expected)


@needs_gpu
def test_fused_observation_beside_the_48_kb_of_a_block():
    x = torch.randn(64, 12288)

    def observed(device):
        state = [torch.full((64,), v, device=device) for v in (float("inf"), -float("inf"))]
        state += [torch.zeros(1, dtype=torch.int64, device=device), torch.ones(64, device=device), torch.zeros(64, device=device)]
        y = torch.ops.torchquant.fused_observe_fake_quantize(
            x.to(device), *state, averaging_constant=1.0, axis=0, symmetric=False, quant_min=0, quant_max=255
        )
        return [tensor.cpu() for tensor in pytree.tree_leaves((y, state))]

    for actual, expected in zip(observed("cuda"), observed("cpu")):
        assert torch.equal(actual, expected)


@needs_gpu
def test_inference_ops_are_captured_by_a_graph():
    x, weight = torch.randn(33, 512, device="cuda"), torch.randint(-127, 128, (64, 512), dtype=torch.int8, device="cuda")
    scale, ops = torch.rand(64, device="cuda") * 0.01, torch.ops.torchquant

    def step():
        return ops.quantized_linear_dynamic(x, weight, scale), ops.quantized_linear_weight_only(x, weight, scale)

    check_capture(step)  # the call before the capture packs the weights


@needs_gpu
@pytest.mark.parametrize("rows", [3, 130])
def test_linear_layers_take_inputs_at_any_address(rows):
    weight, scale = torch.randint(-127, 128, (64, 512), dtype=torch.int8, device="cuda"), torch.rand(64, device="cuda") * 0.01
    ops, x, codes = torch.ops.torchquant, torch.randn(rows, 512).half(), torch.randint(-128, 128, (rows, 512), dtype=torch.int8)
    calls = [
        (x, lambda x: ops.quantized_linear_dynamic(x, weight, scale)),
        (x, lambda x: ops.quantized_linear_weight_only(x, weight, scale)),
        (codes, lambda x: ops.quantized_linear(x, weight, scale, torch.zeros_like(scale), x_zero_point=3, output_dtype=torch.float32)),
    ]
    for tensor, call in calls:
        assert torch.equal(call(shifted(tensor, "cuda", 1)), call(tensor.cuda()))


class Network(torch.nn.Module):
    """Convolutions, a residual, pooling, a concatenation and a linear layer."""

    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.Conv2d(16, 16, 3, padding=1)
        self.depthwise, self.linear = torch.nn.Conv2d(16, 16, 3, groups=16), torch.nn.Linear(32, 10)
        self.pool = torch.nn.MaxPool2d(2)

    def forward(self, x):
        y = torch.relu(self.conv1(x))
        y = self.pool(torch.relu(self.conv2(y) + y))
        y = torch.cat([y[..., 1:-1, 1:-1], torch.nn.functional.silu(self.depthwise(y))], 1)
        return self.linear(y.mean((2, 3)))


def mlp():
    return torch.nn.Sequential(torch.nn.Linear(64, 96), torch.nn.GELU(), torch.nn.Linear(96, 32))


@needs_gpu
@pytest.mark.parametrize("make, shape, qconfig, exact", [
    (Network, (4, 3, 12, 12), "int8_static", True),
    (mlp, (5, 64), "int8_static", True),
    (mlp, (5, 64), "int8_dynamic", True),
    (mlp, (5, 64), "int8_weight_only", False),
    (mlp, (5, 64), "fp8_dynamic", False),
])  # fmt: skip
def test_a_converted_network_gives_on_cuda_what_it_gives_on_cpu(make, shape, qconfig, exact, tmp_path):
    """Integer layers to the bit; weight-only and fp8 layers, which sum floats, within rounding."""
    x = torch.randn(shape)
    quantized = torchquant.quantize_model(make().eval(), (x,), getattr(torchquant.qconfigs, qconfig)(), calibration=[x])
    quantized.save(tmp_path / "model.pt")
    on_gpu = torchquant.load(tmp_path / "model.pt").to("cuda")
    rounding = 1e-2 if qconfig == "fp8_dynamic" else 1e-4
    tolerance = {"rtol": 0, "atol": 0} if exact else {"rtol": rounding, "atol": rounding}
    torch.testing.assert_close(on_gpu(x.cuda()).cpu(), quantized(x), **tolerance)


@needs_gpu
@pytest.mark.parametrize("make, shape, qconfig", [
    (Network, (4, 3, 12, 12), "int8_static"), (mlp, (5, 64), "int8_dynamic"), (mlp, (5, 64), "int8_weight_only"),
])  # fmt: skip
def test_a_whole_network_is_captured_by_a_graph(make, shape, qconfig):
    x = torch.randn(shape)
    quantized = torchquant.quantize_model(make().eval(), (x,), getattr(torchquant.qconfigs, qconfig)(), calibration=[x]).to("cuda")
    x, graph = x.cuda(), torch.cuda.CUDAGraph()
    with torch.no_grad():
        warm_up = torch.cuda.Stream()
        with torch.cuda.stream(warm_up):
            for _ in range(3):  # packs the weights; TorchScript settles in its first calls
                quantized(x)
        torch.cuda.synchronize()
        with torch.cuda.graph(graph):
            captured = quantized(x)
        x.copy_(torch.randn(shape))
        graph.replay()
        assert torch.equal(captured, quantized(x))


@needs_gpu
def test_a_first_call_inside_a_capture_says_what_to_do():
    x, weight = torch.randn(3, 64, device="cuda"), torch.randint(-127, 128, (8, 64), dtype=torch.int8, device="cuda")
    scale = torch.rand(8, device="cuda")
    with pytest.raises(RuntimeError, match="must be packed before a CUDA graph is captured: call the model once before the capture"):
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            torch.ops.torchquant.quantized_linear_weight_only(x, weight, scale)
