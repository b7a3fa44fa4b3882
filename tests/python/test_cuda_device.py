"""One file on CPU and CUDA, as far as a machine without a GPU can tell: which ops CUDA has, what is refused and in which words,
and that nothing moves after a refusal."""

import json

import pytest
import torch

import torchquant as tq
from torchquant import _C, _build_info, _load

# Ops that the converter emits and that CUDA cannot run.
WITHOUT_CUDA = set()
# What stands between integer ops on codes themselves, with torch's own kernels (csrc/convert/on_codes.cpp).
ON_CODES = [
    "cat", "stack", "constant_pad_nd", "reflection_pad2d", "replication_pad2d", "upsample_nearest1d", "upsample_nearest2d",
    "channel_shuffle", "pixel_shuffle", "slice.Tensor", "permute", "reshape", "flatten.using_ints", "chunk", "split.Tensor",
]  # fmt: skip
CUDA = torch.device("cuda", 0)

needs_cuda_build = pytest.mark.skipif(not _build_info.CUDA, reason="built without nvcc")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")


@pytest.fixture(scope="module", autouse=True)
def cuda_library():
    if _build_info.CUDA:
        torch.ops.load_library(str(_load.CUDA_LIBRARY))


@pytest.fixture
def quantized():
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(32, 4))
    x = torch.randn(2, 3, 6, 6)
    return tq.quantize_model(model.eval(), x, tq.qconfigs.int8_static(), calibration=[x])


def has_cuda(op: str) -> bool:
    return torch._C._dispatch_has_computed_kernel_for_dispatch_key(op, "CUDA")


@needs_cuda_build
def test_every_op_of_a_converted_model_has_a_cuda_kernel():
    ours = {name for name in torch._C._dispatch_get_all_op_names() if name.startswith("torchquant::")}
    assert {name.removeprefix("torchquant::") for name in ours if not has_cuda(name)} == WITHOUT_CUDA
    assert [op for op in ON_CODES if not has_cuda(f"aten::{op}")] == []


@needs_no_gpu
def test_no_gpu_is_one_sentence_and_nothing_moves(quantized, tmp_path):
    quantized.save(tmp_path / "model.pt")
    reason = "cannot use cuda(:0)?: .*" + ("driver|GPU" if _build_info.CUDA else "built without CUDA")
    with pytest.raises(RuntimeError, match=reason) as refusal:
        tq.load(tmp_path / "model.pt", device="cuda")
    assert "\n" not in str(refusal.value)
    for move in (lambda: quantized.to("cuda"), lambda: quantized.to(device=CUDA), quantized.cuda, lambda: quantized.cuda(0)):
        with pytest.raises(RuntimeError, match=reason):
            move()
    assert all(buffer.is_cpu for buffer in quantized.buffers())


@pytest.fixture
def cpu_only_op():
    library = torch.library.Library("torchquant", "FRAGMENT")
    library.define("runs_on_the_cpu_alone(Tensor x) -> Tensor")
    yield torch.ops.torchquant.runs_on_the_cpu_alone
    library._destroy()  # dropped alone, it leaves the name in torch.ops, over which torch.compile stumbles later


def test_layers_without_a_kernel_are_named(quantized, cpu_only_op):
    row = dict(quantized.receipt.rows[0], layer="block.conv", kernel="runs_on_the_cpu_alone/avx2")

    class Net(torch.nn.Module):
        def forward(self, x):
            return torch.ops.torchquant.runs_on_the_cpu_alone(x)

    module = torch.jit.script(Net())
    with pytest.raises(RuntimeError, match=r"cannot run on cuda:0, because these layers have no CUDA kernel: block.conv \(runs_on_the_cpu_alone\)"):
        _C.check_runs_on(module._c, CUDA, json.dumps({"rows": [row]}))
    _C.check_runs_on(module._c, torch.device("cpu"), json.dumps({"rows": [row]}))


def test_out_of_memory_while_moving_moves_nothing(quantized):
    calls = []

    def fill_up(tensor):
        calls.append(tensor)
        if len(calls) == 4:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return tensor.to("meta")

    with pytest.raises(torch.OutOfMemoryError, match=r"moving this converted model of \d+ bytes to meta ran out of memory: CUDA out of memory"):
        quantized._apply(fill_up)
    assert all(buffer.is_cpu for buffer in quantized.buffers())


def test_a_larger_model_moves_the_converted_one(quantized):
    x = torch.randn(2, 3, 6, 6)
    before = [buffer.data_ptr() for buffer in quantized.buffers()]
    expected = quantized(x)
    torch.nn.Sequential(quantized, torch.nn.Linear(4, 2))._apply(torch.clone)
    assert before and all(buffer.data_ptr() not in before for buffer in quantized.buffers())
    assert torch.equal(quantized(x), expected)


def test_the_meta_device_is_refused_before_anything_moves(quantized):
    with pytest.raises(TypeError, match="cannot move to the meta device"):
        torch.nn.Sequential(quantized).to("meta")
    assert all(buffer.is_cpu for buffer in quantized.buffers())


def test_out_of_memory_in_a_run_names_the_input(quantized, monkeypatch):
    def fail(self, *args, **kwargs):
        raise RuntimeError("The following operation failed in the TorchScript interpreter.\nTraceback\nRuntimeError: CUDA out of memory. Tried 2 GiB.")

    monkeypatch.setattr(type(quantized.script), "__call__", fail)
    name = quantized.tensor_names[0]
    with pytest.raises(torch.OutOfMemoryError, match=rf"ran out of memory on cpu with {name} \[2, 3, 6, 6\]: CUDA out of memory. Tried 2 GiB"):
        quantized(torch.randn(2, 3, 6, 6))


def test_tensors_on_two_devices_are_named(quantized):
    name = quantized.tensor_names[0]
    with pytest.raises(RuntimeError, match=f"this converted model is on cpu, and its argument '{name}' is on meta: move one of them"):
        quantized(torch.randn(2, 3, 6, 6, device="meta"))
    with pytest.raises(ValueError, match="torchquant: the module is on cpu and its input 0 on meta"):
        _C.measure(quantized.script._c, [torch.randn(2, 3, 6, 6, device="meta")], 1, 1)


def test_other_errors_stay_as_they_are(quantized):
    with pytest.raises(RuntimeError) as error:
        quantized(torch.randn(2, 5, 6, 6))
    assert "out of memory" not in str(error.value) and "move one of them" not in str(error.value)


def test_the_receipt_names_the_kernels_of_the_device(quantized, monkeypatch, tmp_path):
    on_cpu = [row["kernel"] for row in quantized.receipt.rows]
    monkeypatch.setattr(type(quantized), "device", CUDA)
    on_cuda = [row["kernel"] for row in quantized.receipt.rows]
    assert all(kernel.endswith("/cuda") for kernel in on_cuda if kernel)
    assert [kernel.split("/")[0] for kernel in on_cuda] == [kernel.split("/")[0] for kernel in on_cpu]
    quantized.save(tmp_path / "model.pt")  # a file serves every device
    monkeypatch.undo()
    assert [row["kernel"] for row in tq.load(tmp_path / "model.pt").receipt.rows] == on_cpu
