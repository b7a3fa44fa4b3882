"""What every method asks of its arguments before it starts."""

from __future__ import annotations

import torch
from torch import nn

from ..batches import check_iterable
from ..calibrate import check_calibrated
from ..fake_quantize import FakeQuantize
from ..prepare import PreparedModel
from ..quantized_model import QuantizedModel


def check_float_model(method: str, model) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{method}: model must be a float torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        what = (
            "prepared already" if isinstance(module, (PreparedModel, FakeQuantize))
            else "converted already" if isinstance(module, QuantizedModel)
            else "a TorchScript module" if isinstance(module, torch.jit.ScriptModule)
            else None
        )  # fmt: skip
        if what:
            where = path or "the model itself"
            raise TypeError(f"{method}: model must be a float model, and {where} is {what}; call {method} before prepare")


def check_prepared(method: str, prepared) -> None:
    if not isinstance(prepared, PreparedModel):
        raise TypeError(
            f"{method}: prepared must be a model that torchquant.prepare or prepare_qat returned, got {type(prepared).__name__}"
        )
    check_calibrated(prepared, method)


def batches_as_list(method: str, batches) -> list:
    """All batches, kept in memory because a method goes over them more than once."""
    check_iterable(batches, method)
    batches = list(batches)
    if not batches:
        raise ValueError(f"{method}: batches is empty; give at least one batch of typical inputs")
    return batches
