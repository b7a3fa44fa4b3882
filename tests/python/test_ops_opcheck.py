"""torch.library.opcheck on every op in the namespace: a new op without sample calls fails here."""

import pytest
import torch
from support import quantized_op_samples  # noqa: F401  (registers the samples of the integer ops)
from support.op_samples import SAMPLES
from torch.utils import _pytree as pytree

import torchquant  # noqa: F401

PREFIX = "torchquant::"
OPS = sorted(name.removeprefix(PREFIX) for name in torch._C._dispatch_get_all_op_names() if name.startswith(PREFIX))


# Torch's check that an op writes no argument that its schema does not name multiplies the arguments, and 8-bit floats have no product.
UTILS = ("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic")


def has_float8(arguments):
    leaves = pytree.tree_leaves(arguments)
    return any(isinstance(leaf, torch.Tensor) and leaf.dtype.itemsize == 1 and leaf.is_floating_point() for leaf in leaves)


@pytest.mark.parametrize("name", OPS)
def test_opcheck(name):
    assert name in SAMPLES, f"add sample calls of torchquant::{name} to tests/python/support/op_samples.py"
    name, _, overload = name.partition(".")
    op = getattr(getattr(torch.ops.torchquant, name), overload or "default")
    for args, kwargs in SAMPLES[name]():
        torch.library.opcheck(op, args, kwargs, test_utils=UTILS[1:] if has_float8((args, kwargs)) else UTILS)


def test_every_sample_belongs_to_an_op():
    assert sorted(SAMPLES) == OPS


@pytest.mark.parametrize("name", OPS)
def test_tagged_for_compile(name):
    op = getattr(torch.ops.torchquant, name).default
    assert torch.Tag.pt2_compliant_tag in op.tags
