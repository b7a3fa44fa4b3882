"""What every method asks of its arguments before it starts."""

from __future__ import annotations

from torch import nn

from ..batches import check_iterable
from ..calibrate import check_calibrated
from ..prepare import check_prepared, not_float


def check_float_model(method: str, model) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"{method}: model must be a float torch.nn.Module, got {type(model).__name__}")
    for path, module in model.named_modules():
        if what := not_float(module):
            where = path or "the model itself"
            raise TypeError(f"{method}: model must be a float model, and {where} is {what}; call {method} before prepare")


def check_ready(method: str, prepared) -> None:
    """Refuses what is not prepared, or not calibrated yet."""
    check_prepared(method, prepared, "prepare or prepare_qat")
    check_calibrated(prepared, method)


def batches_as_list(method: str, batches) -> list:
    """All batches, kept in memory because a method goes over them more than once."""
    check_iterable(batches, method)
    batches = list(batches)
    if not batches:
        raise ValueError(f"{method}: batches is empty; give at least one batch of typical inputs")
    return batches
