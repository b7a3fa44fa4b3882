"""A converted model in Python: what `convert` returns and `load` reads."""

from __future__ import annotations

import os

import torch

from torchquant import _C
from torchquant.receipt import Receipt


class QuantizedModel(torch.nn.Module):
    """Runs like the model that it was converted from, on integers; dict and dataclass outputs have become tuples.

    ``script`` is the TorchScript module that C++ runs too, ``receipt`` says what became of every layer. Moves with ``.to(device)``.
    A model that `convert` has just made also knows ``drift``, its distance from the fake-quantized model on the example inputs,
    and ``checks``, what the trace was compared on; a saved file keeps neither.
    """

    def __init__(self, script: torch.jit.ScriptModule, receipt: Receipt, drift: dict | None = None, checks: list | None = None):
        super().__init__()
        self.script = script
        self.receipt = receipt
        self.drift = drift
        self.checks = checks
        self.eval()

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        return self.script(*args, **kwargs)

    def train(self, mode: bool = True) -> QuantizedModel:
        # model.train() on a larger model that holds this one must not fail; integers do not train.
        return super().train(False)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a TorchScript file that `torchquant.load`, `torchquant::load` in C++ and `torch.jit.load` read.

        A file that was there before is replaced only once the new one is whole.
        """
        _C.save(self.script._c, self.receipt.to_json(), os.fspath(path))

    def __deepcopy__(self, memo) -> QuantizedModel:
        return QuantizedModel(self.script.__deepcopy__(memo), Receipt(list(self.receipt.rows)), self.drift, self.checks)

    def extra_repr(self) -> str:
        return repr(self.receipt)


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> QuantizedModel:
    """Reads a file that `QuantizedModel.save` wrote, after verifying every byte of it.

    A file that is missing, damaged, foreign or of another format version raises one RuntimeError that says so, before anything
    of it is run.
    """
    module, receipt_json = _C.load(os.fspath(path), torch.device(device))
    return QuantizedModel(torch.jit._recursive.wrap_cpp_module(module), Receipt.from_json(receipt_json))
