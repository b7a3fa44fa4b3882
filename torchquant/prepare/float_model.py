"""What is no float model and only looks like one. Called by prepare and by the methods that come before it."""

import sys

import torch

from ..fake_quantize import FakeQuantize
from ..quantized_model import QuantizedModel
from .placement import PreparedModel


def not_float(module):
    """In words, why a module cannot be part of a float model: it is prepared, converted, TorchScript or compiled. None if it can."""
    dynamo = sys.modules.get("torch._dynamo")  # nothing is compiled in a process that has not imported it
    if isinstance(module, (PreparedModel, FakeQuantize)):
        return "prepared already"
    if isinstance(module, QuantizedModel):
        return "converted already"
    if isinstance(module, torch.jit.ScriptModule):
        return "a TorchScript module"
    if dynamo is not None and isinstance(module, dynamo.OptimizedModule):
        return "what torch.compile returned (the model is its _orig_mod; compile what prepare returns)"
    return None
