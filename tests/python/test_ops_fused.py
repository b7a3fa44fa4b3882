"""fused_observe_fake_quantize: state, result and gradient against the separate steps."""

import pytest
import torch

import torchquant as tq

ops = torch.ops.torchquant
INF = float("inf")


def new_state(channels=1):
    return [torch.full((channels,), INF), torch.full((channels,), -INF), torch.zeros(1, dtype=torch.int64),
            torch.ones(channels), torch.zeros(channels)]  # fmt: skip


def fused(x, state, *, averaging_constant=0.1, axis=None, symmetric=False, quant_min=0, quant_max=255):
    return ops.fused_observe_fake_quantize(
        x, *state, averaging_constant=averaging_constant, axis=axis, symmetric=symmetric, quant_min=quant_min,
        quant_max=quant_max,
    )  # fmt: skip


def extremes(x, axis):
    if axis is None:
        return x.min().reshape(1), x.max().reshape(1)
    rows = x.transpose(0, axis).reshape(x.size(axis), -1)
    return rows.amin(1), rows.amax(1)


@pytest.mark.parametrize("axis", [None, 0, 1, -1])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("averaging_constant", [0.01, 1.0])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_is_observe_then_fake_quantize(axis, symmetric, averaging_constant, layout):
    shape = (4, 3, 6, 40)
    state = new_state(1 if axis is None else shape[axis])
    for step in range(3):
        x = (torch.randn(shape) * (step + 1)).to(memory_format=layout)
        low, high = extremes(x, axis)
        if step > 0:
            low = low if averaging_constant == 1.0 else state[0] + averaging_constant * (low - state[0])
            high = high if averaging_constant == 1.0 else state[1] + averaging_constant * (high - state[1])
        y = fused(x, state, averaging_constant=averaging_constant, axis=axis, symmetric=symmetric)
        # The average is kept in fp32; the reference's constant is a double.
        torch.testing.assert_close(state[0], low)
        torch.testing.assert_close(state[1], high)
        scale, zero_point = ops.qparams_from_min_max(
            state[0], state[1], symmetric=symmetric, quant_min=0, quant_max=255
        )
        assert torch.equal(state[3], scale) and torch.equal(state[4], zero_point)
        assert torch.equal(y, tq.fake_quantize(x, scale, zero_point, axis=axis, quant_min=0, quant_max=255))
        assert y.stride() == x.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_inputs(dtype):
    state = new_state()
    x = torch.randn(1000).to(dtype)
    y = fused(x, state)
    assert y.dtype == dtype
    assert state[0].item() == x.float().min().item() and state[1].item() == x.float().max().item()


def test_counts_what_is_not_finite_and_leaves_it_out():
    state = new_state()
    fused(torch.tensor([1.0, float("nan"), INF, -INF, -1.0]), state)
    fused(torch.tensor([float("nan")]), state)
    assert state[2].item() == 4
    assert (state[0].item(), state[1].item()) == (-1.0, 1.0)


def test_a_batch_without_values_leaves_the_range():
    state = new_state()
    assert fused(torch.empty(0, 3), state).shape == (0, 3)
    assert state[0].item() == INF and state[3].item() == 1.0
    fused(torch.tensor([-1.0, 2.0]), state)
    fused(torch.empty(0), state)
    assert (state[0].item(), state[1].item()) == (-1.0, 2.0)


def test_gradient_uses_the_parameters_of_its_own_forward():
    """One module used twice: the second forward changes scale before the first backward runs."""
    state = new_state()
    fused(torch.randn(100) * 0.1, state)
    x = torch.randn(100, requires_grad=True)
    y = fused(x, state)
    scale, zero_point = state[3].clone(), state[4].clone()
    fused(torch.randn(100) * 1000, state)
    y.backward(torch.ones(100))
    expected = ops.fake_quantize_backward(torch.ones(100), x.detach(), scale, zero_point, quant_min=0, quant_max=255)
    assert torch.equal(x.grad, expected) and 0 < expected.sum() < 100


@pytest.mark.parametrize("requires_grad", [False, True])
def test_mutation_is_visible_to_autograd(requires_grad):
    """Whoever saved the state for backward must be told that it changed."""
    state = new_state()
    before = [t._version for t in state]
    fused(torch.randn(5, requires_grad=requires_grad), state)
    assert all(t._version > b for t, b in zip(state, before, strict=True))


def test_state_under_inference_mode():
    state = new_state()
    with torch.inference_mode():
        fused(torch.tensor([-1.0, 1.0]), state)
    assert state[1].item() == 1.0


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole_with_its_mutations(dynamic):
    eager, compiled = new_state(), new_state()

    def step(x, *state):
        return fused(x * 2, state, averaging_constant=0.5)

    run = torch.compile(step, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    for size in (30, 31, 32):
        a = torch.randn(size, requires_grad=True)
        b = a.detach().clone().requires_grad_()
        y, expected = run(a, *compiled), step(b, *eager)
        assert torch.equal(y, expected)
        y.sum().backward()
        expected.sum().backward()
        assert torch.equal(a.grad, b.grad)
        assert all(torch.equal(c, e) for c, e in zip(compiled, eager, strict=True))
