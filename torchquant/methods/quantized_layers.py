"""Watches the quantized layers of a prepared model while it runs: bias correction and AdaRound see each call and can repeat it."""

from __future__ import annotations

import contextlib
from collections import Counter
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree

from ..calibrate import named_fake_quants
from ..fake_quantize import FakeQuantize
from ..prepare.example_run import evaluating, repeatable, unpack, without_fused_attention
from ..prepare.patterns import ComputeFunction, compute_function, operand, with_operand
from ..prepare.quantized_parameter import weight_fake_quants


@dataclass(frozen=True)
class Key:
    """A quantized layer: the path of its weight's fake-quant, and the first row that it takes of it (attention cuts one weight in
    three)."""

    fake_quant: str
    first_row: int = 0


@dataclass(eq=False)
class LayerCall:
    """One call of a quantized layer, with the weight and input as they entered."""

    key: Key
    function: object
    compute: ComputeFunction
    args: tuple
    kwargs: dict
    result: Tensor

    @property
    def weight(self) -> Tensor:
        return operand(self.args, self.kwargs, self.compute.weight)

    @property
    def input(self) -> Tensor:
        return operand(self.args, self.kwargs, self.compute.input)

    @property
    def bias(self) -> Tensor | None:
        return operand(self.args, self.kwargs, self.compute.bias) if self.compute.bias else None

    @property
    def is_embedding(self) -> bool:
        return self.compute.layer.kind == "embedding"

    @property
    def is_batched(self) -> bool:
        """Whether the first dimension of input and result counts samples."""
        return self.input.dim() > (1 if self.compute.layer.kind == "linear" else self.weight.dim() - 1)

    def repeat(self, x: Tensor, weight: Tensor) -> Tensor:
        """The same call on another input and weight. No gradient goes anywhere else."""
        args, kwargs = pytree.tree_map_only(Tensor, Tensor.detach, (self.args, self.kwargs))
        args, kwargs = with_operand(args, kwargs, self.compute.input, x)
        args, kwargs = with_operand(args, kwargs, self.compute.weight, weight)
        return self.function(*args, **kwargs)

    def channels_last(self, result: Tensor) -> Tensor:
        """A result as [everything else, output channels]."""
        axis = -1 if self.compute.layer.kind == "linear" else 1 - self.weight.dim()
        return result.movedim(axis, -1).flatten(0, -2) if result.dim() > 1 else result.unsqueeze(0)


@dataclass(eq=False)
class QuantizedLayer:
    """The first owner of a quantized parameter."""

    name: str
    module: nn.Module
    parameter: str
    fake_quant: FakeQuantize


class QuantizedModelRun:
    """Runs a prepared model over batches, in float or quantized, observers off, and leaves its state as it was.

    `layers` maps the path of each weight's fake-quant to its layer.
    """

    def __init__(self, method: str, prepared: nn.Module, batches: list):
        self.method, self.prepared = method, prepared
        self.batches = [unpack(batch, f"{method}: batch {index}") for index, batch in enumerate(batches)]
        self.layers = _layers(prepared)
        self.expected: list[Counter] = []  # for each batch: how often each layer runs

    def see_all(self, visit) -> None:
        """Calls `visit(call)` for every call of a quantized layer, in float. Must come first: it learns what each batch runs, and
        refuses batches on which a layer returns infinite or NaN values, before anything has changed."""
        broken = {}
        for index in range(len(self.batches)):
            seen = Counter()

            def note(call, seen=seen):
                seen[call.key] += 1
                if not call.result.isfinite().all():
                    broken[self.layers[call.key.fake_quant].name] = None
                visit(call)

            self._run(index, note, quantized=False)
            self.expected.append(seen)
        if broken:
            raise ValueError(
                f"{self.method}: the outputs of {', '.join(broken)} are infinite or NaN; check the batches and the float model"
            )

    def calls_of(self, key: Key, index: int, quantized: bool) -> list[LayerCall]:
        """The calls of one layer on one batch. The model runs no further than to the last of them."""
        calls = []

        def note(call):
            if call.key == key:
                calls.append(call)
                if len(calls) == self.expected[index][key]:
                    raise _Enough

        if self.expected[index][key]:
            self._run(index, note, quantized)
        return calls

    def _run(self, index: int, note, quantized: bool) -> None:
        args, kwargs = self.batches[index]
        watch = _Watch(self.layers, note)
        with evaluating(self.prepared), torch.no_grad(), repeatable(), without_fused_attention():
            with _flags(self.prepared, quantized), watch.hooks():
                try:
                    with watch:
                        self.prepared(*args, **kwargs)
                except _Enough:
                    pass
                except Exception as error:
                    raise RuntimeError(f"{self.method}: the model does not run on batch {index}: {error}") from error


class _Enough(BaseException):
    """Ends a run of the model early. No Exception: the model's own code must not catch it."""


def _layers(prepared: nn.Module) -> dict[str, QuantizedLayer]:
    paths = {id(module): path for path, module in prepared.named_modules()}
    layers: dict[str, QuantizedLayer] = {}
    for module, parameter, fake_quant in weight_fake_quants(prepared):
        path = paths[id(fake_quant)]
        if path in layers:
            continue
        name = f"{paths[id(module)]}.{parameter}".lstrip(".").removesuffix(".weight")
        layers[path] = QuantizedLayer(name, module, parameter, fake_quant)
    return layers


@contextlib.contextmanager
def _flags(prepared: nn.Module, quantized: bool):
    """All observers off, all fake-quants as asked, and afterwards each as it was."""
    fake_quants = named_fake_quants(prepared).values()
    flags = [(fake_quant.observer_enabled, fake_quant.fake_quant_enabled) for fake_quant in fake_quants]
    for fake_quant in fake_quants:
        fake_quant.observer_enabled, fake_quant.fake_quant_enabled = False, quantized
    try:
        yield
    finally:
        for fake_quant, (observer_enabled, fake_quant_enabled) in zip(fake_quants, flags):
            fake_quant.observer_enabled, fake_quant.fake_quant_enabled = observer_enabled, fake_quant_enabled


class _Watch(TorchFunctionMode):
    """Recognizes a layer by the memory of its weight: what the weight's fake-quant returned, whole or cut."""

    def __init__(self, layers: dict[str, QuantizedLayer], note):
        super().__init__()
        self.layers, self.note = layers, note
        self.weights: dict[int, tuple[str, Tensor]] = {}  # holds on to the tensors, so that no two share an address

    @contextlib.contextmanager
    def hooks(self):
        handles = [
            layer.fake_quant.register_forward_hook(lambda module, args, output, path=path: self._made(path, output))
            for path, layer in self.layers.items()
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _made(self, path: str, weight: Tensor) -> None:
        self.weights[weight.untyped_storage().data_ptr()] = path, weight

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        compute = compute_function(function)
        weight = operand(args, kwargs, compute.weight) if compute else None
        path, whole = self.weights.get(weight.untyped_storage().data_ptr(), (None, None)) if isinstance(weight, Tensor) else (None, None)
        if path is not None and weight.dim() == whole.dim():
            first_row = weight.storage_offset() // weight.stride(0) if weight.stride(0) else 0
            self.note(LayerCall(Key(path, first_row), function, compute, args, kwargs, result))
        return result
