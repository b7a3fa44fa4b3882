"""Every instruction set that this machine has gives the same bits, at the level of ops: one process per set, one digest each."""

import json
import os
import subprocess
import sys

import pytest

PROGRAM = """
import hashlib, json, sys
import torch
sys.path.insert(0, sys.argv[1])
from support.reference import GRANULARITIES, parameter_shape
import torchquant as tq

torch.manual_seed(0)
ops = torch.ops.torchquant
digests = {}


def record(name, tensors):
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    digests[name] = digest.hexdigest()


special = torch.tensor([float("nan"), float("inf"), -float("inf"), 0.0, -0.0, 1e-42, 65504.0, 0.5, 1.5, -2.5])
for case, (shape, axis, group_size) in GRANULARITIES.items():
    count = parameter_shape(shape, axis, group_size)
    scale, zero_point = torch.rand(count) * 0.2 + 0.01, torch.randint(-8, 8, count).float()
    values = torch.randn(shape) * 2
    values.view(-1)[: special.numel()] = special
    where = dict(axis=axis, group_size=group_size)
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        x, grad = values.to(dtype), torch.randn(shape).to(dtype)
        for layout in ("contiguous", "transposed"):
            if layout == "transposed":
                x = x.transpose(0, -1).contiguous().transpose(0, -1)
            y = ops.fake_quantize(x, scale, zero_point, **where, quant_min=-8, quant_max=7)
            grads = ops.fake_quantize_learnable_backward(grad, x, scale, zero_point, **where, quant_min=-8, quant_max=7)
            ste = ops.fake_quantize_backward(grad, x, scale, zero_point, **where, quant_min=-8, quant_max=7)
            q = tq.quantize(x, scale, zero_point, **where)
            d = tq.dequantize(q, scale, zero_point, **where, dtype=dtype)
            chosen = ops.choose_qparams(x, **where, symmetric=False, quant_min=0, quant_max=255)
            record(f"{case} {dtype} {layout}", [y, *grads, ste, q, d, *chosen])
print(json.dumps(digests))
"""


def digests(isa):
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, os.path.dirname(__file__)], capture_output=True, text=True,
        env={**os.environ, "TORCHQUANT_ISA": isa},
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def available_isas():
    from torchquant import _C

    return _C.available_isas()


@pytest.mark.parametrize("isa", [isa for isa in available_isas() if isa != "reference"])
def test_same_bits_as_the_reference(isa):
    expected, actual = digests("reference"), digests(isa)
    different = [case for case in expected if actual[case] != expected[case]]
    assert not different, f"{isa} differs from the reference in: {different}"


def test_an_unknown_instruction_set_is_an_error():
    result = subprocess.run(
        [sys.executable, "-c", "import torch, torchquant as tq; tq.fake_quantize(torch.zeros(1), 1.0, 0, quant_min=0, quant_max=9)"],
        capture_output=True, text=True, env={**os.environ, "TORCHQUANT_ISA": "sse1"},
    )  # fmt: skip
    assert result.returncode != 0 and "TORCHQUANT_ISA" in result.stderr and "reference" in result.stderr
