"""A wrong argument raises one error that names the op, the argument, what is allowed and what it got."""

import pytest
import torch

import torchquant as tq

ops = torch.ops.torchquant
NAN, INF = float("nan"), float("inf")
X = torch.zeros(2, 3, 4)
UINT8 = dict(quant_min=0, quant_max=255)


def scale(*shape, value=0.5, **kwargs):
    return torch.full(shape, value, **kwargs)


def zeros(*shape, **kwargs):
    return torch.zeros(shape, **kwargs)


# Arguments that every op with parameters refuses: x, scale, zero_point, axis and group_size, and the message.
QPARAM_ERRORS = {
    "scale dtype": (X, scale(1, dtype=torch.float64), zeros(1), {}, "scale must be float32, got float64"),
    "scale in half": (X, scale(1, dtype=torch.bfloat16), zeros(1), {}, "scale must be float32, got bfloat16"),
    "zero_point dtype": (X, scale(1), zeros(1, dtype=torch.float16), {},
                         "zero_point must be float32 or an integer type, got float16"),
    "zero_point bool": (X, scale(1), zeros(1, dtype=torch.bool), {},
                        "zero_point must be float32 or an integer type, got bool"),
    "per tensor count": (X, scale(3), zeros(3), {}, r"scale must have 1 element when axis is None, got shape \[3\]"),
    "per channel count": (X, scale(4), zeros(4), dict(axis=1),
                          r"scale must have one element for each of the 3 channels along axis 1, got shape \[4\]"),
    "zero_point count": (X, scale(3), zeros(2), dict(axis=1),
                         r"zero_point must have as many elements as scale, 3, got shape \[2\]"),
    "axis too large": (X, scale(3), zeros(3), dict(axis=3),
                       r"axis must be in \[-3, 2\] for an input of 3 dimensions, got 3"),
    "axis too small": (X, scale(3), zeros(3), dict(axis=-4), r"axis must be in \[-3, 2\].*got -4"),
    "group_size without axis": (X, scale(1), zeros(1), dict(group_size=2),
                                "group_size needs an axis to divide, got group_size 2 and axis None"),
    "group_size of zero": (X, scale(1), zeros(1), dict(axis=2, group_size=0), "group_size must be positive, got 0"),
    "group_size with a rest": (X, scale(2, 3, 1), zeros(2, 3, 1), dict(axis=2, group_size=3),
                               "group_size must divide the size of axis 2, which is 4, got 3"),
    "group shape": (X, scale(2, 3, 4), zeros(2, 3, 4), dict(axis=-1, group_size=2),
                    r"scale must have the shape of the input with axis 2 divided by group_size 2, which is "
                    r"\[2, 3, 2\], got \[2, 3, 4\]"),
    "group rank": (X, scale(12), zeros(12), dict(axis=-1, group_size=2), r"which is \[2, 3, 2\], got \[12\]"),
    "scale of zero": (X, scale(1, value=0.0), zeros(1), {},
                      "scale must be finite and greater than 0 .*, got 0 at channel 0"),
    "scale negative": (X, torch.tensor([1.0, -0.5, 1.0]), zeros(3), dict(axis=1),
                       "scale must be finite and greater than 0 .*, got -0.5 at channel 1"),
    "scale NaN": (X, torch.tensor([1.0, 1.0, NAN]), zeros(3), dict(axis=1), "greater than 0 .*, got nan at channel 2"),
    "scale infinite": (X, scale(1, value=INF), zeros(1), {}, "greater than 0 .*, got inf at channel 0"),
    "scale bad in a group": (X, torch.tensor([1.0] * 9 + [-1.0, 1.0, 1.0]).view(2, 3, 2), zeros(2, 3, 2),
                             dict(axis=2, group_size=2), "greater than 0 .*, got -1 at channel 9"),
    "zero_point NaN": (X, scale(1), torch.tensor([NAN]), {}, "zero_point must be finite, got nan at channel 0"),
    "scale device": (X, scale(1, device="meta"), zeros(1), {}, "scale must be on the device of the input, cpu, got meta"),
    "zero_point device": (X, scale(1), zeros(1, device="meta"), {},
                          "zero_point must be on the device of the input, cpu, got meta"),
}  # fmt: skip

CALLS = {
    "fake_quantize": lambda x, s, z, **where: ops.fake_quantize(x, s, z, **where, **UINT8),
    "fake_quantize_backward": lambda x, s, z, **where: ops.fake_quantize_backward(x, x, s, z, **where, **UINT8),
    "fake_quantize_learnable_backward": lambda x, s, z, **where: ops.fake_quantize_learnable_backward(
        x, x, s, z, **where, **UINT8
    ),
    "quantize": lambda x, s, z, **where: ops.quantize(x, s, z, **where, dtype=torch.int8),
    "dequantize": lambda x, s, z, **where: ops.dequantize(x.to(torch.int8), s, z, **where),
}


