"""A converted model in Python: what `convert` returns and `load` reads."""

from __future__ import annotations

import io
import os

import torch

from torchquant import _C
from torchquant.progress import ProgressBar
from torchquant.receipt import Receipt


class QuantizedModel(torch.nn.Module):
    """Runs like the model that it was converted from, on integers; dict and dataclass outputs have become tuples. Arguments that are
    no tensors were fixed by the example inputs: they may be left out, or given with that very value.

    ``script`` is the TorchScript module that C++ runs too, ``receipt`` says what became of every layer. Moves with ``.to(device)``.
    A model that `convert` has just made also knows ``drift``, its distance from the fake-quantized model on the example inputs,
    ``checks``, what the trace was compared on, and ``fixed_arguments``; a saved file keeps none of them.
    """

    def __init__(self, script: torch.jit.ScriptModule, receipt: Receipt, drift: dict | None = None, checks: list | None = None):
        super().__init__()
        self.script = script
        self.receipt = receipt
        self.drift = drift
        self.checks = checks
        self.tensor_names = [argument.name for argument in script.forward.schema.arguments[1:]]
        self.argument_names, self.fixed_arguments = self.tensor_names, {}  # convert knows those of the original model
        self.eval()

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        if self.fixed_arguments or kwargs or len(args) > len(self.tensor_names):
            kwargs = self._tensor_arguments(args, kwargs)
            args = ()
        return self.script(*args, **kwargs)

    def _tensor_arguments(self, args: tuple, kwargs: dict) -> dict:
        """The arguments that are left when those that tracing fixed are taken out, each of which must have its fixed value."""
        takes = f"this converted model takes ({', '.join(self.tensor_names)})"
        names = self.argument_names or self.tensor_names
        if len(args) > len(names):
            raise TypeError(f"{takes}; got {len(args)} positional arguments")
        given = dict(zip(names, args))
        if twice := sorted(given.keys() & kwargs.keys()):
            raise TypeError(f"{takes}; got {twice[0]!r} twice")
        given |= kwargs
        for name in [name for name in given if name not in self.tensor_names]:
            value = given.pop(name)
            if name not in self.fixed_arguments:
                raise TypeError(f"{takes}; {name!r} is no argument, or was fixed when the model was traced")
            fixed = self.fixed_arguments[name]
            if isinstance(value, torch.Tensor) or not (value is fixed or value == fixed):
                what = f"a tensor of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else repr(value)
                raise ValueError(f"{takes}; {name!r} was fixed at {fixed!r} by the example_inputs of convert, got {what}")
        return given

    def train(self, mode: bool = True) -> QuantizedModel:
        # model.train() on a larger model that holds this one must not fail; integers do not train.
        return super().train(False)

    def save(self, path: str | os.PathLike) -> None:
        """Writes a TorchScript file that `torchquant.load`, `torchquant::load` in C++ and `torch.jit.load` read.

        A file that was there before is replaced only once the new one is whole.
        """
        with ProgressBar("saving"):
            _C.save(self.script._c, self.receipt.to_json(), os.fspath(path))

    def packed_weights(self) -> list[dict]:
        """What the kernels of this machine packed for themselves since the file was loaded: a dict for each weight with ``buffer`` (its
        path in ``script``), ``kernel``, ``bytes`` and ``milliseconds``. Empty before the first run, which packs."""
        return _C.packed_weights(self.script._c)

    def __deepcopy__(self, memo) -> QuantizedModel:
        return _rebuild(self.script.__deepcopy__(memo), self._facts())

    def __reduce__(self):
        buffer = io.BytesIO()
        torch.jit.save(self.script, buffer)
        return _rebuild, (buffer.getvalue(), self._facts())

    def _facts(self) -> dict:
        names = ("drift", "checks", "argument_names", "fixed_arguments")
        return {"receipt": Receipt(list(self.receipt.rows)), **{name: getattr(self, name) for name in names}}

    def extra_repr(self) -> str:
        return repr(self.receipt)


def _rebuild(script: torch.jit.ScriptModule | bytes, facts: dict) -> QuantizedModel:
    if isinstance(script, bytes):
        script = torch.jit.load(io.BytesIO(script))
    model = QuantizedModel(script, facts["receipt"])
    for name, value in facts.items():
        setattr(model, name, value)
    return model


def load(path: str | os.PathLike, device: str | torch.device = "cpu") -> QuantizedModel:
    """Reads a file that `QuantizedModel.save` wrote, after verifying every byte of it.

    A file that is missing, damaged, foreign or of another format version raises one RuntimeError that says so, before anything
    of it is run.
    """
    with ProgressBar("loading"):
        module, receipt_json = _C.load(os.fspath(path), torch.device(device))
    return QuantizedModel(torch.jit._recursive.wrap_cpp_module(module), Receipt.from_json(receipt_json))
