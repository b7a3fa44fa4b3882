"""One op for a run of integer layers: the planned island gives the bits of the same graph with one op per layer."""

import copy
import io
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import torchquant as tq
from torchquant import _C
from torchquant.tracing import Trace


class Residual(nn.Module):
    """A stem with a pool, residual blocks with and without a strided shortcut, a global average and a linear head."""

    def __init__(self):
        super().__init__()
        self.stem, self.stem_norm = nn.Conv2d(3, 16, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(16)
        self.a, self.b = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.c, self.d = nn.Conv2d(16, 24, 3, stride=2, padding=1), nn.Conv2d(24, 24, 3, padding=1)
        self.shortcut = nn.Conv2d(16, 24, 1, stride=2)
        self.head = nn.Linear(24, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.stem_norm(self.stem(x))), 3, stride=2, padding=1)
        x = F.relu(self.b(F.relu(self.a(x))) + x)
        x = F.relu(self.d(F.relu(self.c(x))) + self.shortcut(x))
        return self.head(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))


class Concatenating(nn.Module):
    """Concatenations of layers, pools and earlier concatenations; one part is read by a layer that wants a border."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.left, self.right = nn.Conv2d(8, 12, 1), nn.Conv2d(8, 4, 3, padding=1)
        self.third, self.last = nn.Conv2d(12, 8, 3, padding=1), nn.Conv2d(32, 6, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        left = F.relu(self.left(x))
        joined = torch.cat([left, F.relu(self.right(x)), F.max_pool2d(x, 3, 1, 1)], 1)
        return self.last(torch.cat([joined, F.relu(self.third(left))], 1)), joined.sum()


class Depthwise(nn.Module):
    """Inverted residuals with squeeze and excitation."""

    def __init__(self):
        super().__init__()
        self.expand, self.depthwise = nn.Conv2d(6, 24, 1), nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.squeeze, self.excite = nn.Conv2d(24, 6, 1), nn.Conv2d(6, 24, 1)
        self.project = nn.Conv2d(24, 6, 1)

    def forward(self, x):
        y = F.hardswish(self.depthwise(F.relu6(self.expand(x))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))))
        return self.project(y * gate) + x


class Shuffling(nn.Module):
    """Ops that only move codes, with sizes that the graph computes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, x):
        x = F.relu(self.first(x))
        n, c, h, w = x.size()
        x = x.view(n, 2, c // 2, h, w).transpose(1, 2).reshape(n, c, h, w)
        a, b = x.chunk(2, 1)
        return self.second(F.interpolate(F.pad(torch.cat([b, a], 1), (1, 0, 1, 2)), scale_factor=2.0))


class OneDimensional(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.up, self.head = nn.Conv1d(5, 8, 3, padding=2, dilation=2), nn.ConvTranspose1d(8, 8, 4, stride=2), nn.Linear(8, 3)

    def forward(self, x):
        return self.head(F.avg_pool1d(F.relu(self.up(F.relu(self.conv(x)))), 2).transpose(1, 2))


MODELS = {
    "residual": (Residual, [(2, 3, 32, 32), (1, 3, 32, 32), (3, 3, 45, 38)]),
    "concatenating": (Concatenating, [(2, 3, 9, 8), (1, 3, 12, 15)]),
    "depthwise": (Depthwise, [(2, 6, 9, 8), (3, 6, 14, 14)]),
    "shuffling": (Shuffling, [(2, 4, 6, 8), (1, 4, 9, 5)]),
    "one_dimensional": (OneDimensional, [(2, 5, 20), (3, 5, 31)]),
}


def converted_pair(model, x, qconfig=None):
    """With islands and without."""
    prepared = tq.prepare(model.eval(), x, qconfig or tq.qconfigs.int8_static())
    tq.calibrate(prepared, [x])
    script = Trace(prepared, x, fixed_shapes=False).script
    return [torch.jit._recursive.wrap_cpp_module(_C.convert(script._c, "error", islands)[0]) for islands in (True, False)]


def islands_of(script):
    return script.graph.findAllNodes("torchquant::quantized_island")


@pytest.fixture(scope="module")
def residual():
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    return *converted_pair(Residual(), x), x


@pytest.mark.parametrize("isa", _C.available_isas())
@pytest.mark.parametrize("name", MODELS)
def test_an_island_gives_the_bits_of_its_layers(name, isa):
    make, shapes = MODELS[name]
    torch.manual_seed(0)
    with_islands, without = converted_pair(make(), torch.randn(shapes[0]))
    assert islands_of(with_islands) and not islands_of(without)
    selected = _C.selected_isa()
    _C.force_isa(isa)
    try:
        for shape in shapes * 2:
            for x in (torch.randn(shape), torch.randn(shape).transpose(0, 1).contiguous().transpose(0, 1)):
                expected, actual = without(x), with_islands(x)
                torch.testing.assert_close(actual, expected, rtol=0, atol=0, check_stride=True)
    finally:
        _C.force_isa(selected)


def test_a_network_of_integers_is_one_island(residual):
    with_islands, _, _ = residual
    (island,) = islands_of(with_islands)
    kinds = {node.kind() for node in with_islands.graph.nodes()} - {"prim::Constant", "prim::GetAttr", "prim::ListConstruct"}
    assert kinds == {"torchquant::quantized_island", "prim::ListUnpack"}


def test_int4_weights(residual):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 32, 32)
    with_islands, without = converted_pair(Residual(), x, tq.qconfigs.int8_static())
    assert torch.equal(with_islands(x), without(x))


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_the_number_of_threads_changes_nothing(residual, threads):
    with_islands, without, x = residual
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        assert torch.equal(with_islands(x), without(x))
    finally:
        torch.set_num_threads(before)


def test_threads_may_share_a_module(residual):
    with_islands, without, _ = residual
    inputs = [torch.randn(1 + i % 3, 3, 32, 32) for i in range(12)]
    expected = [without(x) for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            assert all(map(torch.equal, pool.map(with_islands, inputs), expected))


def test_a_constant_that_is_written_counts_from_the_next_call(residual):
    with_islands, without, x = residual
    scripts = copy.deepcopy(with_islands), copy.deepcopy(without)
    before = scripts[0](x)
    for name in ("head_multiplier", "stem_weight_int8"):
        for script in scripts:
            getattr(script, name).mul_(-1)
        assert torch.equal(scripts[0](x), scripts[1](x))
        assert not torch.equal(scripts[0](x), before)
    assert torch.equal(with_islands(x), before), "a copy has weights of its own"


def test_a_constant_that_is_replaced_counts_from_the_next_call(residual):
    with_islands, without, x = residual
    scripts = copy.deepcopy(with_islands), copy.deepcopy(without)
    scripts[0](x)
    for script in scripts:
        script.head_bias = script.head_bias + 1
    assert torch.equal(scripts[0](x), scripts[1](x))


def test_frozen_copied_and_saved_modules(residual, tmp_path):
    with_islands, without, x = residual
    expected = without(x)
    assert torch.equal(copy.deepcopy(with_islands)(x), expected)
    assert torch.equal(torch.jit.freeze(with_islands.eval())(x), expected)
    with_islands.save(tmp_path / "model.pt")
    loaded = torch.jit.load(tmp_path / "model.pt")
    assert torch.equal(loaded(x), expected)
    with torch.inference_mode():
        assert torch.equal(loaded(x), expected)
        assert torch.equal(torch.jit.load(tmp_path / "model.pt")(x), expected)


def test_shapes_without_data(residual):
    with_islands, without, x = residual
    expected = without(x)
    result = copy.deepcopy(with_islands).to("meta")(x.to("meta"))
    assert result.shape == expected.shape and result.dtype == expected.dtype and result.is_meta


def test_an_empty_batch(residual):
    with_islands, without, _ = residual
    assert with_islands(torch.empty(0, 3, 32, 32)).shape == without(torch.empty(0, 3, 32, 32)).shape


def test_a_wrong_input_raises_what_the_layer_raises(residual, tmp_path):
    for number, script in enumerate(residual[:2]):
        script.save(tmp_path / f"{number}.pt")
    with_islands, without = (torch.jit.load(tmp_path / f"{number}.pt") for number in range(2))
    for x in (torch.randn(1, 4, 32, 32), torch.randn(1, 3, 32, 32).double()):
        messages = []
        for script in (without, with_islands):
            with pytest.raises(RuntimeError) as error:
                script(x)
            messages.append(str(error.value).strip().splitlines()[-1])
        assert messages[0] == messages[1]


def test_a_program_that_cannot_be_run_is_refused():
    island = torch.ops.torchquant.quantized_island
    x, scale = torch.zeros(2), torch.ones(1)
    with pytest.raises(RuntimeError, match="program cannot be read"):
        island([x], [], [scale], "{")
    step = {"op": "torchquant::unheard_of", "args": [{"input": 0}]}
    with pytest.raises(RuntimeError, match="torchquant::unheard_of, which this torch or torchquant does not have"):
        island([x], [], [scale], json.dumps({"version": 1, "steps": [step], "outputs": [{"value": 0}]}))
    step = {"op": "torchquant::dequantize", "args": [{"input": 3}, {"constant": 0}, {"constant": 0}, None, None, 6]}
    with pytest.raises(RuntimeError, match="number 3 of inputs, which has 1"):
        island([x], [], [scale], json.dumps({"version": 1, "steps": [step], "outputs": [{"value": 0}]}))


def test_weights_are_packed_at_the_first_run_and_shared_by_copies():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(8 * 36, 4)).eval()
    x = torch.randn(2, 3, 8, 8)
    saved = io.BytesIO()
    torch.jit.save(tq.quantize_model(net, (x,), tq.qconfigs.int8_static(), [x]).script, saved)
    saved.seek(0)
    model = tq.QuantizedModel(torch.jit.load(saved), tq.Receipt([]))
    assert model.packed_weights() == []
    model(x)
    packed = model.packed_weights()
    assert {row["buffer"] for row in packed} == {"_0_weight_int8", "_3_weight_int8"}
    assert all(row["kernel"] in _C.available_isas() and row["bytes"] > 0 and row["milliseconds"] >= 0 for row in packed)
    model(x)
    assert model.packed_weights() == packed


def test_inputs_with_gaps_between_their_rows():
    """The plan copies them first, and must keep hold of its own records while it grows."""
    torch.manual_seed(0)
    model = tq.quantize_model(nn.Linear(8, 8), torch.randn(2, 3, 8), tq.qconfigs.int8_static(), [torch.randn(2, 5, 8)])
    for rows in range(1, 5):
        x = torch.randn(2, 5, 8)[:, :rows]
        for _ in range(3):
            assert torch.equal(model(x), model(x.contiguous()))
