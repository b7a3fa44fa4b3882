"""torch.compiler.disable for a package that is imported by programs which never compile. Used by fake-quants and functional layers."""

from __future__ import annotations

import functools
import sys

import torch


def not_compiled(function):
    """`torch.compiler.disable(function)`, which imports torch._dynamo only where something may compile: that import takes longer
    than all of TorchQuant's."""
    disabled = torch._disable_dynamo(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        # A compiler that traces this answers the first question; one that passes this frame over may compile those behind it.
        compiles = torch.compiler.is_compiling() or "torch._dynamo" in sys.modules
        return (disabled if compiles else function)(*args, **kwargs)

    return call
