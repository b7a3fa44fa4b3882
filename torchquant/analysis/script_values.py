"""What the layers of a TorchScript file compute, for `compare` and its command line: Python hooks do not run in a script, but every op
that it runs can be watched."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from torchquant.agreement import Origins
from torchquant.analysis.layer_values import LayerValues
from torchquant.qconfig import QuantSpec
from torchquant.trees import tensors_in

_FAKE_QUANTIZE = torch.ops.torchquant.fake_quantize.default


@dataclass
class ScriptFakeQuant:
    """What a fake_quantize op in a script was called with."""

    spec: QuantSpec
    scale: Tensor
    zero_point: Tensor


class ScriptValues(Origins):
    """Watches one call of a traced model. A layer is known by its weight (a parameter of two or more dimensions, or a norm's), a
    fake-quant by its scale; with ``simulate=False`` fake-quants let their tensors through, and the model computes in float."""

    def __init__(self, script: torch.jit.ScriptModule, simulate: bool):
        super().__init__()
        self.simulate, self.values = simulate, LayerValues()
        self.weights = {value.data_ptr(): name.rpartition(".")[0] for name, value in script.named_parameters() if name.endswith("weight")}
        self.scales = {value.data_ptr(): name.rpartition(".")[0] for name, value in _state(script) if name.rpartition(".")[2] == "scale"}
        self.made_by: dict[int, str] = {}
        self.calls: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is _FAKE_QUANTIZE:
            return self._fake_quantize(func, args, kwargs)
        result = super().__torch_dispatch__(func, types, args, kwargs)
        first = next(iter(tensors_in(result)), None)
        if first is not None and first._cdata not in self.sources and first.is_floating_point():
            self._note_layer(args, first)
        return result

    def _note_layer(self, args, result: Tensor) -> None:
        layer = next((self.weights[leaf.data_ptr()] for leaf in pytree.tree_leaves(args) if _address(leaf) in self.weights), None)
        if layer is None:
            self.made_by.pop(result._cdata, None)  # written in place by something else
            return
        key = self._key(layer)
        self.values.layers[key] = result.clone()
        self.values.order.append(key)
        self.made_by[result._cdata] = key
        self.alive.append(result)

    def _fake_quantize(self, func, args, kwargs) -> Tensor:
        x, scale, zero_point = args[:3]
        result = func(*args, **kwargs) if self.simulate else x
        path = self.scales.get(scale.data_ptr(), "")
        if _address(x) in self.weights and path.endswith("_fake_quant"):
            self.weights[result.data_ptr()] = self.weights[x.data_ptr()]
            self.alive.append(result)
        elif path and kwargs.get("group_size") is None:
            spec = QuantSpec(kwargs["quant_min"], kwargs["quant_max"], False, axis=kwargs.get("axis"))
            self._note_place(path, x, ScriptFakeQuant(spec, scale, zero_point))
        return result

    def _note_place(self, path: str, x: Tensor, fake_quant: ScriptFakeQuant) -> None:
        for origin in self.of(x):
            key = self._key(path)
            self.values.places[key] = origin.clone()
            self.values.fake_quants[key] = fake_quant
            self.values.order.append(key)
            if origin._cdata in self.made_by:
                self.values.layer_of_place[key] = self.made_by[origin._cdata]

    def _key(self, path: str) -> str:
        self.calls[path] = self.calls.get(path, 0) + 1
        return path if self.calls[path] == 1 else f"{path}#{self.calls[path]}"


def _state(script):
    yield from script.named_buffers()
    yield from script.named_parameters()


def _address(value) -> int | None:
    return value.data_ptr() if isinstance(value, Tensor) and value.numel() else None


def run_script(script: torch.jit.ScriptModule, args: tuple, kwargs: dict, simulate: bool) -> LayerValues:
    """The values of one call."""
    # The optimising executor may fuse; as written, the trace runs the very ops of the model.
    with torch.inference_mode(), torch.jit.optimized_execution(False), ScriptValues(script, simulate) as watch:
        watch.values.output = script(*args, **kwargs)
    return watch.values
