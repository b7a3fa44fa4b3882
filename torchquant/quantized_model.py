"""A converted model in Python: what `convert` returns and `load` reads."""

from __future__ import annotations

import functools
import io
import os
import weakref

import torch

from torchquant import _C
from torchquant.errors import last_line
from torchquant.progress import ProgressBar
from torchquant.receipt import Receipt
from torchquant.trees import tensors_in


class QuantizedModel(torch.nn.Module):
    """Runs like the model that it was converted from, on integers; dict and dataclass outputs have become tuples. Arguments that are
    no tensors were fixed by the example inputs: they may be left out, or given with that very value.

    ``script`` is the TorchScript module that C++ runs too, ``receipt`` says what became of every layer, and on a GPU names the CUDA
    kernels. ``.to(device)`` and ``.cuda()`` move all of it or, after an error, nothing: a device that cannot be used and a layer that
    has no CUDA kernel are refused first. The same file serves CPU and CUDA. Its dtypes are part of the arithmetic, so ``.half()`` and its
    like raise TypeError and change nothing of it (of a larger model that holds it, what torch came to first is changed).
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
        # A script takes no other attributes. Weak, because a model must be freed when its last user drops it.
        vars(script)["_apply"] = functools.partial(_apply_to_script, weakref.ref(script))
        self.eval()

    @property
    def receipt(self) -> Receipt:
        if not self.device.type == "cuda":
            return self._receipt
        return Receipt.from_json(_C.receipt_on(self._receipt.to_json(), self.device))

    @receipt.setter
    def receipt(self, receipt: Receipt) -> None:
        self._receipt = receipt

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        tensor = next(self.buffers(), None)
        return torch.device("cpu") if tensor is None else tensor.device

    @torch.no_grad()
    def forward(self, *args, **kwargs):
        if self.fixed_arguments or kwargs or len(args) > len(self.tensor_names):
            kwargs = self._tensor_arguments(args, kwargs)
            args = ()
        try:
            return self.script(*args, **kwargs)
        except RuntimeError as error:
            self._explain(error, dict(zip(self.tensor_names, args)) | kwargs)
            raise RuntimeError(f"this converted model does not run on {_described((args, kwargs))}: {_reason(error)}") from error

    def _explain(self, error: RuntimeError, tensors: dict) -> None:
        """Raises what the user can act on, where the interpreter's error came from a device. Looked at after the fact: a check in front
        would cost every call."""
        if missing := [name for name in self.tensor_names if name not in tensors]:
            raise TypeError(f"this converted model takes ({', '.join(self.tensor_names)}); {missing[0]!r} is missing") from error
        for name, tensor in tensors.items():
            if not isinstance(tensor, torch.Tensor):
                raise TypeError(f"this converted model takes ({', '.join(self.tensor_names)}), tensors; got {type(tensor).__name__} for {name!r}") from error
            if tensor.device != self.device:
                raise RuntimeError(
                    f"this converted model is on {self.device}, and its argument {name!r} is on {tensor.device}: move one of them with .to(device)"
                ) from error
        if "out of memory" in str(error):
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items() if isinstance(tensor, torch.Tensor))
            raise torch.OutOfMemoryError(f"this converted model ran out of memory on {self.device} with {shapes}: {_reason(error)}") from error

    def to(self, *args, **kwargs) -> QuantizedModel:
        device, *_ = torch._C._nn._parse_to(*args, **kwargs)
        if device is not None:
            _C.check_device(device)  # else torch answers first, in words of its own
        return super().to(*args, **kwargs)

    def to_empty(self, *, device, recurse: bool = True) -> QuantizedModel:
        raise TypeError("QuantizedModel: a converted model cannot be emptied, because its integers would be lost; move it with .to(device)")

    def cuda(self, device: int | torch.device | None = None) -> QuantizedModel:
        return self.to("cuda" if device is None else torch.device("cuda", device) if isinstance(device, int) else device)

    def _apply(self, fn, recurse: bool = True) -> QuantizedModel:
        # Every move comes through here, that of a larger model which holds this one too.
        target = fn(torch.empty(0)).device
        if target.type == "cuda" and target != self.device:
            _C.check_device(target)
            _C.check_runs_on(self.script._c, target, self._receipt.to_json())
        tensors = [*self.parameters(), *self.buffers()]
        try:
            moved = {id(tensor): fn(tensor) for tensor in tensors}
        except torch.OutOfMemoryError as error:
            size = sum(tensor.nbytes for tensor in tensors)
            raise torch.OutOfMemoryError(f"moving this converted model of {size} bytes to {target} ran out of memory: {_reason(error)}") from error
        return super()._apply(lambda tensor: moved[id(tensor)] if id(tensor) in moved else fn(tensor), recurse)

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
            _C.save(self.script._c, self._receipt.to_json(), os.fspath(path))

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
        return {"receipt": Receipt(list(self._receipt.rows)), **{name: getattr(self, name) for name in names}}

    def extra_repr(self) -> str:
        return repr(self.receipt)


def _apply_to_script(reference: weakref.ref, fn, recurse: bool = True) -> torch.jit.ScriptModule:
    """nn.Module._apply, behind .to(), .half() and their like, for what leaves dtypes and values as they are."""
    script = reference()
    for dtype in (torch.float32, torch.int8):
        changed = fn(torch.empty(0, dtype=dtype))
        if changed.dtype != dtype:
            raise TypeError(
                f"QuantizedModel: a converted model computes on integers with fp32 scales, and its tensors cannot become {changed.dtype}; "
                "move it with .to(device) alone and give it fp32 inputs"
            )
        if changed.is_meta:
            raise TypeError("QuantizedModel: a converted model cannot move to the meta device, where its integers would be lost")
    return type(script)._apply(script, fn, recurse)


def _described(inputs) -> str:
    shapes = [str(list(tensor.shape)) for tensor in tensors_in(inputs)]
    return f"inputs of shape {', '.join(shapes)}" if shapes else "these inputs"


def _reason(error: RuntimeError) -> str:
    return last_line(error).removeprefix("RuntimeError: ")


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
    of it is run; so does a GPU that cannot be used, and a layer that has no kernel there, which is named.
    """
    with ProgressBar("loading"):
        module, receipt_json = _C.load(os.fspath(path), torch.device(device))
    return QuantizedModel(torch.jit._recursive.wrap_cpp_module(module), Receipt.from_json(receipt_json))
