"""torch.library.opcheck on every op in the namespace: a new op without sample calls fails here."""

import pytest
import torch
from support import quantized_op_samples  # noqa: F401  (registers the samples of the integer ops)
from support.op_samples import SAMPLES

import torchquant  # noqa: F401

PREFIX = "torchquant::"
OPS = sorted(name.removeprefix(PREFIX) for name in torch._C._dispatch_get_all_op_names() if name.startswith(PREFIX))


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    assert name in SAMPLES, f"add sample calls of torchquant::{name} to tests/python/support/op_samples.py"
    name, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.torchquant, name), overload or "default")
    for args, kwargs in SAMPLES[name]():
        torch.library.opcheck(op, args, kwargs)


def test_every_sample_belongs_to_an_op():
    assert sorted(SAMPLES) == OPS


@pytest.mark.parametrize("name", OPS)
def test_tagged_for_compile(name):
    op = getattr(torch.ops.torchquant, name).default
    assert torch.Tag.pt2_compliant_tag in op.tags
