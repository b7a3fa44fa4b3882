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


# What the forward holds decides whether the backward needs a mask: every value inside, one outside, or one not finite.
FORWARDS = {"nothing clipped": None, "clipped": 9.0, "infinite": INF, "NaN": float("nan")}


def with_one_value(shape, value):
    x = torch.rand(shape) * 2 - 1
    x.view(-1)[-1] = x.max() if value is None else value
    return x


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("shape", [(1,), (4095,), (4097,), (3, 70001)], ids=str)
def test_quantizing_and_observing_in_one_pass_is_both_ops(shape, forward):
    x = with_one_value(shape, FORWARDS[forward])
    scale, zero_point = torch.tensor([2 / 255]), torch.tensor([128.0])
    one, other = (x.clone().requires_grad_() for _ in range(2))
    state, expected_state = ([torch.tensor([-0.5]), torch.tensor([0.5]), torch.zeros(1, dtype=torch.int64)] for _ in range(2))
    y = ops.fake_quantize_and_observe(one, scale, zero_point, *state, averaging_constant=0.1, quant_min=0, quant_max=255)
    ops.observe_moving_average(x, *expected_state, averaging_constant=0.1)
    expected = tq.fake_quantize(other, scale, zero_point, quant_min=0, quant_max=255)
    torch.testing.assert_close(y, expected, rtol=0, atol=0, equal_nan=True)
    assert all(torch.equal(a, b) for a, b in zip(state, expected_state, strict=True))
    grad = torch.randn(shape)
    y.backward(grad)
    expected.backward(grad)
    assert torch.equal(one.grad, other.grad)
    assert torch.equal(one.grad, grad) == (forward == "nothing clipped")


@pytest.mark.parametrize("forward", FORWARDS)
@pytest.mark.parametrize("axis", [None, 0, 1, 3])
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_the_gradient_is_that_of_the_mask_whatever_was_clipped(axis, layout, forward):
    x = with_one_value((4, 3, 6, 40), FORWARDS[forward]).to(memory_format=layout).requires_grad_()
    state = new_state(1 if axis is None else x.size(axis))
    state[0].fill_(-1.0)
    state[1].fill_(1.0)
    y = fused(x, state, averaging_constant=0.01, axis=axis)
    grad = torch.randn(4, 3, 6, 40)
    y.backward(grad)
    assert torch.equal(x.grad, ops.fake_quantize_backward(grad, x.detach(), *state[3:], axis=axis, quant_min=0, quant_max=255))


def test_an_unmasked_gradient_is_not_shared_with_what_the_user_holds():
    x = torch.rand(50, requires_grad=True)
    grad = torch.ones(50)
    fused(x, new_state()).backward(grad)
    assert torch.equal(x.grad, grad) and x.grad.data_ptr() != grad.data_ptr()


def test_a_second_derivative_is_refused_whatever_was_clipped():
    x = torch.rand(50, requires_grad=True)
    (grad,) = torch.autograd.grad(fused(x, new_state()).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="fake_quantize_backward: has no derivative"):
        grad.sum().backward()


def test_an_output_takes_the_memory_of_one_that_is_gone_and_of_no_other():
    x, state = torch.randn(123, 1001), new_state()
    first, second = fused(x, state), fused(x, state)
    place, values = first.data_ptr(), second.clone()
    view = first[3:5]
    del first
    between = fused(x * 2, state)
    assert between.data_ptr() != place  # the view holds it
    del view
    third = fused(x * 3, state)
    assert third.data_ptr() == place and torch.equal(second, values)


def test_the_storage_of_an_output_can_be_resized_like_any_other():
    y = fused(torch.randn(123, 1001), new_state())
    y.untyped_storage().resize_(0)
    y.untyped_storage().resize_(4 * 123 * 1001)
    assert y.resize_(200, 1001).shape == (200, 1001)


@pytest.mark.parametrize("channels", [2, 200])
def test_channels_are_observed_one_by_one_or_all_before(channels):
    """Short channels are quantized right after they were seen, long ones in a second pass."""
    x = torch.randn(channels, 40000 // channels)
    state = new_state(channels)
    y = fused(x, state, averaging_constant=1.0, axis=0, symmetric=True, quant_min=-127, quant_max=127)
    assert torch.equal(state[0], x.amin(1)) and torch.equal(state[1], x.amax(1))
    assert torch.equal(y, tq.fake_quantize(x, state[3], state[4], axis=0, quant_min=-127, quant_max=127))


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