@pytest.mark.parametrize("case", QPARAM_ERRORS.values(), ids=QPARAM_ERRORS.keys())
@pytest.mark.parametrize("op", CALLS)
def test_parameters(op, case):
    x, s, z, where, message = case
    with pytest.raises(RuntimeError, match=f"^{op}: .*{message}"):
        CALLS[op](x, s, z, **where)


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.int32, torch.complex64], ids=str)
def test_input_dtype(dtype, device):
    x, s, z = (t.to(device) for t in (X.to(dtype), scale(1), zeros(1)))
    name = str(dtype).removeprefix("torch.")
    message = f"x must be float32, bfloat16 or float16, got {name}"
    for op in ("fake_quantize", "fake_quantize_backward", "fake_quantize_learnable_backward", "quantize"):
        with pytest.raises(RuntimeError, match=f"^{op}: {message}"):
            CALLS[op](x, s, z)
    with pytest.raises(RuntimeError, match=f"^choose_qparams: {message}"):
        ops.choose_qparams(x, symmetric=True, **UINT8)


RANGE_ERRORS = {
    (3, 3): "quant_min must be less than quant_max, got quant_min 3 and quant_max 3",
    (5, -5): "quant_min must be less than quant_max, got quant_min 5 and quant_max -5",
    (0, 256): r"must lie inside int8 \[-128, 127\] or uint8 \[0, 255\], got \[0, 256\]",
    (-129, 0): r"must lie inside int8 \[-128, 127\] or uint8 \[0, 255\], got \[-129, 0\]",
    (-1, 200): r"must lie inside int8 \[-128, 127\] or uint8 \[0, 255\], got \[-1, 200\]",
    (0, 1): r"must span 2 to 8 bits \(at least 3 codes\), got \[0, 1\]",
}
range_errors = pytest.mark.parametrize("quant_range, message", RANGE_ERRORS.items(), ids=str)


@range_errors
def test_range(quant_range, message):
    kwargs = dict(zip(("quant_min", "quant_max"), quant_range, strict=True))
    s, z = scale(1), zeros(1)
    state = (zeros(1), zeros(1), zeros(1, dtype=torch.int64), s, z)
    calls = {
        "fake_quantize": lambda: ops.fake_quantize(X, s, z, **kwargs),
        "fake_quantize_backward": lambda: ops.fake_quantize_backward(X, X, s, z, **kwargs),
        "fake_quantize_learnable_backward": lambda: ops.fake_quantize_learnable_backward(X, X, s, z, **kwargs),
        "quantize": lambda: ops.quantize(X, s, z, dtype=torch.uint8, **kwargs),
        "choose_qparams": lambda: ops.choose_qparams(X, symmetric=True, **kwargs),
        "qparams_from_min_max": lambda: ops.qparams_from_min_max(zeros(1), zeros(1), symmetric=True, **kwargs),
        "fused_observe_fake_quantize": lambda: ops.fused_observe_fake_quantize(
            X, *state, averaging_constant=0.1, symmetric=True, **kwargs
        ),
    }
    for op, function in calls.items():
        with pytest.raises(RuntimeError, match=f"^{op}: .*{message}"):
            function()


def test_range_does_not_fit_the_code_dtype():
    message = r"quantize: \[quant_min, quant_max\] must lie inside dtype uint8 \[0, 255\], got \[-8, 7\]"
    with pytest.raises(RuntimeError, match=message):
        tq.quantize(X, 1.0, 0, dtype=torch.uint8, quant_min=-8, quant_max=7)
    with pytest.raises(RuntimeError, match=r"must lie inside dtype int8 \[-128, 127\], got \[0, 255\]"):
        tq.quantize(X, 1.0, 0, dtype=torch.int8, quant_min=0, quant_max=255)


def test_code_dtypes():
    with pytest.raises(RuntimeError, match="quantize: dtype must be int8 or uint8, got int32"):
        tq.quantize(X, 1.0, 0, dtype=torch.int32)
    with pytest.raises(RuntimeError, match="dequantize: q must be int8 or uint8, got float32"):
        tq.dequantize(X, 1.0, 0)
    with pytest.raises(RuntimeError, match="dequantize: dtype must be float32, bfloat16 or float16, got float64"):
        tq.dequantize(X.to(torch.int8), 1.0, 0, dtype=torch.float64)


