"""Each op is one node, with the same result, in traced, scripted, compiled and exported programs."""

from typing import Optional

import pytest
import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd

import torchquant as tq


class PerTensor(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor([0.1]))
        self.register_buffer("zero_point", torch.tensor([100.0]))

    def forward(self, x: Tensor) -> Tensor:
        return tq.fake_quantize(x, self.scale, self.zero_point, quant_min=0, quant_max=255)


class PerChannel(PerTensor):
    def __init__(self):
        super().__init__()
        self.scale, self.zero_point = torch.rand(3) * 0.1 + 0.01, torch.zeros(3)

    def forward(self, x: Tensor) -> Tensor:
        return tq.fake_quantize(x, self.scale, self.zero_point, axis=1, quant_min=-8, quant_max=7)


class PerToken(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        scale, zero_point = torch.ops.torchquant.choose_qparams(
            x, axis=-1, group_size=5, symmetric=True, quant_min=-127, quant_max=127
        )
        return tq.fake_quantize(x, scale, zero_point, axis=-1, group_size=5, quant_min=-127, quant_max=127)


class Codes(PerTensor):
    def forward(self, x: Tensor) -> Tensor:
        q = tq.quantize(x, self.scale, self.zero_point, dtype=torch.uint8)
        return tq.dequantize(q, self.scale, self.zero_point)


MODULES = {
    PerTensor: {"fake_quantize": 1},
    PerChannel: {"fake_quantize": 1},
    PerToken: {"choose_qparams": 1, "fake_quantize": 1},
    Codes: {"quantize": 1, "dequantize": 1},
}
modules = pytest.mark.parametrize("module", MODULES, ids=lambda cls: cls.__name__)


def inputs(batch=2):
    return torch.randn(batch, 3, 4, 5)


def count_nodes(kinds):
    """torchquant ops among the node kinds; anything else is named as it is."""
    counts = {}
    for kind in kinds:
        name = kind.removeprefix("torchquant::")
        counts[name] = counts.get(name, 0) + 1
    return counts


def script_nodes(graph):
    ignored = ("prim::Constant", "prim::GetAttr", "prim::TupleUnpack", "prim::TupleConstruct")
    return count_nodes(node.kind() for node in graph.nodes() if node.kind() not in ignored)


@modules
def test_trace(module):
    model, x = module(), inputs()
    traced = torch.jit.trace(model, (x,))
    assert script_nodes(traced.graph) == MODULES[module]
    other = inputs(batch=5)
    assert torch.equal(traced(other), model(other))


@modules
def test_script(module, tmp_path):
    model, x = module(), inputs()
    scripted = torch.jit.script(model)
    assert script_nodes(scripted.graph) == MODULES[module]
    scripted.save(tmp_path / "model.pt")
    assert torch.equal(torch.jit.load(tmp_path / "model.pt")(x), model(x))


def test_script_accepts_optional_granularity():
    def function(x: Tensor, scale: Tensor, zero_point: Tensor, axis: Optional[int]) -> Tensor:
        return tq.fake_quantize(x, scale, zero_point, axis=axis, quant_min=0, quant_max=15)

    scripted = torch.jit.script(function)
    for axis, count in ((None, 1), (1, 3)):
        args = (inputs(), torch.rand(count) + 0.1, torch.zeros(count), axis)
        assert torch.equal(scripted(*args), function(*args))


@modules
@pytest.mark.parametrize("dynamic", [False, True])
def test_compile(module, dynamic):
    graphs = []

    def backend(graph_module, example_inputs):
        graphs.append(graph_module)
        return graph_module

    model = module()
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic, backend=backend)
    for batch in (2, 3) if dynamic else (2,):
        x = inputs(batch)
        assert torch.equal(compiled(x), model(x))
    calls = [str(node.target) for node in graphs[0].graph.nodes if "torchquant" in str(node.target)]
    assert len(graphs) == 1 and len(calls) == sum(MODULES[module].values())


def test_compile_with_inductor():
    model, x = PerTensor(), inputs()
    assert torch.equal(torch.compile(model, fullgraph=True)(x), model(x))


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiled_training_keeps_forward_and_backward_single_nodes(dynamic):
    graphs = {}

    def keep(name):
        def compiler(graph_module, example_inputs):
            graphs[name] = [str(n.target) for n in graph_module.graph.nodes if "torchquant" in str(n.target)]
            return make_boxed_func(graph_module.forward)

        return compiler

    def function(x, scale, zero_point):
        return tq.fake_quantize(x * 1.5, scale, zero_point, axis=1, quant_min=0, quant_max=15).sin()

    compiled = torch.compile(
        function, fullgraph=True, dynamic=dynamic,
        backend=aot_autograd(fw_compiler=keep("forward"), bw_compiler=keep("backward")),
    )  # fmt: skip
    for batch in (2, 4) if dynamic else (2,):
        args = [inputs(batch), torch.rand(3) + 0.1, torch.full((3,), 4.0)]
        a = [t.clone().requires_grad_() for t in args]
        b = [t.clone().requires_grad_() for t in args]
        y, expected = compiled(*a), function(*b)
        torch.testing.assert_close(y, expected)
        y.sum().backward()
        expected.sum().backward()
        for p, q in zip(a, b, strict=True):
            torch.testing.assert_close(p.grad, q.grad)
    assert graphs["forward"] == ["torchquant.fake_quantize.default"]
    assert graphs["backward"] == ["torchquant.fake_quantize_learnable_backward.default"]


@modules
def test_export_with_a_dynamic_batch(module):
    model = module()
    batch = torch.export.Dim("batch", min=2, max=64)
    exported = torch.export.export(model, (inputs(),), dynamic_shapes={"x": {0: batch}})
    for program in (exported, exported.run_decompositions()):
        targets = [str(n.target) for n in program.graph.nodes if n.op == "call_function"]
        calls = [t.removeprefix("torchquant.").removesuffix(".default") for t in targets if t.startswith("torchquant")]
        assert count_nodes(calls) == MODULES[module]
        for size in (2, 7):
            x = inputs(size)
            assert torch.equal(program.module()(x), model(x))


@modules
def test_meta_shapes_and_strides(module):
    for layout in (torch.contiguous_format, torch.channels_last):
        x = inputs().to(memory_format=layout)
        expected = module()(x)
        actual = module().to("meta")(x.to("meta"))
        assert actual.shape == expected.shape and actual.stride() == expected.stride()
        assert actual.dtype == expected.dtype


def test_numbers_are_accepted_in_eager_and_compiled_code():
    def function(x):
        return tq.fake_quantize(x, 0.1, 3, quant_min=0, quant_max=255)

    x = inputs()
    expected = tq.fake_quantize(x, torch.tensor([0.1]), torch.tensor([3]), quant_min=0, quant_max=255)
    assert torch.equal(function(x), expected)
    assert torch.equal(torch.compile(function, fullgraph=True, backend="eager")(x), expected)
    assert torch.equal(tq.dequantize(tq.quantize(x, 0.1, 3, dtype=torch.uint8), 0.1, 3), expected)
