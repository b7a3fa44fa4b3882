"""The integer ops as one node each under torch.jit.trace, script, torch.export and torch.compile."""

import io

import pytest
import torch
from support import quantized_op_samples  # noqa: F401  (registers the samples)
from support.op_samples import SAMPLES
from torch.utils import _pytree as pytree

import torchquant  # noqa: F401

NAMES = sorted(name for name in SAMPLES if name.startswith("quantized_"))


class Call(torch.nn.Module):
    """An op with everything but its tensors fixed."""

    def __init__(self, name, args, kwargs):
        super().__init__()
        self.op = getattr(torch.ops.torchquant, name)
        self.leaves, self.structure = pytree.tree_flatten(args)
        self.tensors = tuple(leaf for leaf in self.leaves if isinstance(leaf, torch.Tensor))
        self.kwargs = kwargs

    def forward(self, *tensors):
        remaining = iter(tensors)
        leaves = [next(remaining) if isinstance(leaf, torch.Tensor) else leaf for leaf in self.leaves]
        return pytree.tree_leaves(self.op(*pytree.tree_unflatten(leaves, self.structure), **self.kwargs))[0]


def sample_call(name, index=0):
    args, kwargs = SAMPLES[name]()[index]
    return Call(name, args, kwargs)


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype and actual.stride() == expected.stride()
    assert torch.equal(actual, expected)


@pytest.mark.parametrize("name", NAMES)
def test_trace_save_load(name):
    model = sample_call(name)
    traced = torch.jit.trace(model, model.tensors)
    kinds = [node.kind() for node in traced.inlined_graph.nodes()]
    assert kinds.count(f"torchquant::{name}") == 1
    buffer = io.BytesIO()
    torch.jit.save(traced, buffer)
    buffer.seek(0)
    assert_same(torch.jit.load(buffer)(*model.tensors), model(*model.tensors))


@pytest.mark.parametrize("name", NAMES)
def test_export_with_a_dynamic_batch(name):
    model = sample_call(name)
    expected = model(*model.tensors)
    # Operands that would have to change together, and a program that is given the batch as a size.
    batch_is_free = name not in ("quantized_add", "quantized_mul", "quantized_island")
    shapes = ({0: torch.export.Dim("batch")} if batch_is_free else None, *[None] * (len(model.tensors) - 1))
    program = torch.export.export(model, model.tensors, dynamic_shapes={"tensors": shapes})
    for exported in (program, program.run_decompositions()):
        targets = [node.target for node in exported.graph.nodes if node.op == "call_function"]
        assert targets.count(getattr(torch.ops.torchquant, name).default) == 1
        assert_same(exported.module()(*model.tensors), expected)
    if batch_is_free:
        twice = torch.cat([model.tensors[0]] * 2)
        assert torch.equal(program.module()(twice, *model.tensors[1:]), model(twice, *model.tensors[1:]))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_compile_without_a_graph_break(name, dynamic):
    torch._dynamo.reset()
    model = sample_call(name)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=dynamic)
    assert_same(compiled(*model.tensors), model(*model.tensors))


@torch.jit.script
def scripted_linear(x, weight, multiplier, bias):
    return torch.ops.torchquant.quantized_linear(
        x, weight, multiplier, bias, x_zero_point=3, activation="relu", activation_args=[0.0, float("inf")],
        output_dtype=torch.uint8,
    )


def test_script_keeps_an_infinite_bound_through_the_file():
    model = sample_call("quantized_linear")
    expected = torch.ops.torchquant.quantized_linear(
        *model.tensors, x_zero_point=3, activation="relu", activation_args=[0.0, float("inf")], output_dtype=torch.uint8
    )
    buffer = io.BytesIO()
    torch.jit.save(scripted_linear, buffer)
    buffer.seek(0)
    for function in (scripted_linear, torch.jit.load(buffer)):
        assert torch.equal(function(*model.tensors), expected)