def test_gradient_does_not_match_x():
    s, z = scale(1), zeros(1)
    for op in (ops.fake_quantize_backward, ops.fake_quantize_learnable_backward):
        with pytest.raises(RuntimeError, match=r"grad must have the shape of x, \[2, 3, 4\], got \[2, 3\]"):
            op(zeros(2, 3), X, s, z, **UINT8)
        with pytest.raises(RuntimeError, match="grad must be float32, got bfloat16"):
            op(X.bfloat16(), X, s, z, **UINT8)
        with pytest.raises(RuntimeError, match="grad must be on the device of the input, cpu, got meta"):
            op(X.to("meta"), X, s, z, **UINT8)


def test_scalar_input_has_no_axis():
    with pytest.raises(RuntimeError, match="axis must be None for a tensor without dimensions, got axis 0"):
        tq.fake_quantize(torch.tensor(1.0), 1.0, 0, axis=0, **UINT8)


MIN_MAX_ERRORS = {
    "dtype": ((zeros(1, dtype=torch.float64), zeros(1)), "min_val must be float32, got float64"),
    "shape": ((zeros(2), zeros(3)), r"max_val must have the shape of min_val, \[2\], got \[3\]"),
    "order": ((torch.tensor([0.0, 2.0]), torch.tensor([1.0, 1.0])),
              r"must be finite with min_val <= max_val, got \[2, 1\] at channel 1"),
    "NaN": ((torch.tensor([NAN]), zeros(1)), r"must be finite with min_val <= max_val, got \[nan, 0\] at channel 0"),
    "infinite": ((zeros(1), torch.tensor([INF])), r"got \[0, inf\] at channel 0"),
}  # fmt: skip


@pytest.mark.parametrize("case", MIN_MAX_ERRORS.values(), ids=MIN_MAX_ERRORS.keys())
def test_qparams_from_min_max(case):
    arguments, message = case
    with pytest.raises(RuntimeError, match=f"^qparams_from_min_max: .*{message}"):
        ops.qparams_from_min_max(*arguments, symmetric=False, **UINT8)


STATE_ERRORS = {
    "min_val": (zeros(2), r"min_val must have 1 element\(s\), got shape \[2\]"),
    "max_val": (zeros(1, dtype=torch.bfloat16), "max_val must be float32, got bfloat16"),
    "nonfinite_count": (zeros(1, dtype=torch.int32), "nonfinite_count must be int64, got int32"),
    "scale": (zeros(1, device="meta"), "scale must be on the device of the input, cpu, got meta"),
    "zero_point": (zeros(1, dtype=torch.int32), "zero_point must be float32, got int32"),
    "averaging_constant": (0.0, "averaging_constant must be greater than 0 and at most 1, got 0"),
}


@pytest.mark.parametrize("argument", STATE_ERRORS)
def test_fused_state(argument):
    value, message = STATE_ERRORS[argument]
    arguments = dict(
        min_val=zeros(1), max_val=zeros(1), nonfinite_count=zeros(1, dtype=torch.int64), scale=zeros(1),
        zero_point=zeros(1), averaging_constant=0.1, symmetric=False, **UINT8,
    )  # fmt: skip
    arguments[argument] = value
    with pytest.raises(RuntimeError, match=f"^fused_observe_fake_quantize: {message}"):
        ops.fused_observe_fake_quantize(X, **arguments)


def test_fused_state_must_be_contiguous_and_not_learnable():
    def state(**replaced):
        values = dict(min_val=zeros(3), max_val=zeros(3), nonfinite_count=zeros(1, dtype=torch.int64), scale=scale(3),
                      zero_point=zeros(3))  # fmt: skip
        return values | replaced

    kwargs = dict(averaging_constant=0.1, axis=1, symmetric=False, **UINT8)
    with pytest.raises(RuntimeError, match=r"max_val must be contiguous, got strides \[2\]"):
        ops.fused_observe_fake_quantize(X, **state(max_val=zeros(6)[::2]), **kwargs)
    with pytest.raises(RuntimeError, match="scale and zero_point must not require a gradient.*use fake_quantize"):
        ops.fused_observe_fake_quantize(X, **state(scale=scale(3, requires_grad=True)), **kwargs)


def test_errors_leave_the_state_alone():
    state = [zeros(1), zeros(1), zeros(1, dtype=torch.int64), scale(1), zeros(1)]
    before = [t.clone() for t in state]
    with pytest.raises(RuntimeError):
        ops.fused_observe_fake_quantize(
            X, *state, averaging_constant=0.1, symmetric=False, quant_min=0, quant_max=999
        )
    assert all(torch.equal(a, b) for a, b in zip(state, before, strict=True))


def test_learned_scale_that_went_negative_names_its_channel():
    """What a diverging LSQ run shows its user."""
    learned = torch.tensor([0.1, -1e-3, 0.1], requires_grad=True)
    with pytest.raises(RuntimeError, match="got -0.001 at channel 1"):
        tq.fake_quantize(X, learned, torch.zeros(3), axis=1, **UINT8)
